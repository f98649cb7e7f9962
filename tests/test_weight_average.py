"""The running average: its formula, that it comes and goes without a trace, and that it is what users get."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import small_recipe

from mmtune import train_loop
from mmtune.ground.errors import CheckpointError
from mmtune.model_loading import load_model
from mmtune.run_checkpoint import checkpoints
from mmtune.training_run import fit
from mmtune.weight_average import WeightAverage


def walk(average: WeightAverage, num: int) -> list[float]:
    """Move the one weight by 1 a step; its average after each."""
    seen = []
    for step in range(1, num + 1):
        average.live["w"].data += 1
        average.update(step)
        seen.append(float(average.values["w"]))
    return seen


@pytest.mark.parametrize("warmup", [False, True])
def test_the_formula(warmup: bool) -> None:
    """Against a loop in float64; float32 keeps seven digits."""
    seen = walk(WeightAverage({"w": torch.zeros(1)}, decay=0.6, warmup=warmup), 20)
    expected, mean = [], 0.0
    for step in range(1, 21):
        decay = min(0.6, (1 + step) / (10 + step)) if warmup else 0.6
        mean = decay * mean + (1 - decay) * step
        expected.append(mean)
    assert seen == pytest.approx(expected, rel=1e-6)


def test_it_comes_and_goes_without_a_trace() -> None:
    live = {"w": torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))}
    average = WeightAverage(live, decay=0.9, warmup=False)
    live["w"].data += 1 / 3
    average.update(1)
    raw, mean, place = live["w"].detach().clone(), average.values["w"].clone(), live["w"].data_ptr()
    with average.in_place():
        assert torch.equal(live["w"], mean) and not torch.equal(live["w"], raw)
    assert torch.equal(live["w"], raw) and torch.equal(average.values["w"], mean)
    assert live["w"].data_ptr() == place, "an optimizer holds the parameter"
    with pytest.raises(CheckpointError, match="not those that this recipe trains"):
        average.take({"v": raw})


def test_users_get_the_average_and_validation_scores_it(
    tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means: dict[int, dict[str, torch.Tensor]] = {}
    scored: dict[int, dict[str, torch.Tensor]] = {}
    update, validate = train_loop._update, train_loop._validate

    def watched(trainer: Any, *arguments: Any) -> float:
        """Average by hand."""
        live = {name: value.detach().clone() for name, value in trainer.context.trainable.items()}
        mean = means.setdefault(0, live)
        norm = update(trainer, *arguments)
        step = trainer.state.step
        previous = means.get(step - 1, mean)
        means[step] = {n: previous[n].lerp(v.detach(), 0.5) for n, v in trainer.context.trainable.items()}
        return norm

    def watched_validation(trainer: Any) -> bool:
        inner = trainer.validate

        def look() -> Any:
            held = {name: value.detach().clone() for name, value in trainer.context.trainable.items()}
            scored[trainer.state.step] = held
            return inner()

        trainer.validate = look
        better = validate(trainer)
        trainer.validate = inner
        return better

    monkeypatch.setattr(train_loop, "_update", watched)
    monkeypatch.setattr(train_loop, "_validate", watched_validation)
    train = {"ema": {"decay": 0.5, "warmup": False}, "evaluate_every": "2 steps"}
    run = fit(small_recipe(tmp_path, tiny_clip_folder, train=train))
    assert sorted(scored) == [2, 4]
    for step, held in scored.items():
        assert all(torch.equal(value, means[step][name]) for name, value in held.items())
    best = json.loads((run / "manifest.json").read_text())["best_checkpoint"]
    used = dict(load_model(run).model.named_parameters())
    mean = means[int(best.split("-")[1])]
    assert mean and all(torch.equal(used[name], value) for name, value in mean.items())
    raw = load_file(checkpoints(run)[-1] / "raw.safetensors")
    assert set(raw) == set(mean) and any(not torch.equal(raw[name], means[4][name]) for name in raw)


def test_it_does_not_disturb_training(tmp_path: Path, tiny_clip_folder: Path) -> None:
    losses = []
    for number, overrides in enumerate(([], ["train.ema={decay: 0.9}"])):
        here = tmp_path / str(number)
        here.mkdir()
        run = fit(small_recipe(here, tiny_clip_folder, *overrides))
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
        assert (checkpoints(run)[-1] / "raw.safetensors").exists() == bool(overrides)
    assert losses[0] == losses[1]
