"""Chinese-CLIP: CLIP's image tower beside a Chinese BERT, a linear projection each, a learned temperature.

The text tower has dropout, is read at its first token, and was trained on texts of up to 52 tokens.

Source: Yang et al. 2022, https://arxiv.org/abs/2211.01335; transformers ``ChineseCLIPModel``.
"""

from typing import TYPE_CHECKING, Any

from mmtune.backbones._bert_text import check, encode_text, pad, tiny_tokenizer
from mmtune.backbones._dual_encoder import (
    embed_media,
    embed_text,
    encode_media,
    num_layers,
    num_tokens,
    spread_weights,
)
from mmtune.backbones._family import Family

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
    name="chinese_clip",
    model_types=("chinese_clip",),
    abilities=frozenset({"embed"}),
    parts={"vision": "vision_model", "text": "text_model"},
    layers={"vision": "vision_model.encoder.layers", "text": "text_model.encoder.layer"},
    heads={"vision": ("visual_projection",), "text": ("text_projection",)},
    full_precision=("visual_projection", "text_projection"),
    temperature=("logit_scale",),
    processor_classes={"chinese_clip": "ChineseCLIPProcessor"},
    targets={"mlp": {"text": r"text_model\.encoder\.layer\.\d+\.(intermediate|output)\.dense"}},
    ignored_weights=(r".*\.position_ids", r".*\.token_type_ids", r"text_model\.pooler\..*"),
    stems={"vision": ("vision_model.embeddings", "vision_model.pre_layrnorm"), "text": ("text_model.embeddings",)},
)


def temperature(model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """The live log scale float[] (the logits' factor is its exponential) and no bias."""
    return model.logit_scale, None  # type: ignore[return-value]


def tiny(model_type: str = "chinese_clip") -> "tuple[nn.Module, Any]":
    """A ChineseCLIPModel of width 32 with two layers per tower and a small BertTokenizer: random, always the same."""
    import torch
    from transformers import ChineseCLIPConfig, ChineseCLIPModel, ChineseCLIPProcessor
    from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil

    tokenizer = tiny_tokenizer(32)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = ChineseCLIPConfig(
        text_config={**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ChineseCLIPModel(config)
    spread_weights(model, seed=0)
    pictures = ChineseCLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return model, ChineseCLIPProcessor(image_processor=pictures, tokenizer=tokenizer)
