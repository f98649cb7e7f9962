"""``kind: coop``, the few-shot splits most published scores are on: ``split_zhou_Caltech101.json`` and its like."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmtune.ground.errors import DataError
from mmtune.ground.records import a_type
from mmtune.sources import OpenedSplit, SourceSection
from mmtune.sources._annotations import listed, read_annotations, require_folders
from mmtune.sources._captions import parse_caption
from mmtune.sources._made_up import captions, make_up, picture
from mmtune.sources._pairs import Quarantine, RowReader, good_pairs, open_pairs
from mmtune.sources._table import Row

SPLITS = ("train", "validation", "test")
NAMES = {"train": "train", "val": "validation", "test": "test"}
"""The file's name of a split -> ours."""


class Section(SourceSection):
    """CoOp's splits of Caltech101, Oxford Pets, Flowers102, Food101, EuroSAT and others, one file for all splits.

    The file holds a list for each of ``train``, ``val`` and ``test``; an entry is ``[path, number of the class, name of
    the class]``. The caption is the class's name, as it is written there::

        data: {kind: coop, path: split_zhou_EuroSAT.json, images: 2750}

    Source: Zhou et al. 2022, https://arxiv.org/abs/2109.01134, and the files published with it.
    """

    kind: Literal["coop"] = Field(description="CoOp's few-shot splits, split_zhou_*.json")
    path: str = Field(description="the file, such as split_zhou_EuroSAT.json")
    images: str = Field(description="folder that the paths in the file start from")


def split_names(section: Section) -> tuple[str, ...]:
    """``train``, ``validation`` and ``test``; no file is opened."""
    return SPLITS


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of a split in the order of the file, each with its class as caption. ``seed`` changes nothing.

    Raises:
        DataError: file or folder are missing, the file is of another format, or nothing in the split is usable.
    """
    if split not in SPLITS:
        raise DataError(f"data has no split '{split}'; it has {', '.join(SPLITS)}")
    require_folders({"data.images": section.images})
    quarantine = Quarantine(SPLITS[0])
    reader = RowReader(image="file", caption=parse_caption("class"), folder=Path(section.images), confined=True)
    pairs = good_pairs(reader, _rows(section, quarantine), quarantine)
    return open_pairs(pairs, None, split, quarantine)


def _rows(section: Section, quarantine: Quarantine) -> Iterator[tuple[Row, str]]:
    """A row per entry, and its split; a number that stands for two names is a damaged file.

    Raises:
        DataError: it is no such file.
    """
    path = Path(section.path)
    values = read_annotations(path, "data.path")
    hint = f"; a file of CoOp's has {', '.join(NAMES)}"
    entries = {name: listed(values, name, path, "data.path", hint) for name in NAMES}
    _refuse_mixed(path, entries)
    for name, rows in entries.items():
        for number, entry in enumerate(rows):
            where = f"{path}: {name}[{number}]"
            if not _is_entry(entry):
                held = f"{a_type(entry)} of {len(entry)}" if isinstance(entry, list) else a_type(entry)
                quarantine.add(where, f"no entry: it holds {held}, not [path, number, class]", NAMES[name])
                continue
            yield Row(where, {"file": entry[0], "class": entry[2]}), NAMES[name]


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and isinstance(entry[2], str)


def _refuse_mixed(path: Path, entries: dict[str, list[Any]]) -> None:
    """Raises: DataError: classes whose number has another name elsewhere in the file."""
    names: dict[Any, str] = {}
    for entry in (each for rows in entries.values() for each in rows if _is_entry(each)):
        first = names.setdefault(str(entry[1]), entry[2])
        if first != entry[2]:
            raise DataError(f"data.path: {path}: class {entry[1]} is called {first!r} and {entry[2]!r}; mend the file")


def write_tiny(section: Section, folder: Path) -> Section:
    """A made-up file and its images; see `mmtune.sources`."""
    names = {ours: theirs for theirs, ours in NAMES.items()}
    entries: dict[str, list[Any]] = {name: [] for name in NAMES}
    (folder / "images").mkdir(parents=True)
    for one in make_up(SPLITS):
        (folder / "images" / f"{one.name}.png").write_bytes(picture(one.number))
        entries[names[one.split]].append([f"{one.name}.png", one.number, captions(one.number)[0]])
    path = folder / "split.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return section.model_copy(update={"path": str(path), "images": str(folder / "images")})
