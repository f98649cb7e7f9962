"""CLIP: two towers, a linear projection each, a learned temperature; text is read at its end-of-text token.

Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020; transformers ``CLIPModel``.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmtune.backbones._dual_encoder import (
    embed_media,
    embed_text,
    encode_media,
    num_layers,
    num_tokens,
    spread_weights,
    stack_images,
)
from mmtune.backbones._family import Family
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FAMILY",
    "check",
    "embed_media",
    "embed_text",
    "encode_media",
    "encode_text",
    "num_layers",
    "num_tokens",
    "pad",
    "temperature",
    "tiny",
]

FAMILY = Family(
    name="clip",
    model_types=("clip",),
    abilities=frozenset({"embed"}),
    parts={"vision": "vision_model", "text": "text_model"},
    layers={"vision": "vision_model.encoder.layers", "text": "text_model.encoder.layers"},
    heads={"vision": ("visual_projection",), "text": ("text_projection",)},
    full_precision=("visual_projection", "text_projection"),
    temperature=("logit_scale",),
    processor_classes={"clip": "CLIPProcessor"},
    ignored_weights=(r".*\.position_ids",),
    stems={"vision": ("vision_model.embeddings", "vision_model.pre_layrnorm"), "text": ("text_model.embeddings",)},
)

LEGACY_END_OF_TEXT = 2
"""The end-of-text id in the config of old checkpoints, which is wrong: with it transformers reads the text at its
largest token id instead of at its first end-of-text token."""


def encode_text(processor: Any, text: str) -> "dict[str, Tensor]":
    """One text with start and end tokens, cut to the tower's limit: ``input_ids`` and ``attention_mask`` int64[L]."""
    encoded = processor.tokenizer(text, truncation=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"][0], "attention_mask": encoded["attention_mask"][0]}


def pad(processor: Any, encoded: "Sequence[Mapping[str, Tensor]]") -> "dict[str, Tensor]":
    """Encoded samples (images, texts or both in one dict each) as one batch; text padded to the longest of them.

    Padding changes no embedding: the text tower is causal, padding stands right of the token it is read at.
    """
    from torch.nn.utils.rnn import pad_sequence

    batch = stack_images(encoded)
    fill = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0}
    for key in fill if encoded and "input_ids" in encoded[0] else ():
        rows = [one[key] for one in encoded]
        batch[key] = pad_sequence(rows, batch_first=True, padding_value=fill[key])
    return batch


def temperature(model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """The live log scale float[] (the logits' factor is its exponential) and no bias."""
    return model.logit_scale, None  # type: ignore[return-value]


def check(model: "nn.Module", processor: Any) -> None:
    """See that the text tower will find the end of a text.

    Raises:
        BackboneError: tokenizer and config disagree about the end token, so that another position would be read.
    """
    end = model.config.text_config.eos_token_id  # type: ignore[union-attr]
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        raise BackboneError("the tokenizer has no padding token, so texts cannot be batched")
    ids = tokenizer("a")["input_ids"]
    if end == LEGACY_END_OF_TEXT:
        largest = max(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder), default=0)
        if max(largest, *ids, tokenizer.pad_token_id) > ids[-1]:
            raise BackboneError(
                f"text_config.eos_token_id is {LEGACY_END_OF_TEXT} (the old form: text is read at its largest token "
                f"id), but the tokenizer ends texts with id {ids[-1]} and has larger ones (words up to {largest}, "
                f"padding {tokenizer.pad_token_id}); set eos_token_id in config.json to {ids[-1]}"
            )
    elif end not in ids:
        raise BackboneError(
            f"text_config.eos_token_id is {end}, but the tokenizer ends texts with id {ids[-1]}: "
            f"config.json and tokenizer do not belong together"
        )


def tiny(model_type: str = "clip") -> "tuple[nn.Module, Any]":
    """A CLIPModel of width 32 with two layers per tower and a byte-level CLIPTokenizer: random, always the same."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vocab, merges = tiny_vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=32)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    ids = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": len(vocab), "max_position_embeddings": 32, "projection_dim": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
    spread_weights(model, seed=0)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return model, CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)


def tiny_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level vocabulary as CLIP lays it out: bytes, bytes that end a word, merges, start, end."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e</w>"), ("i", "n"), ("e", "r</w>"), ("o", "n</w>"), ("l", "e</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, merges
