"""``kind: karpathy``, the splits most published scores are on: ``dataset_flickr30k.json`` and ``dataset_coco.json``."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, SourceSection
from mmtune.sources._annotations import listed, read_annotations, require_folders
from mmtune.sources._captions import parse_caption
from mmtune.sources._made_up import captions, make_up, picture
from mmtune.sources._pairs import Quarantine, RowReader, good_pairs, open_pairs
from mmtune.sources._table import Row

SPLITS = ("train", "validation", "test")
NAMES = {"train": "train", "val": "validation", "test": "test"}
"""The file's name of a split -> ours; ``restval`` is COCO's rest of the validation images."""


class Section(SourceSection):
    """Karpathy and Fei-Fei's splits of Flickr8k, Flickr30k and COCO, one file for all splits.

    Every entry of ``images`` has ``filename`` (and ``filepath`` in COCO's file), ``split`` and ``sentences``, each
    with its ``raw`` text::

        data: {kind: karpathy, path: dataset_flickr30k.json, images: flickr30k-images}
        data: {kind: karpathy, path: dataset_coco.json, images: coco}   # holds train2014 and val2014

    Source: Karpathy and Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, CVPR 2015.
    """

    kind: Literal["karpathy"] = Field(description="Karpathy's splits of Flickr8k, Flickr30k or COCO")
    path: str = Field(description="the file, such as dataset_flickr30k.json")
    images: str = Field(description="folder of the images; for COCO the one that holds train2014 and val2014")
    restval: bool = Field(
        True, description="train on COCO's restval images too, as published results do; false: leave them out"
    )


def split_names(section: Section) -> tuple[str, ...]:
    """``train``, ``validation`` and ``test``; no file is opened."""
    return SPLITS


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of a split in the order of the file. ``seed`` changes nothing.

    Raises:
        DataError: file or folder are missing, the file is of another format, or nothing in the split is usable.
    """
    if split not in SPLITS:
        raise DataError(f"data has no split '{split}'; it has {', '.join(SPLITS)}")
    require_folders({"data.images": section.images})
    quarantine = Quarantine(SPLITS[0])
    reader = RowReader(image="file", caption=parse_caption("raw"), folder=Path(section.images), confined=True)
    pairs = good_pairs(reader, _rows(section, quarantine), quarantine)
    return open_pairs(pairs, None, split, quarantine)


def _rows(section: Section, quarantine: Quarantine) -> Iterator[tuple[Row, str]]:
    """A row per image with its sentences, and its split."""
    path = Path(section.path)
    values = read_annotations(path, "data.path")
    hint = "; it is in COCO's own format: write kind: coco" if "annotations" in values else ""
    entries = listed(values, "images", path, "data.path", hint)
    if not any(isinstance(entry, dict) and "sentences" in entry for entry in entries):
        raise DataError(f"data.path: no image in {path} has sentences{hint}")
    names = {**NAMES, "restval": "train"}
    seen = Counter(str(entry.get("split")) for entry in entries if isinstance(entry, dict))
    if not seen.keys() & names.keys():
        raise DataError(f"data.path: no image in {path} is in {', '.join(names)}; the splits are {', '.join(seen)}")
    for number, entry in enumerate(entries):
        where = f"{path}: images[{number}]"
        split = entry.get("split") if isinstance(entry, dict) else None
        if split == "restval" and not section.restval:
            continue
        if not isinstance(split, str) or split not in names:
            quarantine.add(where, f"image is in no split: its split is {split!r}, not one of {', '.join(names)}")
            continue
        yield Row(where, {"file": _file(entry), "raw": _sentences(entry)}), names[split]


def _file(entry: dict[str, Any]) -> object:
    folder, name = entry.get("filepath"), entry.get("filename")
    return f"{folder}/{name}" if folder and isinstance(folder, str) and isinstance(name, str) else name


def _sentences(entry: dict[str, Any]) -> list[Any]:
    sentences = entry.get("sentences")
    listed = sentences if isinstance(sentences, list) else []
    return [each.get("raw") if isinstance(each, dict) else each for each in listed]


def write_tiny(section: Section, folder: Path) -> Section:
    """A made-up file with some restval images, and the images; see `mmtune.sources`."""
    names = {ours: theirs for theirs, ours in NAMES.items()}
    entries = []
    (folder / "images" / "part").mkdir(parents=True)
    for one in make_up(SPLITS):
        (folder / "images" / "part" / f"{one.name}.png").write_bytes(picture(one.number))
        split = "restval" if one.split == "train" and one.number % 8 == 7 else names[one.split]
        sentences = [{"raw": text} for text in captions(one.number)]
        entries.append({"filepath": "part", "filename": f"{one.name}.png", "split": split, "sentences": sentences})
    path = folder / "dataset.json"
    path.write_text(json.dumps({"dataset": "tiny", "images": entries}), encoding="utf-8")
    return section.model_copy(update={"path": str(path), "images": str(folder / "images")})
