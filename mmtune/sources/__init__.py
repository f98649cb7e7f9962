"""Floor 1, where samples come from: one file per kind, the folder is the registry.

A source is a module with a ``Section`` (a ``SourceSection``; ``fields`` say what samples hold) and three functions::

    split_names(section) -> tuple[str, ...]               # cheap: no image is opened
    open_split(section, split, *, seed) -> OpenedSplit    # lines and image headers are checked here
    write_tiny(section, folder) -> Section                # made-up rows, and the section that points to them

``write_tiny`` writes about 24 small pictures (or tones) with two captions each, where the format has room for two, into
a new ``folder``: in the section's own columns, format, splits and caption template, so that what it gives opens on the
same way as the section itself, every split of it. It neither needs nor looks at the section's own data.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mmtune.ground.errors import DataError
from mmtune.ground.image_augmentation import AugmentSection
from mmtune.ground.kind_folder import kind
from mmtune.ground.records import MEDIA_WORDS, BadItem, Sample
from mmtune.ground.sections import StrictSection

NUM_SHOWN = 10
"""Bad items that an error message shows."""


class AnySourceSection(StrictSection):
    """What every source has, whatever its samples hold."""

    augment: AugmentSection = Field(AugmentSection(), description="random changes of training images; default none")
    max_bad_fraction: float = Field(
        0.01, ge=0, lt=1, description="share of bad lines and media above which the run stops instead of going on"
    )

    @model_validator(mode="after")
    def _check_augment(self) -> Self:
        if self.modality != "image" and self.augment != AugmentSection():
            raise ValueError(
                f"augment changes images, and these are {MEDIA_WORDS[self.modality]}: leave it out (of a sound that is "
                "longer than the model hears, every epoch draws another window anyway)"
            )
        return self

    @property
    def modality(self) -> Literal["image", "audio"]:
        """What the source matches with captions."""
        return "image"

    @property
    def fields(self) -> frozenset[str]:
        """What its samples hold: captions, question, answers, label, turns."""
        return frozenset({"captions"})


class SourceSection(AnySourceSection):
    """What a source of captions has."""

    captions: Literal["one", "all"] = Field(
        "one",
        description="one: an epoch is every image or sound once, with one of its captions drawn by (seed, epoch, id); "
        "all: every pair with a caption once",
    )


@dataclass(frozen=True)
class OpenedSplit:
    """A split that was checked.

    Attributes:
        samples: the good samples, in a fixed order.
        bad: what was quarantined, with its reason.
        num_seen: good and bad together (what ``max_bad_fraction`` is a share of).
        notes: lines for the log: where the data came from, what was left alone on purpose.
    """

    samples: Sequence[Sample]
    bad: tuple[BadItem, ...] = field(default=())
    num_seen: int = 0
    notes: tuple[str, ...] = ()


def open_split(section: Any, split: str, *, seed: int, key: str = "data") -> OpenedSplit:
    """Open one split of the source that ``section.kind`` names.

    Args:
        section: the source.
        split: its name.
        seed: of the recipe.
        key: where in a recipe the source stands, for the message.

    Raises:
        DataError: the file, folder, column or split is not there, or too much of it is bad.
    """
    opened: OpenedSplit = kind("sources", section).open_split(section, split, seed=seed)
    enforce_bad_limit(opened, section.max_bad_fraction, MEDIA_WORDS[section.modality], key)
    return opened


def enforce_bad_limit(opened: OpenedSplit, max_bad_fraction: float, words: str = "images", key: str = "data") -> None:
    """Stop where too much is bad; ``key`` is where in a recipe the source stands.

    Raises:
        DataError: more than ``max_bad_fraction`` of what was seen is bad; the message counts each kind of reason (its
            words before the colon) and shows the first items.
    """
    if len(opened.bad) <= max_bad_fraction * opened.num_seen:
        return
    kinds = Counter(item.reason.split(": ")[0] for item in opened.bad)
    counts = "\n".join(f"  {count} x {reason}" for reason, count in kinds.most_common(10))
    shown = "\n".join(f"  {item.where}: {item.reason}" for item in opened.bad[:NUM_SHOWN])
    raise DataError(
        f"{len(opened.bad)} of {opened.num_seen} lines and {words} are bad, {len(opened.bad) / opened.num_seen:.1%}; "
        f"{key}.max_bad_fraction allows {max_bad_fraction:.1%}. Reasons:\n{counts}\nThe first:\n{shown}"
    )


def split_names(section: Any) -> tuple[str, ...]:
    """The names of the splits the source has."""
    names: tuple[str, ...] = kind("sources", section).split_names(section)
    return names


def splits_on_disk(section: Any) -> bool:
    """Whether only the disk says which splits there are; a kind may have a function of this name that says so."""
    asked = getattr(kind("sources", section), "splits_on_disk", None)
    return asked is not None and bool(asked(section))


def sections_by_source(section: Any) -> dict[str, Any]:
    """``Sample.source`` -> the section with its ``captions`` and ``augment``: itself, or one per source of a mix."""
    return dict(section.sources) if section.kind == "mix" else {"": section}


def write_tiny(section: Any, folder: Path) -> Any:
    """Write made-up rows with the section's own columns under ``folder``, and give the section that points to them."""
    folder.mkdir(parents=True, exist_ok=True)
    return kind("sources", section).write_tiny(section, folder)
