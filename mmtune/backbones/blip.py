"""BLIP for retrieval: a ViT and a BERT read at their first tokens, one linear projection each.

This is the model's contrastive (ITC) half, the cosine of two vectors. Its matching (ITM) half, which reads image and
text together through the text tower's cross attention, is not run, not adapted and not trained; ``itm_head`` stays as
it was.

transformers' class has no temperature, though BLIP was trained with a learned one. It is given one at loading, from
``logit_scale_init_value`` of config.json (published: 2.6592, a temperature of 0.07); it is trained and stored with the
adapter, and a merged folder has the trained value in its config.json. Rankings do not depend on it.

Source: Li et al. 2022, https://arxiv.org/abs/2201.12086; transformers ``BlipForImageTextRetrieval``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmtune.backbones._bert_text import check, encode_text, pad, tiny_tokenizer
from mmtune.backbones._dual_encoder import encode_media, normalise, num_layers, num_tokens, spread_weights
from mmtune.backbones._family import Family
from mmtune.backbones._temperature import give_temperature as after_loading
from mmtune.backbones._temperature import note_temperature as before_saving
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FAMILY",
    "after_loading",
    "before_saving",
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
    "tiny",
]

FAMILY = Family(
    name="blip",
    model_types=("blip",),
    abilities=frozenset({"embed"}),
    parts={"vision": "vision_model", "text": "text_encoder"},
    layers={"vision": "vision_model.encoder.layers", "text": "text_encoder.encoder.layer"},
    heads={"vision": ("vision_proj",), "text": ("text_proj",)},
    full_precision=("vision_proj", "text_proj", "itm_head"),
    temperature=("logit_scale",),
    processor_classes={"blip": "BlipProcessor"},
    auto_class="BlipForImageTextRetrieval",
    targets={"mlp": {"text": r"text_encoder\.encoder\.layer\.\d+\.(intermediate|output)\.dense"}},
    ignored_weights=(r".*\.position_ids",),
    idle=(r"text_encoder\.encoder\.layer\.\d+\.crossattention",),
    whole_forward=({"use_itm_head": False}, "itm_score"),
)


def family_for(config: Mapping[str, Any]) -> Family:
    """The record for the class that config.json names.

    Raises:
        BackboneError: it is another one of the BLIP classes, which share ``model_type: blip`` but not their weights.
    """
    named = (config.get("architectures") or ["none"])[0]
    if named != FAMILY.auto_class:
        raise BackboneError(
            f"config.json names the architecture {named}, and of the BLIP models {FAMILY.auto_class} alone can embed "
            f"(such as Salesforce/blip-itm-base-coco or blip-itm-large-flickr)"
        )
    return FAMILY


def embed_media(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["pixel_values"]``, read at the class token, L2-normalised, float32 at least."""
    states = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state  # type: ignore[operator]
    return normalise(model.vision_proj(states[:, 0]))  # type: ignore[operator]


def embed_text(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["input_ids"]`` int64[B, L], read at the class token, L2-normalised."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    states = model.text_encoder(**inputs).last_hidden_state  # type: ignore[operator]
    return normalise(model.text_proj(states[:, 0]))  # type: ignore[operator]


def temperature(model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """The live log scale float[] (the logits' factor is its exponential) and no bias."""
    return model.logit_scale, None  # type: ignore[return-value]


def tiny(model_type: str = "blip") -> "tuple[nn.Module, Any]":
    """A BlipForImageTextRetrieval of width 32 with two layers per tower and a small BertTokenizer, with dropout."""
    import torch
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = tiny_tokenizer(32)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    ids = {"bos_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    config = BlipConfig(
        text_config={**tower, **dropout, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        image_text_hidden_size=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BlipForImageTextRetrieval(config)
    spread_weights(model, seed=0)
    pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
    return model, BlipProcessor(image_processor=pictures, tokenizer=tokenizer)
