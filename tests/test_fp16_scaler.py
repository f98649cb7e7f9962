"""Under fp16 a step whose gradients overflow moves nothing and is counted; the scaler goes on where it was.

The scaler is torch's own, on the CPU: fp16 itself needs a GPU, what the scaler does with gradients does not.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small_recipe

from mmtune import run_setup, train_loop
from mmtune.ground.errors import TrainingError
from mmtune.ground.safe_files import load_tensors
from mmtune.optimizer_setup import optimizer_tensors
from mmtune.run_checkpoint import checkpoints, read_state
from mmtune.training_run import fit

SCALE = 1024.0
OVERFLOW = 2
"""Steps that were finished before the one that overflows."""


@pytest.fixture
def scalers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every run gets a scaler, as accelerate gives it under fp16; the scalers made so far."""
    made: list[Any] = []
    start = run_setup.start_accelerator

    def start_with_scaler(recipe: Any) -> Any:
        accelerator = start(recipe)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)
        made.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr(run_setup, "start_accelerator", start_with_scaler)
    return made


def overflow_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """One gradient entry becomes infinite in the steps after so many."""
    whole = train_loop.contrastive_step

    def overflowing(context: Any, batches: Any, step: int) -> torch.Tensor:
        loss = whole(context, batches, step)
        if step in steps:
            gradient = next(iter(context.trainable.values())).grad
            assert gradient is not None
            gradient.view(-1)[0] = float("inf")
        return loss

    monkeypatch.setattr(train_loop, "contrastive_step", overflowing)


def watch_updates(monkeypatch: pytest.MonkeyPatch) -> dict[int, bool]:
    """Step -> whether its update moved a weight or the optimizer's state."""
    moved: dict[int, bool] = {}
    update = train_loop._update

    def tensors(trainer: Any) -> dict[str, torch.Tensor]:
        live = {**trainer.context.trainable, **optimizer_tensors(trainer.optimizer)}
        return {name: value.detach().clone() for name, value in live.items()}

    def watched(trainer: Any, *arguments: Any) -> float:
        before = tensors(trainer)
        norm = update(trainer, *arguments)
        after = tensors(trainer)
        same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        moved[trainer.state.step] = not same
        return norm

    monkeypatch.setattr(train_loop, "_update", watched)
    return moved


def rows(run: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def test_an_overflow_moves_nothing_is_counted_and_halves_the_scale(
    tmp_path: Path, tiny_clip_folder: Path, scalers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow_at(monkeypatch, OVERFLOW)
    moved = watch_updates(monkeypatch)
    run = fit(small_recipe(tmp_path, tiny_clip_folder))
    assert moved == {1: True, 2: True, OVERFLOW + 1: False, 4: True}
    state = read_state(checkpoints(run)[-1])
    assert (state.step, state.num_skipped, state.num_skipped_in_row) == (4, 1, 0)
    assert scalers[0].get_scale() == SCALE / 2 == state.scaler["scale"]
    log = (run / "run.log").read_text()
    assert f"step {OVERFLOW + 1}: fp16 overflow, update skipped (1 so far)" in log
    assert "1 updates were skipped by the fp16 scaler" in log
    assert rows(run)[OVERFLOW + 1]["grad_norm"] is None, "infinity is no JSON, and zero would be a lie"


def test_without_an_overflow_the_scaler_changes_no_weight(
    tmp_path: Path, tiny_clip_folder: Path, scalers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power of two scales gradients exactly, and back."""
    (tmp_path / "with").mkdir()
    with_scaler = fit(small_recipe(tmp_path / "with", tiny_clip_folder))
    assert len(scalers) == 1 and read_state(checkpoints(with_scaler)[-1]).num_skipped == 0
    monkeypatch.undo()
    (tmp_path / "without").mkdir()
    without = fit(small_recipe(tmp_path / "without", tiny_clip_folder))
    assert read_state(checkpoints(without)[-1]).scaler == {}
    for name in ("adapter/adapter_model.safetensors", "temperature.safetensors", "optimizer.safetensors"):
        one, other = (load_tensors(checkpoints(run)[-1] / name) for run in (with_scaler, without))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name


def test_the_scaler_is_saved_and_restored(
    tmp_path: Path, tiny_clip_folder: Path, scalers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps, one of which overflowed, then a longer run in the same folder goes on with the halved scale."""
    steady = {"schedule": "constant", "warmup": "0 steps"}
    overflow_at(monkeypatch, 1)
    (tmp_path / "whole").mkdir()
    whole = fit(small_recipe(tmp_path / "whole", tiny_clip_folder, train=steady))
    fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=2 steps", train=steady))
    saved = read_state(checkpoints(tmp_path / "run")[-1])
    assert (saved.step, saved.num_skipped, saved.scaler["scale"]) == (2, 1, SCALE / 2)
    assert saved.scaler == scalers[1].state_dict()
    resumed = fit(small_recipe(tmp_path, tiny_clip_folder, train=steady))
    assert scalers[2] is not scalers[1] and scalers[2].get_scale() == SCALE / 2, "a fresh scaler starts at 1024"
    states = [asdict(read_state(checkpoints(run)[-1])) for run in (whole, resumed)]
    for key in ("step", "num_samples", "num_skipped", "num_skipped_in_row", "scaler"):
        assert states[0][key] == states[1][key], key


def test_overflows_at_the_start_are_not_taken_for_a_dead_part(
    tmp_path: Path, tiny_clip_folder: Path, scalers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaler begins too high, so the first updates are often skipped: parts are judged after three that count."""
    overflow_at(monkeypatch, 0, 1, 2, 3)
    moved = watch_updates(monkeypatch)
    run = fit(small_recipe(tmp_path, tiny_clip_folder, train={"length": "8 steps"}))
    assert moved == {step: step > 4 for step in range(1, 9)}
    lines = (run / "run.log").read_text().splitlines()
    judged = next(number for number, line in enumerate(lines) if line.endswith("moved"))
    assert lines[judged + 1].startswith("vision") and lines[judged + 1].endswith("8/8"), "all modules moved"
    logged = [number for number, line in enumerate(lines) if line.startswith(("step 6/8", "step 7/8"))]
    assert logged[0] < judged < logged[1], "after the third update that counts, the seventh step"


def test_ten_overflows_in_a_row_stop_the_run(
    tmp_path: Path, tiny_clip_folder: Path, scalers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow_at(monkeypatch, *range(1, 30))
    moved = watch_updates(monkeypatch)
    with pytest.raises(TrainingError, match="10 updates in a row were skipped"):
        fit(small_recipe(tmp_path, tiny_clip_folder, train={"length": "30 steps"}))
    assert moved == {1: True, **dict.fromkeys(range(2, 11), False)}
    assert scalers[0].get_scale() == SCALE / 2**10
    assert max(rows(tmp_path / "run")) == 10


def test_a_loss_that_is_not_finite_stops_under_the_scaler_too(
    tmp_path: Path, tiny_clip_folder: Path, scalers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_loop._forward_backward

    def poisoned(trainer: Any, batches: Any) -> float:
        loss = whole(trainer, batches)
        return float("nan") if trainer.state.step == OVERFLOW else loss

    monkeypatch.setattr(train_loop, "_forward_backward", poisoned)
    moved = watch_updates(monkeypatch)
    with pytest.raises(TrainingError, match="step 3: loss nan.*stopped before the weights moved"):
        fit(small_recipe(tmp_path, tiny_clip_folder))
    assert sorted(moved) == [1, 2] and scalers[0].get_scale() == SCALE
