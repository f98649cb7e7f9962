"""Made-up data of every kind of source: each split opens on the way that the section itself would take."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from mmtune.ground.errors import DataError
from mmtune.ground.kind_folder import kinds, section_union
from mmtune.sources import open_split, split_names, write_tiny

SOURCE = TypeAdapter(section_union("sources"))
HASH = {"validation": "5%", "test": "3%"}
COLUMN = {"train": "learn", "validation": ["check", "look"], "column": "part"}
FILES = {"train": "/none/a.{}", "test": "/none/b.{}"}

SECTIONS: dict[str, dict[str, Any]] = {
    "jsonl by hash": {"kind": "jsonl", "path": "/none/a.csv", "images": "/none", "split": HASH},
    "jsonl beside": {"kind": "jsonl", "path": "/none/a.tsv", "split": {**HASH, "by": "sku"}, "id": "sku"},
    "jsonl template": {"kind": "jsonl", "path": "/none/a.jsonl", "splits": COLUMN, "caption": "{title} by {brand}"},
    "jsonl files": {"kind": "jsonl", "path": FILES, "format": "csv", "image": "photo", "caption": "photo text"},
    "jsonl by image": {"kind": "jsonl", "path": "/none/a.csv", "split": {**HASH, "by": "image"}},
    "jsonl sounds": {"kind": "jsonl", "path": "/none/a.csv", "sounds": "/none", "audio": "clip", "split": HASH},
    "jsonl sounds beside": {"kind": "jsonl", "path": FILES, "format": "jsonl", "audio": "clip"},
    "image_folder": {"kind": "image_folder", "path": "/none"},
    "image_folder by hash": {"kind": "image_folder", "path": "/none", "split": HASH},
    "image_folder by class": {"kind": "image_folder", "path": "/none", "split": {"test": "20%", "by": "class"}},
    "image_folder columns": {"kind": "image_folder", "path": "/none", "caption": "{class}: {text}"},
    "image_folder group": {"kind": "image_folder", "path": "/none", "caption": "text", "split": {**HASH, "by": "who"}},
    "glyphs": {"kind": "glyphs", "fonts": ["mono"]},
    "parquet by hash": {"kind": "parquet", "path": "/none/*.parquet", "split": HASH},
    "parquet by group": {"kind": "parquet", "path": "/none/*.parquet", "split": {**HASH, "by": "sku"}, "id": "sku"},
    "parquet column": {"kind": "parquet", "path": "/none/a.parquet", "splits": COLUMN, "caption": "{title} {size}"},
    "parquet files": {"kind": "parquet", "path": FILES, "images": "/none", "image": "photo"},
    "parquet paths by hash": {"kind": "parquet", "path": "/none/a.parquet", "images": "/none", "split": HASH},
    "hub": {"kind": "hub", "id": "owner/name", "revision": "main", "name": "large", "splits": {"train": ["a", "b"]}},
    "hub by hash": {"kind": "hub", "id": "owner/name", "caption": "a {label}", "split": {**HASH, "by": "shop"}},
    "webdataset": {"kind": "webdataset", "path": {"train": "{0..9}.tar", "validation": "x.tar"}},
    "webdataset by hash": {
        "kind": "webdataset",
        "path": "*.tar",
        "split": HASH,
        "caption": "caption",
        "image": ["webp"],
    },
    "webdataset by field": {
        "kind": "webdataset",
        "path": "*.tar",
        "split": {**HASH, "by": "sku"},
        "caption": "{a} {b}",
    },
    "coco": {"kind": "coco", "path": FILES, "images": {"train": "/none/a", "test": "/none/b"}},
    "coco by hash": {"kind": "coco", "path": "/none/a.json", "images": "/none", "split": HASH},
    "coco by field": {"kind": "coco", "path": "/none/a.json", "images": "/none", "split": {**HASH, "by": "shop"}},
    "coop": {"kind": "coop", "path": "/none/a.json", "images": "/none"},
    "karpathy": {"kind": "karpathy", "path": "/none/a.json", "images": "/none"},
}
SECTIONS["mix"] = {
    "kind": "mix",
    "sources": {"shop": SECTIONS["jsonl by hash"], "web": SECTIONS["webdataset"]},
    "weights": {"shop": 3, "web": 1},
    "scored": ["shop"],
}
ONE_CAPTION = {"image_folder", "image_folder by hash", "image_folder by class", "glyphs", "webdataset", "mix"}
ONE_CAPTION |= {"webdataset by field", "coop"}


def section_of(values: dict[str, Any]) -> Any:
    import json

    return SOURCE.validate_json(json.dumps(values))


def test_every_kind_is_here() -> None:
    elsewhere = {"conversations"}  # in test_source_conversations
    assert {values["kind"] for values in SECTIONS.values()} | elsewhere == set(kinds("sources"))


@pytest.mark.parametrize("name", SECTIONS)
def test_tiny_data_of_every_kind(name: str, tmp_path: Path) -> None:
    section = section_of(SECTIONS[name])
    if name != "glyphs" and name != "image_folder" and name != "image_folder columns":
        with pytest.raises(DataError):
            open_split(section, "train", seed=0)
    tiny = write_tiny(section, tmp_path / "new")
    assert type(tiny) is type(section) and section_of(tiny.model_dump(mode="json")) == tiny
    names = split_names(tiny)
    assert names == (split_names(section) if "image_folder" not in name else names) and "train" in names
    opened = {split: open_split(tiny, split, seed=0) for split in names}
    assert not any(one.bad for one in opened.values())
    samples = [sample for one in opened.values() for sample in one.samples]
    keys = {sample.media.key for sample in samples}
    assert len(keys) == len(samples)
    assert (8 <= len(samples) <= 60) if name == "glyphs" else len(samples) == (24 + 18 if name == "mix" else 24)
    for sample in samples:
        shown: Any = sample.media.read()
        assert shown.seconds in (0.3, 0.8) if "sounds" in name else all(32 <= side <= 64 for side in shown.size)
        assert len(sample.captions) == (1 if name in ONE_CAPTION and sample.source != "shop" else 2)


def test_captions_of_made_up_sounds_tell_of_the_sound(tmp_path: Path) -> None:
    tiny = write_tiny(section_of(SECTIONS["jsonl sounds"]), tmp_path / "new")
    samples = [sample for split in split_names(tiny) for sample in open_split(tiny, split, seed=0).samples]
    assert len({caption for sample in samples for caption in sample.captions}) == 48
    for sample in samples:
        heard: Any = sample.media.read()
        peak, text = float(abs(heard.waveform).max()), " ".join(sample.captions)
        assert "spot" not in text and ("short" in text) == (heard.seconds < 0.5) == ("long" not in text)
        assert ("quiet" in text) == (peak < 0.1) and ("loud" in text) == (peak > 0.5)
        spectrum = abs(np.fft.rfft(heard.waveform))
        assert abs(spectrum.argmax() / heard.seconds - float(text.split(" hertz")[0].split()[-1])) < 4, "hertz"


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    section = section_of(SECTIONS["parquet by hash"])
    both = [open_split(write_tiny(section, tmp_path / name), "test", seed=0) for name in ("a", "b")]
    assert [(one.id, one.captions) for one in both[0].samples] == [(one.id, one.captions) for one in both[1].samples]
