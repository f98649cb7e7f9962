"""Conversations as text, with what the assistant says told apart.

Where an assistant turn begins is found by rendering the conversation up to it, with the words that ask for an answer,
and once more with the turn: the first must be how the second begins, or what is learned would not be what generation
is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from mmtune.ground.errors import DataError

if TYPE_CHECKING:
    from mmtune.ground.records import Turn

_SPECIAL: "WeakKeyDictionary[Any, frozenset[str]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation, and whether the assistant must say it."""

    text: str
    said: bool


def conversation_pieces(processor: Any, turns: "Sequence[Turn]") -> list[Piece]:
    """The conversation in the order of reading: what is given, what is said, and so on, ending with what is said.

    What is said ends with the token that ends a turn; where the template has none, with the tokenizer's end of text.

    Raises:
        DataError: an answer is empty or changed by the template, or the template's prefix is not stable.
    """
    check_turns(turns, last="assistant")
    messages = _messages(turns)
    pieces, before = [], ""
    for place, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        prompt = render(processor, messages[:place], ask=True)
        whole = render(processor, messages[: place + 1], ask=False)
        if not prompt.startswith(before):
            raise _unstable(place)
        answer = _after(prompt, whole, place)
        if turn.text.strip() not in answer:
            raise DataError(f"the chat template changes what the assistant says in turn {place + 1}")
        said, rest = _ended(processor.tokenizer, answer, turn.text.strip())
        pieces += [Piece(prompt[len(before) :], said=False), Piece(said, said=True), Piece(rest, said=False)]
        before = whole
    _check_kept(turns, before)
    return _joined(pieces[:-1])


def prompt_pieces(processor: Any, turns: "Sequence[Turn]") -> list[Piece]:
    """What generation starts from: the conversation so far, and the words that ask for an answer.

    Raises:
        DataError: as ``conversation_pieces``.
    """
    check_turns(turns, last="user")
    answered = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    prompt = render(processor, _messages(turns), ask=True)
    _check_kept(turns, prompt)
    if not answered:
        return [Piece(prompt, said=False)]
    last = answered[-1] + 1
    before = render(processor, _messages(turns[:last]), ask=False)
    if not prompt.startswith(before):
        raise _unstable(last - 1)
    earlier = "".join(piece.text for piece in conversation_pieces(processor, turns[:last]))
    return [Piece(earlier + _tail(processor, before) + prompt[len(before) :], said=False)]


def _tail(processor: Any, rendered: str) -> str:
    """What a rendered conversation has after its last end of turn: nothing, or a line break."""
    return _ended(processor.tokenizer, rendered)[1]


def check_turns(turns: "Sequence[Turn]", *, last: str) -> None:
    """What no template can make good.

    Raises:
        DataError: there are no turns, the last one is another side's, an answer is empty or holds an image.
    """
    if not turns or turns[-1].role != last:
        raise DataError(f"the conversation does not end with a turn of the {last}")
    for place, turn in enumerate(turns, start=1):
        if turn.role == "assistant" and turn.media:
            raise DataError(f"turn {place}: the assistant shows an image, and can only say words")
        if turn.role == "assistant" and not turn.text.strip():
            raise DataError(f"turn {place}: the assistant says nothing")


def _check_kept(turns: "Sequence[Turn]", rendered: str) -> None:
    """Raises: DataError: the template leaves out what is asked, or a system turn that it has no place for."""
    for place, turn in enumerate(turns, start=1):
        texts = [piece.strip() for piece in turn.content if isinstance(piece, str)]
        if turn.role != "assistant" and any(text not in rendered for text in texts):
            raise DataError(f"the chat template leaves out what the {turn.role} says in turn {place}, or changes it")


def _messages(turns: "Sequence[Turn]") -> list[dict[str, Any]]:
    def content(piece: Any) -> dict[str, str]:
        return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image"}

    return [{"role": turn.role, "content": [content(piece) for piece in turn.content]} for turn in turns]


def render(processor: Any, messages: list[dict[str, Any]], *, ask: bool) -> str:
    """The conversation through the processor's chat template; ``ask``: with the words that ask for an answer.

    Raises:
        DataError: the template refuses it (roles that do not alternate, a system turn it has no place for).
    """
    from jinja2.exceptions import TemplateError
    from transformers.processing_utils import ProcessorMixin

    template = chat_template(processor)
    try:  # not the class's own: some look for the video half there
        rendered: str = ProcessorMixin.apply_chat_template(
            processor, messages, chat_template=template, add_generation_prompt=ask
        )
    except (TemplateError, TypeError) as error:  # TypeError: one for text alone adds the list of pieces to a text
        raise DataError(f"the chat template refuses this conversation: {error}") from error
    return rendered


