"""``kind: conversations``, chats about images, or in words alone: ``messages``, ShareGPT and LLaVA's JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmtune.ground.errors import DataError
from mmtune.sources import AnySourceSection, OpenedSplit
from mmtune.sources._conversation_files import read_conversations
from mmtune.sources._conversation_rows import Conversation, ConversationReader, keep_one_split, samples_of
from mmtune.sources._conversation_turns import count_joined
from mmtune.sources._downloads import DownloadSection
from mmtune.sources._made_up import MadeUp, file_stem, group_name, make_up, picture, questions
from mmtune.sources._pairs import Quarantine, rows_by_column
from mmtune.sources._splits import (
    ColumnSplit,
    HashSplit,
    SplitFiles,
    check_one_way,
    join_groups,
    paths_by_split,
    split_name,
    splits_named,
)
from mmtune.sources._table import require_columns


class Section(AnySourceSection):
    """A file of conversations, JSON lines or one JSON list; every row may be written in another of three ways::

        {"images": ["a.png"], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", ...}]},
                                           {"role": "assistant", "content": "two"}]}
        {"system": "be brief", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nhow many?"}, ...]}

    Images stand where ``<image>`` is written, or where a part of type ``image`` or ``image_url`` stands; there may be
    several, or none. The assistant has the last word::

        data: {kind: conversations, path: chats.jsonl, images: photos, split: {validation: 5%, test: 5%}}
        data: {kind: conversations, path: {train: train.json, validation: val.json}, images: photos}
        data: {kind: conversations, path: web.jsonl, split: {test: 1%}, downloads: {max_bytes: 5000000, seconds: 10}}
    """

    kind: Literal["conversations"] = Field(
        description="chats about images: OpenAI's messages, ShareGPT and LLaVA's JSON"
    )
    path: str | SplitFiles = Field(description="the file, or one file per split: {train: a.jsonl, test: b.jsonl}")
    images: str | None = Field(
        None,
        description="folder that holds the images, paths may not lead out of it; "
        "null: paths are absolute or start from the file's folder",
    )
    id: str | None = Field(
        None, description="key of a row that identifies the conversation in reports; null: its number in the file"
    )
    downloads: DownloadSection | None = Field(
        None, description="fetch images that are addresses, with limits: {max_bytes: 5000000}; null: they are bad"
    )
    split: HashSplit | None = Field(
        None, description="split one file by hash of the images, or of a key of the row: {test: 5%, by: id}"
    )
    splits: ColumnSplit | None = Field(
        None, description="split one file by a key of the row: {train: train, validation: val, column: split}"
    )

    @model_validator(mode="after")
    def _check(self) -> "Section":
        check_one_way(self.path, self.split, self.splits)
        return self

    @property
    def fields(self) -> frozenset[str]:
        """Conversations, and nothing else."""
        return frozenset({"turns"})

    @property
    def captions(self) -> Literal["one"]:
        """An epoch is every conversation once."""
        return "one"

    @property
    def _files(self) -> dict[str, str]:
        """Split -> file; "" stands for a file that holds all of them."""
        return paths_by_split(self.path)


def split_names(section: Section) -> tuple[str, ...]:
    """The splits that the section names; no file is opened."""
    return splits_named(section.path, section.split or section.splits)


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The conversations of a split in the order of the file. Every row and every image header of the split is checked
    here, and images are fetched where that is allowed. ``seed`` changes nothing.

    An image that two splits claim stays in the one that is held out most (test, then validation); conversations about
    it in the others are quarantined. By hash, conversations that share an image are in one split.

    Raises:
        DataError: a file, key or split is missing, or nothing in the split is usable.
    """
    names = split_names(section)
    if split not in names:
        raise DataError(f"data has no split '{split}'; it has {', '.join(names)}")
    quarantine = Quarantine(names[0], "conversation")
    found = [one for name in section._files for one in _read(section, name, quarantine)]
    if section.split is not None:
        joined = join_groups((key, one.group) for one in found for key in one.keys)
        groups = [joined[one.group] for one in found]
        found = [
            replace(one, group=group, split=section.split.assign(group))
            for one, group in zip(found, groups, strict=True)
        ]
    here = [one for one in keep_one_split(found, quarantine) if one.split == split]
    good = samples_of(here, split, quarantine)
    bad = quarantine.of(split)
    if not good:
        first = f"; first: {bad[0].where}: {bad[0].reason}" if bad else ""
        raise DataError(f"split '{split}' has no usable conversation: {len(bad)} bad rows{first}")
    notes = tuple(count_joined([one.joined for one in here]))
    return OpenedSplit(good, bad, len(good) + len(bad), notes)


def _read(section: Section, name: str, quarantine: Quarantine) -> list[Conversation]:
    """The good rows of one file (that of the split ``name``, or "" for the one that holds all splits)."""
    path = Path(section._files[name])
    folder = Path(section.images) if section.images is not None else path.parent
    if not folder.is_dir():
        raise DataError(f"data.images: no such folder: {folder}")
    by = section.split.by if section.split else None
    reader = ConversationReader(folder, section.images is not None, section.id, by, section.downloads, name or "row")
    table = read_conversations(path)
    column = section.splits.column if section.splits else None
    wanted = {"data.id": section.id, "data.split.by": by, "data.splits.column": column}
    require_columns(table, [(setting, key) for setting, key in wanted.items() if key is not None])
    for item in table.bad:
        quarantine.add(item.where, item.reason, name)
    rows = [(row, name) for row in table.rows]
    if section.splits is not None:
        rows = [(row, str(own)) for row, own in rows_by_column(section.splits, table.rows, str(path), quarantine)]
    found = []
    for row, own in rows:
        one = reader.read(row, own, quarantine)
        if one is not None:
            found.append(replace(one, split=split_name(own)) if own else one)
    return found


def write_tiny(section: Section, folder: Path) -> Section:
    """Made-up images, and conversations about them in all three ways; see `mmtune.sources`."""
    inside = "" if section.images is not None else "images/"
    by = section.split.by if section.split else None
    group = group_name if by else lambda number, attempt: f"{inside}{file_stem(number, attempt)}.png"
    pictures = make_up(split_names(section), section.split, group)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for one in pictures:
        (folder / "images" / f"{one.name}.png").write_bytes(picture(one.number))
    rows = [(one, _tiny_row(section, one, f"{inside}{one.name}.png")) for one in pictures]
    written: dict[str, str] = {}
    for name, path in section._files.items():
        written[name] = str(folder / f"{name or 'conversations'}{Path(path).suffix}")
        there = [row for one, row in rows if name in ("", one.split)]
        lines = [json.dumps(row) for row in there]
        text = "[\n" + ",\n".join(lines) + "\n]\n" if Path(path).suffix == ".json" else "\n".join(lines) + "\n"
        Path(written[name]).write_text(text, encoding="utf-8")
    moved = {} if inside else {"images": str(folder / "images")}
    files = written[""] if isinstance(section.path, str) else section.path.model_copy(update=written)
    return section.model_copy(update={"path": files, **moved})


def _tiny_row(section: Section, one: MadeUp, image: str) -> dict[str, object]:
    """One image, one or two questions with their answers."""
    said = questions(one.number)[: 1 + one.number // 3 % 2]
    first, *others = (each for pair in said for each in pair)
    row: dict[str, object]
    if one.number % 3 == 0:
        contents = [[{"type": "image", "image": image}, {"type": "text", "text": first}], *others]
        roles = ("user", "assistant")
        row = {"messages": [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]}
    else:
        texts = [f"<image>\n{first}", *others]
        turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
        row = {"conversations": turns, **({"image": image} if one.number % 3 == 1 else {"images": [image]})}
    named = {section.id: f"tiny-{one.number}"} if section.id is not None else {}
    group = {section.split.by: one.group} if section.split and section.split.by else {}
    own_split = {}
    if section.splits is not None:
        own_split = {section.splits.column: next(v for v, n in section.splits.name_of.items() if n == one.split)}
    return {**row, **named, **group, **own_split}
