"""BLIP-2 for retrieval: a large frozen ViT, a Q-Former for images and texts, and 32 vectors for one image.

The Q-Former turns an image into one vector per learned query, and reads a text at its first token. An image is as near
to a text as the nearest of its vectors, in losses, scores and rankings alike; nothing is averaged. ``embed_media``
gives float[B, Q, D] where other families give float[B, D].

The Q-Former is one part (``qformer``) that both images and texts pass; its heads are both projections. The word
embeddings and the query tokens belong to no part and stay as they are. The matching (ITM) head is not run.

As for ``blip``, the temperature is given at loading, from ``logit_scale_init_value`` of config.json (where it is not
there: 0.07), and a merged folder has the trained value in its config.json.

Source: Li et al. 2023, https://arxiv.org/abs/2301.12597, section 3.1 (image-text contrastive learning); transformers
``Blip2ForImageTextRetrieval``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmtune.backbones._bert_text import check, encode_text, pad, tiny_tokenizer
from mmtune.backbones._dual_encoder import encode_media, normalise, num_tokens, spread_weights
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
    "text_limit",
    "tiny",
]

FAMILY = Family(
    name="blip2",
    model_types=("blip-2",),
    abilities=frozenset({"embed"}),
    parts={"vision": "vision_model", "qformer": "qformer"},
    layers={"vision": "vision_model.encoder.layers", "qformer": "qformer.encoder.layer"},
    heads={"vision": (), "qformer": ("vision_projection", "text_projection")},
    full_precision=("qformer", "vision_projection", "text_projection", "itm_head"),
    temperature=("logit_scale",),
    processor_classes={"blip-2": "Blip2Processor"},
    auto_class="Blip2ForImageTextRetrieval",
    targets={"mlp": {"qformer": r"qformer\.encoder\.layer\.\d+\.(intermediate|output)(_query)?\.dense"}},
    ignored_weights=(r".*\.position_ids",),
    whole_forward=({"use_image_text_matching_head": False}, "logits_per_image"),
)


def family_for(config: Mapping[str, Any]) -> Family:
    """The record for the class that config.json names.

    Raises:
        BackboneError: it is another one of the BLIP-2 classes, which share ``model_type: blip-2`` but not their
            weights, or its Q-Former has no layers for texts.
    """
    named = (config.get("architectures") or ["none"])[0]
    if named != FAMILY.auto_class:
        raise BackboneError(
            f"config.json names the architecture {named}, and of the BLIP-2 models {FAMILY.auto_class} alone can embed "
            f"(such as Salesforce/blip2-itm-vit-g)"
        )
    if not (config.get("qformer_config") or {}).get("use_qformer_text_input", False):
        raise BackboneError("qformer_config.use_qformer_text_input is not true: this Q-Former cannot read texts")
    return FAMILY


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Layers of the ViT and of the Q-Former; a value that is absent has the class's default."""
    vision, qformer = (config.get(f"{name}_config") or {} for name in ("vision", "qformer"))
    return {"vision": int(vision.get("num_hidden_layers", 39)), "qformer": int(qformer.get("num_hidden_layers", 12))}


def text_limit(config: Any) -> int:
    """Longest text in tokens: positions of the Q-Former (``text_config`` is a language model that is not there)."""
    return int(config.qformer_config.max_position_embeddings)


def embed_media(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, Q, D] of ``batch["pixel_values"]``: one per query, each L2-normalised, float32 at least."""
    states = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state  # type: ignore[operator]
    queries = model.query_tokens.expand(len(states), -1, -1)  # type: ignore[operator]
    answers = model.qformer(query_embeds=queries, encoder_hidden_states=states)  # type: ignore[operator]
    return _project(model.vision_projection, answers.last_hidden_state)


def embed_text(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["input_ids"]`` int64[B, L], read at the class token, L2-normalised."""
    words = model.embeddings(input_ids=batch["input_ids"])  # type: ignore[operator]
    read = model.qformer(query_embeds=words, query_length=0, attention_mask=batch["attention_mask"])  # type: ignore[operator]
    return _project(model.text_projection, read.last_hidden_state[:, 0])


def _project(head: Any, states: "Tensor") -> "Tensor":
    """transformers keeps the Q-Former in float32 beside a half-precision rest: the head decides."""
    return normalise(head(states.to(head.weight.dtype)))


def temperature(model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """The live log scale float[] (the logits' factor is its exponential) and no bias."""
    return model.logit_scale, None  # type: ignore[return-value]


def tiny(model_type: str = "blip-2") -> "tuple[nn.Module, Any]":
    """A Blip2ForImageTextRetrieval of width 32 with two layers per part, 4 queries and a small BertTokenizer."""
    import torch
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = tiny_tokenizer(32)
    num_words = len(tokenizer)
    pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = Blip2Processor(image_processor=pictures, tokenizer=tokenizer, num_query_tokens=4)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    qformer = {**tower, "vocab_size": num_words, "max_position_embeddings": 32, "use_qformer_text_input": True}
    config = Blip2Config(
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        qformer_config=qformer,
        text_config={"model_type": "opt", "num_hidden_layers": 1, "hidden_size": 32, "vocab_size": num_words},
        num_query_tokens=4,
        image_text_hidden_size=16,
        image_token_index=num_words,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Blip2ForImageTextRetrieval(config)
    spread_weights(model, seed=0)
    return model, processor
