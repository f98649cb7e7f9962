"""ViLT: one transformer that reads words and patches of the image together from its first layer on.

``ViltForQuestionAnswering`` chooses among the answers in config.json (``id2label``); its loss is a binary cross-entropy
per answer. ``ViltForImageAndTextRetrieval`` gives one number for an image and a text, which is taken as their log odds.
There are no towers: the transformer is one part, ``encoder``, with its pooling layer and embeddings of both kinds.

Images keep their shape and are padded to the largest of a batch. Patches go into the model in their order, the padded
ones masked. transformers draws their order anew each time, which changes nothing but the rounding, and the generator.

Source: Kim et al. 2021, https://arxiv.org/abs/2102.03334; transformers ``modeling_vilt``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _bert_text
from mmtune.backbones._bert_text import encode_text, tiny_tokenizer
from mmtune.backbones._dual_encoder import num_tokens, spread_weights
from mmtune.backbones._family import Family
from mmtune.ground.errors import BackboneError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

__all__ = [
    "FAMILY",
    "answers_of",
    "architecture_for",
    "check",
    "classify",
    "encode_media",
    "encode_text",
    "family_for",
    "match",
    "num_layers",
    "num_tokens",
    "pad",
    "text_limit",
    "tiny",
]

FAMILY = Family(
    name="vilt",
    model_types=("vilt",),
    abilities=frozenset({"classify"}),
    parts={"encoder": "vilt"},
    layers={"encoder": "vilt.encoder.layer"},
    heads={"encoder": ("classifier",)},
    full_precision=("classifier", "rank_output"),
    temperature=(),
    processor_classes={"vilt": "ViltProcessor"},
    auto_class="ViltForQuestionAnswering",
    targets={"mlp": {"encoder": r"vilt\.encoder\.layer\.\d+\.(intermediate|output)\.dense"}},
    ignored_weights=(r".*\.position_ids",),
    whole_forward=({}, "logits"),
)

MATCHING = replace(
    FAMILY,
    abilities=frozenset({"match"}),
    heads={"encoder": ("rank_output",)},
    auto_class="ViltForImageAndTextRetrieval",
)

RECORDS = {record.auto_class: record for record in (FAMILY, MATCHING)}
"""Class of transformers -> its record."""

TINY_ANSWERS = ("yes", "no", "red", "green", "blue", "yellow", "violet", "grey", "circle", "1", "2")

LONGEST = 1333 / 800
"""Longest side of a resized image, as a multiple of ``size.shortest_edge``: fixed in transformers' image processor."""


def family_for(config: Mapping[str, Any]) -> Family:
    """The record for the class that config.json names.

    Raises:
        BackboneError: it is another class, or the model reads a random choice of the patches.
    """
    named = (config.get("architectures") or ["none"])[0]
    if named not in RECORDS:
        raise BackboneError(
            f"config.json names the architecture {named}, and the ViLT models that can be trained are "
            f"{', '.join(RECORDS)} (such as dandelin/vilt-b32-finetuned-vqa, vilt-b32-finetuned-coco)"
        )
    if config.get("max_image_length", -1) > 0:
        raise BackboneError(
            f"max_image_length is {config['max_image_length']}: such a model reads a random choice of an image's "
            f"patches, each time another one; write -1 (all of them) into config.json, as all published models have it"
        )
    return RECORDS[named]


def architecture_for(task: str) -> str:
    """The class that is made for a task (by name), where no config.json says which."""
    return (MATCHING if task == "matching" else FAMILY).auto_class


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Layers of the transformer; a value that is absent has the class's default."""
    return {"encoder": int(config.get("num_hidden_layers", 12))}


def text_limit(config: Any) -> int:
    """Longest text in tokens (published: 40)."""
    return int(config.max_position_embeddings)


def answers_of(config: Any) -> list[str]:
    """The answers that ``classify`` chooses from, in the order of its logits; of config.json, or of a model's config.

    Raises:
        BackboneError: config.json does not number them from 0 on.
    """
    found = config.get("id2label") if isinstance(config, Mapping) else config.id2label
    named = {int(number): str(answer) for number, answer in (found or {}).items()}
    if not named or sorted(named) != list(range(len(named))):
        raise BackboneError("id2label of config.json should number the answers from 0 on, and does not")
    return [named[number] for number in range(len(named))]


def encode_media(processor: Any, image: "Image") -> "dict[str, Tensor]":
    """One image in its own shape: ``pixel_values`` float32[C, H, W] and ``pixel_mask`` int64[H, W], all 1.

    Raises:
        DataError: it is so long and thin that its short side would be less than one patch.
    """
    pictures = processor.image_processor
    edge, step = (pictures.size or {}).get("shortest_edge"), pictures.size_divisor
    short, long = sorted(image.size)
    if edge is not None and long > short * LONGEST and int(edge * LONGEST) * short / long < step:
        raise DataError(
            f"image of {image.width} x {image.height} pixels is too long and thin: resized to a long side of "
            f"{int(edge * LONGEST)} its short one would be less than {step}"
        )
    encoded = pictures(images=image, return_tensors="pt")
    return {key: encoded[key][0] for key in ("pixel_values", "pixel_mask")}


