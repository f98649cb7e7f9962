"""Rows of a table to samples: one per image, with every caption that any row gives it; or one per row that asks."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mmtune.ground.errors import DataError
from mmtune.ground.image_reading import ImageFile
from mmtune.ground.records import BadItem, MediaReference, Sample, printable
from mmtune.ground.sound_reading import SoundFile
from mmtune.sources import OpenedSplit
from mmtune.sources._answers import AnswerColumns, Asked, asked_of
from mmtune.sources._captions import CaptionRule, captions_of, distinct
from mmtune.sources._named_files import BadRow, name_within
from mmtune.sources._splits import ColumnSplit, HashSplit, SplitName, join_groups, most_held_out, split_name
from mmtune.sources._table import Row, as_text, is_missing

NUM_THREADS = 16
"""Headers are read while others wait for the disk; a network disk gains most."""


class CheckedReference(MediaReference, Protocol):
    """A reference that can be checked without decoding it."""

    def check(self) -> str | None:
        """Why it cannot be read, as far as its header tells, or None; safe in threads."""
        ...


@dataclass(frozen=True, slots=True)
class Located:
    """What a source puts into a row's image column where the image is in no file of its own.

    Attributes:
        name: the image's name, the same wherever the data lies; its id where no column gives one.
        media: the reference.
    """

    name: str
    media: CheckedReference


@dataclass(frozen=True, slots=True)
class Unusable:
    """What a source puts there where it knows already that the cell is no image, so that its row still has a split."""

    reason: str


@dataclass(frozen=True)
class Pair:
    """A good row.

    Attributes:
        where: ``file:line``.
        image: the reference.
        name: the image's name within its folder, which stays the same when the data moves.
        captions: at least one; none where something is asked instead.
        id: what the ``id`` column says, else "".
        group: what the ``by`` column says, else ``name``.
        columns: the columns not used otherwise, as text.
        split: where it belongs.
        asked: what it asks, or whether its caption is true; None where rows of one image belong together.
    """

    where: str
    image: CheckedReference
    name: str
    captions: tuple[str, ...]
    id: str
    group: str
    columns: dict[str, str]
    split: SplitName = "train"
    asked: Asked | None = None


class Quarantine:
    """Collects bad items of all splits; what cannot be assigned to a split counts for the source's first one.

    Attributes:
        first_split: the source's first split.
        noun: what one of its items is called: image or sound.
        items: what was added.
    """

    def __init__(self, first_split: str, noun: str = "image") -> None:
        self.first_split = first_split
        self.noun = noun
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
        image: column with the path of the image (or sound).
        caption: the caption rule; None where no caption is read.
        folder: what relative paths start from.
        confined: paths that lead out of ``folder`` are bad.
        id, by: optional columns.
        file: what a path stands for.
        asked: columns of questions, answers and labels.
    """

    image: str
    caption: CaptionRule | None
    folder: Path
    confined: bool
    id: str | None = None
    by: str | None = None
    file: type[ImageFile] | type[SoundFile] = ImageFile
    asked: AnswerColumns = AnswerColumns()

    def wanted(self, prefix: str = "data") -> list[tuple[str, str]]:
        """(setting, column) for every column that must be there."""
        named = {self.file.modality: self.image, "id": self.id, "split.by": self.by, **self.asked.named}
        found = [(f"{prefix}.{key}", column) for key, column in named.items() if column is not None]
        return found + [(f"{prefix}.caption", column) for column in self._caption_columns]

    @property
    def _caption_columns(self) -> tuple[str, ...]:
        return self.caption.columns if self.caption is not None else ()

    def read(self, row: Row, known: dict[str, tuple[str, CheckedReference]]) -> tuple[Pair | None, list[str]]:
        """A row as a pair (None where nothing of it is left) and the reasons for what is bad.

        Args:
            row: the row.
            known: (name, reference) of the paths so far, so that a path is resolved once.
        """
        try:
            own_id, group = self._cell(row, self.id), self._cell(row, self.by)
            name, image = self._image_of(row.values.get(self.image), known)
            captions, asked, problems = self._texts_of(row)
        except BadRow as problem:
            return None, [str(problem)]
        if not captions and asked is None:
            return None, problems
        single = self._caption_columns if self.caption is not None and self.caption.pieces is None else ()
        used = {self.image, self.id, *single, *self.asked.named.values()}
        rest = {key: as_text(value) for key, value in row.values.items() if key not in used and not is_missing(value)}
        return Pair(row.where, image, name, tuple(captions), own_id, group or name, rest, asked=asked), problems

    def _texts_of(self, row: Row) -> tuple[list[str], Asked | None, list[str]]:
        """Captions, what is asked, and reasons for what is bad."""
        captions, problems = captions_of(row.values, self.caption) if self.caption is not None else ([], [])
        if not self.asked.named:
            return captions, None, problems
        wrong = self.caption is not None and len(captions) != 1
        if len(captions) > 1:
            problems = [f"one label for {len(captions)} captions: write a row for each caption, with its own label"]
        try:
            asked, left_out = asked_of(row.values, self.asked)
        except BadRow as problem:
            raise BadRow("; ".join([*problems, str(problem)])) from None
        if wrong:
            raise BadRow("; ".join(problems))
        return captions, asked, [*problems, *left_out]

    def _cell(self, row: Row, column: str | None) -> str:
        """The text of an optional column, "" where the recipe names none."""
        if column is None:
            return ""
        value = row.values.get(column)
        if isinstance(value, Unusable):
            raise BadRow(value.reason)
        if isinstance(value, Located):
            return value.name
        if is_missing(value):
            raise BadRow(f"empty cell: column '{column}'")
        return as_text(row.values[column]).strip()

    def _image_of(self, value: object, known: dict[str, tuple[str, CheckedReference]]) -> tuple[str, CheckedReference]:
        """The name and the reference that a cell stands for."""
        if isinstance(value, Unusable):
            raise BadRow(value.reason)
        if isinstance(value, Located):
            return value.name, value.media
        path = self._path_of(value)
        if path not in known:
            name = name_within(path, self.folder, confined=self.confined, noun=self.file.noun)
            known[path] = name, self.file(os.path.join(self.folder, name))
        return known[path]

    def _path_of(self, value: object) -> str:
        """The path as the table writes it."""
        if is_missing(value):
            raise BadRow(f"no {self.file.noun}: column '{self.image}' is empty")
        if not isinstance(value, str) or "\0" in value:
            raise BadRow(f"no {self.file.noun}: column '{self.image}' holds no path")
        return value.strip()


