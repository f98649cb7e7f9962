"""Layers are computed twice, gradients stay what they were, and a class that cannot do it is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_cases import cut, distance, make_context, make_samples, run
from small_runs import small_recipe

from mmtune.activation_checkpointing import checkpoint_activations
from mmtune.ground.errors import RecipeError
from mmtune.trainer_building import build_trainer

CLOSE = 1e-6
"""Largest difference of a gradient entry, of the largest one: the same sums in the same order, so mostly none."""
NUM = 16
PARTS = ("vision", "text")


def step(folder: Path, *, on: bool, dropout: float, micro_batch: int, eval_mode: bool = False) -> tuple[Any, Counter]:
    """Gradients of one step, and how often each attention ran forward."""
    context = make_context(folder, "float32", "infonce", dropout=dropout)
    model = context.backbone.model
    if on:
        checkpoint_activations(context.backbone, PARTS)
    model.train(not eval_mode)  # a CLIP has no dropout but that of the adapter
    calls: Counter = Counter()
    for name, module in model.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    result = run(context, cut(context, make_samples(context)[:NUM], micro_batch))
    return result, calls


@pytest.mark.parametrize("micro_batch", [0, NUM // 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_twice_the_forward_passes_and_the_same_gradients(
    tiny_clip_folder: Path, dropout: float, micro_batch: int
) -> None:
    (loss, plain), once = step(tiny_clip_folder, on=False, dropout=dropout, micro_batch=micro_batch)
    (again, saved), twice = step(tiny_clip_folder, on=True, dropout=dropout, micro_batch=micro_batch)
    assert loss == again and distance(plain, saved) <= CLOSE
    assert {name.split(".")[0] for name in saved} == {"vision_model", "text_model", "logit_scale"}
    num_batches = 2 if micro_batch else 1
    assert set(once.values()) == {num_batches * (1 if num_batches == 1 else 2)}, "with several, one pass has no graph"
    assert {twice[name] - once[name] for name in once} == {num_batches}, "every layer of both towers, once more"


def test_dropout_is_at_work(tiny_clip_folder: Path) -> None:
    """The negation: equal gradients with dropout would prove little if it drew nothing."""
    with_dropout, without = (step(tiny_clip_folder, on=True, dropout=d, micro_batch=0)[0] for d in (0.3, 0.0))
    assert distance(with_dropout[1], without[1]) > 1e-3


def test_in_eval_mode_nothing_would_happen(tiny_clip_folder: Path) -> None:
    """Why ``set_modes`` matters: transformers' layers keep everything unless they are in train mode."""
    (_, plain), once = step(tiny_clip_folder, on=True, dropout=0.0, micro_batch=0, eval_mode=True)
    assert set(once.values()) == {1} and plain


def test_layers_below_what_is_trained_have_nothing_to_keep(tmp_path: Path, tiny_clip_folder: Path) -> None:
    """Through a recipe: the layer that is trained runs twice, the frozen one below it once."""
    from mmtune.ground.run_log import RunLog
    from mmtune.run_setup import start_accelerator
    from mmtune.train_loop import read_steps, take_step

    recipe = small_recipe(tmp_path, tiny_clip_folder, "adapter.layers=last 1", "train.activation_checkpointing=true")
    trainer = build_trainer(recipe, start_accelerator(recipe), RunLog(tmp_path / "run"))
    from mmtune.adapters import set_modes

    set_modes(trainer.adapted)
    calls: Counter = Counter()
    for name, module in trainer.adapted.model.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    take_step(trainer, read_steps(trainer, 0, 1))
    last = max(int(name.split(".")[3]) for name in calls)
    assert {calls[name] for name in calls if f".{last}." in name} == {2}
    assert {calls[name] for name in calls if ".0." in name} == {1}


def test_a_class_that_cannot_is_refused(tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_context(tiny_clip_folder, "float32", "infonce").backbone
    monkeypatch.setattr(type(backbone.model), "supports_gradient_checkpointing", False)
    with pytest.raises(RecipeError, match="activation_checkpointing: CLIPModel cannot do it"):
        checkpoint_activations(backbone, PARTS)


def test_layers_that_would_not_do_it_are_refused(tiny_clip_folder: Path) -> None:
    """transformers switches on what listens and says nothing about the rest."""
    backbone = make_context(tiny_clip_folder, "float32", "infonce").backbone
    backbone.model.text_model.encoder.layers[0] = torch.nn.Identity()
    with pytest.raises(RecipeError, match="the layers of text of CLIPModel do not support it"):
        checkpoint_activations(backbone, PARTS)
    checkpoint_activations(backbone, ["vision"])
