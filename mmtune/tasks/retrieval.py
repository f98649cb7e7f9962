"""Find the image for a text and the text for an image, with a two-tower backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mmtune.ground.kind_folder import kind, section_union
from mmtune.ground.records import Sample
from mmtune.ground.sections import StrictSection
from mmtune.ground.seeding import seed_for, text_key

if TYPE_CHECKING:
    from torch import Tensor

ABILITIES = ("embed",)
FIELDS = frozenset({"captions"})

LOSSES = ("infonce", "sigmoid")
"""The losses that fit this task."""

NO_KEY = -1
"""Fills ``image_keys`` where an image has fewer captions than its neighbours; no text has this key."""


class Section(StrictSection):
    """Image-text retrieval."""

    kind: Literal["retrieval"] = Field("retrieval", description="rank images, or sounds, for a text and texts for them")
    loss: section_union("losses") = Field(  # type: ignore[valid-type]
        default_factory=lambda: _default_loss(), description="what is minimised", validate_default=False
    )


def _default_loss() -> Any:
    from mmtune.losses.infonce import Section as InfoNCE

    return InfoNCE(kind="infonce")


def score_names(section: Section, modality: str) -> list[str]:
    """Recall and ranks in both directions; recall@1 from text to the modality first."""
    from mmtune.metrics import retrieval_scores

    first = f"text_to_{modality}_recall@1"
    return sorted((score.name for score in retrieval_scores(modality)), key=lambda name: name != first)


@dataclass(frozen=True)
class Pair:
    """One training pair: which caption of a sample is shown, and every text that is true of its image.

    Attributes:
        text: the caption that is shown.
        text_key: its identity.
        image_keys: identities of all texts that describe the image.
    """

    text: str
    text_key: int
    image_keys: tuple[int, ...]


def items(samples: Sequence[Sample], captions: str) -> list[tuple[int, int | None]]:
    """What an epoch goes through: (sample index, caption index), where None means a caption drawn per epoch."""
    if captions == "one":
        return [(index, None) for index in range(len(samples))]
    return [(index, number) for index, sample in enumerate(samples) for number in range(len(sample.captions))]


def render(sample: Sample, caption: int | None, *, seed: int, epoch: int) -> Pair:
    """Choose the caption of a sample for an epoch: a function of (seed, epoch, id) alone."""
    if caption is None:
        caption = seed_for(seed, "caption", epoch, sample.id) % len(sample.captions)
    text = sample.captions[caption]
    known = dict.fromkeys(text_key(each) for each in (*sample.captions, *sample.also_true))
    return Pair(text, text_key(text), tuple(known))


def positives(image_keys: "Tensor", text_keys: "Tensor") -> "Tensor":
    """Which text describes which image.

    Args:
        image_keys: ``int64[B, K]``, padded with ``NO_KEY``.
        text_keys: ``int64[B]``.

    Returns:
        ``bool[B, B]``, entry (i, j): text j is among the texts known for image i.
    """
    import torch

    found = torch.zeros((image_keys.shape[0], text_keys.shape[0]), dtype=torch.bool, device=image_keys.device)
    for column in image_keys.T:
        found |= column[:, None] == text_keys[None, :]
    return found


def loss(
    section: Section,
    image_embeds: "Tensor",
    text_embeds: "Tensor",
    positive: "Tensor",
    temperature: "tuple[Tensor, Tensor | None]",
) -> "Tensor":
    """The loss of a whole batch, ``float[]``; see ``mmtune.losses`` for the shapes."""
    log_scale, bias = temperature
    value: Tensor = kind("losses", section.loss).loss(image_embeds, text_embeds, positive, log_scale, bias)
    return value


def max_log_scale(section: Section) -> float | None:
    """The largest log scale that the loss was published with; None where it sets no limit."""
    limit: float | None = kind("losses", section.loss).MAX_LOG_SCALE
    return limit
