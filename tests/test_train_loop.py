"""The loop: what it logs, chooses, counts and refuses."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import small_recipe

from mmtune import train_loop
from mmtune.ground.errors import DataError, RecipeError, TrainingError
from mmtune.run_setup import make_layout, refuse_launcher, resolve_precision
from mmtune.train_loop import MAX_SKIPPED_IN_ROW, Cadence
from mmtune.training_run import fit


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_folder(tmp_path: Path, tiny_clip_folder: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_clip_folder, train={"evaluate_every": "2 steps", "trackers": ["tensorboard"]})
    run = fit(recipe)
    for name in ("recipe.resolved.json", "manifest.json", "metrics.jsonl", "curves.png", "run.log", "quarantine.jsonl"):
        assert (run / name).stat().st_size > 0 or name == "quarantine.jsonl", name
    steps = [row for row in rows(run) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    wanted = {"step", "epoch", "loss", "learning_rate", "grad_norm", "samples_per_second", "data_wait", "memory"}
    assert all(set(row) == wanted and all(math.isfinite(value) for value in row.values()) for row in steps)
    scored = {row["step"]: row["validation"]["text_to_image_recall@1"] for row in rows(run) if "validation" in row}
    assert sorted(scored) == [2, 4]
    manifest = json.loads((run / "manifest.json").read_text())
    best = max(scored.values())
    assert manifest["validation"] == {"text_to_image_recall@1": best}
    assert scored[int(manifest["best_checkpoint"].split("-")[1])] == best
    assert manifest["status"] == "finished" and manifest["steps"] == 4
    assert list(run.rglob("events.out.tfevents*")), "tensorboard was asked for"
    log = (run / "run.log").read_text()
    assert "vision" in log and "samples/s" in log and "data wait" in log


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("clip", ["train.micro_batch=4"]),
        ("clip", ["backbone.quantize=4bit"]),
        ("clip", ["adapter={kind: head_only, parts: [vision, text]}"]),
        ("siglip", ["task.loss.kind=sigmoid"]),
    ],
    ids=["clip", "clip in 4 bit", "clip heads", "siglip"],
)
def test_training_lowers_the_loss(
    tmp_path: Path, family: str, overrides: list[str], request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{family}_folder")
    length = {"length": "30 steps", "batch": 12, "schedule": "constant"}
    recipe = small_recipe(tmp_path, folder, *overrides, train=length)
    losses = [row["loss"] for row in rows(fit(recipe)) if "loss" in row]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["backbone"]["family"] == family


def test_out_of_memory_names_the_micro_batch(
    tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_loop, "contrastive_step", exhausted)
    with pytest.raises(TrainingError, match="train.micro_batch: 2 .*never the result"):
        fit(small_recipe(tmp_path, tiny_clip_folder))
    with pytest.raises(TrainingError, match="micro_batch is 1 already"):
        fit(small_recipe(tmp_path, tiny_clip_folder, "train.micro_batch=1"))


def test_other_errors_are_not_taken_for_memory(
    tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(train_loop, "contrastive_step", broken)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fit(small_recipe(tmp_path, tiny_clip_folder))


def test_too_many_bad_images_stop_the_run(tmp_path: Path, tiny_clip_folder: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_clip_folder)
    for number in (0, 4, 8):
        path = tmp_path / "images" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="max_bad_fraction"):
        fit(recipe)
    listed = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert listed and all("cut short" in item["reason"] for item in listed)
    assert fit(small_recipe(tmp_path, tiny_clip_folder, "data.max_bad_fraction=0.5")), "a higher limit goes on"


def test_skipped_fp16_updates_are_counted_and_ten_in_a_row_stop() -> None:
    lines: list[str] = []
    state = train_loop.TrainState()
    trainer: Any = SimpleNamespace(state=state, log=SimpleNamespace(line=lines.append))
    for _ in range(MAX_SKIPPED_IN_ROW - 1):
        train_loop._count_skipped(trainer, skipped=True)
    train_loop._count_skipped(trainer, skipped=False)
    assert (state.num_skipped, state.num_skipped_in_row) == (9, 0)
    with pytest.raises(TrainingError, match="10 updates in a row"):
        for _ in range(MAX_SKIPPED_IN_ROW):
            train_loop._count_skipped(trainer, skipped=True)
    assert state.num_skipped == 19 and len(lines) == 19


def test_due_once_per_period_and_at_the_end() -> None:
    cadence = Cadence(total=10, log=4, save=3, evaluate=0)
    assert [step for step in range(1, 11) if cadence.due(cadence.log, step)] == [4, 8, 10]
    assert [step for step in range(1, 11) if cadence.due(cadence.evaluate, step)] == []


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_launches_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    refuse_launcher()
    monkeypatch.setenv(name, "true")
    with pytest.raises(RecipeError, match="--multi_gpu"):
        refuse_launcher()


def test_batches_that_do_not_divide_are_refused_with_one_that_does(tmp_path: Path, tiny_clip_folder: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_clip_folder)
    with pytest.raises(RecipeError, match="try batch 3"):
        make_layout(recipe, 100, 3)
    with pytest.raises(RecipeError, match="larger than an epoch of 3 items"):
        make_layout(recipe, 3, 1)
    assert make_layout(recipe, 9, 2).micro_batch == 2


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_precision("auto") == "no" and resolve_precision("bf16") == "bf16"
    with pytest.raises(RecipeError, match="needs a GPU"):
        resolve_precision("fp16")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_precision("auto") == "bf16" and resolve_precision("fp16") == "fp16"
