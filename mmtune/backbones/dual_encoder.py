"""Dual encoder: any image encoder and any text encoder, a linear projection each, a learned temperature.

Either a checkpoint of transformers' ``VisionTextDualEncoderModel``, which holds all of it, or two encoders that never
met: then the projections are drawn and trained (``_encoder_pair``). Where the towers' layers are depends on the two.

Source: Zhai et al. 2021, https://arxiv.org/abs/2111.07991 (contrastive tuning of given encoders); transformers
``VisionTextDualEncoderModel``.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _encoder_pair
from mmtune.backbones._dual_encoder import embed_media, embed_text, encode_media, num_tokens
from mmtune.backbones._encoder_table import find_encoder
from mmtune.backbones._family import Family
from mmtune.backbones.clip import check as check_of_clip
from mmtune.backbones.clip import encode_text, pad, temperature
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FAMILY",
    "check",
    "embed_media",
    "embed_text",
    "encode_media",
    "encode_text",
    "family_for",
    "num_layers",
    "num_tokens",
    "pad",
    "temperature",
    "text_limit",
    "tiny",
]

FAMILY = Family(
    name="dual_encoder",
    model_types=(_encoder_pair.MODEL_TYPE,),
    abilities=frozenset({"embed"}),
    parts={"vision": "vision_model", "text": "text_model"},
    layers={"vision": "vision_model.layers", "text": "text_model.encoder.layer"},
    heads={"vision": ("visual_projection",), "text": ("text_projection",)},
    full_precision=("visual_projection", "text_projection", "vision_model.pooler", "text_model.pooler"),
    temperature=("logit_scale",),
    processor_classes={_encoder_pair.MODEL_TYPE: "VisionTextDualEncoderProcessor"},
    ignored_weights=(r".*\.position_ids",),
    idle=(r"vision_model\.embeddings\.mask_token",),
)
"""As it is for ViT and BERT; ``family_for`` gives it for other encoders."""

NOT_8BIT = (
    "bitsandbytes' 8-bit layers take states of three dimensions at most, and those of this image encoder have four "
    "([B, H, W, C]); write 4bit"
)


def family_for(config: Mapping[str, Any]) -> Family:
    """The record for the two encoders that config.json names.

    Raises:
        BackboneError: one of them cannot be used here.
    """
    encoders = {part: find_encoder(config.get(f"{part}_config") or {}, part) for part in FAMILY.parts}
    paths = {part: f"{FAMILY.parts[part]}." for part in encoders}
    layers = {part: paths[part] + one.layers for part, one in encoders.items() if one.layers is not None}
    mlp = {part: re.escape(paths[part]) + one.mlp for part, one in encoders.items() if one.mlp is not None}
    kept = tuple(paths[part] + name for part, one in encoders.items() for name in one.kept)
    stems = {part: tuple(paths[part] + name for name in encoders[part].stems) for part in layers}
    of_pictures = [part for part, one in encoders.items() if one.four_dimensional]
    return replace(
        FAMILY,
        layers=layers,
        stems=stems,
        unquantizable={"8bit": NOT_8BIT} if of_pictures else {},
        targets={"mlp": mlp} if mlp else {},
        full_precision=(*FAMILY.full_precision, *kept),
    )


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Layers per tower, for the towers that have one list of them.

    Source: an absent ``num_hidden_layers`` has the default of transformers' classes, which is 12 in all of them.
    """
    return {part: int(config[f"{part}_config"].get("num_hidden_layers", 12)) for part in family_for(config).layers}


def text_limit(config: Any) -> int:
    """Tokens that the text tower has positions for: RoBERTa and its kind count them from ``pad_token_id`` + 1."""
    text = config.text_config
    offset = find_encoder(text.to_dict(), "text").offset
    return int(text.max_position_embeddings) - (int(text.pad_token_id) + 1 if offset else 0)


def check(model: "nn.Module", processor: Any) -> None:
    """See that tokenizer and image processor belong to the encoders.

    Raises:
        BackboneError: ids that the text tower has no embedding for, another padding id, or pictures of another size.
    """
    config: Any = model.config
    problems = [*_tokenizer_problems(config.text_config, processor.tokenizer)]
    problems += _picture_problems(config.vision_config, processor.image_processor)
    if problems:
        raise BackboneError("; ".join(problems))
    if config.text_config.model_type == "clip_text_model":
        check_of_clip(model, processor)


def _tokenizer_problems(text: Any, tokenizer: Any) -> list[str]:
    if tokenizer.pad_token_id is None:
        return ["the tokenizer has no padding token, so texts cannot be batched"]
    largest = max(tokenizer.get_vocab().values())
    if largest >= text.vocab_size:
        return [f"the tokenizer has ids up to {largest}, the text tower embeddings for {text.vocab_size} alone"]
    counts_padding = find_encoder(text.to_dict(), "text").offset
    if counts_padding and tokenizer.pad_token_id != text.pad_token_id:
        return [
            f"the tokenizer pads with id {tokenizer.pad_token_id}, but the text tower counts positions by "
            f"pad_token_id {text.pad_token_id}: config.json and tokenizer do not belong together"
        ]
    return []


def _picture_problems(vision: Any, image_processor: Any) -> list[str]:
    from PIL import Image

    if not find_encoder(vision.to_dict(), "vision").fixed_size:
        return []
    size = vision.image_size
    wanted = [size, size] if isinstance(size, int) else list(size)
    pixels = image_processor(images=Image.new("RGB", (48, 40)), return_tensors="pt")["pixel_values"]
    made = list(pixels.shape[-2:])
    if made == wanted:
        return []
    return [f"the image processor makes pictures of {made} pixels, and the image tower takes {wanted} alone"]


def tiny(model_type: str = _encoder_pair.MODEL_TYPE) -> "tuple[nn.Module, Any]":
    """A VisionTextDualEncoderModel of a ViT and a BERT of width 32, two layers each: random, always the same."""
    from mmtune.backbones._tiny_encoders import tiny_dual_encoder

    return tiny_dual_encoder("vit", "bert")
