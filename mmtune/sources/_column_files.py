"""Parquet and arrow files: which is which, and how a few rows or one cell of them are read."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 64
"""Rows that are in memory together while a file is gone through."""

Stamp = tuple[int, int]
"""(bytes, nanoseconds of the last change): what is known of a file holds as long as they stay."""


def stamp_of(path: str | Path) -> Stamp:
    """What tells whether a file is still the same.

    Raises:
        DataError: it is gone.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class ParquetFile:
    """A parquet file. No threads and no reading ahead: workers are forked, and one cell is wanted at a time."""

    path: str
    schema: "pa.Schema"
    footer: Any

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return int(self.footer.num_row_groups)

    def num_bytes(self, group: int) -> int:
        """What the group takes in memory."""
        return int(self.footer.row_group(group).total_byte_size)

    def batches(self, group: int, columns: Sequence[str]) -> "Iterator[pa.RecordBatch]":
        """The rows of a group, a few at a time."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path, metadata=self.footer, pre_buffer=False) as file:
            yield from file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=list(columns), use_threads=False)

    def cells(self, group: int, column: str) -> "pa.ChunkedArray":
        """One column (or the bytes in it) of a whole group."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path, metadata=self.footer, pre_buffer=False) as file:
            table = file.read_row_group(group, columns=[column], use_threads=False)
        return _flat(table, column)


@dataclass(frozen=True)
class ArrowFile:
    """An arrow file, mapped into memory: the system reads what is touched."""

    table: "pa.Table"
    offsets: tuple[int, ...]

    @property
    def schema(self) -> "pa.Schema":
        """Columns and types."""
        return self.table.schema

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self.offsets) - 1

    def num_bytes(self, group: int) -> int:
        """Nothing that counts: the file is not copied."""
        return 0

    def batches(self, group: int, columns: Sequence[str]) -> "Iterator[pa.RecordBatch]":
        """The rows of a group, a few at a time."""
        start, end = self.offsets[group : group + 2]
        part = self.table.slice(start, end - start)
        yield from (part.select(list(columns)) if columns else part).to_batches(ROWS_AT_ONCE)

    def cells(self, group: int, column: str) -> "pa.ChunkedArray":
        """One column (or the bytes in it) of a whole group."""
        start, end = self.offsets[group : group + 2]
        return _flat(self.table.select([column.partition(".")[0]]).slice(start, end - start), column)


def _flat(table: "pa.Table", column: str) -> "pa.ChunkedArray":
    import pyarrow.compute as pc

    found = table.column(0)
    return pc.struct_field(found, "bytes") if column.endswith(".bytes") and found.type.num_fields else found


@lru_cache(maxsize=256)
def opened_file(path: str, stamp: Stamp) -> ParquetFile | ArrowFile:
    """A file by its content, known for as long as it stays the same.

    Raises:
        DataError: it is damaged, or neither parquet nor arrow.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with explained(path):
        with open(path, "rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if is_parquet:
            with pq.ParquetFile(path, pre_buffer=False) as parquet:
                return ParquetFile(path, parquet.schema_arrow, parquet.metadata)
        mapped = pa.memory_map(path)
        try:
            table = pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(pa.memory_map(path)).read_all()
        table.validate(full=True)  # or a damaged file would lead outside the memory that it is mapped to
        offsets = [0]
        for batch in table.to_batches():
            offsets.append(offsets[-1] + batch.num_rows)
        return ArrowFile(table, tuple(offsets))


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn what pyarrow raises into one line about the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged, or neither parquet nor arrow: {first}") from error
