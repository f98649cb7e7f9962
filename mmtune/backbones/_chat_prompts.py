"""Models without a conversation: a prompt about images, one answer, no turns before it.

PaliGemma reads ``images, <bos>, prompt, line break`` with every token seeing every other, and what comes after from
left to right. Florence-2 encodes image and prompt, and a decoder of its own says the answer.

Letters: L tokens, A tokens of the answer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmtune.backbones._chat_spans import check_turns
from mmtune.backbones._chat_tokens import MASKED, check_length, places_problem
from mmtune.ground.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from mmtune.ground.records import Turn

PREFIX, ENCODER = "PaliGemmaProcessor", "Florence2Processor"
"""The processor classes of the two."""


def takes_prompts(processor: Any) -> bool:
    """Whether the model takes prompts instead of conversations."""
    return type(processor).__name__ in (PREFIX, ENCODER)


def encode_prompted(
    processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]", *, answered: bool
) -> "dict[str, Tensor]":
    """One question with its images, and its answer where ``answered``.

    Returns:
        PaliGemma: ``input_ids``, ``attention_mask``, ``token_type_ids`` (1: the answer), ``labels`` int64[L];
        Florence-2: ``input_ids``, ``attention_mask`` int64[L], ``decoder_input_ids``, ``labels`` int64[A]. Also
        ``pixel_values`` where there are images. Without answer neither labels nor decoder rows.

    Raises:
        DataError: more than one exchange, a system turn, an empty answer, a number of images that the model does not
            take, too many tokens.
    """
    check_turns(turns, last="assistant" if answered else "user")
    if [turn.role for turn in turns] != ["user", "assistant"][: 1 + answered]:
        raise DataError(
            f"the conversation has {len(turns)} turns ({', '.join(turn.role for turn in turns)}), and this model takes "
            "one question and its answer alone"
        )
    words = turns[0].text
    if (places := words.count(processor.image_token)) > 0:
        raise DataError(places_problem(processor.image_token, places + len(images), len(images)))
    answer = turns[1].text.strip() if answered else ""
    encode = _encode_prefix if type(processor).__name__ == PREFIX else _encode_encoder
    return encode(processor, words, images, answer)


def _encode_prefix(processor: Any, words: str, images: "Sequence[Image]", answer: str) -> "dict[str, Tensor]":
    import torch

    tokenizer = processor.tokenizer
    if images:
        # as lists: of tensors the processor would make arrays in a way that numpy is about to drop
        made = processor(text=[processor.image_token * len(images) + words], images=[list(images)])
        made = made.convert_to_tensors("pt")
        prompt, pixels = made["input_ids"][0], {"pixel_values": made["pixel_values"]}
    else:
        text = tokenizer.bos_token + words + "\n"
        prompt, pixels = tokenizer(text, add_special_tokens=False, **_TENSORS)["input_ids"][0], {}
    said = _ids(tokenizer, answer + tokenizer.eos_token) if answer else prompt[:0]
    ids = torch.cat([prompt, said])
    check_length(processor, ids, [False] * len(prompt) + [True] * len(said))
    kinds = torch.cat([torch.zeros_like(prompt), torch.ones_like(said)])
    labels = {"labels": ids.masked_fill(kinds == 0, MASKED)} if answer else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": kinds, **labels, **pixels}


def _encode_encoder(processor: Any, words: str, images: "Sequence[Image]", answer: str) -> "dict[str, Tensor]":
    import torch

    tokenizer = processor.tokenizer
    if len(images) > 1:
        raise DataError(f"there are {len(images)} images, and this model takes one")
    if images:
        try:
            made = dict(processor(text=[words], images=list(images), **_TENSORS))
        except ValueError as error:
            raise DataError(f"the prompt does not fit the model: {error}") from error
        ids, pixels = made["input_ids"][0], {"pixel_values": made["pixel_values"]}
    else:
        ids, pixels = _ids(tokenizer, tokenizer.bos_token + words + tokenizer.eos_token), {}
    check_length(processor, ids, [])
    encoded = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    if not answer:
        return encoded
    said = _ids(tokenizer, tokenizer.bos_token + answer + tokenizer.eos_token)
    check_length(processor, said, [True] * len(said))
    start = said.new_tensor([tokenizer.eos_token_id])  # what this decoder begins with
    return {**encoded, "decoder_input_ids": torch.cat([start, said[:-1]]), "labels": said}


_TENSORS = {"return_tensors": "pt"}


def _ids(tokenizer: Any, text: str) -> "Tensor":
    ids: Tensor = tokenizer(text, add_special_tokens=False, verbose=False, **_TENSORS)["input_ids"][0]
    return ids
