"""Conversations of one question and one answer about one image: all that a model which is no chat model can be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtune.ground.records import Turn


@dataclass(frozen=True)
class Exchange:
    """What a conversation comes down to.

    Attributes:
        image: what it is about.
        prompt: what the user says, stripped; may be empty.
        answer: what the assistant says, stripped; empty where it is still to be said.
    """

    image: "Image"
    prompt: str
    answer: str


def read_exchange(turns: "Sequence[Turn]", images: "Sequence[Image]", *, answered: bool) -> Exchange:
    """The exchange that the turns are: of a user, and with ``answered`` of an assistant after it.

    Raises:
        DataError: the conversation is longer, has a system turn, or not exactly one image; the answer is empty.
    """
    wanted = ["user", "assistant"] if answered else ["user"]
    roles = [turn.role for turn in turns]
    if roles != wanted:
        raise DataError(
            f"the model takes one question and one answer (turns {', '.join(wanted)}), and the turns are "
            f"{', '.join(roles) or 'none'}; conversations are for chat models"
        )
    places = sum(len(turn.media) for turn in turns)
    if places != len(images):
        raise DataError(f"the turns have places for {places} images, and there are {len(images)}")
    if places != 1 or len(turns[0].media) != 1:
        raise DataError(f"the model takes one image, with the question, and the turns have {places}")
    answer = turns[1].text.strip() if answered else ""
    if answered and not answer:
        raise DataError("the answer is empty")
    return Exchange(images[0], turns[0].text.strip(), answer)


def word_ids(processor: Any, text: str) -> list[int]:
    """The tokens of a text, without special ones and without any cut."""
    ids: list[int] = processor.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return ids


def answer_ids(processor: Any, answer: str) -> list[int]:
    """The tokens of an answer, as ``word_ids``.

    Raises:
        DataError: there are none: all its characters are ones that the tokenizer drops.
    """
    ids = word_ids(processor, answer)
    if not ids:
        raise DataError(f"the answer {answer!r} has no tokens: the tokenizer drops all of its characters")
    return ids


def refuse_early_end(processor: Any, ids: Sequence[int], end: int) -> None:
    """See that an answer's tokens do not hold the one that ends it: what stands behind it would never be said.

    Raises:
        DataError: they do.
    """
    if end in ids:
        token = processor.tokenizer.decode([end])
        raise DataError(f"the answer holds {token!r}, which ends answers of this model: it would stop there")


def refuse_longer(length: int, limit: int, what: str) -> None:
    """See that nothing would have to be cut.

    Raises:
        DataError: ``length`` tokens are more than ``limit``.
    """
    if length > limit:
        raise DataError(f"{what} has {length} tokens, and the model reads {limit}; nothing is cut, so shorten it")


def say(processor: Any, ids: Sequence[int], end: int) -> str:
    """The text of what was generated, up to ``end``, special tokens and ids that the tokenizer lacks left out."""
    said = list(ids)
    said = said[: said.index(end)] if end in said else said
    known = [one for one in said if one < len(processor.tokenizer)]
    text: str = processor.tokenizer.decode(known, skip_special_tokens=True)
    return text.strip()
