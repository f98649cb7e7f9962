"""COCO captions: images and annotations of one file per split, or of one file split by hash."""

import json
from pathlib import Path
from typing import Any

import pytest
from picture_bytes import first_channel, image_bytes
from pydantic import ValidationError

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, split_names
from mmtune.sources.coco import Section, open_split


def write(folder: Path, name: str, images: list[Any], annotations: list[Any], pictures: str = "pictures") -> Path:
    (folder / pictures).mkdir(exist_ok=True)
    for image in images:
        if isinstance(image, dict) and "/" not in str(image.get("file_name", "/")):
            (folder / pictures / image["file_name"]).write_bytes(image_bytes(image.get("id", 0) % 256))
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def images(*ids: int) -> list[dict[str, Any]]:
    return [{"id": one, "file_name": f"{one:012d}.png", "height": 5, "width": 6} for one in ids]


def annotations(*ids: int) -> list[dict[str, Any]]:
    return [
        {"id": 10 * one + n, "image_id": one, "caption": f"{text} {one} \n"}
        for n, text in enumerate("ab")
        for one in ids
    ]


def opened(folder: Path, which: str = "train", **settings: Any) -> OpenedSplit:
    given = {"path": str(folder / "captions.json"), "images": str(folder / "pictures"), **settings}
    if isinstance(given["path"], str):
        given.setdefault("split", {})
    return open_split(Section(kind="coco", **given), which, seed=0)


def captions(found: OpenedSplit) -> dict[str, tuple[str, ...]]:
    return {sample.id: sample.captions for sample in found.samples}


def test_annotations_are_joined_to_their_images(tmp_path: Path) -> None:
    write(tmp_path, "captions.json", images(7, 3), annotations(3, 7))
    found = opened(tmp_path)
    assert captions(found) == {"000000000007.png": ("a 7", "b 7"), "000000000003.png": ("a 3", "b 3")}
    assert first_channel(found.samples[1].media.read()) == 3 and not found.bad


def test_a_file_and_a_folder_per_split(tmp_path: Path) -> None:
    write(tmp_path, "train.json", images(1, 2), annotations(1, 2), "train2017")
    write(tmp_path, "val.json", images(1, 4), annotations(1, 4), "val2017")
    path = {"train": str(tmp_path / "train.json"), "validation": str(tmp_path / "val.json")}
    folders = {"train": str(tmp_path / "train2017"), "validation": str(tmp_path / "val2017")}
    assert split_names(Section(kind="coco", path=path, images=folders)) == ("train", "validation")
    train, held = (opened(tmp_path, name, path=path, images=folders) for name in ("train", "validation"))
    assert list(captions(train)) == ["train2017/000000000001.png", "train2017/000000000002.png"]
    assert list(captions(held)) == ["val2017/000000000001.png", "val2017/000000000004.png"], "names do not collide"
    one_folder = opened(tmp_path, "validation", path={**path}, images=str(tmp_path / "train2017"))
    assert list(captions(one_folder)) == ["000000000001.png"]
    leak = opened(tmp_path, "train", path=path, images=str(tmp_path / "train2017"))
    assert "another split" in leak.bad[0].reason, "one folder: it is one image"


def test_hash_split_by_image_or_by_a_field(tmp_path: Path) -> None:
    entries = [{**image, "shop": image["id"] // 5} for image in images(*range(60))]
    write(tmp_path, "captions.json", entries, annotations(*range(60)))
    for by in (None, "shop"):
        parts = [captions(opened(tmp_path, name, split={"test": "40%", "by": by})) for name in ("train", "test")]
        assert len(parts[0]) + len(parts[1]) == len({**parts[0], **parts[1]}) == 60 and all(parts)
    shops = [{int(name[:12]) // 5 for name in part} for part in parts]
    assert not shops[0] & shops[1]
    with pytest.raises(DataError, match="data.split.by: .* has no column 'shops'; did you mean 'shop'"):
        opened(tmp_path, split={"test": "40%", "by": "shops"})


def test_bad_entries_are_quarantined(tmp_path: Path) -> None:
    listed: list[Any] = [*images(1, 2, 3), {"id": 4, "file_name": "../4.png"}, {"file_name": "5.png"}, "six"]
    listed += [{"id": 7, "file_name": "gone/7.png"}, {"id": 8}]
    said: list[Any] = [*annotations(1, 3, 4, 7, 8), {"image_id": 99, "caption": "x"}, {"caption": "x"}, None]
    said += [{"image_id": 1, "caption": 5}, {"image_id": 3, "caption": " "}, {"image_id": [1], "caption": "x"}]
    path = write(tmp_path, "captions.json", listed, said)
    found = opened(tmp_path)
    assert captions(found) == {"000000000001.png": ("a 1", "b 1"), "000000000003.png": ("a 3", "b 3")}
    reasons = {item.where.removeprefix(f"{path}: "): item.reason for item in found.bad}
    assert reasons["annotations[10]"] == "no image: image_id 99 is not among the images"
    assert reasons["annotations[11]"] == reasons["annotations[12]"] == reasons["annotations[15]"]
    assert reasons["images[4]"] == reasons["images[5]"] == "no image: the entry has no id"
    assert reasons["image 1"].startswith("caption is not text: column 'the captions', item 3 of its list holds an int")
    assert reasons["image 2"].startswith("empty caption") and reasons["image 3"].startswith("empty caption")
    assert reasons["image 4"].startswith("image outside its folder")
    assert reasons["image 8"] == "no image: column 'file_name' is empty"
    assert reasons[f"{tmp_path}/pictures/gone/7.png"] == "no such file"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [{"id": 1, "sentences": []}]}, "one of Karpathy's files; write kind: karpathy"),
        ({"images": images(1)}, "no list 'annotations' .*publishes none for its test images"),
        ({"images": [], "annotations": []}, "no list 'images'"),
        ({"images": images(1), "annotations": [{"image_id": 1, "bbox": []}]}, "no annotation in .* has a caption"),
        ([1], "holds a list, not an object"),
        ("{", "captions.json:1 is not JSON"),
        (b"\xff\xfe", "not JSON in UTF-8"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "pictures").mkdir()
    raw = content if isinstance(content, (str, bytes)) else json.dumps(content)
    (tmp_path / "captions.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.images: no such folder"):
        opened(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "caption.json").touch()
    with pytest.raises(DataError, match="data.path: no such file: .*captions.json; did you mean 'caption.json'"):
        opened(tmp_path)
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        opened(tmp_path, "test")
    for settings, message in (
        ({"path": "a.json", "images": "x"}, "path names one file"),
        ({"path": {"train": "a"}, "images": "x", "split": {}}, "delete split"),
        ({"path": {"train": "a"}, "images": {"test": "x"}}, "images names folders for test, and path names train"),
        ({"path": "a", "images": {"test": "x"}, "split": {}}, "path names one file for all splits"),
    ):
        with pytest.raises(ValidationError, match=message):
            Section(kind="coco", **settings)
