"""Classification by prompts: the loss of the whole batch, however it is cut, with every class embedded once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_cases import TOLERANCE, cut, distance, make_context, make_samples

from mmtune.class_prompts import class_logits, embed_classes, encode_prompts
from mmtune.ground.errors import DataError
from mmtune.prompt_step import prompt_step
from mmtune.step_context import StepContext
from mmtune.tasks import classification

CLASSES = ["cat", "red dog", "small_house", "x"]
TEMPLATES = ["a {}.", "the {} in a picture"]
NUM = 24


def prepared(folder: Path, dtype: str = "float64", **given: Any) -> tuple[StepContext, list[dict[str, Any]]]:
    """An adapted twin that chooses among four classes, and encoded images with a class each."""
    context = make_context(folder, dtype, "infonce", dropout=given.pop("dropout", 0.0))
    context.task = classification
    context.section = classification.Section(
        kind="classification", classes=CLASSES, **{"templates": TEMPLATES, **given}
    )
    samples = [{**one, "text_key": number % 4} for number, one in enumerate(make_samples(context)[:NUM])]
    return context, samples


def step(context: StepContext, batches: list[Any], number: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    for parameter in context.trainable.values():
        parameter.grad = None
    loss = prompt_step(context, batches, number)
    return float(loss), {name: p.grad.clone() for name, p in context.trainable.items() if p.grad is not None}


def by_hand(context: StepContext, samples: list[dict[str, Any]]) -> torch.Tensor:
    """The mean cross-entropy with one graph over everything, an image and a prompt at a time."""
    family, model, processor = context.backbone.family, context.backbone.model, context.backbone.processor
    classes = []
    for name in CLASSES:
        words = [text.replace("{}", name.replace("_", " ")) for text in TEMPLATES]
        read = [family.embed_text(model, family.pad(processor, [family.encode_text(processor, one)])) for one in words]
        mean = sum(each[0] for each in read) / len(read)
        classes.append(mean / mean.norm())
    scale, _ = family.temperature(model)
    total: Any = 0.0
    for sample in samples:
        image = family.embed_media(model, {"pixel_values": sample["inputs"]["pixel_values"][None]})[0]
        logits = torch.stack([scale.exp() * (image @ one) for one in classes])
        smooth, right = context.section.label_smoothing, logits.log_softmax(0)
        total = total - (1 - smooth) * right[sample["text_key"]] - smooth * right.mean()
    return total / len(samples)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradients_are_those_of_one_graph(tiny_clip_folder: Path, smoothing: float) -> None:
    context, samples = prepared(tiny_clip_folder, label_smoothing=smoothing)
    loss, gradients = step(context, cut(context, samples, 0))
    for parameter in context.trainable.values():
        parameter.grad = None
    expected = by_hand(context, samples)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=TOLERANCE["float64"])
    reference = {name: p.grad for name, p in context.trainable.items() if p.grad is not None}
    assert set(gradients) == set(context.trainable), "both towers and the temperature"
    assert distance(gradients, reference) < TOLERANCE["float64"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_micro_batches_do_not_change_the_loss(tiny_clip_folder: Path, dtype: str) -> None:
    context, samples = prepared(tiny_clip_folder, dtype)
    whole_loss, whole = step(context, cut(context, samples, 0))
    parts_loss, parts = step(context, cut(context, samples, 7))
    assert parts_loss == pytest.approx(whole_loss, rel=TOLERANCE[dtype])
    assert distance(whole, parts) < TOLERANCE[dtype]
    other = [{**one, "text_key": (one["text_key"] + 1) % 4} for one in samples]
    assert step(context, cut(context, other, 0))[0] != pytest.approx(whole_loss, rel=1e-3), "labels matter"


def test_prompts_are_read_once_per_step_or_once_per_run(tiny_clip_folder: Path) -> None:
    context, samples = prepared(tiny_clip_folder)
    batches = cut(context, samples, 6)
    losses = [step(context, batches, number)[0] for number in range(3)]
    assert context.num_prompt_passes == 3 and context.num_forwards == 3 * 4
    for name, parameter in context.trainable.items():
        parameter.requires_grad_(not name.startswith("text_model") and not name.startswith("text_projection"))
    context.trainable = {name: p for name, p in context.trainable.items() if p.requires_grad}
    context.num_prompt_passes = 0
    frozen = [step(context, batches, number)[0] for number in range(3)]
    assert context.num_prompt_passes == 1, "a frozen text tower reads them once"
    assert frozen == pytest.approx(losses, rel=TOLERANCE["float64"])


def test_dropout_of_the_text_tower_is_drawn_by_step(tiny_clip_folder: Path) -> None:
    context, samples = prepared(tiny_clip_folder, dropout=0.5)
    batches = cut(context, samples, 0)
    assert step(context, batches, 0)[0] == step(context, batches, 0)[0]
    assert step(context, batches, 0)[0] != step(context, batches, 1)[0]


def test_lost_samples_leave_the_mean_of_the_others(tiny_clip_folder: Path) -> None:
    context, samples = prepared(tiny_clip_folder)
    whole, _ = step(context, cut(context, samples[:6], 0))
    with_hole, _ = step(context, [*cut(context, samples[:6], 0), *cut(context, samples[:6], 0)[:0]])
    empty = cut(context, samples[:6], 0)[0]
    empty.ids, empty.inputs = [], {}
    assert step(context, [*cut(context, samples[:6], 0), empty])[0] == pytest.approx(whole) == with_hole


def test_zero_shot_is_what_transformers_says(tiny_clip_folder: Path) -> None:
    from mmtune.backbones import Section, load

    backbone: Any = load(Section(id=str(tiny_clip_folder)))
    section = classification.Section(kind="classification", classes=CLASSES, templates=["a {}."])
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = [f"a {name.replace('_', ' ')}." for name in CLASSES]
    with torch.no_grad():
        classes = embed_classes(backbone, encode_prompts(backbone, classification, section), 4, "cpu")
        ours = class_logits(backbone, backbone.family.embed_media(backbone.model, {"pixel_values": pixels}), classes)
        words = backbone.processor.tokenizer(texts, return_tensors="pt", padding=True)
        theirs = backbone.model(pixel_values=pixels, **words).logits_per_image
    assert torch.allclose(ours.softmax(1), theirs.softmax(1), atol=1e-5)
    assert not torch.allclose(ours.softmax(1), theirs.flip(1).softmax(1), atol=1e-3)


def test_prompts_that_are_too_long_are_named(tiny_clip_folder: Path) -> None:
    from mmtune.backbones import Section, load

    backbone = load(Section(id=str(tiny_clip_folder)))
    section = classification.Section(kind="classification", classes=["a", "b" * 100], templates=["{}"])
    with pytest.raises(DataError, match=r"task.classes: 1 prompts have more than the \d+ tokens"):
        encode_prompts(backbone, classification, section)


def test_two_ranks_equal_one(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """Halves, an unequal share, and a rank without any sample; the temperature's gradient is a sum of both, too."""
    here = Path(__file__).parent
    paths = os.pathsep.join(str(path) for path in (here.parent, here, here / "launched"))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    script = [str(here / "launched" / "prompts_on_two_ranks.py"), str(tiny_clip_folder), str(tmp_path / "out.json")]
    done = subprocess.run(
        [*launch, "--main_process_port", "0", *script], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cases = json.loads((tmp_path / "out.json").read_text())
    assert len(cases) == 3
    for case in cases:
        assert case["loss"] == pytest.approx(case["single"], rel=TOLERANCE["float64"]), case
        assert case["gap"] <= TOLERANCE["float64"] and case["agree"], case
