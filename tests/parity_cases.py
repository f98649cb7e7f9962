"""One batch, cut in several ways: what the single-process and the two-process parity tests share."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from mmtune.adapters import attach, set_modes
from mmtune.adapters.lora import Section as LoraSection
from mmtune.backbones import Section, load
from mmtune.batch_building import Batch
from mmtune.contrastive_step import StepContext, contrastive_step
from mmtune.losses.infonce import Section as InfoNCE
from mmtune.losses.sigmoid import Section as Sigmoid
from mmtune.tasks import retrieval

TOLERANCE = {"float64": 1e-10, "float32": 1e-6}
"""Of the largest gradient entry: sums of the same numbers in another order, at temperature 100."""

NUM = 256
MICRO_BATCH = 64

PAIRS = [
    ("clip", "infonce"),
    ("clip", "sigmoid"),
    ("siglip", "sigmoid"),
    ("chinese_clip", "infonce"),
    ("blip2", "infonce"),
    ("dual_encoder", "sigmoid"),
]
"""Family of the twin and its loss: frozen dropout, several vectors per image, projections of its own. All twins see
32 x 32 pixels."""


def make_context(folder: Path, dtype: str, loss: str, *, dropout: float = 0.0) -> StepContext:
    """An adapted twin with non-zero LoRA weights at temperature 100."""
    backbone = load(Section(id=str(folder)), dtype=getattr(torch, dtype))
    section = LoraSection(
        kind="lora", rank=4, alpha=8, dropout=dropout, parts=list(backbone.traits.parts), targets=["attention", "mlp"]
    )
    adapted = attach(backbone, section, seed=3)
    generator = torch.Generator().manual_seed(11)
    for name, parameter in adapted.trainable().items():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(getattr(torch, dtype)) * 0.05
        else:
            parameter.data = parameter.data.to(getattr(torch, dtype))
    log_scale, _ = backbone.family.temperature(backbone.model)
    with torch.no_grad():
        log_scale.fill_(math.log(100.0))
    set_modes(adapted)
    if not dropout:
        backbone.model.eval()  # some towers have dropout of their own; masks belong to micro-batches
    kind: Any = InfoNCE(kind="infonce") if loss == "infonce" else Sigmoid(kind="sigmoid")
    return StepContext(
        backbone=backbone,
        task=retrieval,
        section=retrieval.Section(kind="retrieval", loss=kind),
        trainable=adapted.trainable(),
        device=torch.device("cpu"),
        autocast=nullcontext,
        seed=5,
    )


def make_samples(context: StepContext) -> list[dict[str, Any]]:
    """Encoded samples of unequal text lengths; 0 and 200 share a caption, 5 and 130 an image."""
    generator = torch.Generator().manual_seed(7)
    family, processor = context.backbone.family, context.backbone.processor
    dtype = next(iter(context.trainable.values())).dtype
    samples = []
    for number in range(NUM):
        pixels = torch.randn(3, 32, 32, generator=generator).to(dtype)
        text = "the caption of " + "very " * (number % 4) + f"picture {0 if number == 200 else number}"
        keys = (number, 130) if number == 5 else (number, 5) if number == 130 else (0 if number == 200 else number,)
        inputs = {"pixel_values": pixels, **family.encode_text(processor, text)}
        samples.append({"id": str(number), "inputs": inputs, "text_key": keys[0], "image_keys": keys})
    return samples


def make_batch(context: StepContext, samples: Sequence[dict[str, Any]]) -> Batch:
    """Collate as the loader does."""
    width = max((len(s["image_keys"]) for s in samples), default=1)
    keys = [[*s["image_keys"], *[-1] * (width - len(s["image_keys"]))] for s in samples]
    pad = context.backbone.family.pad
    return Batch(
        inputs=pad(context.backbone.processor, [s["inputs"] for s in samples]) if samples else {},
        image_keys=torch.tensor(keys, dtype=torch.int64).reshape(len(samples), width),
        text_keys=torch.tensor([s["text_key"] for s in samples], dtype=torch.int64),
        ids=[s["id"] for s in samples],
        bad=[],
    )


def cut(context: StepContext, samples: Sequence[dict[str, Any]], micro_batch: int) -> list[Batch]:
    """Consecutive micro-batches; with ``micro_batch`` 0 everything at once."""
    size = micro_batch or len(samples)
    return [make_batch(context, samples[start : start + size]) for start in range(0, len(samples), size)]


def run(context: StepContext, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and every gradient of one step."""
    for parameter in context.trainable.values():
        parameter.grad = None
    loss = contrastive_step(context, batches, step=0)
    gradients = {name: p.grad.clone() for name, p in context.trainable.items() if p.grad is not None}
    return float(loss), gradients


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any gradient entry, relative to the largest entry of the model."""
    assert one.keys() == other.keys() and one
    largest = max(float(value.abs().max()) for value in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest
