"""Say what an image shows, with a backbone that generates.

The loss is the cross-entropy of the caption's tokens and of the end; what asks for it carries none. In training one of
an image's captions is drawn per epoch, or every one is shown (``data.captions: all``); scoring holds what was
generated against all of them.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mmtune.ground.records import Sample, Turn
from mmtune.tasks._answering import AnswerSection, Score, assistant_turn, drawn, prepare, score_names, user_turn

__all__ = ["asked", "candidates", "items", "prepare", "references", "score_names", "spoken", "statement"]

ABILITIES = ("generate",)
FIELDS = frozenset({"captions"})


class Section(AnswerSection):
    """Captions for images."""

    kind: Literal["captioning"] = Field("captioning", description="say what an image shows")
    prompt: str | None = Field(None, description="what asks for a caption; null: the family's own words, if it has any")
    scores: list[Score] = Field(
        ["cider_d", "coco_bleu@4", "rouge_l", "exact_match"],
        min_length=1,
        description="what captions are judged by; the first chooses the best checkpoint",
    )


def items(samples: Sequence[Sample], captions: str) -> list[tuple[int, int | None]]:
    """What an epoch goes through: (sample index, caption index), where None means a caption drawn per epoch."""
    if captions == "one":
        return [(index, None) for index in range(len(samples))]
    return [(index, number) for index, sample in enumerate(samples) for number in range(len(sample.captions))]


def spoken(
    section: Section, sample: Sample, choice: int | None, *, prompt: str, seed: int, epoch: int
) -> tuple[Turn, ...]:
    """The image, then a caption of it: number ``choice``, or one drawn for the epoch."""
    caption = drawn(sample.captions, "caption", sample, seed, epoch) if choice is None else sample.captions[choice]
    return (*asked(section, sample, prompt), assistant_turn(caption))


def asked(section: Section, sample: Sample, prompt: str) -> tuple[Turn, ...]:
    """The image, with what asks for a caption."""
    return (user_turn(sample, prompt if section.prompt is None else section.prompt),)


def candidates(section: Section) -> list[str]:
    """A caption may be any words."""
    return []


def references(section: Section, sample: Sample) -> list[str]:
    """Every caption known for the image."""
    return [*sample.captions, *sample.also_true]


def statement(sample: Sample) -> str:
    """Nothing is said beside the image."""
    return ""
