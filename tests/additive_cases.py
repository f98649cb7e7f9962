"""One batch of a task whose loss is a sum, cut in several ways; shared by the tests of one and of two processes."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from mmtune.adapters import attach, set_modes
from mmtune.adapters.lora import Section as LoraSection
from mmtune.additive_step import additive_step
from mmtune.backbones import Section, load, tiny_folder
from mmtune.batch_building import Batch, Collate
from mmtune.ground.errors import DataError
from mmtune.ground.records import Sample
from mmtune.item_encoding import Asking, Encoded, ItemEncoder
from mmtune.step_context import StepContext
from mmtune.tasks import ability_for, captioning, matching, vqa

TOLERANCE = {"float64": 1e-10, "float32": 1e-6}
"""Of the largest gradient entry, and of the loss: sums of the same numbers in another order."""

NUM = 8

CASES = {
    "captions": ("blip", "blip", "BlipForConditionalGeneration", captioning),
    "answers": ("blip", "blip", "BlipForQuestionAnswering", vqa),
    "matches": ("blip", "blip", "BlipForImageTextRetrieval", matching),
    "classes": ("vilt", "vilt", "ViltForQuestionAnswering", vqa),
    "chat captions": ("chat", "llava", None, captioning),
}
"""Name -> family, model type, class of transformers and task: labels shifted and not, log odds, soft scores."""


def write_twins(folder: Path) -> dict[str, str]:
    """The tiny twins of all cases: case -> folder."""
    made = {}
    for case, (family, model_type, architecture, _) in CASES.items():
        made[case] = str(folder / case.replace(" ", "_"))
        tiny_folder(family, made[case], model_type=model_type, architecture=architecture)
    return made


def make_context(folder: str, case: str, dtype: str) -> StepContext:
    """An adapted twin with non-zero LoRA weights."""
    task = CASES[case][3]
    backbone = load(Section(id=folder), dtype=getattr(torch, dtype), ability=task.ABILITIES)
    parts = list(backbone.traits.parts)
    section = LoraSection(kind="lora", rank=4, alpha=8, parts=parts, targets=["attention", "mlp"])
    adapted = attach(backbone, section, seed=3)
    generator = torch.Generator().manual_seed(11)
    for parameter in adapted.trainable().values():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(getattr(torch, dtype)) * 0.05
    set_modes(adapted)
    backbone.model.eval()  # masks of dropout belong to micro-batches
    ability = ability_for(task, backbone.traits)
    assert ability is not None
    return StepContext(
        backbone=backbone,
        task=task,
        section=task.Section(kind=task.__name__.rpartition(".")[2]),
        trainable=adapted.trainable(),
        device=torch.device("cpu"),
        autocast=nullcontext,
        seed=5,
        ability=ability,
    )


def make_asking(context: StepContext) -> Asking:
    """What the case's task asks of its twin."""
    backbone = context.backbone
    answers = tuple(backbone.family.answers_of(backbone.model.config)) if context.ability == "classify" else ()
    return Asking(
        context.task, context.section, context.ability, backbone.family, backbone.processor, backbone.traits, answers
    )


def make_sample(number: int, answers: Sequence[str], *, broken: bool = False) -> Sample:
    """A sample of its own colour, with words as long as its number says; a broken one cannot be read."""

    def read() -> Image.Image:
        if broken:
            raise DataError(f"{number}: cut short")
        return Image.new("RGB", (32, 32), (30 * number % 256, (200 - 20 * number) % 256, 90))

    words = " ".join(["red", "a", "spot", "blue"][: 1 + number % 4])
    return Sample(
        id=str(number),
        media=SimpleNamespace(key=str(number), where=str(number), read=read),  # type: ignore[arg-type]
        captions=(words,),
        question="what is it" if number % 2 else "a red spot",
        answers=(answers[number % len(answers)] if answers else words,),
        label=bool(number % 2),
    )


def make_items(context: StepContext) -> list[Encoded]:
    """Encoded samples of very unequal lengths."""
    asking = make_asking(context)
    dtype = next(iter(context.trainable.values())).dtype
    encode = ItemEncoder(asking, lambda sample, media, choice, turn: media.read())
    items = []
    for number in range(NUM):
        item = encode(make_sample(number, asking.answers), None, 0)
        floats = {n: v.to(dtype) if v.is_floating_point() else v for n, v in item.inputs.items()}
        items.append(Encoded(item.sample_id, floats))
    return items


def cut(context: StepContext, items: Sequence[Encoded], micro_batch: int) -> list[Batch]:
    """Consecutive micro-batches, as the loader collates them; with ``micro_batch`` 0 everything at once."""
    collate = Collate(context.backbone.family, context.backbone.processor)
    size = micro_batch or max(1, len(items))
    return [collate(list(items[start : start + size])) for start in range(0, max(1, len(items)), size)]


def run(context: StepContext, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and every gradient of one step."""
    for parameter in context.trainable.values():
        parameter.grad = None
    loss = additive_step(context, batches, step=0)
    return float(loss), {name: p.grad.clone() for name, p in context.trainable.items() if p.grad is not None}


def leave_unused(context: StepContext) -> torch.nn.Parameter:
    """Train something besides that no sample's loss depends on, as an image tower where nothing is shown."""
    unused = torch.nn.Parameter(torch.ones(3))
    context.trainable["unused"] = unused
    return unused


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of any gradient entry, relative to the largest entry of the model."""
    assert one.keys() == other.keys() and one
    largest = max(float(value.abs().max()) for value in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest
