"""Say whether a text is true of an image: with a matching head (BLIP's ITM, ViLT), or by yes and no of a generator.

Samples with a ``label`` are asked about as they are. Where nobody says, every image is asked about twice: with its own
caption, and with the caption of another image, drawn anew in each epoch among a few that fit no image of its group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from numpy.random import Generator
from pydantic import AfterValidator, Field, model_validator

from mmtune.ground.records import Sample, Turn
from mmtune.ground.seeding import generator_for, text_key
from mmtune.tasks._answering import (
    AnswerSection,
    Score,
    assistant_turn,
    drawn,
    has_place,
    one_each,
    score_names,
    user_turn,
)

__all__ = ["asked", "candidates", "items", "prepare", "references", "score_names", "spoken", "statement"]

ABILITIES = ("match", "generate")
FIELDS = frozenset({"captions"})
NUM_MISMATCHES = 8
"""Captions of other images that an image without labels is asked about, one per epoch."""

TRUE_ID, FALSE_ID = "#match", "#other"
"""Ends of the ids of the two samples that one without a label becomes."""

items = one_each


class Section(AnswerSection):
    """Image-text matching."""

    kind: Literal["matching"] = Field(description="say whether a text is true of an image")
    prompt: Annotated[str, AfterValidator(has_place("caption"))] = Field(
        "{caption} Is this true of the image? Answer yes or no.",
        description="how a generator is asked; a matching head gets the caption alone",
    )
    yes: str = Field("yes", min_length=1, description="what a generator says where text and image match")
    no: str = Field("no", min_length=1, description="what it says where they do not")
    scores: list[Score] = Field(
        ["accuracy"], min_length=1, description="what is judged; the first chooses the best checkpoint"
    )

    @model_validator(mode="after")
    def _told_apart(self) -> "Section":
        if self.yes.strip() == self.no.strip():
            raise ValueError(f"yes and no are both {self.yes!r}: write two different answers")
        return self


def prepare(samples: Sequence[Sample], seed: int) -> Sequence[Sample]:
    """Samples with labels; those without become two, the second with captions of other images."""
    texts = [(text, owner) for owner in samples for text in owner.captions]
    prepared: list[Sample] = []
    for sample in samples:
        if sample.label is not None:
            prepared.append(sample)
            continue
        prepared.append(replace(sample, id=sample.id + TRUE_ID, label=True))
        if others := _mismatches(sample, texts, seed):
            prepared.append(replace(sample, id=sample.id + FALSE_ID, label=False, captions=others))
    return prepared


def _mismatches(sample: Sample, texts: "Sequence[tuple[str, Sample]]", seed: int) -> tuple[str, ...]:
    """Captions of other images, drawn at random; fewer than ``NUM_MISMATCHES`` where there are no more."""
    mine = {text_key(text) for text in (*sample.captions, *sample.also_true)}
    found: dict[int, str] = {}
    for place in _places(len(texts), generator_for(seed, "mismatch", sample.id)):
        text, owner = texts[place]
        same = owner.media.key == sample.media.key or (sample.group and owner.group == sample.group)
        if not same and text_key(text) not in mine:
            found[place] = text
        if len(found) == NUM_MISMATCHES:
            break
    return tuple(found.values())


def _places(number: int, generator: Generator) -> Iterator[int]:
    """A few random places, which nearly always suffice, then all of them in random order: many texts cost no more."""
    yield from map(int, generator.integers(0, number, size=4 * NUM_MISMATCHES))
    yield from map(int, generator.permutation(number))


def source_id(name: str) -> str:
    """The id in the data, of a sample that ``prepare`` may have made."""
    return name.removesuffix(TRUE_ID).removesuffix(FALSE_ID)


def spoken(
    section: Section, sample: Sample, choice: int | None, *, prompt: str, seed: int, epoch: int
) -> tuple[Turn, ...]:
    """The image, the question whether a caption is true, and yes or no."""
    shown = replace(sample, captions=(drawn(sample.captions, "caption", sample, seed, epoch),))
    return (*asked(section, shown, prompt), assistant_turn(section.yes if sample.label else section.no))


def asked(section: Section, sample: Sample, prompt: str) -> tuple[Turn, ...]:
    """The image, and the question whether its first caption is true."""
    return (user_turn(sample, section.prompt.replace("{caption}", sample.captions[0])),)


def candidates(section: Section) -> list[str]:
    """Yes, then no."""
    return [section.yes, section.no]


def references(section: Section, sample: Sample) -> list[str]:
    """The one that is right."""
    return [section.yes if sample.label else section.no]


def statement(sample: Sample) -> str:
    """The caption that is asked about."""
    return sample.captions[0]
