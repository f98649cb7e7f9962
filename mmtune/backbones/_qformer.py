"""What BLIP-2 and InstructBLIP share where they speak: a Q-Former turns an image into a fixed number of tokens, which
stand before the words of a language model.

Three language models are known. OPT and LLaMA are decoders alone: what is asked and what is said are one text, image
tokens first. T5 is an encoder-decoder: the encoder reads image tokens and question, the decoder says the answer.

An answer ends with the tokenizer's end token, as the models were trained; some LLaMA configs name another one. With OPT
it ends with ``text_config.eos_token_id``, a line break: the tokenizer's end token is the one that begins texts there.

Letters: B samples, L text tokens, Q query tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtune.backbones._bert_text import IGNORED_LABEL
from mmtune.backbones._dual_encoder import encode_media
from mmtune.backbones._qformer_records import language_model, positions, text_config_of
from mmtune.backbones._single_exchange import Exchange, answer_ids, read_exchange, refuse_early_end, refuse_longer, say
from mmtune.ground.errors import BackboneError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from mmtune.ground.records import Turn

NUM_QUERIES = 32
"""``num_query_tokens`` where config.json does not say it: the classes' default."""


@dataclass(frozen=True)
class Speech:
    """How the language model begins and ends what it says.

    Attributes:
        end: token after an answer.
        start: what the decoder of an encoder-decoder begins with; None for a decoder alone.
        image: token that stands for a part of the image.
        limit: longest text in tokens, image tokens included.
    """

    end: int
    start: int | None
    image: int
    limit: int


def prepare_processor(processor: Any, config: Mapping[str, Any]) -> Any:
    """The processor, told how many image tokens there are and, as ``processor.speech``, how the model speaks."""
    language, text = language_model(config), text_config_of(config)
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token_id if language.end is None else text.get("eos_token_id", language.end)
    start = text.get("decoder_start_token_id", text.get("pad_token_id", 0))
    processor.num_query_tokens = int(config.get("num_query_tokens", NUM_QUERIES))
    processor.speech = Speech(
        end=end[0] if isinstance(end, list) else end,
        start=None if language.is_decoder else int(start),
        image=int(tokenizer.convert_tokens_to_ids(str(processor.image_token))),
        limit=min(positions(text), tokenizer.model_max_length),
    )
    return processor


def text_limit(config: Any) -> int:
    """Longest text in tokens, image tokens included; of T5 what it was trained with."""
    return positions(config.text_config.to_dict())


# --- encoding


