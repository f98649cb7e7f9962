"""``kind: jsonl`` with sounds: the same table, other keys, and every message speaks of sounds."""

from pathlib import Path
from typing import Any

import pytest
from sound_files import write_sounds

from mmtune.ground import sound_reading
from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, open_split, split_names
from mmtune.sources.jsonl import Section


def section(folder: Path, **settings: Any) -> Section:
    given = {"path": str(folder / "sounds.jsonl"), "sounds": str(folder / "sounds"), "split": {}, **settings}
    return Section(kind="jsonl", max_bad_fraction=0.9, **given)


def opened(folder: Path, **settings: Any) -> OpenedSplit:
    return open_split(section(folder, **settings), "train", seed=0)


def write_table(folder: Path, *lines: str) -> None:
    (folder / "sounds.jsonl").write_text("\n".join(lines) + "\n")


def test_a_table_of_sounds_is_one_of_samples(tmp_path: Path) -> None:
    write_sounds(tmp_path, 4)
    found = opened(tmp_path)
    assert [sample.id for sample in found.samples] == ["0.wav", "1.wav", "2.wav", "3.wav"] and found.bad == ()
    media: Any = found.samples[1].media
    assert media.modality == "audio" and media.read().rate == 44_100
    assert section(tmp_path).modality == "audio" and split_names(section(tmp_path)) == ("train",)
    assert Section(kind="jsonl", path="x.csv", split={}).modality == "image"  # type: ignore[arg-type]


def test_column_and_folder_may_each_be_left_out(tmp_path: Path) -> None:
    write_sounds(tmp_path, 2)
    write_table(tmp_path, '{"clip": "sounds/0.wav", "caption": "one"}')
    beside = opened(tmp_path, sounds=None, audio="clip")
    assert [sample.id for sample in beside.samples] == ["sounds/0.wav"]
    write_table(tmp_path, '{"audio": "0.wav", "caption": "one"}')
    assert len(opened(tmp_path).samples) == 1
    with pytest.raises(DataError, match="data.audio: .*clip"):
        opened(tmp_path, audio="clip")
    with pytest.raises(DataError, match="data.sounds: no such folder"):
        opened(tmp_path, sounds=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "given",
    [{"image": "x"}, {"images": "x"}, {"audio": "y", "image": "x"}, {"sounds": None, "audio": "y", "image": "x"}],
)
def test_images_and_sounds_do_not_go_together(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="names images and .* names sounds; keep one of them"):
        section(tmp_path, **given)
    section(tmp_path, **{key: value for key, value in given.items() if key in ("sounds", "audio")})


def test_reasons_speak_of_sounds(tmp_path: Path) -> None:
    write_sounds(tmp_path, 3)
    (tmp_path / "sounds" / "empty.wav").write_bytes(b"")
    (tmp_path / "sounds" / "2.wav").write_bytes((tmp_path / "sounds" / "2.wav").read_bytes()[:-7])
    names = ["0.wav", "", "../out.wav", "https://x.org/a.wav", "empty.wav", "2.wav", "none.wav"]
    write_table(tmp_path, *(f'{{"audio": "{name}", "caption": "c{n}"}}' for n, name in enumerate(names)))
    reasons = [item.reason for item in opened(tmp_path).bad]
    assert reasons == [
        "no sound: column 'audio' is empty",
        f"sound outside its folder: '../out.wav' leads out of '{tmp_path / 'sounds'}'",
        "sound is an address: 'https://x.org/a.wav'; fetch the files first and give their paths",
        "the file is empty",
        "cut short: the last 7 bytes that its header promises are not there",
        "no such file",
    ]
    with pytest.raises(DataError, match="6 of 7 lines and sounds are bad"):
        open_split(section(tmp_path).model_copy(update={"max_bad_fraction": 0.1}), "train", seed=0)


def test_a_sound_stays_in_the_split_that_is_held_out_most(tmp_path: Path) -> None:
    write_sounds(tmp_path, 2)
    (tmp_path / "sounds" / "link.wav").symlink_to(tmp_path / "sounds" / "0.wav")
    rows = [("0.wav", "train"), ("1.wav", "train"), ("link.wav", "test")]
    write_table(tmp_path, *(f'{{"audio": "{name}", "caption": "c", "split": "{split}"}}' for name, split in rows))
    found = opened(tmp_path, split=None, splits={"train": "train", "test": "test"})
    assert [sample.id for sample in found.samples] == ["1.wav"]
    assert found.bad[0].reason.startswith("sound is in another split too: ")


def test_without_the_extra_the_data_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sounds(tmp_path, 2)
    monkeypatch.setattr(sound_reading, "PACKAGES", ("soundfile", "no_such_package"))
    with pytest.raises(DataError, match=r"needs no_such_package: pip install 'mmtune\[audio\]'"):
        opened(tmp_path)
