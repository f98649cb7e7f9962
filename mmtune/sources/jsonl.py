"""``kind: jsonl``, your own pairs: a table (JSON lines, CSV or TSV) that names images in a folder."""

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, SourceSection
from mmtune.sources._captions import parse_caption
from mmtune.sources._pairs import Pair, Quarantine, RowReader, good_pairs, open_pairs
from mmtune.sources._splits import ColumnSplit, HashSplit, SplitFiles
from mmtune.sources._table import (
    SUFFIXES,
    Row,
    TableFormat,
    as_text,
    format_of,
    is_missing,
    read_table,
    require_columns,
)


class Section(SourceSection):
    """A table with one row per pair of an image and a caption; rows of one image become one sample.

    Say how it is split in one of three ways: ``split`` (by hash), ``splits`` (by a column) or one file per split::

        data: {kind: jsonl, path: pairs.csv, images: photos, caption: "{title} by {brand}",
               split: {validation: 5%, test: 5%, by: product_id}}
        data: {kind: jsonl, path: pairs.jsonl, images: photos, splits: {train: train, validation: val, test: test}}
        data: {kind: jsonl, path: {train: train.jsonl, validation: val.jsonl}, images: photos}
    """

    kind: Literal["jsonl"] = Field(description="a table of images and captions: JSON lines, CSV or TSV, in UTF-8")
    path: str | SplitFiles = Field(description="the table, or one table per split: {train: a.csv, test: b.csv}")
    format: TableFormat | None = Field(
        None, description=f"null: by the file's ending ({', '.join(SUFFIXES)}); CSV and TSV need a header line"
    )
    images: str | None = Field(
        None,
        description="folder that holds the images, paths may not lead out of it; "
        "null: paths are absolute or start from the table's folder",
    )
    image: str = Field("image", description="column with the image's path")
    caption: str = Field(
        "caption",
        description="column with the caption or with a list of captions, or a template over columns: "
        "'{title} by {brand}'",
    )
    id: str | None = Field(None, description="column that identifies the image in reports; null: the image's path")
    split: HashSplit | None = Field(
        None, description="split one table by hash of a group: {validation: 5%, test: 5%, by: product_id}"
    )
    splits: ColumnSplit | None = Field(
        None, description="split one table by a column: {train: train, validation: val, test: test, column: split}"
    )

    @field_validator("caption")
    @classmethod
    def _check_caption(cls, text: str) -> str:
        parse_caption(text)
        return text

    @model_validator(mode="after")
    def _check(self) -> "Section":
        one_file = isinstance(self.path, str)
        given = [name for name in ("split", "splits") if getattr(self, name) is not None]
        if not one_file and given:
            raise ValueError(f"path names one file per split already; delete {' and '.join(given)}")
        if len(given) == 2:
            raise ValueError("split is by hash and splits is by a column; delete one of them")
        if one_file and not given:
            raise ValueError(
                "how is the table split? write split: {validation: 5%, test: 5%} (by hash), "
                "splits: {train: train, validation: val, test: test} (by a column), or one file per split in path"
            )
        if self.format is None:
            for path in self._files.values():
                format_of(path)
        return self

    @property
    def _files(self) -> dict[str, str]:
        """Split -> file; "" stands for a file that holds all of them."""
        if isinstance(self.path, str):
            return {"": self.path}
        return {str(name): path for name, path in self.path.files.items()}


def split_names(section: Section) -> tuple[str, ...]:
    """The splits that the section names; no file is opened."""
    if isinstance(section.path, SplitFiles):
        return tuple(section.path.files)
    chosen = section.split or section.splits
    return chosen.names if chosen is not None else ()


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of a split in the order of their first rows. Every line of the table and every image header of the
    split is checked here. ``seed`` changes nothing: the same images test, whatever the run's seed.

    An image that two splits claim stays in the one that is held out most (test, then validation); its rows in the
    others are quarantined. Lines that cannot be read count for the first split.

    Raises:
        DataError: a file, column or split is missing, or nothing in the split is usable.
    """
    names = split_names(section)
    if split not in names:
        raise DataError(f"data has no split '{split}'; it has {', '.join(names)}")
    quarantine = Quarantine(names[0])
    pairs = [pair for name in section._files for pair in _read_pairs(section, name, quarantine)]
    return open_pairs(pairs, section.split, split, quarantine)


def _read_pairs(section: Section, name: str, quarantine: Quarantine) -> list[Pair]:
    """The good rows of one file (that of the split ``name``, or "" for the one that holds all splits)."""
    path = Path(section._files[name])
    folder = Path(section.images) if section.images is not None else path.parent
    if not folder.is_dir():
        raise DataError(f"data.images: no such folder: {folder}")
    reader = RowReader(
        image=section.image,
        caption=parse_caption(section.caption),
        folder=folder,
        confined=section.images is not None,
        id=section.id,
        by=section.split.by if section.split else None,
    )
    table = read_table(path, section.format or format_of(path))
    column = [("data.splits.column", section.splits.column)] if section.splits else []
    require_columns(table, reader.wanted() + column)
    for item in table.bad:
        quarantine.add(item.where, item.reason, name)
    rows = [(row, name) for row in table.rows]
    if section.splits is not None:
        rows = _splits_of(section.splits, table.rows, path, quarantine)
    return good_pairs(reader, rows, quarantine)


def _splits_of(splits: ColumnSplit, rows: tuple[Row, ...], path: Path, quarantine: Quarantine) -> list[tuple[Row, str]]:
    """Rows with the split that the column gives them; those of unlisted values are left out, as the recipe says."""
    name_of, seen = splits.name_of, Counter[str]()
    found: list[tuple[Row, str]] = []
    for row in rows:
        value = as_text(row.values.get(splits.column)).strip()
        if is_missing(value):
            quarantine.add(row.where, f"empty cell: column '{splits.column}'")
            continue
        seen[value] += 1
        if value in name_of:
            found.append((row, name_of[value]))
    splits.check_values(seen, str(path))
    return found
