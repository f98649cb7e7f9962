"""Classes as the text tower sees them: an embedding each, of one prompt or the average of several.

Letters: C classes, T templates, D embedding width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROMPTS_PER_PASS = 256
"""Prompts in one forward pass of the text tower; it changes memory and speed only."""


def encode_prompts(backbone: Any, task: Any, section: Any) -> "list[dict[str, Tensor]]":
    """Batches of all prompts, class after class.

    Raises:
        DataError: prompts are longer than the text tower reads; every class whose prompts are.
    """
    family, processor = backbone.family, backbone.processor
    texts = [text for name in section.classes for text in task.prompts(section, name)]
    _refuse_long(family, processor, texts)
    encoded = [family.encode_text(processor, text) for text in texts]
    starts = range(0, len(encoded), PROMPTS_PER_PASS)
    return [family.pad(processor, encoded[start : start + PROMPTS_PER_PASS]) for start in starts]


def _refuse_long(family: Any, processor: Any, texts: Sequence[str]) -> None:
    limit = processor.tokenizer.model_max_length
    long = [text for text in texts if family.num_tokens(processor, text) > limit]
    if long:
        raise DataError(
            f"task.classes: {len(long)} prompts have more than the {limit} tokens that the text tower reads, the first "
            f"is {long[0][:120]!r}: shorten the classes or task.templates"
        )


def embed_classes(
    backbone: Any, batches: "Sequence[dict[str, Tensor]]", num_classes: int, device: "torch.device | str"
) -> "Tensor":
    """Embeddings float[C, D] of classes, L2-normalised, at least float32; with a graph where gradients are enabled.

    Args:
        backbone: its text tower reads the prompts.
        batches: from ``encode_prompts``.
        num_classes: C; every class has as many prompts as the others.
        device: where the model is.
    """
    import torch

    rows = []
    for batch in batches:
        inputs = {name: value.to(device) for name, value in batch.items()}
        rows.append(backbone.family.embed_text(backbone.model, inputs))
    texts = torch.cat(rows)
    texts = texts.to(torch.promote_types(texts.dtype, torch.float32)).unflatten(0, (num_classes, -1))
    if texts.shape[1] == 1:
        return texts[:, 0]
    return torch.nn.functional.normalize(texts.mean(dim=1), dim=-1, eps=1e-12)


def class_logits(backbone: Any, images: "Tensor", classes: "Tensor") -> "Tensor":
    """Logits float[B, C]: cosines of images float[B, D] (or float[B, Q, D]) with classes, times the temperature.

    A bias of the backbone's, the same for all classes, changes no softmax and is left out.
    """
    import torch

    from mmtune.losses._cosines import cosines

    log_scale, _ = backbone.family.temperature(backbone.model)
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return log_scale.exp() * cosines(images, classes.to(images))
