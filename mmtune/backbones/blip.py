"""BLIP: one image tower with a BERT, as three classes of transformers that share ``model_type: blip`` and no weights.

``BlipForConditionalGeneration`` says captions: its BERT is a decoder that sees the image through cross attention,
begins with the token ``text_config.bos_token_id`` and may be given the beginning of the caption as a prompt.
``BlipForQuestionAnswering`` answers: one BERT reads the question beside the image, a second one (part ``decoder``)
writes the answer from what the first has read. ``BlipForImageTextRetrieval`` has both a contrastive half, the cosine of
two vectors, and a matching half (ITM), which reads image and text together through the text tower's cross attention; a
task runs one of them, and what belongs to the other alone is then neither adapted nor trained.

Losses are plain cross entropies; BLIP itself was trained with label smoothing (0.1), which transformers applies where
config.json says so. A question begins with the tokenizer's class token, as in transformers' own pipeline; the original
code puts a token ``[ENC]`` there, which the published tokenizers do not have.

The retrieval class has no temperature, though BLIP was trained with a learned one. It is given one at loading, from
``logit_scale_init_value`` of config.json (published: 2.6592, a temperature of 0.07); it is trained and stored with the
adapter, and a merged folder has the trained value in its config.json. Rankings do not depend on it.

Source: Li et al. 2022, https://arxiv.org/abs/2201.12086, and its released configurations (the prompt ``a picture of``);
transformers ``modeling_blip``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from mmtune.backbones import _bert_text, _dual_encoder
from mmtune.backbones._bert_text import encode_text, tiny_tokenizer
from mmtune.backbones._blip_speech import (
    DECODER_LAYERS,
    encode_prompt,
    encode_turns,
    generate,
    mend_cross_attention,
    read,
    see,
    token_states,
)
from mmtune.backbones._dual_encoder import encode_media, normalise, num_tokens, spread_weights
from mmtune.backbones._family import Description, Family
from mmtune.backbones._temperature import give_temperature, note_temperature
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FAMILY",
    "after_loading",
    "architecture_for",
    "before_saving",
    "check",
    "embed_media",
    "embed_text",
    "encode_media",
    "encode_prompt",
    "encode_text",
    "encode_turns",
    "family_for",
    "generate",
    "load_processor",
    "match",
    "num_layers",
    "num_tokens",
    "pad",
    "temperature",
    "tiny",
    "token_states",
]

_ENCODER_MLP = r"text_encoder\.encoder\.layer\.\d+\.(intermediate|output)\.dense"
_DECODER_MLP = r"text_decoder\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.dense"

FAMILY = Family(
    name="blip",
    model_types=("blip",),
    abilities=frozenset({"embed", "match"}),
    parts={"vision": "vision_model", "text": "text_encoder"},
    layers={"vision": "vision_model.encoder.layers", "text": "text_encoder.encoder.layer"},
    heads={"vision": ("vision_proj",), "text": ("text_proj",)},
    full_precision=("vision_proj", "text_proj", "itm_head"),
    temperature=("logit_scale",),
    processor_classes={"blip": "BlipProcessor"},
    auto_class="BlipForImageTextRetrieval",
    targets={"mlp": {"text": _ENCODER_MLP}},
    ignored_weights=(r".*\.position_ids",),
    stems={"vision": ("vision_model.embeddings",), "text": ("text_encoder.embeddings",)},
    idle=(r"text_encoder\.encoder\.layer\.\d+\.crossattention",),
    whole_forward=({"use_itm_head": False}, "itm_score"),
    by_ability={
        "match": {
            "heads": {"vision": (), "text": ("itm_head",)},
            "temperature": (),
            "idle": (),
            "whole_forward": ({"use_itm_head": True}, "itm_score"),
        }
    },
)

CAPTIONING = replace(
    FAMILY,
    abilities=frozenset({"generate"}),
    parts={"vision": "vision_model", "text": "text_decoder"},
    layers={"vision": "vision_model.encoder.layers", "text": DECODER_LAYERS},
    heads={"vision": (), "text": ()},
    full_precision=("text_decoder.cls",),
    temperature=(),
    auto_class="BlipForConditionalGeneration",
    targets={"mlp": {"text": _DECODER_MLP}},
    stems={"vision": ("vision_model.embeddings",)},
    idle=(),
    whole_forward=None,
    by_ability={},
    head="text_decoder.cls",
    caption_prompt="a picture of",
)

ANSWERING = replace(
    CAPTIONING,
    parts={"vision": "vision_model", "text": "text_encoder", "decoder": "text_decoder"},
    layers={**FAMILY.layers, "decoder": DECODER_LAYERS},
    heads={"vision": (), "text": (), "decoder": ()},
    auto_class="BlipForQuestionAnswering",
    targets={"mlp": {"text": _ENCODER_MLP, "decoder": _DECODER_MLP}},
    caption_prompt="what is in the picture?",
)

RECORDS = {record.auto_class: record for record in (CAPTIONING, ANSWERING, FAMILY)}
"""Class of transformers -> its record."""

START_TOKEN = 30522
"""``text_config.bos_token_id`` where config.json does not say it: what a decoder's text begins with."""

