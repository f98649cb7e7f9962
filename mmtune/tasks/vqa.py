"""Answer questions about images: in any words, from a list of answers by likelihood, or by a classifier's own list.

A backbone that generates learns one of the answers that people gave, drawn per epoch, so that answers given more often
are learned more. With ``answers`` it then says the likeliest of them (the sum of its tokens' log probabilities) instead
of generating. A backbone that classifies (ViLT) learns soft scores: those of the VQA metric, for each answer of its
list.

Source: answers ranked by likelihood: Li et al. 2022 (BLIP), arXiv:2201.12086, section 5.3; soft scores: Teney et al.
2017, arXiv:1708.02711, section 3.7.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mmtune.ground.records import Sample, Turn
from mmtune.metrics._vqa_words import normal_answer
from mmtune.tasks._answering import (
    AnswerSection,
    Score,
    assistant_turn,
    drawn,
    has_place,
    one_each,
    prepare,
    score_names,
    user_turn,
)

__all__ = ["asked", "candidates", "items", "prepare", "references", "score_names", "spoken", "statement"]

ABILITIES = ("generate", "classify")
FIELDS = frozenset({"question", "answers"})

items = one_each


def _choices(answers: list[str]) -> list[str]:
    """Answers that can be told apart and said."""
    if not all(answer.strip() for answer in answers):
        raise ValueError("an answer is empty: a model cannot say it")
    if twice := sorted({answer for answer in answers if answers.count(answer) > 1}):
        raise ValueError(f"named twice: {', '.join(twice)}; write each answer once")
    return answers


class Section(AnswerSection):
    """Visual question answering."""

    kind: Literal["vqa"] = Field(description="answer questions about images")
    prompt: Annotated[str, AfterValidator(has_place("question"))] = Field(
        "{question}", description="how a question is put, such as 'Question: {question} Answer:'"
    )
    answers: Annotated[list[str], AfterValidator(_choices)] | None = Field(
        None, min_length=2, description="the answers to choose from by likelihood; null: any words, generated"
    )
    scores: list[Score] = Field(
        ["vqa_accuracy", "exact_match", "token_f1"],
        min_length=1,
        description="what answers are judged by; the first chooses the best checkpoint",
    )


def spoken(
    section: Section, sample: Sample, choice: int | None, *, prompt: str, seed: int, epoch: int
) -> tuple[Turn, ...]:
    """The image and the question, then an answer drawn for the epoch."""
    return (*asked(section, sample, prompt), assistant_turn(drawn(sample.answers, "answer", sample, seed, epoch)))


def asked(section: Section, sample: Sample, prompt: str) -> tuple[Turn, ...]:
    """The image and the question."""
    return (user_turn(sample, section.prompt.replace("{question}", sample.question)),)


def candidates(section: Section) -> list[str]:
    """The answers to choose from."""
    return list(section.answers or ())


def references(section: Section, sample: Sample) -> list[str]:
    """What people answered, a vote each."""
    return list(sample.answers)


def statement(sample: Sample) -> str:
    """The question."""
    return sample.question


def soft_scores(sample: Sample, answers: Sequence[str]) -> list[float]:
    """How right each of a classifier's answers is, in [0, 1]: the VQA metric of it against what people answered.

    An answer that is not on the list as people wrote it counts for the one that it is when normalised: ``Yes.`` for
    ``yes``.
    """
    from mmtune.metrics.vqa_accuracy import statistics

    known = set(answers)
    votes = [text if text in known else normal_answer(text) for text in sample.answers]
    given = set(votes)
    return [float(statistics([one], [votes])[0, 0]) if one in given else 0.0 for one in answers]


def count_unknown(samples: Sequence[Sample], answers: Sequence[str]) -> int:
    """How many samples have no answer that is on a classifier's list: nothing right can be learned from them."""
    known = set(answers)
    return sum(not any(one in known or normal_answer(one) in known for one in sample.answers) for sample in samples)
