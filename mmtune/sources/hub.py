"""``kind: hub``, a data set of the hub, or a folder that `datasets` wrote."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit
from mmtune.sources._column_pairs import ColumnPlan, column_pairs
from mmtune.sources._hub_cache import Files, find_files
from mmtune.sources._made_up_columns import made_up_cells
from mmtune.sources._pairs import Quarantine, open_pairs
from mmtune.sources._splits import HashSplit, SplitLists
from mmtune.sources._table import nearest
from mmtune.sources._table_section import TableSection


class Section(TableSection):
    """A data set of the hub in the local cache (fetched where it is not), or a local folder of one.

    The image column is an ``Image`` feature, bytes or paths; the caption is a text column, a list column, or a
    template over columns, in which class labels stand by their names::

        data: {kind: hub, id: owner/name, caption: text, splits: {train: train, validation: validation, test: test}}
        data: {kind: hub, id: owner/name, revision: 5c1e6f..., caption: "a photo of a {label}", split: {test: 5%}}
        data: {kind: hub, id: ./saved, caption: captions, splits: {train: train, test: [test, extra]}}
        data: {kind: hub, id: owner/vqa, question: question, answers: answers, splits: {train: train, test: validation}}

    A folder is what ``save_to_disk`` wrote, or holds parquet or arrow files. No code of a repository is run, and with
    HF_HUB_OFFLINE set nothing is asked. Images are decoded here, not by `datasets`.
    """

    kind: Literal["hub"] = Field(description="a data set of the hub, or a local folder of one")
    id: str = Field(min_length=1, description="owner/name, or a folder (save_to_disk, parquet or arrow files)")
    name: str | None = Field(None, description="the data set's configuration, where it has several")
    revision: str | None = Field(
        None, description="branch, tag or commit; only a commit stays the same; null: the default branch"
    )
    image: str = Field("image", description="column with the image")
    split: HashSplit | None = Field(
        None,
        description="split all rows of the data set together by hash: {validation: 5%, test: 5%, by: product_id}",
    )
    splits: SplitLists | None = Field(
        None, description="the data set's own splits: {train: train, validation: validation, test: [test, extra]}"
    )

    @model_validator(mode="after")
    def _check(self) -> "Section":
        if self.split is not None and self.splits is not None:
            raise ValueError("split is by hash and splits takes the data set's own; delete one of them")
        if self.split is None and self.splits is None:
            raise ValueError(
                "how is the data set split? write splits: {train: train, validation: validation, test: test} (its own "
                "names behind the colons), or split: {validation: 5%, test: 5%} (by hash)"
            )
        return self


def split_names(section: Section) -> tuple[str, ...]:
    """The splits that the section names; nothing is opened or asked."""
    if section.splits is not None:
        return tuple(section.splits.names)
    return section.split.names if section.split is not None else ()


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of a split in the order of its rows; the files are gone through as ``kind: parquet`` does.
    ``seed`` changes nothing.

    Raises:
        DataError: the data set, a split or a column is not there, the hub cannot be reached and the cache lacks it, or
            nothing in the split is usable.
    """
    names = split_names(section)
    if split not in names:
        raise DataError(f"data has no split '{split}'; it has {', '.join(names)}")
    quarantine = Quarantine(names[0])
    found = find_files(section.id, section.name, section.revision)
    plan = ColumnPlan(
        name=section.id,
        image=section.image,
        caption=section.rule,
        id=None,
        by=section.split.by if section.split else None,
        asked=section.asked,
    )
    pairs = column_pairs(plan, _chosen(section, found), quarantine)
    return replace(open_pairs(pairs, section.split, split, quarantine), notes=(found.source,))


def _chosen(section: Section, found: Files) -> dict[str, list[Path]]:
    """Our split ("" where a hash decides) -> files.

    Raises:
        DataError: the data set lacks splits that the recipe names, all of them, with the nearest names.
    """
    if section.splits is None:
        return {"": [path for files in found.splits.values() for path in files]}
    there = tuple(found.splits)
    problems = [
        f"data.splits.{ours}: {section.id} has no split '{theirs}'{nearest(theirs, there)}"
        for ours, names in section.splits.names.items()
        for theirs in names
        if theirs not in found.splits
    ]
    if problems:
        raise DataError("\n".join(problems))
    return {
        str(ours): [path for theirs in names for path in found.splits[theirs]]
        for ours, names in section.splits.names.items()
    }


def write_tiny(section: Section, folder: Path) -> Section:
    """A made-up data set as ``save_to_disk`` writes it, with the section's names of splits; see `mmtune.sources`."""
    import pyarrow as pa

    rows = made_up_cells(
        split_names(section), image=section.image, rule=section.rule, by_hash=section.split, asked=section.asked
    )
    names = {str(ours): theirs for ours, theirs in section.splits.names.items()} if section.splits else {"": ["train"]}
    for ours, theirs in names.items():
        there = [row for split, row in rows if ours in ("", split)]
        for number, name in enumerate(theirs):
            table = pa.Table.from_pylist(there[number :: len(theirs)])
            (folder / name).mkdir(parents=True)
            with (
                pa.OSFile(str(folder / name / "data.arrow"), "wb") as file,
                pa.ipc.new_stream(file, table.schema) as out,
            ):
                out.write_table(table)
            state = {"_data_files": [{"filename": "data.arrow"}], "_split": name}
            (folder / name / "state.json").write_text(json.dumps(state), encoding="utf-8")
    listed = {"splits": [name for theirs in names.values() for name in theirs]}
    (folder / "dataset_dict.json").write_text(json.dumps(listed), encoding="utf-8")
    return section.model_copy(update={"id": str(folder), "name": None, "revision": None})
