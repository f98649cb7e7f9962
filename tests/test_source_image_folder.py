"""Folders of images: classes from folder names, or rows of a metadata file, split by folder or by hash."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, split_names
from mmtune.sources.image_folder import Section, open_split


def draw(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def write_metadata(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def opened(folder: Path, which: str = "train", /, **settings: Any) -> OpenedSplit:
    return open_split(Section(kind="image_folder", path=str(folder), **settings), which, seed=0)


def captions(result: OpenedSplit) -> dict[str, tuple[str, ...]]:
    return {sample.id: sample.captions for sample in result.samples}


# --- class folders


def test_classes_and_split_folders(tmp_path: Path) -> None:
    draw(tmp_path, "train/great_tit/b.png", "train/great_tit/a.jpg", "train/owl/c.webp", "val/owl/d.png")
    section = Section(kind="image_folder", path=str(tmp_path))
    assert split_names(section) == ("train", "validation")
    train = opened(tmp_path)
    assert captions(train) == {
        "train/great_tit/a.jpg": ("a photo of a great tit",),
        "train/great_tit/b.png": ("a photo of a great tit",),
        "train/owl/c.webp": ("a photo of a owl",),
    }
    assert list(captions(train)) == sorted(captions(train)), "the order does not depend on the disk"
    assert train.samples[0].columns == {"class": "great tit"} and train.samples[0].group == train.samples[0].id
    assert captions(opened(tmp_path, "validation", caption="bird: {class}")) == {"val/owl/d.png": ("bird: owl",)}


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode here")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Linux takes any bytes for a name: a file's is written escaped, a class's would be a caption and is bad."""
    strange = "\udce9"  # the byte of é in Latin-1, as Python reads it
    draw(tmp_path, f"train/owl/caf{strange}.png", f"train/h{strange}ron/a.png", f"train/h{strange}ron/b{strange}.png")
    found = opened(tmp_path, max_bad_fraction=0.9)
    assert captions(found) == {r"train/owl/caf\udce9.png": ("a photo of a owl",)}
    assert found.samples[0].media.read().size == (4, 4), "the reference keeps the name's bytes"
    assert {item.reason for item in found.bad} == {
        r"caption is not UTF-8: column 'class' holds 'h\udce9ron'; rename the folder"
    }
    assert [Path(item.where).name for item in found.bad] == ["a.png", r"b\udce9.png"]
    by_column = opened(tmp_path, caption="class", max_bad_fraction=0.9)
    assert by_column.bad == found.bad
    by_hash = opened(tmp_path / "train", split={"test": "0%", "by": "class"}, max_bad_fraction=0.9)
    assert list(captions(by_hash)) == [r"owl/caf\udce9.png"]


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_names_of_the_validation_folder(tmp_path: Path, name: str) -> None:
    draw(tmp_path, "train/a/1.png", f"{name}/a/2.png", "test/a/3.png")
    assert split_names(Section(kind="image_folder", path=str(tmp_path))) == ("train", "validation", "test")
    assert list(captions(opened(tmp_path, "validation"))) == [f"{name}/a/2.png"]


def test_hash_split_of_class_folders(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{kind}/{number}.png" for kind in ("owl", "tit") for number in range(60)))
    split = {"validation": "20%", "test": "20%"}
    found = [set(captions(opened(tmp_path, name, split=split))) for name in ("train", "validation", "test")]
    assert sum(map(len, found)) == len(set.union(*found)) == 120 and all(found)
    by_class = {"test": "50%", "by": "class"}
    names = [name for name in ("train", "test") if _classes(tmp_path, name, by_class)]
    seen = [_classes(tmp_path, name, by_class) for name in names]
    assert sorted(kind for kinds in seen for kind in kinds) == ["owl", "tit"], "no class is in two splits"


def _classes(folder: Path, which: str, split: dict[str, str]) -> set[str]:
    try:
        return {sample.columns["class"] for sample in opened(folder, which, split=split).samples}
    except DataError:
        return set()


def test_files_that_are_no_images(tmp_path: Path) -> None:
    draw(tmp_path, "train/owl/a.png", "train/owl/.hidden.png", "train/.cache/b.png", "train/lost.png")
    (tmp_path / "train/owl/notes.txt").write_text("x")
    (tmp_path / "train/owl/phone.heic").write_bytes(b"\0\0\0\x20ftypheic\0\0\0\0mif1heic")
    (tmp_path / "train/owl/empty.jpg").write_bytes(b"")
    result = opened(tmp_path)
    assert list(captions(result)) == ["train/owl/a.png"]
    found = {Path(item.where).name: item.reason for item in result.bad}
    assert found.keys() == {"phone.heic", "empty.jpg", "lost.png"} and result.num_seen == 4
    assert found["lost.png"].startswith("empty caption: column 'class'"), "it lies in no class folder"
    assert "HEIC" in found["phone.heic"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    draw(tmp_path, "elsewhere/a.png", "data/train/tit/b.png")
    (tmp_path / "data/train/owl").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/train/tit/loop").symlink_to(tmp_path / "data/train")
    assert sorted(captions(opened(tmp_path / "data"))) == ["train/owl/a.png", "train/tit/b.png"]


def test_image_linked_into_two_splits_is_held_out(tmp_path: Path) -> None:
    draw(tmp_path, "train/owl/a.png", "train/owl/b.png", "test/owl/c.png")
    (tmp_path / "test/owl/a.png").symlink_to(tmp_path / "train/owl/a.png")
    assert list(captions(opened(tmp_path))) == ["train/owl/b.png"]
    assert "another split" in opened(tmp_path).bad[0].reason
    assert sorted(captions(opened(tmp_path, "test"))) == ["test/owl/a.png", "test/owl/c.png"]


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["owl/a.png"], {}, "no folder train, validation or test; make them, or split by hash"),
        (["train/owl/a.png"], {"split": {"test": "5%"}}, "has the folders train; delete `split`"),
        (["train/a/1.png", "val/a/1.png", "validation/a/2.png"], {}, "has both validation and val"),
        (["train/owl/a.txt.png"], {"caption": "{breed}"}, "no column 'breed'.*there are: 'file_name', 'class'"),
    ],
)
def test_folders_that_say_nothing(tmp_path: Path, names: list[str], settings: dict[str, Any], message: str) -> None:
    draw(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, **settings)