def good_pairs(reader: RowReader, rows: Iterable[tuple[Row, str]], quarantine: Quarantine) -> list[Pair]:
    """Rows with their split ("" where a hash decides later) to pairs; what is bad goes to the quarantine."""
    pairs: list[Pair] = []
    known: dict[str, tuple[str, CheckedReference]] = {}
    for row, split in rows:
        pair, problems = reader.read(row, known)
        for problem in problems:
            quarantine.add(row.where, problem, split)
        if pair is not None:
            pairs.append(replace(pair, split=split_name(split)) if split else pair)
    return pairs


def rows_by_column(
    splits: ColumnSplit, rows: Sequence[Row], where: str, quarantine: Quarantine
) -> list[tuple[Row, str]]:
    """Rows with the split that the column gives them; those of unlisted values are left out, as the recipe says.

    Raises:
        DataError: a split that is named has no row in ``where``.
    """
    name_of, seen = splits.name_of, Counter[str]()
    found: list[tuple[Row, str]] = []
    for row in rows:
        value = as_text(row.values.get(splits.column)).strip()
        if is_missing(value):
            quarantine.add(row.where, f"empty cell: column '{splits.column}'")
            continue
        seen[value] += 1
        if value in name_of:
            found.append((row, name_of[value]))
    splits.check_values(seen, where)
    return found


