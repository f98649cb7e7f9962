"""Floor 1, where samples come from: one file per kind, the folder is the registry.

A source is a module with a ``Section`` (a ``SourceSection``) and two functions::

    split_names(section) -> tuple[str, ...]               # cheap: no image is opened
    open_split(section, split, *, seed) -> OpenedSplit    # lines and image headers are checked here
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from mmtune.ground.image_augmentation import AugmentSection
from mmtune.ground.kind_folder import kind
from mmtune.ground.records import BadItem, Sample
from mmtune.ground.sections import StrictSection


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
    return opened


def split_names(section: Any) -> tuple[str, ...]:
    """The names of the splits the source has."""
    names: tuple[str, ...] = kind("sources", section).split_names(section)
    return names
