"""What a model reads, token by token, and which of it is learned: from the tensors of one encoded sample.

Nothing is encoded a second time: kinds come from the labels that the loss will see, and targets are decoded from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["masked", "image", "trained", "read", "padding"]
"""``masked``: read, nothing is learned from saying it. ``image``: stands for a picture. ``trained``: must be said.
``read``: of a model that says nothing. ``padding``: seen by nobody."""

WORDS: dict[Kind, str] = {
    "trained": "trained on",
    "masked": "masked: read, but not learned to be said",
    "image": "image",
    "read": "read",
    "padding": "padding",
}
"""What a legend says of each kind, in its order."""

NO_LABEL = -100
MANY = 4
"""So many equal special tokens, one after another, are written as one with their number; of pictures any number is."""


@dataclass(frozen=True)
class Token:
    """A token, or several equal ones.

    Attributes:
        text: as a person reads it; a blank that belongs to it is kept.
        kind: what it is to the model.
        count: how many of them stand here.
        is_special: it is no text but a mark, such as the end of a turn.
    """

    text: str
    kind: Kind
    count: int = 1
    is_special: bool = False

    @property
    def shown(self) -> str:
        """How it is written: with its number where it stands for several, ends of lines and control letters visible."""
        if self.kind == "image" or self.count > 1:
            return f"[{visible(self.text).strip()}{f' x {self.count:,}' if self.count > 1 else ''}]"
        return visible(self.text).replace("\n", "↵\n")


def visible(text: str) -> str:
    """The text without what would steer a terminal or be seen by nobody: such letters become their numbers."""
    return "".join(one if one in "\n\t" or one.isprintable() else _number(one) for one in text)


def _number(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


@dataclass(frozen=True)
class Stream:
    """A text of its own that the model reads or says.

    Attributes:
        name: what it is: ``text``, or of an encoder-decoder ``reads`` and ``says``.
        tokens: in their order, runs of equal ones joined.
        targets: what must be said, decoded from the labels, a text for each stretch of them.
    """

    name: str
    tokens: tuple[Token, ...]
    targets: tuple[str, ...] = ()

    def count(self, *kinds: Kind) -> int:
        """How many tokens are of these kinds; of all but padding where none is named."""
        wanted = kinds or ("masked", "image", "trained", "read")
        return sum(token.count for token in self.tokens if token.kind in wanted)


def streams_of(encoded: "Mapping[str, Tensor]", *, family: Any, traits: Any, processor: Any) -> list[Stream]:
    """The texts of one encoded sample.

    Args:
        encoded: what ``encode_turns`` or ``encode_text`` gave: ``input_ids`` int64[L], with ``labels`` int64[L] where
            something must be said, and so on.
        family: says which tokens stand for a picture.
        traits: say where labels stand.
        processor: whose tokenizer made the ids.
    """
    tokenizer = processor.tokenizer
    writer = TokenWriter(tokenizer)
    ids, labelled = encoded["input_ids"].tolist(), "labels" in encoded
    kinds: list[Kind] = ["masked" if labelled else "read"] * len(ids)
    if labelled and hasattr(family, "image_tokens"):
        pictured = family.image_tokens(processor, encoded).tolist()
        kinds = ["image" if here else kind for kind, here in zip(kinds, pictured, strict=True)]
    if "attention_mask" in encoded:
        seen = encoded["attention_mask"].tolist()
        kinds = [kind if here else "padding" for kind, here in zip(kinds, seen, strict=True)]
    if not labelled:
        return [Stream("text", writer.join(ids, kinds))]
    labels = encoded["labels"].tolist()
    if not traits.shifted_labels:
        said = [label for label in labels if label != NO_LABEL]
        says = Stream("says", writer.join(said, ["trained"] * len(said)), _targets(tokenizer, labels))
        return [Stream("reads", writer.join(ids, kinds)), says]
    if "decoder_input_ids" in encoded:
        said = encoded["decoder_input_ids"].tolist()
        return [Stream("reads", writer.join(ids, kinds)), _spoken("says", writer, said, ["masked"] * len(said), labels)]
    return [_spoken("text", writer, ids, kinds, labels)]


def _spoken(name: str, writer: "TokenWriter", ids: list[int], kinds: list[Kind], labels: list[int]) -> Stream:
    """A text whose labels stand at its own tokens; the first follows nothing, so nothing is asked to say it."""
    labels = [NO_LABEL, *labels[1:]]
    ids = [one if label == NO_LABEL else label for one, label in zip(ids, labels, strict=True)]
    kinds = [kind if label == NO_LABEL else "trained" for kind, label in zip(kinds, labels, strict=True)]
    return Stream(name, writer.join(ids, kinds), _targets(writer.tokenizer, labels))


def question_stream(encoded: "Mapping[str, Tensor]", processor: Any) -> list[Stream]:
    """The text that a Q-Former reads beside the picture, where the model has one that reads."""
    if "qformer_input_ids" not in encoded:
        return []
    writer, ids = TokenWriter(processor.qformer_tokenizer), encoded["qformer_input_ids"].tolist()
    return [Stream("Q-Former", writer.join(ids, ["masked"] * len(ids)))]


def _targets(tokenizer: Any, labels: Sequence[int]) -> tuple[str, ...]:
    runs = [list(run) for is_said, run in groupby(labels, lambda label: label != NO_LABEL) if is_said]
    return tuple(tokenizer.decode([one for one in run if one < len(tokenizer)]) for run in runs)


class TokenWriter:
    """Writes single tokens the way a person reads them, whatever kind of tokenizer made them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}

    @cached_property
    def _is_word_piece(self) -> bool:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return type(getattr(backend, "model", None)).__name__ == "WordPiece"

    def write(self, token_id: int) -> str:
        """One token: with the blank before it, if it has one."""
        if token_id >= len(self.tokenizer):
            return f"<{token_id}>"  # BLIP's decoder begins with an id that its tokenizer has no word for
        raw: str = self.tokenizer.convert_ids_to_tokens(token_id)
        if token_id in self.special:
            return raw
        if self._is_word_piece:
            return raw[2:] if raw.startswith("##") else f" {raw}"
        if raw.startswith("▁"):
            return raw.replace("▁", " ")
        text: str = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if raw.endswith("</w>"):
            return f"{text.strip()} "
        return raw if "�" in text or not text else text  # a piece of a letter's bytes has no text of its own

    def join(self, ids: Sequence[int], kinds: Sequence[Kind]) -> tuple[Token, ...]:
        """Tokens, of which runs of equal pictures, paddings and special ones are joined."""
        tokens: list[Token] = []
        for (token_id, kind), run in groupby(zip(ids, kinds, strict=True)):
            number = len(list(run))
            text, is_special = self.write(token_id), token_id in self.special or token_id >= len(self.tokenizer)
            if kind in ("image", "padding") or (number >= MANY and is_special):
                tokens.append(Token(text, kind, number, is_special))
            else:
                tokens += [Token(text, kind, 1, is_special)] * number
        return tuple(tokens)
