"""Hold a conversation about images, or about nothing but words, with a backbone that generates.

Everything that the assistant says is learned, in every one of its turns, and nothing else. Scoring asks for the last of
them, given all that was said before.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mmtune.ground.records import Sample, Turn
from mmtune.tasks._answering import AnswerSection, Score, one_each, prepare, score_names

__all__ = ["asked", "candidates", "items", "prepare", "references", "score_names", "spoken", "statement"]

ABILITIES = ("generate",)
FIELDS = frozenset({"turns"})

items = one_each


class Section(AnswerSection):
    """Conversations of several turns."""

    kind: Literal["chat"] = Field(description="hold a conversation about images")
    system: str | None = Field(None, min_length=1, description="said first where a conversation has no system turn")
    scores: list[Score] = Field(
        ["rouge_l", "token_f1", "exact_match"],
        min_length=1,
        description="what the last answer is judged by; the first chooses the best checkpoint",
    )


def spoken(
    section: Section, sample: Sample, choice: int | None, *, prompt: str, seed: int, epoch: int
) -> tuple[Turn, ...]:
    """The whole conversation."""
    turns: Sequence[Turn] = sample.turns
    if section.system is not None and turns[0].role != "system":
        turns = (Turn("system", (section.system,)), *turns)
    return tuple(turns)


def asked(section: Section, sample: Sample, prompt: str) -> tuple[Turn, ...]:
    """The conversation without its last turn."""
    return spoken(section, sample, None, prompt=prompt, seed=0, epoch=0)[:-1]


def candidates(section: Section) -> list[str]:
    """An answer may be any words."""
    return []


def references(section: Section, sample: Sample) -> list[str]:
    """What the assistant said last."""
    return [sample.turns[-1].text]


def statement(sample: Sample) -> str:
    """What was said to the assistant last."""
    return sample.turns[-2].text if len(sample.turns) > 1 else ""
