"""How BLIP's two generating classes read and write: one continues a prompt, one answers what a second BERT has read.

Letters: B samples, P patches and class token, L text tokens, A answer tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _single_exchange
from mmtune.backbones._bert_text import IGNORED_LABEL
from mmtune.backbones._dual_encoder import encode_media
from mmtune.ground.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from mmtune.ground.records import Turn

ANSWERING = "BlipForQuestionAnswering"
"""The class with a second BERT."""

DECODER_LAYERS = "text_decoder.bert.encoder.layer"


def mend_cross_attention(model: "nn.Module") -> None:
    """Give the decoder of answers its view of the question's mask.

    transformers (5.23) computes that mask and then drops it on its way, so that the decoder would see the padding of
    shorter questions, and an answer would depend on which others are asked with it. Nothing changes for one alone.
    """
    for layer in model.get_submodule(DECODER_LAYERS).children():
        layer.get_submodule("crossattention.self").register_forward_pre_hook(_hand_on_mask, with_kwargs=True)


def _hand_on_mask(module: "nn.Module", args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {"encoder_attention_mask": given.get("attention_mask"), **given}


def see(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """States of the image float[B, P, D], class token first."""
    return model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state  # type: ignore[operator]


def read(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """States of the text float[B, L, D], read beside the image."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return model.text_encoder(**inputs, encoder_hidden_states=see(model, batch)).last_hidden_state  # type: ignore[operator]


def encode_turns(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """A question (or a prompt, or nothing) about an image, and what is to be said of it.

    Gives ``pixel_values`` float32[C, H, W], ``input_ids``, ``attention_mask`` and ``labels`` int64[L]. For captions the
    text is start token, prompt, caption, end. For answers ``input_ids`` is the question, ``decoder_input_ids`` int64[A]
    is start token, answer, end, and ``labels`` int64[A] belong to it. Labels stand at the answer's tokens themselves.

    Raises:
        DataError: not one question, one image and one answer, or one of them longer than the model reads.
    """
    exchange = _single_exchange.read_exchange(turns, images, answered=True)
    said = [*_single_exchange.answer_ids(processor, exchange.answer), processor.tokenizer.sep_token_id]
    encoded = _encode_asked(processor, exchange)
    own = "decoder_" if processor.answers else ""
    before = encoded[f"{own}input_ids"].tolist()
    ids, labels = [*before, *said], [*([IGNORED_LABEL] * len(before)), *said]
    what = "the answer" if processor.answers else "the caption with its prompt"
    _single_exchange.refuse_longer(len(ids), processor.tokenizer.model_max_length, what)
    written = {f"{own}input_ids": ids, f"{own}attention_mask": [1] * len(ids), "labels": labels}
    return {**encoded, **_tensors(written)}


def encode_prompt(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """What generation starts from: as ``encode_turns``, without an answer and without labels.

    Raises:
        DataError: not one question and one image, or a question longer than the model reads.
    """
    return _encode_asked(processor, _single_exchange.read_exchange(turns, images, answered=False))


def _encode_asked(processor: Any, exchange: "_single_exchange.Exchange") -> "dict[str, Tensor]":
    """Image and prompt; where the class answers questions, the question and the start of the answer."""
    words = _single_exchange.word_ids(processor, exchange.prompt)
    tokenizer, start = processor.tokenizer, processor.start_token
    if processor.answers:
        if not words:
            raise DataError("the question is empty, and the model answers questions")
        ids = [tokenizer.cls_token_id, *words, tokenizer.sep_token_id]
        own = {"decoder_input_ids": [start], "decoder_attention_mask": [1]}
    else:
        ids, own = [start, *words], {}
    room = tokenizer.model_max_length - (0 if processor.answers else 1)
    _single_exchange.refuse_longer(len(ids), room, "the question" if processor.answers else "the prompt")
    pixels = encode_media(processor, exchange.image)
    return {**pixels, **_tensors({"input_ids": ids, "attention_mask": [1] * len(ids), **own})}


def _tensors(rows: Mapping[str, Sequence[int]]) -> "dict[str, Tensor]":
    import torch

    return {key: torch.tensor(row, dtype=torch.int64) for key, row in rows.items()}


def token_states(model: "nn.Module", inputs: "Mapping[str, Tensor]") -> "Tensor":
    """States float[B, L, D] of the decoder's tokens, which ``text_decoder.cls`` maps to logits."""
    own = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    if type(model).__name__ == ANSWERING:
        seen = {"encoder_hidden_states": read(model, inputs), "encoder_attention_mask": inputs["attention_mask"]}
        own = {name: inputs[f"decoder_{name}"] for name in own}
    else:
        seen = {"encoder_hidden_states": see(model, inputs)}
    decoder: Any = model.text_decoder
    return decoder.bert(**own, **seen, is_decoder=True, use_cache=False).last_hidden_state


def generate(
    model: "nn.Module", processor: Any, batch: "Mapping[str, Tensor]", *, max_new_tokens: int, num_beams: int = 1
) -> list[str]:
    """What the model says of each image: the likeliest token each time, or the best of ``num_beams`` searches.

    Not the class's own ``generate``: that one shows the decoder the padding of shorter questions, and writes over the
    first token of prompts that are padded on the left. Never more than the decoder has positions for.
    """
    import torch

    decoder: Any = model.text_decoder
    with torch.no_grad():
        if type(model).__name__ == ANSWERING:
            states, seen = read(model, batch), batch["attention_mask"]
            start, mask = batch["decoder_input_ids"][:, :1], batch["decoder_attention_mask"][:, :1]
        else:
            states, start, mask = see(model, batch), batch["input_ids"], batch["attention_mask"]
            seen = torch.ones(states.shape[:2], dtype=torch.int64, device=states.device)
        end, length = processor.tokenizer.sep_token_id, start.shape[1]
        written = decoder.generate(
            input_ids=start,
            attention_mask=mask,
            encoder_hidden_states=states,
            encoder_attention_mask=seen,
            eos_token_id=end,
            pad_token_id=processor.tokenizer.pad_token_id,
            max_new_tokens=min(max_new_tokens, processor.tokenizer.model_max_length - length),
            num_beams=num_beams,
            do_sample=False,
        )
    return [_single_exchange.say(processor, row, end) for row in written[:, length:].tolist()]