def test_missing_or_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "none")
    (tmp_path / "train" / "owl").mkdir(parents=True)
    with pytest.raises(DataError, match="no images below .*train"):
        opened(tmp_path)
    with pytest.raises(DataError, match="no split 'test'; .* has train"):
        opened(tmp_path, "test")
    with pytest.raises(ValidationError):
        Section(kind="image_folder", path="x", caption="{class")


# --- metadata


def test_metadata_beside_the_images(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "sub/b.png", "unlisted.png")
    rows = [{"file_name": "a.png", "text": "an owl"}, {"file_name": "sub/b.png", "text": ["a tit", "a bird"]}]
    write_metadata(tmp_path, *rows, {"file_name": "../c.png", "text": "x"}, {"file_name": "none.png", "text": "x"})
    result = opened(tmp_path, caption="text", split={})
    assert captions(result) == {"a.png": ("an owl",), "sub/b.png": ("a tit", "a bird")}
    assert [item.reason.split(":")[0] for item in result.bad] == ["image outside its folder", "no such file"]
    assert result.bad[0].where == f"{tmp_path}/metadata.jsonl:3"


def test_metadata_in_every_split_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        draw(tmp_path, f"{split}/1.png", f"{split}/great_tit/2.png")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\n1.png,{split} one\ngreat_tit/2.png,two\n,x\n")
    assert captions(opened(tmp_path, caption="text")) == {
        "train/1.png": ("train one",),
        "train/great_tit/2.png": ("two",),
    }
    test = opened(tmp_path, "test", caption="{text} of a {class}")
    assert captions(test) == {"test/great_tit/2.png": ("two of a great tit",)}
    assert {item.where.rsplit("/", 1)[-1] for item in test.bad} == {"metadata.csv:2", "metadata.csv:4"}


def test_one_metadata_file_above_the_split_folders(tmp_path: Path) -> None:
    draw(tmp_path, "train/1.png", "test/2.png", "other/3.png")
    names = ("train/1.png", "test/2.png", "other/3.png", "")
    write_metadata(tmp_path, *({"file_name": name, "text": f"text of {name}"} for name in names))
    train, test = opened(tmp_path, caption="text"), opened(tmp_path, "test", caption="text")
    assert captions(train) == {"train/1.png": ("text of train/1.png",)}
    assert captions(test) == {"test/2.png": ("text of test/2.png",)}
    assert [item.reason.split(":")[0] for item in train.bad] == ["image is in no split", "image is in no split"]


def test_metadata_without_a_caption_column_is_not_passed_over(tmp_path: Path) -> None:
    draw(tmp_path, "train/owl/1.png")
    write_metadata(tmp_path / "train", {"file_name": "owl/1.png", "text": "an owl at night"})
    with pytest.raises(DataError, match="uses no column of .*metadata.jsonl; it has text"):
        opened(tmp_path)
    assert captions(opened(tmp_path, caption="text")) == {"train/owl/1.png": ("an owl at night",)}
    (tmp_path / "train/metadata.csv").write_text("file_name,text\nowl/1.png,x\n")
    with pytest.raises(DataError, match="has both metadata.jsonl and metadata.csv"):
        opened(tmp_path, caption="text")


def test_metadata_needs_its_file_name_column(tmp_path: Path) -> None:
    draw(tmp_path, "train/1.png")
    write_metadata(tmp_path / "train", {"filename": "1.png", "text": "x"})
    with pytest.raises(DataError, match="no column 'file_name'; did you mean 'filename'"):
        opened(tmp_path, caption="text")
