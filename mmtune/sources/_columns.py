"""Tables by columns (parquet and arrow files) whose cells hold the images: read by row group, never as a whole.

The image column is gone through once per file and process, to know every image by its bytes; what stays in memory of
it is 16 bytes per row. The text columns are read each time they are asked for.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import DataError
from mmtune.ground.image_reading import check_header, read_image
from mmtune.ground.records import ContentStamp, a_type, printable
from mmtune.sources._column_files import Stamp, explained, opened_file, stamp_of
from mmtune.sources._pairs import Located, Unusable
from mmtune.sources._table import Row

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

BYTES = "bytes:"
"""What the key of an image begins with that is known by its bytes."""

GROUP_LIMIT = 2**26
"""Bytes of a row group above which it is gone through for each image instead of being held; a worker holds two."""


@dataclass(frozen=True, slots=True)
class CellImage:
    """A reference to the image in a cell of a parquet or arrow file.

    Attributes:
        path: the file.
        stamp: what the file was when it was gone through.
        column: the column, ``image`` or ``image.bytes``.
        group: row group of a parquet file, record batch of an arrow file.
        row: row within the group.
        number: row within the file, from 1, for people.
        key: hash of the bytes: equal bytes are the same image, in whatever row or file.
    """

    path: str
    stamp: Stamp
    column: str
    group: int
    row: int
    number: int
    key: str

    @property
    def where(self) -> str:
        """``file: row number``."""
        return printable(f"{self.path}: row {self.number}")

    def check(self) -> str | None:
        """Nothing: the header was checked when the file was gone through."""
        return None

    def content_stamp(self) -> ContentStamp:
        """The hash of the bytes: nothing else has it."""
        return f"bytes {self.key}", 0, 0, 0

    def read(self) -> "Image":
        """The decoded RGB image; reads the cell's row group.

        Raises:
            DataError: as `read_image`, or the file has changed since it was gone through.
        """
        if stamp_of(self.path) != self.stamp:
            raise DataError(f"{self.where}: the file changed: it is not what it was when the run began")
        return read_image(_cell(self.path, self.stamp, self.column, self.group, self.row), self.where)


class _End:
    """Stands where one of two columns has ended."""


_END = _End()

_Fact = bytes | str | Unusable | None
"""What an image cell holds: the hash of its bytes, a path, bytes that are no image, or nothing."""


def column_names(path: Path) -> tuple[str, ...]:
    """The columns of a file.

    Raises:
        DataError: it is damaged, or neither parquet nor arrow.
    """
    with explained(str(path)):
        return tuple(opened_file(str(path), stamp_of(path)).schema.names)


def read_rows(path: Path, image: str, columns: Iterable[str]) -> list[Row]:
    """The rows of a file with the columns asked for.

    The image's cell becomes a `Located` where it holds bytes, `Unusable` where it is no image, else it is the path.
    Numbers of a class label become the label's name.

    Raises:
        DataError: the file is damaged; it has other columns.
    """
    stamp = stamp_of(path)
    rows: list[Row] = []
    facts = _image_facts(str(path), stamp, image)
    leaf = _leaf(opened_file(str(path), stamp).schema, image)
    places = _read(path, stamp, [name for name in dict.fromkeys(columns) if name != image])
    for number, (place, fact) in enumerate(zip_longest(places, facts, fillvalue=_END), start=1):
        if isinstance(place, _End) or isinstance(fact, _End):
            raise DataError(f"{path} is damaged: its columns are not of one length")
        group, row, values = place
        cell: object = fact
        if isinstance(fact, bytes):
            media = CellImage(str(path), stamp, leaf, group, row, number, f"{BYTES}{fact.hex()}")
            cell = Located(fact.hex(), media)
        rows.append(Row(f"{path}: row {number}", {**values, image: cell}))
    return rows


@lru_cache(maxsize=4096)
def _image_facts(path: str, stamp: Stamp, image: str) -> tuple[_Fact, ...]:
    """The image column of a whole file, gone through a few rows at a time."""
    return tuple(_fact(values[image]) for _, _, values in _read(Path(path), stamp, [image]))


def _fact(value: object) -> _Fact:
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        content = value.get("bytes")
        value = content if content is not None else value.get("path")
    if isinstance(value, bytes):
        problem = check_header(value)
        return Unusable(problem) if problem else hashlib.blake2b(value, digest_size=16).digest()
    if value is None or isinstance(value, str):
        return value
    return Unusable(f"no image: the cell holds {a_type(value)}, not bytes or a path")


def _read(path: Path, stamp: Stamp, columns: Sequence[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(group, row within the group, cells) of every row."""
    opened = opened_file(str(path), stamp)
    labels = _class_labels(opened.schema)
    with explained(str(path)):
        for group in range(opened.num_groups):
            row = 0
            for batch in opened.batches(group, columns):
                for values in _values(batch) if columns else [{}] * batch.num_rows:
                    yield group, row, {name: _plain(cell, labels.get(name)) for name, cell in values.items()}
                    row += 1


def _values(batch: "pa.RecordBatch") -> list[dict[str, Any]]:
    """The rows of a batch; text that is not UTF-8 stays bytes, which are no caption."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        names = batch.schema.names
        rows = [{name: _value(batch.column(name)[row]) for name in names} for row in range(batch.num_rows)]
    return rows


def _value(cell: "pa.Scalar") -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return b"not UTF-8"


def _plain(cell: object, labels: Sequence[str] | None) -> object:
    """A cell as JSON would hold it (bytes stay); times and decimals become text."""
    if labels is not None and isinstance(cell, int):
        return labels[cell] if 0 <= cell < len(labels) else None
    if cell is None or isinstance(cell, (str, int, float, bool, bytes, list, dict)):
        return cell
    return str(cell)


def _class_labels(schema: "pa.Schema") -> dict[str, list[str]]:
    """The names behind the numbers of class labels, as datasets writes them into the file."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    found = features.items() if isinstance(features, dict) else ()
    return {
        name: list(what["names"])
        for name, what in found
        if isinstance(what, dict) and what.get("_type") == "ClassLabel" and isinstance(what.get("names"), list)
    }


def _leaf(schema: "pa.Schema", column: str) -> str:
    """``image.bytes`` where the column is a struct, so that nothing else of it is read."""
    import pyarrow as pa

    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def _cell(path: str, stamp: Stamp, column: str, group: int, row: int) -> bytes:
    opened = opened_file(path, stamp)
    if opened.num_bytes(group) <= GROUP_LIMIT:
        content: bytes = _cells(path, stamp, column, group)[row].as_py()
        return content
    with explained(path):
        for batch in opened.batches(group, [column]):
            if row < batch.num_rows:
                break
            row -= batch.num_rows
    found = batch.column(0)[row].as_py()
    return found["bytes"] if isinstance(found, dict) else found


@lru_cache(maxsize=2)
def _cells(path: str, stamp: Stamp, column: str, group: int) -> "pa.ChunkedArray":
    """One column of one group; the last two stay in memory, for neighbours in the order of an epoch."""
    with explained(path):
        return opened_file(path, stamp).cells(group, column)
