"""What tasks that end in words share: their section, and how turns are put together."""

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from mmtune.ground.records import Sample, Turn
from mmtune.ground.sections import StrictSection
from mmtune.ground.seeding import seed_for


def _known(name: str) -> str:
    from mmtune.ground.errors import RecipeError
    from mmtune.metrics import answer_score

    try:
        answer_score(name)
    except RecipeError as error:
        raise ValueError(str(error)) from error
    return name


Score = Annotated[str, AfterValidator(_known)]


def has_place(name: str) -> Callable[[str], str]:
    """A check that a prompt says where ``{name}`` goes."""

    def checked(text: str) -> str:
        if f"{{{name}}}" not in text:
            raise ValueError(f"must say where the {name} goes: write {{{name}}} in it, such as '{{{name}}} {text}'")
        return text

    return checked


class AnswerSection(StrictSection):
    """What every task has whose answers are generated."""

    max_new_tokens: int = Field(32, ge=1, le=4096, description="longest answer, in tokens, that scoring generates")
    num_beams: int = Field(1, ge=1, le=64, description="beams of the search for an answer; 1: the likeliest token")


def score_names(section: AnswerSection, modality: str) -> list[str]:
    """The task's metrics, as the recipe orders them."""
    return list(section.scores)  # type: ignore[attr-defined]


def prepare(samples: Sequence[Sample], seed: int) -> Sequence[Sample]:
    """The samples as they are."""
    return samples


def one_each(samples: Sequence[Sample], captions: str) -> list[tuple[int, int | None]]:
    """An epoch is every sample once."""
    return [(index, None) for index in range(len(samples))]


def drawn(texts: Sequence[str], what: str, sample: Sample, seed: int, epoch: int) -> str:
    """One of the texts, by (seed, epoch, id); equal texts are votes."""
    return texts[seed_for(seed, what, epoch, sample.id) % len(texts)]


def user_turn(sample: Sample, words: str) -> Turn:
    """The image, then the words; without words the image alone."""
    return Turn("user", (sample.media, words) if words else (sample.media,))


def assistant_turn(words: str) -> Turn:
    """What must be said."""
    return Turn("assistant", (words,))