def chat_template(processor: Any) -> str | None:
    """The processor's template, else its tokenizer's; None where neither has one."""
    for owner in (processor, processor.tokenizer):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return str(template)
    return None


def _after(prompt: str, whole: str, place: int) -> str:
    """What the whole has after the prompt; they may differ in white space at the border, and there the prompt counts.

    Raises:
        DataError: the whole does not begin with the prompt.
    """
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    stem = prompt.rstrip()
    if not whole.startswith(stem):
        raise _unstable(place)
    return whole[len(stem) :].lstrip()


def _unstable(place: int) -> DataError:
    return DataError(
        f"the chat template's prefix is not stable: what it writes before turn {place + 1} is not how it begins the "
        "conversation with that turn, so what is learned would not be what generation is asked for; use the template "
        "that the model was trained with, or one that writes turns in their order"
    )


SLIP = r"<\s>"
"""What the published template of LLaVA-NeXT with Mistral writes for ``</s>``: five letters that the model never saw."""


def _ended(tokenizer: Any, answer: str, text: str = "") -> tuple[str, str]:
    """What is said with its end of turn, and the white space after that.

    Args:
        tokenizer: knows the tokens that end turns.
        answer: what the template makes of the turn.
        text: the assistant's own words in it; what the template writes behind them must be a token.

    Raises:
        DataError: the template ends turns with something else, or not at all and the tokenizer has no end of text.
    """
    said = answer.rstrip()
    stem = _without_ends(tokenizer, said)
    if not stem.endswith(_without_ends(tokenizer, text)):
        return _ended_otherwise(tokenizer, answer, text)
    if stem == said or (
        text and said.endswith(text)
    ):  # nothing stands behind, but for what the words themselves end in
        return said + _end_of_text(tokenizer), ""
    return said, answer[len(said) :]


def _ended_otherwise(tokenizer: Any, answer: str, text: str) -> tuple[str, str]:
    """As ``_ended`` where more than special tokens stands behind the assistant's words."""
    said = answer.rstrip()
    if said.removesuffix(SLIP).rstrip().endswith(text):
        return said.removesuffix(SLIP).rstrip() + _end_of_text(tokenizer), ""
    if any(said.removesuffix(token).rstrip().endswith(text) for token in tokenizer.get_added_vocab()):
        return said, answer[len(said) :]
    raise DataError(
        "the chat template writes more behind what the assistant says than a token that ends the turn: "
        f"{said[-60:]!r}; the model would learn to spell it. Use the template that the model was trained with (one for "
        "text alone cannot write conversations with images)"
    )


def _without_ends(tokenizer: Any, text: str) -> str:
    """A text without the special tokens, and the white space, that it ends with."""
    ends = tuple(special_tokens(tokenizer))
    stem = text.rstrip()
    while stem.endswith(ends):
        stem = stem.removesuffix(max((end for end in ends if stem.endswith(end)), key=len)).rstrip()
    return stem


def _end_of_text(tokenizer: Any) -> str:
    if tokenizer.eos_token is None:
        raise DataError("neither the chat template nor the tokenizer says how an answer ends")
    return str(tokenizer.eos_token)


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """Every token that is no text: those with a role, and those added as special. Looked for once: Gemma has 6,000."""
    if tokenizer not in _SPECIAL:
        added = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
        _SPECIAL[tokenizer] = frozenset(added | set(tokenizer.all_special_tokens))
    return _SPECIAL[tokenizer]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind made one, empty ones left out."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].said == piece.said:
            joined[-1] = Piece(joined[-1].text + piece.text, piece.said)
        elif piece.text:
            joined.append(piece)
    return joined


def end_of_turn(processor: Any) -> str | None:
    """The special token that ends what the assistant says: the chat template's, else the tokenizer's end of text."""
    from mmtune.ground.records import Turn

    said = conversation_pieces(processor, (Turn("user", ("a",)), Turn("assistant", ("b",))))[-1].text
    tokenizer = processor.tokenizer
    fitting = [token for token in special_tokens(tokenizer) if said.endswith(token)]
    fitting = fitting or [token for token in tokenizer.get_added_vocab() if said.endswith(token)]
    return max(fitting, key=len, default=None)