def encode_turns(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """A question (or a prompt, or nothing) about an image, and what is to be said of it.

    Gives ``pixel_values`` float32[C, H, W], ``input_ids``, ``attention_mask`` and ``labels`` int64[L]; for T5
    ``labels`` and ``decoder_input_ids`` are int64[A], the answer with its end and the same one place later.

    Raises:
        DataError: not one question, one image and one answer, or longer than the model reads.
    """
    exchange = read_exchange(turns, images, answered=True)
    speech: Speech = processor.speech
    if speech.start is None:
        return _one_text(processor, exchange)
    said = [*answer_ids(processor, exchange.answer), speech.end]
    refuse_early_end(processor, said[:-1], speech.end)
    _refuse_placeholders(processor, said, "answer", 0)
    refuse_longer(len(said), speech.limit, "the answer")
    shown = _encode(processor, exchange, _asked(processor, exchange))
    return {**shown, **_tensors(decoder_input_ids=[speech.start, *said[:-1]], labels=said)}


def encode_prompt(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """As ``encode_turns``, up to where the answer begins and without labels.

    Raises:
        DataError: not one question about one image, or longer than the model reads.
    """
    exchange = read_exchange(turns, images, answered=False)
    return _encode(processor, exchange, _asked(processor, exchange))


def _one_text(processor: Any, exchange: Exchange) -> "dict[str, Tensor]":
    """Question, a space, answer and its end as one text."""
    asked = _asked(processor, exchange)
    images = [processor.speech.image] * processor.num_query_tokens
    together = images + _tokens(processor, f"{exchange.prompt} {exchange.answer}".strip())
    _refuse_placeholders(processor, together, "answer", len(images))
    if together[: len(asked)] != asked:
        raise DataError(
            f"the tokens of {exchange.prompt!r} are others when {exchange.answer!r} follows, so it cannot be told "
            f"where the answer begins"
        )
    said = [*together[len(asked) :], processor.speech.end]
    if len(said) == 1:
        raise DataError(f"the answer {exchange.answer!r} has no tokens: the tokenizer drops all of its characters")
    refuse_early_end(processor, said[:-1], processor.speech.end)
    shown = _encode(processor, exchange, asked + said)
    return {**shown, **_tensors(labels=[IGNORED_LABEL] * len(asked) + said)}


def _asked(processor: Any, exchange: Exchange) -> list[int]:
    """Image tokens and question, as the processor makes them."""
    images = [processor.speech.image] * processor.num_query_tokens
    asked = images + _tokens(processor, exchange.prompt)
    _refuse_placeholders(processor, asked, "question", len(images))
    return asked


def _tokens(processor: Any, text: str) -> list[int]:
    """Tokens with special ones, without any cut."""
    ids: list[int] = processor.tokenizer(text, truncation=False, verbose=False)["input_ids"]
    return ids


def _refuse_placeholders(processor: Any, ids: list[int], what: str, wanted: int) -> None:
    if ids.count(processor.speech.image) != wanted:
        raise DataError(
            f"the {what} holds {str(processor.image_token)!r}, which stands for an image: there would be more places "
            f"for images than images"
        )


def _encode(processor: Any, exchange: Exchange, ids: list[int]) -> "dict[str, Tensor]":
    what = f"the text ({processor.num_query_tokens} image tokens included)"
    refuse_longer(len(ids), processor.speech.limit, what)
    return {**encode_media(processor, exchange.image), **_tensors(input_ids=ids, attention_mask=[1] * len(ids))}


def _tensors(**ids: list[int]) -> "dict[str, Tensor]":
    import torch

    return {name: torch.tensor(values) for name, values in ids.items()}


def image_tokens(processor: Any, encoded: "Mapping[str, Tensor]") -> "Tensor":
    """Which of ``encoded["input_ids"]`` stand for the image: bool[L]."""
    return encoded["input_ids"] == processor.speech.image


# --- generating


def generate(
    model: "nn.Module", processor: Any, batch: "Mapping[str, Tensor]", *, max_new_tokens: int, num_beams: int = 1
) -> list[str]:
    """What the model says after each prompt; the likeliest token each time. Prompts of a decoder alone are padded on
    the left.

    Raises:
        DataError: prompt and answer could become longer than the model's positions.
    """
    speech: Speech = processor.speech
    options: dict[str, Any] = {"eos_token_id": speech.end, "pad_token_id": processor.tokenizer.pad_token_id}
    if speech.start is None:
        longest = int(batch["attention_mask"].sum(1).max()) + max_new_tokens
        refuse_longer(longest, text_limit(model.config), "the longest question with max_new_tokens")
    else:
        options["decoder_start_token_id"] = speech.start
    speaker: Any = model if "inputs_embeds" not in batch else model.language_model  # the class's own wants pixels
    made = speaker.generate(**batch, **options, max_new_tokens=max_new_tokens, num_beams=num_beams, do_sample=False)
    begin = batch["input_ids"].shape[1] if speech.start is None else 1
    return [say(processor, row.tolist(), speech.end) for row in made[:, begin:]]


def check(model: "nn.Module", processor: Any) -> None:
    """See that image tokens, end and beginning of texts are the same for model and processor.

    Raises:
        BackboneError: config.json, tokenizer and weights do not belong together; all that is wrong is named.
    """
    speech, tokenizer, queries = processor.speech, processor.tokenizer, processor.num_query_tokens
    config: Any = model.config
    rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    found = []
    if tokenizer.pad_token_id is None:
        found.append("the tokenizer has no padding token, so texts cannot be batched")
    if speech.end is None:
        found.append("the tokenizer has no end token, so answers would not end")
    if speech.image != config.image_token_id:
        found.append(
            f"image_token_index is {config.image_token_id} in config.json, and the tokenizer gives "
            f"{str(processor.image_token)!r} the id {speech.image}"
        )
    largest = max(speech.image, speech.end or 0, len(tokenizer) - 1)
    if largest >= rows:
        found.append(f"the tokenizer has ids up to {largest}, and the language model embeds {rows} tokens")
    held: Any = model.query_tokens
    if held.shape[1] != queries:
        found.append(f"the weights hold {held.shape[1]} query tokens, config.json says {queries}")
    if found:
        raise BackboneError("; ".join(found))
