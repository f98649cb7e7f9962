"""Checkpoints: whole or absent, verified, pruned only when the new one is safe."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune import run_checkpoint
from mmtune.adapters import attach
from mmtune.adapters.lora import Section as LoraSection
from mmtune.backbones import Section, load
from mmtune.ground.errors import CheckpointError
from mmtune.ground.records import BadItem
from mmtune.ground.safe_files import files_below, write_json
from mmtune.optimizer_setup import make_optimizer, move_schedule
from mmtune.recipe_schema import TrainSection
from mmtune.run_checkpoint import (
    MANIFEST,
    TrainState,
    checkpoints,
    choose_checkpoint,
    newest_valid,
    problems,
    restore_checkpoint,
    save_checkpoint,
)

TRAIN = TrainSection.model_validate({"length": "10 steps", "batch": 4, "learning_rate": 0.01}, strict=False)


def make_adapted(folder: Path, seed: int = 0) -> tuple[Any, torch.optim.Optimizer]:
    section = LoraSection(kind="lora", rank=2, alpha=4, parts=["vision"], targets=["attention"])
    adapted = attach(load(Section(id=str(folder))), section, seed=seed)
    optimizer = make_optimizer(adapted, TRAIN)
    return adapted, optimizer


def step(adapted: Any, optimizer: torch.optim.Optimizer) -> None:
    for number, parameter in enumerate(adapted.trainable().values()):
        parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
    optimizer.step()


def damage(path: Path, kind: str) -> None:
    if kind == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.unlink()


@pytest.fixture
def run(tmp_path: Path, tiny_clip_folder: Path) -> tuple[Path, Any, torch.optim.Optimizer]:
    adapted, optimizer = make_adapted(tiny_clip_folder)
    for number in (1, 2, 3):
        step(adapted, optimizer)
        save_checkpoint(tmp_path / "run", adapted, optimizer, TrainState(step=number), keep=2)
    return tmp_path / "run", adapted, optimizer


def test_restores_tensors_optimizer_and_state(
    run: tuple[Path, Any, torch.optim.Optimizer], tiny_clip_folder: Path
) -> None:
    folder, adapted, optimizer = run
    other, fresh = make_adapted(tiny_clip_folder, seed=9)
    state = TrainState(
        step=4, bad=[BadItem("a.png", "cut short", "train")], best_score=0.5, best_checkpoint="step-000002"
    )
    save_checkpoint(folder, adapted, optimizer, state, keep=2)
    assert restore_checkpoint(folder / "checkpoints" / "step-000004", other, fresh) == state
    step(adapted, optimizer), step(other, fresh)
    for name, parameter in adapted.trainable().items():
        assert torch.equal(parameter, other.trainable()[name]), name


@pytest.mark.parametrize("kind", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "optimizer.safetensors", "state.json"])
def test_damage_is_found_and_the_newest_whole_one_is_used(
    run: tuple[Path, Any, torch.optim.Optimizer], file: str, kind: str
) -> None:
    folder = run[0]
    assert problems(folder / "checkpoints" / "step-000003") == []
    damage(folder / "checkpoints" / "step-000003" / file, kind)
    assert file in problems(folder / "checkpoints" / "step-000003")[0]
    found, passed_over = newest_valid(folder)
    assert found is not None and found.name == "step-000002"
    assert len(passed_over) == 1 and "step-000003" in passed_over[0] and file in passed_over[0]


def test_a_manifest_cannot_be_missing_or_damaged(run: tuple[Path, Any, torch.optim.Optimizer]) -> None:
    for name, kind in (("step-000003", "missing"), ("step-000002", "cut")):
        damage(run[0] / "checkpoints" / name / MANIFEST, kind)
    assert newest_valid(run[0])[0] is None
    with pytest.raises(CheckpointError, match="step-000003.*missing[\\s\\S]*step-000002.*damaged"):
        choose_checkpoint(run[0])


def test_pruned_to_the_newest_and_the_best(run: tuple[Path, Any, torch.optim.Optimizer]) -> None:
    folder, adapted, optimizer = run
    assert [path.name for path in checkpoints(folder)] == ["step-000002", "step-000003"]
    for number in (4, 5):
        state = TrainState(step=number, best_checkpoint="step-000002")
        save_checkpoint(folder, adapted, optimizer, state, keep=1)
    assert [path.name for path in checkpoints(folder)] == ["step-000002", "step-000005"]


def test_the_best_by_validation_stands_for_the_run(run: tuple[Path, Any, torch.optim.Optimizer]) -> None:
    assert choose_checkpoint(run[0]).name == "step-000003"
    write_json(run[0] / "manifest.json", {"best_checkpoint": "step-000002"})
    assert choose_checkpoint(run[0]).name == "step-000002"
    damage(run[0] / "checkpoints" / "step-000002" / "state.json", "cut")
    said: list[str] = []
    assert choose_checkpoint(run[0], said.append).name == "step-000003"
    assert len(said) == 1 and "step-000002, the best by validation, is passed over: state.json" in said[0]


def test_a_best_one_that_a_running_training_pruned_is_looked_for_again(
    run: tuple[Path, Any, torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate` beside a training: the manifest it read is older than the folders it finds."""
    folder = run[0]
    write_json(folder / "manifest.json", {"best_checkpoint": "step-000001"})
    said: list[str] = []
    assert choose_checkpoint(folder, said.append).name == "step-000003"
    assert len(said) == 1 and "step-000001, the best by validation, is passed over: the folder is gone" in said[0]
    look = run_checkpoint.problems

    def prune_meanwhile(path: Path) -> list[str]:
        write_json(folder / "manifest.json", {"best_checkpoint": "step-000002"})
        return look(path)

    monkeypatch.setattr(run_checkpoint, "problems", prune_meanwhile)
    said.clear()
    assert choose_checkpoint(folder, said.append).name == "step-000002" and not said