def open_pairs(pairs: Sequence[Pair], by_hash: HashSplit | None, split: str, quarantine: Quarantine) -> OpenedSplit:
    """From the pairs of all splits to the checked samples of one.

    Raises:
        DataError: nothing in the split is usable.
    """
    if by_hash is not None:
        pairs = assign_by_hash(pairs, by_hash)
    samples = merge_pairs(keep_one_split(pairs, quarantine), quarantine)
    return open_checked(samples.get(split_name(split), []), split, quarantine)


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
            reason = f"{quarantine.noun} is in another split too: {owner.where} puts '{pair.name}' into {owner.split}"
            quarantine.add(pair.where, reason, pair.split)
    return kept


def assign_by_hash(pairs: Sequence[Pair], by_hash: HashSplit) -> list[Pair]:
    """Give every pair the split of its group; groups that share an image are one group."""
    joined = join_groups((pair.image.key, pair.group) for pair in pairs)
    return [replace(pair, group=joined[pair.group], split=by_hash.assign(joined[pair.group])) for pair in pairs]


def merge_pairs(pairs: Iterable[Pair], quarantine: Quarantine) -> dict[SplitName, list[Sample]]:
    """One sample per image (or per row that asks something) in order of its first row; a second one with the same id
    is bad. Rows that ask and have no id of their own are numbered per image."""
    found: dict[str, list[Pair]] = {}
    rows_of: Counter[str] = Counter()
    for pair in pairs:
        if pair.asked is None:
            found.setdefault(pair.image.key, []).append(pair)
            continue
        rows_of[pair.image.key] += 1
        found[pair.where] = [replace(pair, id=pair.id or f"{pair.name}#{rows_of[pair.image.key]}")]
    samples: dict[SplitName, list[Sample]] = {}
    owners: dict[str, str] = {}
    for rows in found.values():
        first = rows[0]
        sample = _sample_of(rows)
        if sample.id in owners:
            what = f"another {quarantine.noun}" if first.asked is None else "that of another row (not of an image) too,"
            reason = f"id occurs twice: '{sample.id}' is {what} in {owners[sample.id]}"
            quarantine.add(first.where, reason, first.split)
            continue
        owners[sample.id] = first.where
        samples.setdefault(first.split, []).append(sample)
    return samples


def _sample_of(rows: Sequence[Pair]) -> Sample:
    first = rows[0]
    asked = first.asked or Asked()
    return Sample(
        id=printable(first.id or first.name),
        media=first.image,
        captions=tuple(distinct(caption for row in rows for caption in row.captions)),
        group=printable(first.group),
        columns={name: printable(value) for name, value in first.columns.items()},
        question=asked.question,
        answers=asked.answers,
        label=asked.label,
    )


def open_checked(samples: Sequence[Sample], split: str, quarantine: Quarantine) -> OpenedSplit:
    """Check the headers of a split's images, each once, in threads; order and result do not depend on them.

    Raises:
        DataError: nothing is left.
    """
    media: dict[str, CheckedReference] = {}
    for sample in samples:
        media.setdefault(sample.media.key, sample.media)  # type: ignore[arg-type]  # merge_pairs puts in nothing else
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        reasons = dict(zip(media, pool.map(lambda one: one.check(), media.values()), strict=True))
    good = tuple(sample for sample in samples if reasons[sample.media.key] is None)
    for sample in samples:
        reason = reasons[sample.media.key]
        if reason is not None:
            quarantine.add(sample.media.where, reason, split)
    bad = quarantine.of(split)
    if not good:
        first = f"; first: {bad[0].where}: {bad[0].reason}" if bad else ""
        noun = quarantine.noun
        raise DataError(f"split '{split}' has no usable {noun}: {len(bad)} bad lines and {noun}s{first}")
    return OpenedSplit(good, bad, len(good) + len(bad))
