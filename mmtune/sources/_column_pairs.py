"""Parquet and arrow files to pairs: their columns checked, their rows placed in splits."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtune.ground.errors import DataError
from mmtune.sources._answers import AnswerColumns
from mmtune.sources._captions import CaptionRule
from mmtune.sources._columns import BYTES, column_names, read_rows
from mmtune.sources._pairs import Pair, Quarantine, RowReader, good_pairs, rows_by_column
from mmtune.sources._splits import ColumnSplit
from mmtune.sources._table import Row, nearest

MOST_PROBLEMS = 20
"""Problems of files that one message lists."""


@dataclass(frozen=True)
class ColumnPlan:
    """What a recipe says about files with columns.

    Attributes:
        name: what messages call the files together.
        image: column with the image's bytes, ``{bytes, path}``, or path.
        caption: the caption rule; None where no caption is read.
        id, by: optional columns.
        images: folder that paths lead into; None: they start from the file they stand in.
        splits: how a column names the split, where it does.
        asked: columns of questions, answers and labels.
    """

    name: str
    image: str
    caption: CaptionRule | None
    id: str | None
    by: str | None
    images: str | None = None
    splits: ColumnSplit | None = None
    asked: AnswerColumns = AnswerColumns()

    def reader(self, paths: Sequence[Path] = ()) -> RowReader:
        """The reader of rows; names of images start from the folder that holds all files."""
        parents = [os.path.abspath(path.parent) for path in paths] or ["."]
        return RowReader(
            image=self.image,
            caption=self.caption,
            folder=Path(self.images if self.images is not None else os.path.commonpath(parents)),
            confined=self.images is not None,
            id=self.id,
            by=self.by,
            asked=self.asked,
        )

    def wanted(self) -> list[tuple[str, str]]:
        """(setting, column) of every column that is read."""
        column = [("data.splits.column", self.splits.column)] if self.splits else []
        return self.reader().wanted() + column


def column_pairs(plan: ColumnPlan, files: Mapping[str, Sequence[Path]], quarantine: Quarantine) -> list[Pair]:
    """The good rows of all files; ``files`` maps splits ("" where rows or a hash decide) to theirs.

    Raises:
        DataError: files are damaged or lack columns, or no row is in a split that the recipe names.
    """
    if plan.images is not None and not Path(plan.images).is_dir():
        raise DataError(f"data.images: no such folder: {plan.images}")
    everything = [path for paths in files.values() for path in paths]
    _check_columns(plan, everything)
    reader = plan.reader(everything)
    pairs: list[Pair] = []
    for name, paths in files.items():
        rows = list(_rows(plan, paths))
        placed = [(row, name) for row in rows]
        if plan.splits is not None:
            placed = rows_by_column(plan.splits, rows, plan.name, quarantine)
        pairs += good_pairs(reader, placed, quarantine)
    if plan.images is not None and pairs and all(pair.image.key.startswith(BYTES) for pair in pairs):
        what = f"column '{plan.image}' holds the images themselves ({pairs[0].where})"
        raise DataError(f"data.images: {what}; leave images out")
    return pairs


def _check_columns(plan: ColumnPlan, paths: Sequence[Path]) -> None:
    """Every file can be read and has the columns; all problems in one message."""
    damaged: list[str] = []
    lacking: dict[tuple[str, str, tuple[str, ...]], list[Path]] = {}
    for path in paths:
        try:
            there = column_names(path)
        except DataError as error:
            damaged.append(str(error))
            continue
        for setting, column in plan.wanted():
            if column not in there:
                lacking.setdefault((setting, column, there), []).append(path)
    problems = [
        f"{setting}: {_files(found)} no column '{column}'{nearest(column, there)}"
        for (setting, column, there), found in lacking.items()
    ]
    problems += damaged
    if problems:
        more = f"\nand {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise DataError("\n".join(problems[:MOST_PROBLEMS]) + more)


def _files(paths: Sequence[Path]) -> str:
    """``a.parquet has``, ``12 files have (the first: a.parquet)``."""
    return f"{paths[0]} has" if len(paths) == 1 else f"{len(paths)} files (the first: {paths[0]}) have"


def _rows(plan: ColumnPlan, paths: Sequence[Path]) -> Iterator[Row]:
    """The rows of files; relative paths in them start from the file they stand in."""
    for path in paths:
        for row in read_rows(path, plan.image, [column for _, column in plan.wanted()]):
            cell = row.values[plan.image]
            if plan.images is None and isinstance(cell, str) and cell.strip() and "://" not in cell:
                row.values[plan.image] = os.path.join(os.path.abspath(path.parent), cell.strip())
            yield row
