"""ALIGN: an EfficientNet for images beside a BERT for texts, and a temperature that divides.

The image tower is made of convolutions and batch norms: it has no attention, no linear layer and no projection (its
pooled features are the embedding), so ``attention`` and ``mlp`` exist in the text tower alone and ``head_only`` trains
``text_projection``. ``lora`` takes its convolutions by name: ``targets: [expand_conv, project_conv]`` (also ``reduce``,
``expand`` and the first one, ``convolution``; not the depthwise ones).

Batch norms always run on the checkpoint's running statistics and never move them, also where their weights are
trained: an embedding then depends on its own image alone, whatever the micro-batch, and what is trained is all that a
checkpoint has to hold.

Logits are cosine / temperature, so the log scale is -log(temperature), computed and differentiable; what is trained
and saved is transformers' own ``temperature``. It is a small number, in which a step goes further than in a log scale:
``train.learning_rate: {default: 1e-4, temperature: 1e-6}`` moves it about as slowly as CLIP's, for a temperature of
0.01.

Source: Jia et al. 2021, https://arxiv.org/abs/2102.05918; transformers ``AlignModel``.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _dual_encoder
from mmtune.backbones._bert_text import check, encode_text, pad, tiny_tokenizer
from mmtune.backbones._dual_encoder import embed_text, encode_media, num_tokens, spread_weights
from mmtune.backbones._family import Family

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FAMILY",
    "check",
    "clamp_temperature",
    "embed_media",
    "embed_text",
    "encode_media",
    "encode_text",
    "num_layers",
    "num_tokens",
    "pad",
    "temperature",
    "text_limit",
    "tiny",
]

FAMILY = Family(
    name="align",
    model_types=("align",),
    abilities=frozenset({"embed"}),
    parts={"vision": "vision_model", "text": "text_model"},
    layers={"vision": "vision_model.encoder.blocks", "text": "text_model.encoder.layer"},
    heads={"vision": (), "text": ("text_projection",)},
    full_precision=("text_projection",),
    temperature=("temperature",),
    processor_classes={"align": "AlignProcessor"},
    targets={"mlp": {"text": r"text_model\.encoder\.layer\.\d+\.(intermediate|output)\.dense"}},
    ignored_weights=(r".*\.position_ids", r".*\.token_type_ids"),
    stems={"text": ("text_model.embeddings",)},
    idle=(r"text_model\.pooler",),
    made_of={"vision": "convolutions (expand_conv, project_conv, ...) and batch norms"},
)

TEXT_LENGTH = 64
"""Tokens of the texts that ALIGN was trained on, and where ``AlignProcessor`` cuts."""

SMALLEST_TEMPERATURE = 1e-3
"""The divisor is held above this where the loss sets no limit: at zero the logits would be infinite, below it their
order would be turned round."""


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Blocks of the EfficientNet and layers of the text tower.

    Source: transformers ``AlignVisionConfig``: every stage is repeated ``ceil(depth_coefficient * repeats)`` times.
    """
    vision = config.get("vision_config") or {}
    depth = vision.get("depth_coefficient", 3.1)
    repeats = vision.get("num_block_repeats", (1, 2, 2, 3, 3, 4, 1))
    blocks = sum(math.ceil(depth * count) for count in repeats)
    return {"vision": blocks, "text": _dual_encoder.num_layers(config)["text"]}


def text_limit(config: Any) -> int:
    """Longest text in tokens: what the checkpoints were trained on, though there are positions for more."""
    return min(TEXT_LENGTH, int(config.text_config.max_position_embeddings))


def embed_media(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["pixel_values"]``, L2-normalised, float32 at least.

    The tower does not bring pixels to its own number format, as those of the other families do.
    """
    pixels = batch["pixel_values"].to(next(model.parameters()).dtype)
    return _dual_encoder.embed_media(model, {"pixel_values": pixels})


def temperature(model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """The log scale float[], computed from the live divisor and differentiable, and no bias."""
    return -model.temperature.log(), None  # type: ignore[operator]


def clamp_temperature(model: "nn.Module", max_log_scale: float | None) -> None:
    """Hold the divisor at or above ``exp(-max_log_scale)``, in place; without a limit it stays positive too."""
    smallest = SMALLEST_TEMPERATURE if max_log_scale is None else math.exp(-max_log_scale)
    model.temperature.data.clamp_(min=smallest)  # type: ignore[operator]


def tiny(model_type: str = "align") -> "tuple[nn.Module, Any]":
    """An AlignModel of width 32 with two blocks and two layers and a small BertTokenizer: random, always the same."""
    import torch
    from transformers import AlignConfig, AlignModel, AlignProcessor
    from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

    tokenizer = tiny_tokenizer(TEXT_LENGTH)
    stage = {"kernel_sizes": [3], "in_channels": [32], "out_channels": [32], "strides": [2]}
    repeated = {"num_block_repeats": [2], "expand_ratios": [2], "width_coefficient": 1.0, "depth_coefficient": 1.0}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = AlignConfig(
        text_config={**text, "vocab_size": len(tokenizer), "max_position_embeddings": TEXT_LENGTH},
        vision_config={**stage, **repeated, "image_size": 32, "hidden_dim": 64},
        projection_dim=32,
        temperature_init_value=0.07,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AlignModel(config)
    spread_weights(model, seed=0)
    _settle_batch_norms(model)
    pictures = EfficientNetImageProcessorPil(size={"height": 32, "width": 32})
    return model, AlignProcessor(image_processor=pictures, tokenizer=tokenizer)


def _settle_batch_norms(model: Any) -> None:
    """Running statistics as training would leave them; without them all pooled features nearly coincide."""
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches seen: one
        norm.train()
    with torch.no_grad():
        model.vision_model(pixel_values=torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