def pad(processor: Any, encoded: "Sequence[Mapping[str, Tensor]]", *, side: str = "right") -> "dict[str, Tensor]":
    """Encoded samples as one batch: images padded right and below to the largest, texts on the right in any case.

    Padding changes no result: it is masked.
    """
    texts = [{key: value for key, value in one.items() if not key.startswith("pixel_")} for one in encoded]
    batch = _bert_text.pad(processor, texts)
    for key in ("pixel_values", "pixel_mask") if encoded and "pixel_values" in encoded[0] else ():
        batch[key] = _stack([one[key] for one in encoded])
    return batch


def _stack(images: "Sequence[Tensor]") -> "Tensor":
    """[..., H, W] each, as [B, ..., the largest H, the largest W], filled with 0."""
    import torch

    height, width = (max(image.shape[dim] for image in images) for dim in (-2, -1))
    grown = [(0, width - image.shape[-1], 0, height - image.shape[-2]) for image in images]
    padded = [torch.nn.functional.pad(image, by) for image, by in zip(images, grown, strict=True)]
    return torch.stack(padded)


def check(model: "nn.Module", processor: Any) -> None:
    """See that texts can be padded and begin with the class token, and that the patches fit the resized images.

    Raises:
        BackboneError: tokenizer, preprocessor_config.json and config.json do not belong together.
    """
    _bert_text.check(model, processor)
    patch: Any = model.config.patch_size  # type: ignore[union-attr]
    if processor.image_processor.size_divisor % patch:
        raise BackboneError(
            f"the image processor makes sides of multiples of {processor.image_processor.size_divisor}, and patches "
            f"are {patch} wide: config.json and preprocessor_config.json do not belong together"
        )


# --- classify and match


def classify(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Logits float[B, C] of the answers, each against its being wrong; float32 at least."""
    return _wide(model.classifier(_pooled(model, batch)))  # type: ignore[operator]


def match(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Log odds float[B] that each text is true of its image; float32 at least."""
    return _wide(model.rank_output(_pooled(model, batch)))[:, 0]  # type: ignore[operator]


def _wide(logits: "Tensor") -> "Tensor":
    return logits.float() if logits.element_size() < 4 else logits


def _pooled(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """What the pooling layer makes of the class token, float[B, D]."""
    vilt: Any = model.vilt
    states, mask = _patches(vilt.embeddings, batch["pixel_values"], batch["pixel_mask"])
    words = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return vilt(**words, image_embeds=states, pixel_mask=mask).pooler_output


def _patches(embeddings: Any, pixels: "Tensor", mask: "Tensor") -> "tuple[Tensor, Tensor]":
    """Embedded patches float[B, 1 + P, D] in their order, class token first, and which count int64[B, 1 + P].

    The positions of the square that the model was made for are stretched to each image's own grid.
    """
    import torch
    from torch.nn.functional import interpolate, pad

    patches = embeddings.patch_embeddings(pixels)
    size = embeddings.patch_embeddings.patch_size
    kept = mask[:, :: size[0], :: size[1]]
    square = embeddings.position_embeddings
    side = embeddings.patch_embeddings.image_size[0] // size[0], embeddings.patch_embeddings.image_size[1] // size[1]
    grid = square[:, 1:].transpose(1, 2).unflatten(2, side)
    height, width = kept.shape[1:]
    placed = []
    for own in kept:
        shape = int(own[:, 0].sum()), int(own[0].sum())
        stretched = interpolate(grid, size=shape, mode="bilinear", align_corners=True)
        placed.append(pad(stretched, (0, width - shape[1], 0, height - shape[0])))
    states = (patches + torch.cat(placed)).flatten(2).transpose(1, 2)
    first = (embeddings.cls_token + square[:, :1]).expand(len(states), -1, -1)
    counted = torch.cat([kept.new_ones(len(kept), 1), kept.flatten(1)], dim=1)
    return embeddings.dropout(torch.cat([first, states], dim=1)), counted


# --- the tiny twin


def tiny(model_type: str = "vilt", architecture: str = FAMILY.auto_class) -> "tuple[nn.Module, Any]":
    """One of the two classes, of width 32 with two layers, a few answers and a small BertTokenizer, with dropout."""
    import torch
    import transformers
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    tokenizer = tiny_tokenizer(64)
    config = transformers.ViltConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        image_size=32,
        patch_size=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        id2label=dict(enumerate(TINY_ANSWERS)),
        label2id={answer: number for number, answer in enumerate(TINY_ANSWERS)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(config)
    spread_weights(model, seed=0)
    pictures = ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8)
    return model, transformers.ViltProcessor(image_processor=pictures, tokenizer=tokenizer)
