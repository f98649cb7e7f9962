"""``kind: coco``, captions as COCO publishes them: one JSON file per split that lists images and annotations."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, SourceSection
from mmtune.sources._annotations import listed, read_annotations, require_folders
from mmtune.sources._captions import parse_caption
from mmtune.sources._made_up import captions, file_stem, group_name, make_up, picture
from mmtune.sources._pairs import Pair, Quarantine, RowReader, good_pairs, open_pairs
from mmtune.sources._splits import HashSplit, SplitFiles, SplitFolders, paths_by_split, splits_named
from mmtune.sources._table import Row, Table, require_columns

CAPTIONS = "the captions"
"""The column that holds the captions of an image's annotations; no field of an image has a blank in its name."""


class Section(SourceSection):
    """COCO captions, and data sets of one's own in that format.

    A file has ``images`` (each with ``id`` and ``file_name``) and ``annotations`` (each with ``image_id`` and
    ``caption``); an image with five annotations is one sample with five captions. One file per split, or one file
    split by hash::

        data:
          kind: coco
          path: {train: annotations/captions_train2017.json, validation: annotations/captions_val2017.json}
          images: {train: train2017, validation: val2017}
        data: {kind: coco, path: captions.json, images: photos, split: {validation: 5%, test: 5%}}
    """

    kind: Literal["coco"] = Field(description="COCO captions: a JSON file with images and annotations, per split")
    path: str | SplitFiles = Field(description="the annotation file, or one per split: {train: a.json, test: b.json}")
    images: str | SplitFolders = Field(description="folder of the images, or one per split: {train: train2017}")
    split: HashSplit | None = Field(
        None,
        description="split one file by hash of the image, or of a field of its entry: {validation: 5%, test: 5%}",
    )

    @model_validator(mode="after")
    def _check(self) -> "Section":
        if isinstance(self.path, str) and self.split is None:
            raise ValueError(
                "path names one file; write one per split, {train: a.json, validation: b.json}, or "
                "split: {validation: 5%, test: 5%} (by hash)"
            )
        if not isinstance(self.path, str) and self.split is not None:
            raise ValueError("path names one file per split already; delete split")
        if not isinstance(self.images, str) and tuple(self.images.folders) != tuple(self._files):
            there = ", ".join(filter(None, self._files)) or "one file for all splits"
            raise ValueError(f"images names folders for {', '.join(self.images.folders)}, and path names {there}")
        return self

    @property
    def _files(self) -> dict[str, str]:
        """Split -> file; "" stands for a file that holds all of them."""
        return paths_by_split(self.path)

    @property
    def _folders(self) -> dict[str, str]:
        """Split (or "") -> folder, as `_files`."""
        if isinstance(self.images, str):
            return dict.fromkeys(self._files, self.images)
        return {str(name): path for name, path in self.images.folders.items()}


def split_names(section: Section) -> tuple[str, ...]:
    """The splits that the section names; no file is opened."""
    return splits_named(section.path, section.split)


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of a split in the order of the file's ``images``. ``seed`` changes nothing.

    Raises:
        DataError: a file or folder is missing, a file is no caption file, or nothing in the split is usable.
    """
    names = split_names(section)
    if split not in names:
        raise DataError(f"data has no split '{split}'; it has {', '.join(names)}")
    quarantine = Quarantine(names[0])
    at = {"": "data.images"} if isinstance(section.images, str) else {}
    require_folders({at.get("", f"data.images.{name}"): folder for name, folder in section._folders.items()})
    pairs = [pair for name in section._files for pair in _read_pairs(section, name, quarantine)]
    return open_pairs(pairs, section.split, split, quarantine)


def _read_pairs(section: Section, name: str, quarantine: Quarantine) -> list[Pair]:
    """The good images of one file. Where splits have folders of their own, names begin with the folder's."""
    path, folder = Path(section._files[name]), section._folders[name]
    reader = RowReader(
        image="file_name",
        caption=parse_caption(CAPTIONS),
        folder=Path(folder),
        confined=True,
        by=section.split.by if section.split else None,
    )
    rows = list(_rows(path, name, quarantine))
    columns = tuple(dict.fromkeys(key for row in rows for key in row.values))
    require_columns(Table(path, tuple(rows), (), columns), reader.wanted())
    pairs = good_pairs(reader, [(row, name) for row in rows], quarantine)
    folders = [os.path.abspath(each) for each in section._folders.values()]
    inside = os.path.relpath(folder, os.path.commonpath(folders)).replace(os.sep, "/")
    return pairs if inside == "." else [_moved(pair, inside) for pair in pairs]


