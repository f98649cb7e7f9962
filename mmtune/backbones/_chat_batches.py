"""Encoded conversations as one batch, and what a model says to it.

Letters: B samples, L tokens, N images or tiles.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mmtune.backbones._chat_prompts import ENCODER, takes_prompts
from mmtune.backbones._chat_spans import end_of_turn
from mmtune.backbones._chat_tokens import MASKED

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKEN_ROWS = ("input_ids", "attention_mask", "labels", "token_type_ids", "mm_token_type_ids", "decoder_input_ids")
DECODER_ROWS = ("labels", "decoder_input_ids")


def pad(
    processor: Any, encoded: "Sequence[Mapping[str, Tensor]]", *, side: Literal["right", "left"] = "right"
) -> "dict[str, Tensor]":
    """Encoded samples as one batch: rows of tokens int64[B, L], and everything that the images became.

    Samples with and without images go together. Images of all samples stand one after the other, as the models want
    them; where a model takes float[B, N, ...] instead, samples with fewer are filled with zeros, which it leaves out.

    Args:
        side: where the padding is; ``left`` for generation. An encoder's is on the right always: it counts places.
    """
    side = "right" if type(processor).__name__ == ENCODER else side
    keys = dict.fromkeys(key for one in encoded for key in one)
    batch = {key: _pad_rows(processor, encoded, key, side) for key in keys if key in TOKEN_ROWS}
    in_samples = any("pixel_attention_mask" in one for one in encoded)
    for key in keys:
        if key not in TOKEN_ROWS:
            batch[key] = (
                _join_samples(encoded, key) if in_samples else _join([one[key] for one in encoded if key in one])
            )
    return batch


def _pad_rows(processor: Any, encoded: "Sequence[Mapping[str, Tensor]]", key: str, side: str) -> "Tensor":
    """Rows of one key; a sample that lacks it has zeros (no token of its is an image)."""
    import torch

    fill = {"labels": MASKED, "input_ids": pad_id(processor), "decoder_input_ids": pad_id(processor)}.get(key, 0)
    rows = [one[key] if key in one else torch.zeros_like(one["input_ids"]) for one in encoded]
    longest = max(len(row) for row in rows)
    padded = [(longest - len(row), 0) if side == "left" else (0, longest - len(row)) for row in rows]
    return torch.stack(
        [torch.nn.functional.pad(row, places, value=fill) for row, places in zip(rows, padded, strict=True)]
    )


def pad_id(processor: Any) -> int:
    """The padding token; where there is none any token would do, for no token sees the padding: the end of text."""
    tokenizer = processor.tokenizer
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def _join(values: "list[Tensor]") -> "Tensor":
    """Values of all samples one after the other, the smaller ones filled with zeros behind their first dimension."""
    import torch

    sizes = [max(value.shape[place] for value in values) for place in range(1, values[0].dim())]
    return torch.cat([_grown(value, sizes) for value in values])


def _join_samples(encoded: "Sequence[Mapping[str, Tensor]]", key: str) -> "Tensor":
    """float[B, N, ...]: one row per sample, also for those without images."""
    import torch

    some = next(one[key] for one in encoded if key in one)
    return _join([one[key] if key in one else torch.zeros_like(some[:, :1]) for one in encoded])


def _grown(value: "Tensor", sizes: list[int]) -> "Tensor":
    import torch

    places = [
        place for have, want in zip(value.shape[:0:-1], reversed(sizes), strict=True) for place in (0, want - have)
    ]
    return torch.nn.functional.pad(value, places)


def generate(
    model: "nn.Module", processor: Any, batch: "Mapping[str, Tensor]", *, max_new_tokens: int, num_beams: int = 1
) -> list[str]:
    """What the model says to each sample: the likeliest token each time, or beam search.

    Settings of generation_config.json that draw or punish words are not taken: answers would depend on the batch.

    Args:
        batch: what ``pad`` made of prompts, with ``side="left"``.
    """
    from mmtune.backbones._quiet_loading import quiet

    inputs = {key: value for key, value in batch.items() if key not in DECODER_ROWS}
    last = ends(model, processor)
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    with quiet():
        ids = model.generate(  # type: ignore[operator]
            **inputs,
            **plain,
            do_sample=False,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            eos_token_id=last,
            pad_token_id=pad_id(processor),
        )
    if not model.config.is_encoder_decoder:  # type: ignore[union-attr]
        ids = ids[:, batch["input_ids"].shape[1] :]
    said = [[one for one in row if one not in last] for row in ids.tolist()]  # not every end counts as a special token
    texts = processor.tokenizer.batch_decode(said, skip_special_tokens=True)
    return [text.strip() for text in texts]


def token_states(model: "nn.Module", inputs: "Mapping[str, Tensor]") -> "Tensor":
    """What the head makes logits from, float[B, L, D] (an encoder-decoder: of the answer's places).

    Without a cache of keys and values, which nobody would read: it holds those of every layer, and masks attention in
    another way than activation checkpointing does, so that dropout would be drawn differently with that on and off.
    """
    states: Tensor = model.model(**inputs, use_cache=False).last_hidden_state  # type: ignore[operator]
    return states


def ends(model: Any, processor: Any) -> list[int]:
    """Ids of the tokens that end an answer: those of generation_config.json, the end of text, the end of a turn."""
    named = model.generation_config.eos_token_id
    found = set(named if isinstance(named, list) else [named]) | {processor.tokenizer.eos_token_id}
    turn = None if takes_prompts(processor) else end_of_turn(processor)
    if turn is not None:
        found.add(processor.tokenizer.convert_tokens_to_ids(turn))
    return sorted(one for one in found if one is not None)
