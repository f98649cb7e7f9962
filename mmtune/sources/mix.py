"""``kind: mix``, several sources in given proportions: one epoch holds them as their weights say."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from mmtune.ground.errors import DataError
from mmtune.ground.kind_folder import section_union
from mmtune.ground.records import BadItem, NoMedia, Sample
from mmtune.ground.sections import StrictSection
from mmtune.sources import OpenedSplit
from mmtune.sources import open_split as open_source
from mmtune.sources import split_names as names_of
from mmtune.sources import splits_on_disk as on_disk
from mmtune.sources import write_tiny as write_source
from mmtune.sources._splits import SPLITS, SplitName, most_held_out, split_name

if TYPE_CHECKING:
    AnySource: TypeAlias = Any
else:
    AnySource = section_union("sources", without="mix")

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Section(StrictSection):
    """Several sources, each with columns, captions and changes of images of its own::

        data:
          kind: mix
          sources:
            shop: {kind: jsonl, path: shop.csv, images: photos, split: {validation: 5%, test: 5%}}
            web: {kind: webdataset, path: {train: "web/{000..127}.tar"}}
          weights: {shop: 3, web: 1}
          scored: [shop]

    An epoch is the shortest one that holds the weights and every item of every source at least once; sources that are
    small for their weight come several times, each time with another draw of caption and of image changes. Which items
    stand where is a function of (seed, step), so a run goes on exactly where it stopped.
    """

    kind: Literal["mix"] = Field(description="several sources in proportions; none of them a mix")
    sources: dict[str, AnySource] = Field(
        min_length=1, description="name -> source: {shop: {kind: jsonl, ...}, web: {kind: webdataset, ...}}"
    )
    weights: dict[str, float] | None = Field(
        None, description="name -> share of an epoch, in any unit: {shop: 3, web: 1}; null: as many as there are"
    )
    scored: list[str] | None = Field(
        None, min_length=1, description="sources whose validation and test splits are scored, put together; null: all"
    )
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="as in every source, for all of them together, and for each source that sets no own",
    )

    @model_validator(mode="before")
    @classmethod
    def _pass_limit_on(cls, values: Any) -> Any:
        """A limit that is written here holds for every source that has none of its own."""
        limit, sources = (
            values.get(key) if isinstance(values, dict) else None for key in ("max_bad_fraction", "sources")
        )
        if not isinstance(sources, dict) or isinstance(limit, bool) or not isinstance(limit, int | float):
            return values
        given = {"max_bad_fraction": limit} if 0 <= limit < 1 else {}  # else it is reported, once
        named = {name: {**given, **one} if isinstance(one, dict) else one for name, one in sources.items()}
        return {**values, "sources": named}

    @field_validator("sources")
    @classmethod
    def _check_names(cls, sources: dict[str, Any]) -> dict[str, Any]:
        wrong = [name for name in sources if not _NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"{', '.join(map(repr, wrong))}: name sources with letters, digits, _ and -")
        return dict(sorted(sources.items()))  # the order in a file means nothing, and a run goes on upon another one

    @model_validator(mode="after")
    def _check(self) -> "Section":
        there = ", ".join(self.sources)
        problems = []
        if self.weights is not None:
            if unknown := sorted(self.weights.keys() - self.sources.keys()):
                problems.append(f"weights names {', '.join(unknown)}, and the sources are {there}")
            if missing := [name for name in self.sources if name not in self.weights]:
                problems.append(f"weights lacks {', '.join(missing)}")
            if wrong := [name for name, weight in self.weights.items() if not 0 < weight < math.inf]:
                problems.append(f"weights of {', '.join(wrong)} must be above 0; delete a source that is not wanted")
        if len({source.modality for source in self.sources.values()}) > 1:
            kinds = ", ".join(f"{name}: {source.modality}" for name, source in self.sources.items())
            problems.append(f"sources of images and of sounds do not mix ({kinds})")
        if len({source.fields for source in self.sources.values()}) > 1:
            held = "; ".join(f"{name}: {', '.join(sorted(source.fields))}" for name, source in self.sources.items())
            problems.append(f"the samples of all sources must hold the same ({held})")
        if unknown := [name for name in self.scored or () if name not in self.sources]:
            problems.append(f"scored names {', '.join(unknown)}, and the sources are {there}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def modality(self) -> Literal["image", "audio"]:
        """What the sources match with captions."""
        found: Literal["image", "audio"] = next(iter(self.sources.values())).modality
        return found

    @property
    def fields(self) -> frozenset[str]:
        """What the samples of each of the sources hold."""
        found: frozenset[str] = next(iter(self.sources.values())).fields
        return found

    def used(self, split: str) -> dict[str, Any]:
        """The sources that a split is made of."""
        names = self.sources if split == "train" or self.scored is None else self.scored
        return {name: self.sources[name] for name in self.sources if name in names}


def split_names(section: Section) -> tuple[str, ...]:
    """``train``, and what any of the scored sources has."""
    found = {split for split in SPLITS for source in section.used(split).values() if split in names_of(source)}
    return tuple(split for split in SPLITS if split in found)


def splits_on_disk(section: Section) -> bool:
    """Whether one of the sources says only on the disk which splits it has."""
    return any(on_disk(source) for source in section.sources.values())


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of all sources, one source after the other; ids begin with the source's name.

    An image that two sources have (equal ``key``) is held out of training where one of them scores it, and the captions
    of either are true of both.

    Raises:
        DataError: a source cannot be opened (all of them are named), has no such split, or has too much that is bad.
    """
    names = split_names(section)
    if split not in names:
        raise DataError(f"data has no split '{split}'; it has {', '.join(names)}")
    lacking = [name for name, source in section.sources.items() if "train" not in names_of(source)]
    if split == "train" and lacking:
        raise DataError(f"data.sources: {', '.join(lacking)} has no split train; a mix trains on all of its sources")
    opened, problems = _open_all(section, names, seed)
    if problems:
        raise DataError("\n".join(problems))
    here = opened[split]
    owners = _owners(opened)
    samples: list[Sample] = []
    bad = [item for one in here.values() for item in one.bad]
    for name, one in here.items():
        for sample in one.samples:
            owner = _owner(owners, sample, name)
            if owner[0] == split:
                samples.append(_named(sample, name))
            else:
                reason = f"image is in another split too: source {owner[1]} puts it into {owner[0]}"
                bad.append(BadItem(sample.media.where, reason, split))
    left = {sample.source for sample in samples}
    if empty := [name for name in here if name not in left]:
        raise DataError(
            f"data.sources: {', '.join(empty)} has nothing left in {split}: all of it is in another split too"
        )
    notes = tuple(f"{name}: {note}" for name, one in here.items() for note in one.notes)
    return OpenedSplit(_joined(samples), tuple(bad), len(samples) + len(bad), notes)


