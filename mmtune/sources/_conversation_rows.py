"""Rows of conversations to samples: their images found, each in one split, checked once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os.path import join
from pathlib import Path

from mmtune.ground.image_reading import ImageFile
from mmtune.ground.records import NoMedia, Sample, Turn, printable
from mmtune.ground.seeding import text_key
from mmtune.sources._conversation_files import number_of
from mmtune.sources._conversation_turns import OWN_KEYS, turns_of
from mmtune.sources._downloads import SCHEMES, DownloadSection
from mmtune.sources._named_files import BadRow, name_within
from mmtune.sources._pairs import NUM_THREADS, CheckedReference, Quarantine
from mmtune.sources._splits import SplitName, most_held_out
from mmtune.sources._table import Row, as_text, is_missing


@dataclass(frozen=True)
class Conversation:
    """A good row.

    Attributes:
        where: ``file:line``.
        turns: what is said.
        images: its images, in their order.
        id: its own name.
        group: what the ``by`` key says, else its first image's name; of words alone, the words.
        columns: the keys not used otherwise, as text.
        joined: whether turns of one side in a row were joined.
        split: where it belongs.
    """

    where: str
    turns: tuple[Turn, ...]
    images: tuple[CheckedReference, ...]
    id: str
    group: str
    columns: dict[str, str]
    joined: bool
    split: SplitName = "train"

    @property
    def keys(self) -> tuple[str, ...]:
        """What ties it to others: its images; of words alone, its group."""
        return tuple(image.key for image in self.images) or (f"words of {self.group}",)


@dataclass(frozen=True)
class ConversationReader:
    """What the recipe says about rows.

    Attributes:
        folder: what relative paths start from.
        confined: paths that lead out of ``folder`` are bad.
        id, by: optional keys.
        downloads: how images behind addresses are fetched; None: they are bad.
        prefix: what the ids of rows without one begin with.
        known: (name, reference) of the paths so far, so that a path is resolved once.
    """

    folder: Path
    confined: bool
    id: str | None
    by: str | None
    downloads: DownloadSection | None
    prefix: str
    known: dict[str, tuple[str, CheckedReference]] = field(default_factory=dict)

    def read(self, row: Row, split: str, quarantine: Quarantine) -> Conversation | None:
        """A row as a conversation; None where it went to the quarantine."""
        names: list[str] = []
        images: list[CheckedReference] = []

        def image_of(path: str) -> CheckedReference:
            if path not in self.known:
                self.known[path] = self._named(path)
            name, image = self.known[path]
            names.append(name)
            images.append(image)
            return image

        try:
            own_id, group = self._cell(row, self.id), self._cell(row, self.by)
            turns, joined = turns_of(row.values, image_of)
        except BadRow as problem:
            quarantine.add(row.where, str(problem), split)
            return None
        if not group:
            words = "\x1f".join(f"{turn.role}: {turn.text}" for turn in turns)
            group = names[0] if names else f"words {text_key(words):x}"
        used = {*OWN_KEYS, self.id}
        rest = {key: as_text(value) for key, value in row.values.items() if key not in used and not is_missing(value)}
        identity = own_id or f"{self.prefix}-{number_of(row)}"
        return Conversation(row.where, turns, tuple(images), identity, group, rest, joined)

    def _cell(self, row: Row, key: str | None) -> str:
        """The text of an optional key, "" where the recipe names none."""
        if key is None:
            return ""
        if is_missing(row.values.get(key)):
            raise BadRow(f"empty cell: key '{key}'")
        return as_text(row.values[key]).strip()

    def _named(self, path: str) -> tuple[str, CheckedReference]:
        """Name and reference of a path or an address."""
        if path.startswith("data:"):
            raise BadRow("image is written in letters (data:...): save it as a file and give its path")
        if path.split("://")[0].lower() in SCHEMES:
            if self.downloads is not None:
                return path, self.downloads.image_at(path)
            raise BadRow(
                f"image is an address: '{path[:200]}'; fetch the files first and give their paths, or allow it in the "
                "recipe: data.downloads: {max_bytes: 5000000, seconds: 10}"
            )
        name = name_within(path, self.folder, confined=self.confined)
        return name, ImageFile(join(self.folder, name))


def keep_one_split(found: Sequence[Conversation], quarantine: Quarantine) -> list[Conversation]:
    """Drop conversations about an image that a more held out split claims, so that nothing leaks."""
    claims: dict[str, dict[SplitName, Conversation]] = {}
    for one in found:
        for key in one.keys:
            claims.setdefault(key, {}).setdefault(one.split, one)
    kept = []
    for one in found:
        owners = {claims[key][most_held_out(claims[key])].split: key for key in one.keys}
        owner = most_held_out([one.split, *owners])
        if owner == one.split:
            kept.append(one)
            continue
        other = claims[owners[owner]][owner]
        what = "image is" if one.images else "the same words are"
        quarantine.add(one.where, f"{what} in another split too: {other.where} puts it into {owner}", one.split)
    return kept


def samples_of(found: Sequence[Conversation], split: str, quarantine: Quarantine) -> tuple[Sample, ...]:
    """The samples of a split whose images can all be read, each header read once, in threads."""
    images = {image.key: image for one in found for image in one.images}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        checked = dict(zip(images, pool.map(lambda image: image.check(), images.values()), strict=True))
    samples: dict[str, Sample] = {}
    owners: dict[str, str] = {}
    for one in found:
        broken = {image.where: reason for image in one.images if (reason := checked[image.key]) is not None}
        identity = printable(one.id)
        if broken:
            quarantine.add(one.where, "; ".join(f"{reason}: {where}" for where, reason in broken.items()), split)
        elif identity in samples:
            quarantine.add(one.where, f"id occurs twice: '{identity}' is that of {owners[identity]} too", split)
        else:
            owners[identity] = one.where
            samples[identity] = _sample(one, identity)
    return tuple(samples.values())


def _sample(one: Conversation, identity: str) -> Sample:
    return Sample(
        id=identity,
        media=one.images[0] if one.images else NoMedia(identity, printable(one.where)),
        group=printable(one.group),
        columns={name: printable(value) for name, value in one.columns.items()},
        turns=one.turns,
    )
