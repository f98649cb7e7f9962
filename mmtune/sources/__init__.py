"""Floor 1, where samples come from: one file per kind, the folder is the registry.

A source is a module with a ``Section`` (a ``SourceSection``) and two functions::

    split_names(section) -> tuple[str, ...]               # cheap: no image is opened
    open_split(section, split, *, seed) -> OpenedSplit    # lines and image headers are checked here
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from mmtune.ground.errors import DataError
from mmtune.ground.image_augmentation import AugmentSection
from mmtune.ground.kind_folder import kind
from mmtune.ground.records import BadItem, Sample
from mmtune.ground.sections import StrictSection

NUM_SHOWN = 10
"""Bad items that an error message shows."""


class SourceSection(StrictSection):
    """What every source has."""

    captions: Literal["one", "all"] = Field(
        "one",
        description="one: an epoch is every image once, with one of its captions drawn by (seed, epoch, id); "
        "all: every pair of an image and a caption once",
    )
    augment: AugmentSection = Field(AugmentSection(), description="random changes of training images; default none")
    max_bad_fraction: float = Field(
        0.01, ge=0, lt=1, description="share of bad lines and images above which the run stops instead of going on"
    )


@dataclass(frozen=True)
class OpenedSplit:
    """A split that was checked.

    Attributes:
        samples: the good samples, in a fixed order.
        bad: what was quarantined, with its reason.
        num_seen: good and bad together (what ``max_bad_fraction`` is a share of).
    """

    samples: Sequence[Sample]
    bad: tuple[BadItem, ...] = field(default=())
    num_seen: int = 0


def open_split(section: Any, split: str, *, seed: int) -> OpenedSplit:
    """Open one split of the source that ``section.kind`` names.

    Raises:
        DataError: the file, folder, column or split is not there, or too much of it is bad.
    """
    opened: OpenedSplit = kind("sources", section).open_split(section, split, seed=seed)
    enforce_bad_limit(opened, section.max_bad_fraction)
    return opened


def enforce_bad_limit(opened: OpenedSplit, max_bad_fraction: float) -> None:
    """Stop where too much is bad.

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
        f"{len(opened.bad)} of {opened.num_seen} lines and images are bad, {len(opened.bad) / opened.num_seen:.1%}; "
        f"max_bad_fraction allows {max_bad_fraction:.1%}. Reasons:\n{counts}\nThe first:\n{shown}"
    )


def split_names(section: Any) -> tuple[str, ...]:
    """The names of the splits the source has."""
    names: tuple[str, ...] = kind("sources", section).split_names(section)
    return names
