"""Towers with dropout of their own: frozen layers draw nothing, and every pass over a micro-batch draws the same."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import section
from parity_cases import cut, distance, make_samples, run

from mmtune.adapters import attach, set_modes
from mmtune.backbones import Section, load, tiny_folder
from mmtune.contrastive_step import StepContext, contrastive_step
from mmtune.ground.seeding import seed_for
from mmtune.losses.infonce import Section as InfoNCE
from mmtune.tasks import retrieval

TEXT = {"chinese_clip": "text", "align": "text", "blip": "text", "blip2": "qformer"}
"""Family -> the part that reads texts."""

FAMILIES = tuple(TEXT)

TOLERANCE = 1e-10
"""Of the largest gradient entry, in float64: sums of the same numbers in another order."""

NUM = 16

UPPER = {"kind": "lora", "parts": ["text"], "targets": ["attention", "mlp"], "layers": "last 1", "rank": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of its tiny twin; read only."""
    folder = tmp_path_factory.mktemp("dropout")
    return {name: tiny_folder(name, folder / name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def context_of(folder: Path, values: dict[str, Any]) -> StepContext:
    """A twin in float64 with non-zero adapters, ready to train."""
    backbone = load(Section(id=str(folder)), dtype="float64")
    adapted = attach(backbone, section(**values), seed=3)
    generator = torch.Generator().manual_seed(11)
    for name, parameter in adapted.trainable().items():
        parameter.data = parameter.data.double()
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.1
    set_modes(adapted)
    return StepContext(
        backbone=backbone,
        task=retrieval,
        section=retrieval.Section(kind="retrieval", loss=InfoNCE(kind="infonce")),
        trainable=adapted.trainable(),
        device=torch.device("cpu"),
        autocast=nullcontext,
        seed=5,
    )


def watch(context: StepContext, path: str) -> list[torch.Tensor]:
    """What the module at a path gives, call by call."""
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).detach())

    context.backbone.model.get_submodule(path).register_forward_hook(keep)
    return seen


def test_frozen_layers_draw_nothing(folder: Path) -> None:
    """In another step the lower layer gives the same bits; the adapted layer above it draws other masks."""
    part = TEXT[folder.name]
    context = context_of(folder, {**UPPER, "parts": [part]})
    assert any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in context.backbone.model.modules())
    layers = context.backbone.traits.layers[part]
    lower, upper = watch(context, f"{layers}.0"), watch(context, f"{layers}.1")
    batches = cut(context, make_samples(context)[:NUM], 0)

    def two_steps(seen: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The last output of each step (BLIP-2's Q-Former gives two, for images and for texts)."""
        del seen[:]
        for step in (0, 1):
            contrastive_step(context, batches, step)
        return seen[len(seen) // 2 - 1], seen[-1]

    assert torch.equal(*two_steps(lower)) and not torch.equal(*two_steps(upper))
    context.backbone.model.train()  # the negation: a careless mode
    assert not torch.equal(*two_steps(lower))


def test_micro_batches_change_nothing_where_dropout_is_frozen(folder: Path) -> None:
    """Heads alone are trained, above towers full of dropout: 1 x 4 = 4 x 1, and a step twice is the same twice."""
    context = context_of(folder, {"kind": "head_only", "parts": [TEXT[folder.name]]})
    samples = make_samples(context)[:4]
    loss, whole = run(context, cut(context, samples, 0))
    assert whole.keys() == context.trainable.keys()
    for batches in (cut(context, samples, 1), cut(context, samples, 2)):
        value, gradients = run(context, batches)
        assert value == pytest.approx(loss, rel=TOLERANCE) and distance(whole, gradients) <= TOLERANCE
    again = run(context, cut(context, samples, 0))
    assert again[0] == loss and distance(whole, again[1]) == 0
    context.backbone.model.train()
    assert distance(whole, run(context, cut(context, samples, 1))[1]) > 1e-3


def one_graph(context: StepContext, batches: list[Any], seed_of: Callable[[int], int]) -> dict[str, torch.Tensor]:
    """The gradient by plain autograd: every micro-batch with its masks in one graph, one loss, one backward."""
    family, model = context.backbone.family, context.backbone.model
    for parameter in context.trainable.values():
        parameter.grad = None
    images, texts = [], []
    for number, batch in enumerate(batches):
        torch.manual_seed(seed_of(number))
        images.append(family.embed_media(model, batch.inputs))
        texts.append(family.embed_text(model, batch.inputs))
    width = max(batch.image_keys.shape[1] for batch in batches)
    keys = [torch.nn.functional.pad(b.image_keys, (0, width - b.image_keys.shape[1]), value=-1) for b in batches]
    positive = retrieval.positives(torch.cat(keys), torch.cat([batch.text_keys for batch in batches]))
    loss = retrieval.loss(context.section, torch.cat(images), torch.cat(texts), positive, context.temperature())
    loss.backward()
    return {name: p.grad.clone() for name, p in context.trainable.items() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("chinese_clip", {**UPPER, "layers": "all"}),
        ("align", UPPER),
        ("align", {"kind": "full", "parts": ["vision"]}),
        ("blip", {**UPPER, "layers": "all", "dropout": 0.2}),
        ("blip", {"kind": "full", "parts": ["text"]}),
        ("blip2", {**UPPER, "parts": ["vision", "qformer"]}),
    ],
    ids=["chinese_clip lora", "align lora", "align full vision", "blip lora", "blip full text", "blip2 lora"],
)
def test_both_passes_draw_the_same_masks(folders: dict[str, Path], name: str, values: dict[str, Any]) -> None:
    context = context_of(folders[name], values)
    batches = cut(context, make_samples(context)[:NUM], 4)
    _, gradients = run(context, batches)
    expected = one_graph(context, batches, lambda number: seed_for(context.seed, "dropout", 0, 0, number))
    assert distance(expected, gradients) <= TOLERANCE
    other = one_graph(context, batches, lambda number: seed_for(context.seed, "dropout", 1, 0, number))
    assert distance(other, gradients) > 1e-3, "dropout is on: with other masks it is another gradient"
