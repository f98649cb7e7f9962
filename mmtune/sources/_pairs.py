"""Rows of a table to samples: one per image, with every caption that any row gives it."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from mmtune.ground.errors import DataError
from mmtune.ground.image_reading import ImageFile, check_header
from mmtune.ground.records import BadItem, Sample
from mmtune.ground.seeding import text_key
from mmtune.sources import OpenedSplit
from mmtune.sources._captions import CaptionRule, captions_of
from mmtune.sources._splits import SplitName, join_groups, most_held_out
from mmtune.sources._table import Row, as_text, is_missing

NUM_THREADS = 16
"""Headers are read while others wait for the disk; a network disk gains most."""


@dataclass(frozen=True)
class Pair:
    """A good row.

    Attributes:
        where: ``file:line``.
        image: the reference.
        name: the image's name within its folder, which stays the same when the data moves.
        captions: at least one.
        id: what the ``id`` column says, else "".
        group: what the ``by`` column says, else ``name``.
        columns: the columns not used otherwise, as text.
        split: where it belongs.
    """

    where: str
    image: ImageFile
    name: str
    captions: tuple[str, ...]
    id: str
    group: str
    columns: dict[str, str]
    split: SplitName = "train"


class Quarantine:
    """Collects bad items of all splits; what cannot be assigned to a split counts for the source's first one."""

    def __init__(self, first_split: str) -> None:
        self.first_split = first_split
        self.items: list[BadItem] = []

    def add(self, where: str, reason: str, split: str = "") -> None:
        """Note a bad item."""
        self.items.append(BadItem(where, reason, split or self.first_split))

    def of(self, split: str) -> tuple[BadItem, ...]:
        """The bad items of a split, in the order in which they were found."""
        return tuple(item for item in self.items if item.split == split)


@dataclass(frozen=True)
class RowReader:
    """What the recipe says about a table's columns.

    Attributes:
        image: column with the image's path.
        caption: the caption rule.
        folder: what relative paths start from.
        confined: paths that lead out of ``folder`` are bad.
        id, by: optional columns.
    """

    image: str
    caption: CaptionRule
    folder: Path
    confined: bool
    id: str | None = None
    by: str | None = None

    def wanted(self, prefix: str = "data") -> list[tuple[str, str]]:
        """(setting, column) for every column that must be there."""
        named = {"image": self.image, "id": self.id, "split.by": self.by}
        found = [(f"{prefix}.{key}", column) for key, column in named.items() if column is not None]
        return found + [(f"{prefix}.caption", column) for column in self.caption.columns]

    def read(self, row: Row, known: dict[str, ImageFile]) -> tuple[Pair | None, list[str]]:
        """A row as a pair (None where nothing of it is left) and the reasons for what is bad.

        Args:
            row: the row.
            known: references made so far by path, so that a path is resolved once.
        """
        for column in filter(None, (self.id, self.by)):
            if is_missing(row.values.get(column)):
                return None, [f"empty cell: column '{column}'"]
        name = self._name_of(row.values.get(self.image))
        if name.startswith("!"):
            return None, [name[1:]]
        captions, problems = captions_of(row.values, self.caption)
        if not captions:
            return None, problems
        if name not in known:
            known[name] = ImageFile(os.path.join(self.folder, name))
        return self._pair(row, known[name], name, captions), problems

    def _pair(self, row: Row, image: ImageFile, name: str, captions: list[str]) -> Pair:
        used = {self.image, self.id, None if self.caption.pieces else self.caption.text}
        rest = {key: as_text(value) for key, value in row.values.items() if key not in used and not is_missing(value)}
        own_id = as_text(row.values[self.id]).strip() if self.id else ""
        group = as_text(row.values[self.by]).strip() if self.by else name
        return Pair(row.where, image, name, tuple(captions), own_id, group, rest)

    def _name_of(self, value: object) -> str:
        """The image's path relative to the folder, normalised; ``!reason`` where there is none."""
        if is_missing(value):
            return f"!no image: column '{self.image}' is empty"
        if not isinstance(value, str) or "\0" in value:
            return f"!no image: column '{self.image}' holds no path but a {type(value).__name__}"
        path = value.strip()
        if path.split("://")[0] in ("http", "https", "s3", "gs", "file"):
            return f"!image is an address: '{path}'; fetch the images first and give their paths"
        root = os.path.abspath(self.folder)
        name = os.path.relpath(os.path.join(root, path), root).replace(os.sep, "/")
        if name == ".." or name.startswith("../"):
            if self.confined:
                return f"!image outside its folder: '{path}' leads out of '{self.folder}'"
            return os.path.normpath(path) if os.path.isabs(path) else name
        return name


def keep_one_split(pairs: Sequence[Pair], quarantine: Quarantine) -> list[Pair]:
    """Drop the rows of an image from every split but the most held out one that claims it, so that nothing leaks."""
    claims: dict[str, dict[SplitName, Pair]] = {}
    for pair in pairs:
        claims.setdefault(pair.image.key, {}).setdefault(pair.split, pair)
    kept = []
    for pair in pairs:
        owner = claims[pair.image.key][most_held_out(claims[pair.image.key])]
        if pair.split == owner.split:
            kept.append(pair)
        else:
            reason = f"image is in another split too: {owner.where} puts '{pair.name}' into {owner.split}"
            quarantine.add(pair.where, reason, pair.split)
    return kept


def assign_by_hash(pairs: Sequence[Pair], assign: Callable[[str], SplitName]) -> list[Pair]:
    """Give every pair the split of its group; groups that share an image are one group."""
    joined = join_groups((pair.image.key, pair.group) for pair in pairs)
    return [replace(pair, group=joined[pair.group], split=assign(joined[pair.group])) for pair in pairs]


def merge_pairs(pairs: Iterable[Pair], quarantine: Quarantine) -> dict[SplitName, list[Sample]]:
    """One sample per image in order of its first row; a second image with the same id is bad."""
    by_image: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_image.setdefault(pair.image.key, []).append(pair)
    samples: dict[SplitName, list[Sample]] = {}
    owners: dict[str, str] = {}
    for rows in by_image.values():
        first = rows[0]
        identity = first.id or first.name
        if identity in owners:
            quarantine.add(first.where, f"id occurs twice: '{identity}' is another image in {owners[identity]}", first.split)
            continue
        owners[identity] = first.where
        captions = {text_key(caption): caption for row in reversed(rows) for caption in reversed(row.captions)}
        sample = Sample(
            id=identity,
            image=first.image,
            captions=tuple(captions.values())[::-1],
            group=first.group,
            columns=first.columns,
        )
        samples.setdefault(first.split, []).append(sample)
    return samples


def open_checked(samples: Sequence[Sample], split: str, quarantine: Quarantine) -> OpenedSplit:
    """Check the headers of a split's images, in threads; order and result do not depend on them.

    Raises:
        DataError: nothing is left.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        reasons = list(pool.map(check_header, (sample.image.key for sample in samples)))
    good = tuple(sample for sample, reason in zip(samples, reasons, strict=True) if reason is None)
    for sample, reason in zip(samples, reasons, strict=True):
        if reason is not None:
            quarantine.add(sample.image.where, reason, split)
    bad = quarantine.of(split)
    if not good:
        first = f"; first: {bad[0].where}: {bad[0].reason}" if bad else ""
        raise DataError(f"split '{split}' has no usable image: {len(bad)} bad lines and images{first}")
    return OpenedSplit(good, bad, len(good) + len(bad))
