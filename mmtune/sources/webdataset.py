"""``kind: webdataset``, tar shards: members that share a key are one sample; read in place, never extracted."""

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mmtune.ground.errors import DataError
from mmtune.ground.file_patterns import files_of_splits
from mmtune.sources import OpenedSplit, SourceSection
from mmtune.sources._captions import parse_caption
from mmtune.sources._made_up import NUM_CAPTIONS, MadeUp, captions, cells, file_stem, group_name, make_up, picture
from mmtune.sources._pairs import Located, Quarantine, RowReader, good_pairs, open_pairs
from mmtune.sources._splits import HashSplit, SplitFiles, paths_by_split, splits_named
from mmtune.sources._table import Row, Table, json_object, require_columns
from mmtune.sources._tar_index import PICKLED, TEXT_LIMIT, Member, Shard, TarImage, index_shard, read_span

TEXT = "txt"
"""The column that a ``.txt`` member fills."""


class Section(SourceSection):
    """Shards as `webdataset` and img2dataset write them: ``000017.jpg``, ``000017.txt`` and ``000017.json`` in a tar.

    The caption is the ``.txt`` member, a field of the ``.json`` member, or a template over such fields::

        data: {kind: webdataset, path: {train: "shards/{000..120}.tar", test: "shards/{121..127}.tar"}}
        data: {kind: webdataset, path: "shop/*.tar", caption: "{title} by {brand}", split: {validation: 5%, test: 5%}}

    Shards are plain tars on a disk that can be sought in. Members that only unpickling would read are left alone.
    """

    kind: Literal["webdataset"] = Field(description="tar shards whose members share keys: an image and its texts")
    path: str | SplitFiles = Field(
        description="the shards, as a pattern ('shards/{000..012}.tar', 'shards/*.tar'), or one pattern per split"
    )
    image: list[str] = Field(
        ["jpg", "jpeg", "png", "webp"],
        min_length=1,
        description="endings of the members that are images; where a key has several, the first one listed",
    )
    caption: str = Field(
        TEXT,
        description="txt: the .txt member; else a field of the .json member (text or a list), or a template over them: "
        "'{title} by {brand}'",
    )
    split: HashSplit | None = Field(
        None, description="split by hash of the key, or of a field of the .json member: {test: 5%, by: product_id}"
    )

    @field_validator("caption")
    @classmethod
    def _check_caption(cls, text: str) -> str:
        parse_caption(text)
        return text

    @field_validator("image")
    @classmethod
    def _check_image(cls, endings: list[str]) -> list[str]:
        wrong = [each for each in endings if each != each.lower().strip(". ") or not each]
        if wrong:
            raise ValueError(
                f"{', '.join(map(repr, wrong))}: write endings in small letters without a dot, such as jpg"
            )
        return endings

    @model_validator(mode="after")
    def _check(self) -> "Section":
        if isinstance(self.path, str) and self.split is None:
            raise ValueError(
                "path names shards of all splits; write one pattern per split, {train: 'train-*.tar', "
                "test: 'test-*.tar'}, or split: {validation: 5%, test: 5%} (by hash of the key)"
            )
        if not isinstance(self.path, str) and self.split is not None:
            raise ValueError("path names shards per split already; delete split")
        return self

    @property
    def _patterns(self) -> dict[str, str]:
        """Split -> pattern; "" stands for shards that hold all of them."""
        return paths_by_split(self.path)