def _moved(pair: Pair, folder: str) -> Pair:
    name = f"{folder}/{pair.name}"
    return replace(pair, name=name, group=name if pair.group == pair.name else pair.group)


def _rows(path: Path, split: str, quarantine: Quarantine) -> Iterator[Row]:
    """A row per image, with the captions of its annotations."""
    setting = f"data.path.{split}" if split else "data.path"
    values = read_annotations(path, setting)
    images = listed(values, "images", path, setting)
    if "annotations" not in values and isinstance(images[0], dict) and "sentences" in images[0]:
        raise DataError(f"{setting}: {path} is one of Karpathy's files; write kind: karpathy")
    annotations = listed(values, "annotations", path, setting, "; COCO publishes none for its test images")
    if not any(isinstance(each, dict) and "caption" in each for each in annotations):
        raise DataError(f"{setting}: no annotation in {path} has a caption; COCO's caption files are captions_*.json")
    captions = _captions(path, annotations, {_id(image) for image in images}, split, quarantine)
    for number, image in enumerate(images):
        if _id(image) is None:
            quarantine.add(f"{path}: images[{number}]", "no image: the entry has no id", split)
        else:
            yield Row(f"{path}: image {_id(image)}", {**image, CAPTIONS: captions.get(_id(image), [])})


def _id(image: Any) -> int | str | None:
    found = image.get("id") if isinstance(image, dict) else None
    return found if isinstance(found, (int, str)) else None


def _captions(
    path: Path, annotations: list[Any], known: set[int | str | None], split: str, quarantine: Quarantine
) -> dict[int | str | None, list[Any]]:
    """Image id -> its captions."""
    found: dict[int | str | None, list[Any]] = {}
    for number, annotation in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        image = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(image, (int, str)):
            quarantine.add(where, "no image: the annotation has no image_id", split)
        elif image not in known:
            quarantine.add(where, f"no image: image_id {image!r} is not among the images", split)
        else:
            found.setdefault(image, []).append(annotation.get("caption"))
    return found


def write_tiny(section: Section, folder: Path) -> Section:
    """Made-up annotation files and images; see `mmtune.sources`."""
    by = section.split.by if section.split and section.split.by != "file_name" else None
    group = group_name if by else lambda number, attempt: f"{file_stem(number, attempt)}.png"
    pictures = make_up(split_names(section), section.split, group)
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in section._files:
        files[name] = str(folder / f"captions_{name or 'all'}.json")
        folders[name] = str(folder / ("images" if isinstance(section.images, str) else f"images_{name}"))
        Path(folders[name]).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for one in (one for one in pictures if name in ("", one.split)):
            (Path(folders[name]) / f"{one.name}.png").write_bytes(picture(one.number))
            group_field = {by: one.group} if by else {}
            images.append({"id": one.number, "file_name": f"{one.name}.png", **group_field})
            annotations += [{"image_id": one.number, "caption": text} for text in captions(one.number)]
        Path(files[name]).write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    path = files[""] if isinstance(section.path, str) else section.path.model_copy(update=files)
    where = str(folder / "images") if isinstance(section.images, str) else section.images.model_copy(update=folders)
    return section.model_copy(update={"path": path, "images": where})