MADE_FOR = {"captioning": CAPTIONING, "vqa": ANSWERING, "matching": FAMILY, "retrieval": FAMILY}
"""Task -> the class that was made for it."""


def family_for(config: Mapping[str, Any]) -> Family:
    """The record for the class that config.json names.

    Raises:
        BackboneError: it names none of the three, which share ``model_type: blip`` but not their weights.
    """
    named = (config.get("architectures") or ["none"])[0]
    if named not in RECORDS:
        raise BackboneError(
            f"config.json names the architecture {named}, and the BLIP models that can be trained are "
            f"{', '.join(RECORDS)} (such as Salesforce/blip-image-captioning-base, blip-vqa-base, blip-itm-base-coco)"
        )
    return RECORDS[named]


def architecture_for(task: str) -> str:
    """The class that is made for a task (by name), where no config.json says which; for other tasks, captioning's."""
    return MADE_FOR.get(task, CAPTIONING).auto_class


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Layers per part; both BERTs of the class that answers are made from one ``text_config``."""
    depth = _dual_encoder.num_layers(config)
    return {part: depth["vision" if part == "vision" else "text"] for part in family_for(config).parts}


def load_processor(description: Description) -> Any:
    """The BlipProcessor, which is told whether it reads questions, and what a decoder's text begins with: the
    tokenizers have no word for that.
    """
    from mmtune.backbones._loading import image_and_text_processor

    processor = image_and_text_processor(description)
    processor.start_token = int((description.config.get("text_config") or {}).get("bos_token_id", START_TOKEN))
    processor.answers = description.traits.auto_class == ANSWERING.auto_class
    return processor


def after_loading(model: "nn.Module") -> None:
    """Give the retrieval class its temperature, and the decoder of answers its view of the question's mask."""
    if _class_of(model) == FAMILY.auto_class:
        give_temperature(model)
    if _class_of(model) == ANSWERING.auto_class:
        mend_cross_attention(model)


def before_saving(model: "nn.Module") -> None:
    """Write the retrieval class's temperature into the config."""
    if _class_of(model) == FAMILY.auto_class:
        note_temperature(model)


def _class_of(model: "nn.Module") -> str:
    return type(model).__name__


def check(model: "nn.Module", processor: Any) -> None:
    """See that texts can be padded, begin with the class token, and end as the decoder ends them.

    Raises:
        BackboneError: tokenizer and config.json do not belong together.
    """
    _bert_text.check(model, processor)
    ends: Any = model.config.text_config.sep_token_id  # type: ignore[union-attr]
    if _class_of(model) != FAMILY.auto_class and ends != processor.tokenizer.sep_token_id:
        raise BackboneError(
            f"text_config.sep_token_id is {ends}, where generation stops, and the tokenizer ends texts with "
            f"{processor.tokenizer.sep_token_id}: config.json and tokenizer do not belong together"
        )


def pad(
    processor: Any, encoded: "Sequence[Mapping[str, Tensor]]", *, side: Literal["right", "left"] = "right"
) -> "dict[str, Tensor]":
    """Encoded samples as one batch, text padded to the longest; questions always on the right: an encoder reads them,
    whose first place is the class token's.
    """
    is_question = bool(encoded) and "decoder_input_ids" in encoded[0]
    return _bert_text.pad(processor, encoded, side="right" if is_question else side)


# --- embed and match


def embed_media(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["pixel_values"]``, read at the class token, L2-normalised, float32 at least."""
    return normalise(model.vision_proj(see(model, batch)[:, 0]))  # type: ignore[operator]


def embed_text(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["input_ids"]`` int64[B, L], read at the class token, L2-normalised."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    states = model.text_encoder(**inputs).last_hidden_state  # type: ignore[operator]
    return normalise(model.text_proj(states[:, 0]))  # type: ignore[operator]


def temperature(model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """The live log scale float[] (the logits' factor is its exponential) and no bias."""
    return model.logit_scale, None  # type: ignore[return-value]


def match(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Log odds float[B] that each text is true of its image: logit 1 less logit 0 of the ITM head, float32 at least."""
    logits = model.itm_head(read(model, batch)[:, 0])  # type: ignore[operator]
    logits = logits.float() if logits.element_size() < 4 else logits
    return logits[:, 1] - logits[:, 0]


# --- the tiny twin


def tiny(model_type: str = "blip", architecture: str = FAMILY.auto_class) -> "tuple[nn.Module, Any]":
    """One of the three classes, of width 32 with two layers per part and a small BertTokenizer, with dropout."""
    import torch
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    retrieves = architecture == FAMILY.auto_class
    length = 32 if retrieves else 128
    tokenizer = tiny_tokenizer(length)
    num_words = len(tokenizer) if retrieves else len(tokenizer) + 2  # as published: the start token is no word
    start = tokenizer.cls_token_id if retrieves else len(tokenizer)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    ids = {"bos_token_id": start, "sep_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config={**tower, **dropout, **ids, "vocab_size": num_words, "max_position_embeddings": length},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        image_text_hidden_size=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(config)
    spread_weights(model, seed=0)
    pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
    return model, transformers.BlipProcessor(image_processor=pictures, tokenizer=tokenizer)
