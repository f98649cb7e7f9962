"""Karpathy's splits: one file, its own split names, restval as training images."""

import json
from pathlib import Path
from typing import Any

import pytest
from picture_bytes import image_bytes

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, split_names
from mmtune.sources.karpathy import Section, open_split


def entry(number: int, split: Any, folder: str | None = None, **changes: Any) -> dict[str, Any]:
    sentences = [{"raw": f"{text} {number}.", "tokens": [text], "imgid": number} for text in ("one", "two")]
    found = {"filename": f"{number}.png", "split": split, "sentences": sentences, "imgid": number}
    return {**found, **({"filepath": folder} if folder else {}), **changes}


def write(folder: Path, *entries: Any) -> Path:
    for one in entries:
        if isinstance(one, dict) and "filename" in one:
            path = folder / "images" / one.get("filepath", "") / one["filename"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(one["imgid"]))
    (folder / "dataset.json").write_text(json.dumps({"dataset": "coco", "images": list(entries)}))
    return folder / "dataset.json"


def opened(folder: Path, which: str = "train", **settings: Any) -> OpenedSplit:
    section = Section(kind="karpathy", path=str(folder / "dataset.json"), images=str(folder / "images"), **settings)
    assert split_names(section) == ("train", "validation", "test")
    return open_split(section, which, seed=0)


def captions(found: OpenedSplit) -> dict[str, tuple[str, ...]]:
    return {sample.id: sample.captions for sample in found.samples}


def test_splits_and_restval(tmp_path: Path) -> None:
    entries = [entry(1, "train"), entry(2, "val"), entry(3, "test"), entry(4, "restval", "val2014"), entry(5, "test")]
    write(tmp_path, *entries)
    assert captions(opened(tmp_path)) == {"1.png": ("one 1.", "two 1."), "val2014/4.png": ("one 4.", "two 4.")}
    assert list(captions(opened(tmp_path, restval=False))) == ["1.png"]
    assert list(captions(opened(tmp_path, "validation"))) == ["2.png"]
    assert list(captions(opened(tmp_path, "test"))) == ["3.png", "5.png"]
    assert not opened(tmp_path).bad


def test_bad_entries_are_quarantined(tmp_path: Path) -> None:
    texts = [{"raw": "good"}, {"raw": None}, "bare", {"tokens": ["x"]}]
    entries = [entry(1, "train", sentences=texts), entry(2, "holdout"), entry(3, "train", sentences=[]), "four"]
    entries += [entry(5, "train", sentences=5), entry(6, None), entry(7, "train", filename="../7.png")]
    path = write(tmp_path, *entries)
    (tmp_path / "images" / "3.png").unlink()
    found = opened(tmp_path)
    assert captions(found) == {"1.png": ("good", "bare")}
    reasons = {(item.where.removeprefix(f"{path}: "), item.reason.split(":")[0]) for item in found.bad}
    assert reasons == {
        ("images[0]", "empty caption"),
        ("images[1]", "image is in no split"),
        ("images[2]", "empty caption"),
        ("images[3]", "image is in no split"),
        ("images[4]", "empty caption"),
        ("images[5]", "image is in no split"),
        ("images[6]", "image outside its folder"),
    }


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.images: no such folder"):
        opened(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no such file: .*dataset.json"):
        opened(tmp_path)
    write(tmp_path, entry(1, "learn"))
    with pytest.raises(DataError, match="is in train, val, test, restval; the splits are learn"):
        opened(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [{"id": 1}], "annotations": []}))
    with pytest.raises(DataError, match="COCO's own format: write kind: coco"):
        opened(tmp_path)
    write(tmp_path, entry(1, "train"))
    with pytest.raises(DataError, match="split 'test' has no usable image"):
        opened(tmp_path, "test")
    with pytest.raises(DataError, match="data has no split 'val'; it has train"):
        opened(tmp_path, "val")
