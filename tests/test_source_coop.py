"""CoOp's split files: classes as captions, what is damaged set aside, what is no such file refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtune.ground.errors import DataError
from mmtune.sources.coop import Section, open_split

ENTRIES: dict[str, list[Any]] = {
    "train": [["a/0.png", 0, "annual_crop"], ["a/1.png", 1, "forest"], ["a/2.png", 0, "annual_crop"]],
    "val": [["a/3.png", 1, "forest"]],
    "test": [["a/4.png", 1, "forest"], ["a/5.png", 0, "annual_crop"]],
}


def made(folder: Path, entries: dict[str, Any]) -> Section:
    (folder / "images" / "a").mkdir(parents=True, exist_ok=True)
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(folder / "images" / "a" / f"{number}.png")
    (folder / "split.json").write_text(json.dumps(entries))
    return Section(kind="coop", path=str(folder / "split.json"), images=str(folder / "images"))


def test_every_split_with_its_classes_as_they_are_written(tmp_path: Path) -> None:
    section = made(tmp_path, ENTRIES)
    found = {split: open_split(section, split, seed=0) for split in ("train", "validation", "test")}
    assert [one.captions for one in found["train"].samples] == [("annual_crop",), ("forest",), ("annual_crop",)]
    assert [one.captions for one in found["validation"].samples] == [("forest",)]
    assert [Path(one.media.where).name for one in found["test"].samples] == ["4.png", "5.png"]
    assert not any(one.bad for one in found.values())


def test_damaged_entries_are_set_aside_with_their_place(tmp_path: Path) -> None:
    damaged = {**ENTRIES, "train": [*ENTRIES["train"], ["a/9.png", 1, "forest"], ["a/1.png", 1], "a/1.png"]}
    opened = open_split(made(tmp_path, damaged), "train", seed=0)
    assert len(opened.samples) == 3
    said = "\n".join(f"{item.where} {item.reason}" for item in opened.bad)
    assert "9.png" in said and "train[4]" in said and "train[5]" in said and "a list of 2" in said and "a str" in said


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no list 'val'.*a file of CoOp's has train, val, test"):
        open_split(made(tmp_path, {"train": ENTRIES["train"], "images": []}), "train", seed=0)
    mixed = {**ENTRIES, "val": [["a/3.png", 1, "woods"]]}
    with pytest.raises(DataError, match="class 1 is called 'forest' and 'woods'"):
        open_split(made(tmp_path, mixed), "train", seed=0)
    with pytest.raises(DataError, match="no split 'val'; it has train, validation, test"):
        open_split(made(tmp_path, ENTRIES), "val", seed=0)
