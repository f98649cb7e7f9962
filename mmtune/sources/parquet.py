"""``kind: parquet``, tables that hold the images themselves: one file, several, or one pattern per split."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmtune.ground.errors import DataError
from mmtune.ground.file_patterns import files_of_splits
from mmtune.sources import OpenedSplit
from mmtune.sources._column_pairs import ColumnPlan, column_pairs
from mmtune.sources._made_up_columns import made_up_cells
from mmtune.sources._pairs import Quarantine, open_pairs
from mmtune.sources._splits import ColumnSplit, HashSplit, SplitFiles, check_one_way, paths_by_split, splits_named
from mmtune.sources._table_section import TableSection


class Section(TableSection):
    """Parquet files with a row per image (or per pair of an image and a caption; equal bytes are one image).

    The image column holds the file's bytes, ``{bytes, path}`` as `datasets` writes it, or paths into ``images``. Say
    how it is split in one of three ways: ``split`` (by hash), ``splits`` (by a column) or one pattern per split::

        data: {kind: parquet, path: "shop/*.parquet", caption: "{title} by {brand}", split: {validation: 5%, test: 5%}}
        data: {kind: parquet, path: pairs.parquet, splits: {train: train, test: test}}
        data: {kind: parquet, path: vqa.parquet, question: question, answers: answers, split: {test: 5%}}
        data: {kind: parquet, path: {train: "data/train-*.parquet", test: "data/test-{000..003}.parquet"}}

    A worker reads the row group around an image: groups of about a hundred images are quick, thousands are not.
    """

    kind: Literal["parquet"] = Field(description="parquet files that hold images, or their paths, and captions")
    path: str | SplitFiles = Field(
        description="the files, as a pattern ('shop/*.parquet', 'part-{00..12}.parquet'), or one pattern per split"
    )
    images: str | None = Field(
        None, description="folder of the images where the column holds paths; null: paths start from the file's folder"
    )
    image: str = Field("image", description="column with the image's bytes, {bytes, path}, or path")
    id: str | None = Field(
        None,
        description="column that identifies the image in reports, or with question or label the row; "
        "null: the hash of its bytes, or its path",
    )
    split: HashSplit | None = Field(
        None, description="split by hash of a group: {validation: 5%, test: 5%, by: product_id}"
    )
    splits: ColumnSplit | None = Field(
        None, description="split by a column: {train: train, validation: val, test: test, column: split}"
    )

    @model_validator(mode="after")
    def _check(self) -> "Section":
        check_one_way(self.path, self.split, self.splits)
        return self

    @property
    def _patterns(self) -> dict[str, str]:
        """Split -> pattern; "" stands for files that hold all of them."""
        return paths_by_split(self.path)


def split_names(section: Section) -> tuple[str, ...]:
    """The splits that the section names; no file is opened."""
    return splits_named(section.path, section.split or section.splits)


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of a split in the order of their first rows. The image column of every file is gone through once, to
    hash the bytes and check the headers. ``seed`` changes nothing: the same images test, whatever the run's seed.

    Raises:
        DataError: files or columns are missing or damaged, all of them at once; nothing in the split is usable.
    """
    names = split_names(section)
    if split not in names:
        raise DataError(f"data has no split '{split}'; it has {', '.join(names)}")
    quarantine = Quarantine(names[0])
    files = files_of_splits(section._patterns, "data.path", ".parquet")
    plan = ColumnPlan(
        name=str(section.path),
        image=section.image,
        caption=section.rule,
        id=section.id,
        by=section.split.by if section.split else None,
        images=section.images,
        splits=section.splits,
        asked=section.asked,
    )
    return open_pairs(column_pairs(plan, files, quarantine), section.split, split, quarantine)


def write_tiny(section: Section, folder: Path) -> Section:
    """Made-up parquet files, with the bytes in them unless the section has an image folder; see `mmtune.sources`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = folder / "images" if section.images is not None else None
    rows = made_up_cells(
        split_names(section),
        image=section.image,
        rule=section.rule,
        id=section.id,
        by_hash=section.split,
        splits=section.splits,
        images=images,
        asked=section.asked,
    )
    written: dict[str, str] = {}
    for name in section._patterns:
        written[name] = str(folder / f"{name or 'pairs'}.parquet")
        there = [row for split, row in rows if name in ("", split)]
        pq.write_table(pa.Table.from_pylist(there), written[name], row_group_size=len(there) // 2 + 1)
    path = written[""] if isinstance(section.path, str) else section.path.model_copy(update=written)
    return section.model_copy(update={"path": path, "images": str(images) if images else None})