def _open_all(
    section: Section, names: tuple[str, ...], seed: int
) -> tuple[dict[str, dict[str, OpenedSplit]], list[str]]:
    """Split -> source -> what it has, for all splits: what is held out of training is known by them all."""
    opened: dict[str, dict[str, OpenedSplit]] = {}
    problems: list[str] = []
    for split in names:
        for name, source in section.used(split).items():
            if split not in names_of(source):
                continue
            try:
                opened.setdefault(split, {})[name] = open_source(source, split, seed=seed, key=f"data.sources.{name}")
            except DataError as error:
                problems.append(f"data.sources.{name}, split {split}: {error}")
    return opened, problems


def _owners(opened: Mapping[str, Mapping[str, OpenedSplit]]) -> dict[str, tuple[SplitName, str]]:
    """Image -> (the most held out split that has it, the source that puts it there)."""
    owners: dict[str, tuple[SplitName, str]] = {}
    for split, sources in opened.items():
        for name, one in sources.items():
            for sample in one.samples:
                mine = (split_name(split), name)
                for key in _keys(sample, name):
                    other = owners.setdefault(key, mine)
                    if most_held_out((other[0], mine[0])) != other[0]:
                        owners[key] = mine
    return owners


def _keys(sample: Sample, name: str) -> list[str]:
    """All images of a sample; words alone are their source's own."""
    media = [sample.media, *(image for turn in sample.turns for image in turn.media)]
    return list(dict.fromkeys(f"{name}/{one.key}" if isinstance(one, NoMedia) else one.key for one in media))


def _owner(owners: Mapping[str, tuple[SplitName, str]], sample: Sample, name: str) -> tuple[SplitName, str]:
    """The most held out split that has one of the sample's images, and the source that puts it there."""
    found = [owners[key] for key in _keys(sample, name)]
    split = most_held_out(one[0] for one in found)
    return next(one for one in found if one[0] == split)


def _named(sample: Sample, name: str) -> Sample:
    """The sample with its source; groups of different sources do not mix, and neither do words without an image."""
    media = sample.media
    if isinstance(media, NoMedia):
        media = replace(media, key=f"{name}/{media.key}")
    return replace(
        sample, id=f"{name}/{sample.id}", group=f"{name}/{sample.group or sample.id}", source=name, media=media
    )


def _joined(samples: list[Sample]) -> tuple[Sample, ...]:
    """Samples of one image in several sources learn of each other's captions, unless labels say what is true of it."""
    if any(sample.label is not None for sample in samples):
        return tuple(samples)
    texts: dict[str, dict[str, None]] = {}
    for sample in samples:
        texts.setdefault(sample.media.key, {}).update(dict.fromkeys((*sample.captions, *sample.also_true)))
    joined = []
    for sample in samples:
        known = {*sample.captions, *sample.also_true}
        others = tuple(text for text in texts[sample.media.key] if text not in known)
        joined.append(replace(sample, also_true=(*sample.also_true, *others)) if others else sample)
    return tuple(joined)


def write_tiny(section: Section, folder: Path) -> Section:
    """Every source's own made-up data, in folders of their names; see `mmtune.sources`."""
    sources = {name: write_source(source, folder / name) for name, source in section.sources.items()}
    return section.model_copy(update={"sources": sources})
