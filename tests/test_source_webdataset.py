"""Tar shards: read in place, by key; nothing extracted, nothing unpickled, whatever a shard holds."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from picture_bytes import first_channel, image_bytes
from pydantic import ValidationError

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, _tar_index, split_names
from mmtune.sources.webdataset import Section, open_split


def write(path: Path, members: dict[str, bytes | str], *others: tarfile.TarInfo) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for info in others:
            tar.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(key: str, number: int, text: str = "") -> dict[str, bytes | str]:
    return {f"{key}.png": image_bytes(number), f"{key}.txt": text or f"caption {number}"}


def section(path: Path | str | dict[str, str], **settings: Any) -> Section:
    if not isinstance(path, dict):
        settings.setdefault("split", {})
    return Section(kind="webdataset", path=path if isinstance(path, dict) else str(path), **settings)


def opened(path: Path | str | dict[str, str], which: str = "train", **settings: Any) -> OpenedSplit:
    return open_split(section(path, **settings), which, seed=0)


def shown(found: OpenedSplit) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {sample.id: (first_channel(sample.media.read()), sample.captions) for sample in found.samples}


def reasons(found: OpenedSplit) -> list[str]:
    return [item.reason.split(": ")[0] for item in found.bad]


def test_members_of_a_key_are_one_sample(tmp_path: Path) -> None:
    members = {**pair("000", 1), "000.json": "{}", **pair("a/b", 2), "./c.txt": "third", "./c.PNG": image_bytes(3)}
    found = opened(write(tmp_path / "s.tar", members))
    assert shown(found) == {"000": (1, ("caption 1",)), "a/b": (2, ("caption 2",)), "c": (3, ("third",))}
    media = found.samples[1].media
    assert media.where == f"{tmp_path}/s.tar: a/b.png"
    assert pickle.loads(pickle.dumps(media)).read().size == (6, 5) and len(pickle.dumps(media)) < 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar"], "nothing is extracted"


def test_every_format_and_the_preferred_one(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {}
    for form, ending in (("JPEG", "jpg"), ("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")):
        members |= {f"{ending}.{ending}": image_bytes(90, form), f"{ending}.txt": "x"}
    members |= {"two.seg.png": image_bytes(7), "two.png": image_bytes(8), "two.txt": "x"}
    path = write(tmp_path / "s.tar", members)
    assert set(shown(opened(path))) == {"jpg", "jpeg", "png", "webp", "two"}
    assert shown(opened(path))["two"][0] == 8
    other = opened(path, image=["seg.png", "png"])
    assert shown(other)["two"][0] == 7 and reasons(other) == ["no image"] * 3


def test_captions_from_json(tmp_path: Path) -> None:
    fields = {"title": "cup", "price": 3, "texts": ["a", "b", 5], "txt": "not this"}
    members = {"1.png": image_bytes(1), "1.json": json.dumps(fields), "1.txt": "this"}
    members |= {"2.png": image_bytes(2), "2.json": "{broken", "3.png": image_bytes(3), "3.json": "[1]"}
    members |= {"4.png": image_bytes(4), "4.json": b"\xff\xfe"}
    path = write(tmp_path / "s.tar", members)
    found = opened(path, caption="{title} for {price}: {txt}")
    assert [one.captions for one in found.samples] == [("cup for 3: this",)]
    assert [item.reason.split(" at ")[0] for item in found.bad] == [
        "json: not JSON: Expecting property name enclosed in double quotes",
        "json: not a JSON object: a list",
        "json: not UTF-8 text",
    ]
    texts = opened(path, caption="texts")
    assert [one.captions for one in texts.samples] == [("a", "b")]
    assert any(item.reason.startswith("caption is not text: column 'texts', item 3 of") for item in texts.bad)
    with pytest.raises(DataError, match="data.caption: .* has no column 'titel'; did you mean 'title'"):
        opened(path, caption="titel")


def test_splits_by_pattern_and_by_hash(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / f"{number:03d}.tar", {**pair(f"{number}-a", number), **pair(f"{number}-b", 100 + number)})
    path = {"train": f"{tmp_path}/{{000..009}}.tar", "test": f"{tmp_path}/{{010,011}}.tar"}
    assert split_names(section(path)) == ("train", "test")
    assert list(shown(opened(path, "test"))) == ["10-a", "10-b", "11-a", "11-b"]
    assert len(opened(path).samples) == 20
    split = {"validation": "30%", "test": "30%"}
    parts = [set(shown(opened(tmp_path / "*.tar", name, split=split))) for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 24 and all(parts)
    with pytest.raises(DataError, match="no such file: .*012.tar"):
        opened(f"{tmp_path}/{{000..012}}.tar")


def test_a_folder_stands_for_its_shards(tmp_path: Path) -> None:
    for n in (1, 0):
        write(tmp_path / "shards" / f"{n}.tar", pair(f"k{n}", n))
    (tmp_path / "shards" / "0.json").write_text("{}")
    assert list(shown(opened(tmp_path / "shards"))) == ["k0", "k1"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is a folder without \*.tar; it holds nothing"):
        opened(tmp_path / "empty")


def test_keys_that_several_shards_have(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {**pair("0", 1, "first"), **pair("1", 2), **pair("2", 3)})
    write(tmp_path / "b.tar", {**pair("0", 1, "second"), **pair("1", 9)})
    assert shown(opened(tmp_path / "*.tar")) == {
        "0": (1, ("first", "second")),  # equal bytes: one image
        "a/1": (2, ("caption 2",)),
        "2": (3, ("caption 3",)),
        "b/1": (9, ("caption 9",)),
    }
    leak = opened({"train": str(tmp_path / "a.tar"), "test": str(tmp_path / "b.tar")})
    assert list(shown(leak)) == ["a/1", "2"] and reasons(leak) == ["image is in another split too"]


def test_folders_that_repeat_names_of_shards_and_keys(tmp_path: Path) -> None:
    """As img2dataset writes two data sets, or two splits of one: both begin with 00000.tar and 000000000."""
    for folder, number in (("train", 1), ("val", 2)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "00000.tar", pair("000000000", number, f"of {folder}"))
    split = {"train": str(tmp_path / "train/*.tar"), "test": str(tmp_path / "val/*.tar")}
    assert shown(opened(split)) == {"train/00000/000000000": (1, ("of train",))}
    assert shown(opened(split, "test")) == {"val/00000/000000000": (2, ("of val",))}
    together = opened(str(tmp_path / "*/*.tar"), split={"test": "1%"})
    assert [sample.id for sample in together.samples] == ["train/00000/000000000", "val/00000/000000000"]
    assert not together.bad


def test_members_that_have_no_business_in_a_shard(tmp_path: Path) -> None:
    link, device, hard = tarfile.TarInfo("l.png"), tarfile.TarInfo("d.png"), tarfile.TarInfo("h.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "0.png"
    device.type = tarfile.CHRTYPE
    members = {**pair("0", 1), **pair("../up", 2), **pair("/etc/x", 3), **pair("new\nline", 4), **pair("a/../b", 5)}
    members |= {"0.pkl": b"cos\nsystem\n", "1.pyd": b"x", "2.PTH": b"x", ".DS_Store": b"x", "README": b"x"}
    found = opened(write(tmp_path / "s.tar", members, link, device, hard))
    assert list(shown(found)) == ["0"]
    assert reasons(found) == ["not a plain file"] * 3 + ["bad name"] * 8
    assert all("\n" not in item.where for item in found.bad)
    assert found.notes and found.notes[0].startswith("3 pickled members (.pyd, .pkl") and "0.pkl" in found.notes[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar"]


def test_keys_without_image_or_text_and_names_that_come_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {**pair("0", 1), "1.txt": "x", "2.png": image_bytes(2), "3.png": b"<html>x"})
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("0.png"), io.BytesIO())
        tar.addfile(tarfile.TarInfo("3.txt"), io.BytesIO())
    found = opened(path)
    assert list(shown(found)) == ["0"]
    assert sorted(reasons(found)) == ["empty caption", "empty caption", "name occurs twice", "no image"]
    write(path, {**pair("0", 1), "3.png": b"<html>x", "3.txt": "x", "4.png": b"", "4.txt": "x"})
    assert reasons(opened(path)) == ["not an allowed format", "the file is empty"]


@pytest.mark.parametrize("cut", [1.5, 2.2, 3.0, 4.3, 5.1])
def test_what_comes_before_the_damage_is_used(tmp_path: Path, cut: float) -> None:
    """Every member here takes two blocks of 512 bytes; the shard is cut within headers, contents, and between."""
    path = write(
        tmp_path / "s.tar", {f"{n}.{what}": pair(str(n), n)[f"{n}.{what}"] for n in (1, 2) for what in ("png", "txt")}
    )
    path.write_bytes(path.read_bytes()[: int((2 + cut) * 512)])
    write(tmp_path / "t.tar", pair("9", 9))
    found = opened(tmp_path / "*.tar")
    assert "9" in shown(found), "another shard is not touched by it"
    assert shown(found).get("1", (1,))[0] == 1
    assert any(str(path) in item.where for item in found.bad)


@pytest.mark.parametrize("cut", [6, 6.5, 7, 7.01])
def test_a_sample_that_the_end_has_cut_says_so(tmp_path: Path, cut: float) -> None:
    """The text of the second of three is cut: before its header, within it, before its text, within it."""
    path = write(tmp_path / "s.tar", {**pair("1", 1), **pair("2", 2), **pair("3", 3)})
    path.write_bytes(path.read_bytes()[: int(cut * 512)])
    found = opened(path)
    assert list(shown(found)) == ["1"]
    by_place = {item.where: item.reason for item in found.bad}
    assert by_place.pop(f"{path}: 2") == "cut off: the shard ends before the whole of this sample: no txt"
    assert all(reason.endswith("how many samples, nobody can tell") for reason in by_place.values())
    assert set(by_place) == (set() if cut == 6 else {str(path)}), "a tar may end without a mark"
    whole = write(tmp_path / "t.tar", {**pair("1", 1), "2.png": image_bytes(2)})
    assert opened(whole).bad[0].reason == "empty caption: column 'txt'", "which is another thing"


def test_garbage_within_a_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {**pair("1", 1), **pair("2", 2)})
    content = bytearray(path.read_bytes())
    content[4 * 512 : 5 * 512] = b"\x07" * 512  # the header of the second image
    path.write_bytes(content)
    found = opened(path)
    assert list(shown(found)) == ["1"]
    assert [item.reason for item in found.bad] == [
        "damaged shard: no header at byte 2048; what comes before it is used, "
        "what follows in it is lost: how many samples, nobody can tell"
    ]


def test_shards_that_cannot_be_used_come_at_once(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", pair("1", 1))
    (tmp_path / "b.tar").write_bytes(gzip.compress(whole.read_bytes()))
    (tmp_path / "c.tar").write_bytes(b"\xfd7zXZ\0" + b"\0" * 600)
    with pytest.raises(
        DataError, match=r"(?s)b.tar is compressed \(gzip\): .*Unpack it once.*c.tar is compressed \(xz\)"
    ):
        opened(tmp_path / "*.tar")
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "c.tar").write_bytes(b"")
    found = opened(tmp_path / "*.tar")
    assert list(shown(found)) == ["1"] and reasons(found) == ["damaged shard"] * 2


def test_an_index_is_made_once_and_ends_with_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = _tar_index._collect
    monkeypatch.setattr(_tar_index, "_collect", lambda tar, shard: made.append(shard.path) or real(tar, shard))
    path = write(tmp_path / "s.tar", {**pair("1", 1), **pair("2", 2)})
    old = opened(path).samples[1].media
    opened(path, "test", split={"test": "99%"})
    assert len(made) == 1
    write(path, {**pair("longer", 7), **pair("2", 3), **pair("3", 4)})
    with pytest.raises(DataError, match="the shard changed"):
        old.read()
    assert old.check() and "the shard changed" in old.check()
    assert list(shown(opened(path))) == ["longer", "2", "3"] and len(made) == 2


def test_a_header_that_leads_backwards_ends_the_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", pair("1", 1))
    info = tarfile.TarInfo("x.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # a negative size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(path.read_bytes()[: 4 * 512] + bytes(header) + path.read_bytes()[4 * 512 :])
    found = opened(path)
    assert list(shown(found)) == ["1"] and "damaged shard" in reasons(found)


def test_sections_that_cannot_be_meant() -> None:
    for settings, message in (
        ({"path": "a.tar"}, "path names shards of all splits"),
        ({"path": {"train": "a"}, "split": {}}, "delete split"),
        ({"path": "a.tar", "split": {}, "image": [".png"]}, "without a dot"),
        ({"path": "a.tar", "split": {}, "image": []}, "at least 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            Section(kind="webdataset", **settings)