def split_names(section: Section) -> tuple[str, ...]:
    """The splits that the section names; no shard is opened."""
    return splits_named(section.path, section.split)


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of a split in the order of the shards. Each shard's headers are gone through once per process; the
    texts of all splits and the image headers of this one are read. ``seed`` changes nothing.

    A key that several shards have is one sample where the bytes are equal; where they differ, its ids begin with the
    shards' names (with their folders where shards of two folders have one name).

    Raises:
        DataError: shards are missing or compressed, all of them at once; nothing in the split is usable.
    """
    names = split_names(section)
    if split not in names:
        raise DataError(f"data has no split '{split}'; it has {', '.join(names)}")
    quarantine = Quarantine(names[0])
    shards = _shards(section)
    reader = RowReader(
        image="the image",
        caption=parse_caption(section.caption),
        folder=Path(),
        confined=True,
        by=section.split.by if section.split else None,
    )
    placed = [(row, name) for name, shard in shards for row in _rows(section, shard, name, quarantine)]
    rows = _told_apart([row for row, _ in placed], reader.image)
    _require(section, reader, rows, quarantine)
    pairs = good_pairs(reader, [(row, name) for row, (_, name) in zip(rows, placed, strict=True)], quarantine)
    opened = open_pairs(pairs, section.split, split, quarantine)
    return replace(opened, notes=tuple(_notes([shard for _, shard in shards])))


def _shards(section: Section) -> list[tuple[str, Shard]]:
    """(split, shard); every shard that cannot be used at all is in the error."""
    found, problems = [], []
    for name, paths in files_of_splits(section._patterns, "data.path", ".tar").items():
        for path in paths:
            try:
                found.append((name, index_shard(path)))
            except DataError as error:
                problems.append(str(error))
    if problems:
        more = f"\nand {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError("\n".join(problems[:10]) + more)
    return found


def _rows(section: Section, shard: Shard, split: str, quarantine: Quarantine) -> Iterator[Row]:
    """A row per key of a shard: its image, its text and the fields of its JSON."""
    for where, reason in shard.bad:
        quarantine.add(where, reason, split)
    columns = {*parse_caption(section.caption).columns, section.split.by if section.split else None} - {None}
    wanted = [ending for ending, needed in ((TEXT, TEXT in columns), ("json", columns - {TEXT})) if needed]
    with open(shard.path, "rb") as file:
        for key, members in shard.members.items():
            where = f"{shard.path}: {key}"
            image = next((members[ending] for ending in section.image if ending in members), None)
            if key in shard.torn and (missing := _missing(section, image, members, columns)):
                quarantine.add(where, f"cut off: the shard ends before the whole of this sample: no {missing}", split)
                continue
            if image is None:
                there = ", ".join(members)
                quarantine.add(where, f"no image: the key has {there}, and none of {', '.join(section.image)}", split)
                continue
            texts = {ending: _text(file, members[ending]) for ending in wanted if ending in members}
            unreadable = [f"{ending}: not UTF-8 text" for ending, text in texts.items() if text is None]
            fields = json_object(texts.get("json") or "{}")
            if isinstance(fields, str):
                unreadable.append(f"json: {fields}")
            if unreadable or isinstance(fields, str):
                quarantine.add(where, "; ".join(unreadable), split)
                continue
            own_text = {TEXT: texts.get(TEXT)} if TEXT in members else {}
            media = TarImage(shard.path, shard.stamp, image.name, image.offset, image.size, _own_key(shard, image))
            yield Row(where, {**fields, **own_text, "the image": Located(key, media)})


def _missing(section: Section, image: Member | None, members: dict[str, Member], columns: set[str | None]) -> str:
    """What a sample lacks of the members that the section names."""
    lacks = [] if image else [" or ".join(section.image)]
    lacks += [TEXT] if TEXT in columns and TEXT not in members and "json" not in members else []
    lacks += ["json"] if columns - {TEXT} and "json" not in members else []
    return ", no ".join(lacks)


def _own_key(shard: Shard, image: Member) -> str:
    return f"{os.path.realpath(shard.path)}:{image.name}"


def _text(file: object, member: Member) -> str | None:
    """A text member; None where it is no text."""
    if member.size > TEXT_LIMIT:
        return None
    try:
        return read_span(file, member.offset, member.size).decode("utf-8-sig")  # type: ignore[arg-type]
    except UnicodeDecodeError:
        return None


def _told_apart(rows: Sequence[Row], image: str) -> list[Row]:
    """Rows of a key that several shards have know their image by its bytes; where those differ, by the shard too."""
    counts = Counter(row.values[image].name for row in rows)
    digests = {row.where: row.values[image].media.digest() for row in rows if counts[row.values[image].name] > 1}
    different: dict[str, set[str]] = {}
    for row in rows:
        if row.where in digests:
            different.setdefault(row.values[image].name, set()).add(digests[row.where])
    told, labels = [], _labels({row.values[image].media.path for row in rows if row.where in digests})
    for row in rows:
        if row.where not in digests:
            told.append(row)
            continue
        name, media = row.values[image].name, row.values[image].media
        new = name if len(different[name]) == 1 else f"{labels[media.path]}/{name}"
        media = replace(media, key=f"bytes:{digests[row.where]}")
        told.append(replace(row, values={**row.values, image: Located(new, media)}))
    return told


def _labels(paths: set[str]) -> dict[str, str]:
    """Shard -> what tells its keys from those of others: its name, where folders repeat names (``train/00000.tar``
    beside ``val/00000.tar``) its place below what all have in common."""
    stems = Counter(Path(path).stem for path in paths)
    root = os.path.commonpath([os.path.abspath(Path(path).parent) for path in paths]) if paths else ""
    places = {path: os.path.relpath(path, root).replace(os.sep, "/").removesuffix(".tar") for path in paths}
    return {path: place if stems[Path(path).stem] > 1 else Path(path).stem for path, place in places.items()}


def _require(section: Section, reader: RowReader, rows: Sequence[Row], quarantine: Quarantine) -> None:
    """The texts that the recipe names are in the shards."""
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    table = Table(Path(str(next(iter(section._patterns.values())))), tuple(rows), tuple(quarantine.items), columns)
    require_columns(table, [pair for pair in reader.wanted() if pair[1] != reader.image])


def _notes(shards: Sequence[Shard]) -> Iterator[str]:
    num = sum(len(shard.pickled) for shard in shards)
    if num:
        first = next(f"{shard.path}: {shard.pickled[0]}" for shard in shards if shard.pickled)
        yield f"{num} pickled members (.{', .'.join(PICKLED)}) are left alone; the first: {first}"


def write_tiny(section: Section, folder: Path) -> Section:
    """Made-up shards with members of the section's endings; see `mmtune.sources`."""
    by = section.split.by if section.split else None
    pictures = make_up(split_names(section), section.split, group_name if by else file_stem)
    written: dict[str, str] = {}
    for name in section._patterns:
        written[name] = str(folder / f"{name or 'all'}-{{0..1}}.tar")
        there = [one for one in pictures if name in ("", one.split)]
        for shard in range(2):
            with tarfile.open(folder / f"{name or 'all'}-{shard}.tar", "w") as tar:
                for one in there[shard::2]:
                    for ending, content in _tiny_members(section, one).items():
                        member = tarfile.TarInfo(f"{one.name}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    path = written[""] if isinstance(section.path, str) else section.path.model_copy(update=written)
    return section.model_copy(update={"path": path})


def _tiny_members(section: Section, one: MadeUp) -> dict[str, bytes]:
    """Ending -> content of the members of a key; a field of the JSON holds two captions, a text has room for one."""
    rule = parse_caption(section.caption)
    texts: dict[str, Any] = dict(cells(rule, one.number, 0))
    if rule.pieces is None and rule.text != TEXT:
        texts[rule.text] = captions(one.number)[:NUM_CAPTIONS]
    if section.split and section.split.by:
        texts[section.split.by] = one.group
    last = section.image[0].rpartition(".")[2]
    form = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}.get(last, "PNG")
    members = {section.image[0]: picture(one.number, one.attempt, form)}
    if TEXT in texts:
        members[TEXT] = str(texts.pop(TEXT)).encode()
    return {**members, "json": json.dumps(texts).encode()} if texts else members