def test_a_save_that_dies_leaves_the_old_ones(
    run: tuple[Path, Any, torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, adapted, optimizer = run

    def failing(path: Path, value: Any) -> None:
        if path.name == MANIFEST:
            raise OSError(28, "No space left on device")
        write_json(path, value)

    monkeypatch.setattr(run_checkpoint, "write_json", failing)
    with pytest.raises(OSError):
        save_checkpoint(folder, adapted, optimizer, TrainState(step=4), keep=1)
    assert [path.name for path in checkpoints(folder)] == ["step-000002", "step-000003"]
    assert newest_valid(folder) == (folder / "checkpoints" / "step-000003", [])


def test_plain_formats_with_the_umasks_mode(run: tuple[Path, Any, torch.optim.Optimizer]) -> None:
    folder, adapted, optimizer = run
    before = os.umask(0o027)
    try:
        saved = save_checkpoint(folder, adapted, optimizer, TrainState(step=4), keep=1)
    finally:
        os.umask(before)
    for path in files_below(saved):
        assert path.suffix in (".safetensors", ".json"), path
        assert path.stat().st_mode & 0o777 == 0o640, path
    assert saved.stat().st_mode & 0o777 == 0o750
    listed = json.loads((saved / MANIFEST).read_text())["files"]
    assert set(listed) == {str(p.relative_to(saved)) for p in files_below(saved)} - {MANIFEST}


def test_another_adapters_checkpoint_is_refused(
    run: tuple[Path, Any, torch.optim.Optimizer], tiny_clip_folder: Path
) -> None:
    section = LoraSection(kind="lora", rank=4, alpha=4, parts=["text"], targets=["mlp"])
    other = attach(load(Section(id=str(tiny_clip_folder))), section, seed=0)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_checkpoint(run[0] / "checkpoints" / "step-000003", other, make_optimizer(other, TRAIN))


def test_the_schedule_is_a_function_of_the_step(tiny_clip_folder: Path) -> None:
    from mmtune.optimizer_setup import make_schedule

    rates: list[list[float]] = []
    for jump in (False, True):
        _, optimizer = make_adapted(tiny_clip_folder)
        schedule = make_schedule(optimizer, TRAIN, warmup_steps=2, total_steps=8)
        if jump:
            move_schedule(schedule, 5)
        else:
            for _ in range(5):
                optimizer.step(), schedule.step()
        seen = []
        for _ in range(3):
            seen += [group["lr"] for group in optimizer.param_groups]
            optimizer.step(), schedule.step()
        rates.append(seen)
    assert rates[0] == rates[1] and len(set(rates[0])) > 1
