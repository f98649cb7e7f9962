"""The range test: rates grow in equal factors, the run ends when the loss diverges, and nothing is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_runs import small_recipe

from mmtune import learning_rate_run, train_loop
from mmtune.ground.errors import RecipeError, TrainingError
from mmtune.learning_rate_run import find_learning_rate, smooth, smoothing_width, suggest_rate


def rows(losses: list[float]) -> list[dict[str, float]]:
    means = smooth(losses, 3)
    return [
        {"step": n, "learning_rate": 10.0**-n, "loss": loss, "mean": mean}
        for n, (loss, mean) in enumerate(zip(losses, means, strict=True))
    ]


def test_the_mean_does_not_lag() -> None:
    assert smooth([5.0, 3.0, 1.0, 3.0, 5.0], 3) == [5.0, 3.0, 7 / 3, 3.0, 5.0]
    assert smooth([1.0], 3) == [1.0]
    assert smoothing_width(100) == 9 and smoothing_width(10) == 3


def test_the_suggestion_is_a_tenth_of_the_lowest() -> None:
    assert suggest_rate(rows([4.0, 3.0, 2.0, 1.0, 2.0, 9.0]), 3) == pytest.approx(10.0**-3 / 10)
    assert suggest_rate(rows([0.5, 4.0, 3.0, 2.0, 1.0, 2.0, 9.0, 0.5]), 3) == pytest.approx(10.0**-4 / 10), "lucky ends"
    for losses in ([], [1.0, 2.0, 3.0, 4.0]):
        with pytest.raises(TrainingError, match="fell at no learning rate"):
            suggest_rate(rows(losses), 3)


def test_a_search_leaves_a_picture_and_numbers_and_no_checkpoint(tmp_path: Path, tiny_clip_folder: Path) -> None:
    train = {"learning_rate": {"vision": 0.001, "default": 0.01}, "ema": {}, "trackers": ["tensorboard"], "batch": 6}
    recipe = small_recipe(tmp_path, tiny_clip_folder, train=train)
    found = find_learning_rate(recipe, lowest=1e-4, highest=1.0, steps=24)
    told = json.loads(found.json.read_text())
    noted = [row["learning_rate"] for row in told["rows"]]
    growth = (1.0 / 1e-4) ** (1 / 23)
    assert noted[0] == pytest.approx(1e-4) and len(noted) <= 24
    assert all(after / before == pytest.approx(growth) for before, after in zip(noted, noted[1:], strict=False))
    assert told["suggestion"] == found.suggestion and 1e-5 < found.suggestion < 1.0
    assert Image.open(found.plot).size[0] > 500
    assert sorted(path.name for path in found.plot.parent.iterdir()) == [
        "learning_rate_search.json",
        "learning_rate_search.png",
        "run.log",
    ]
    assert not (tmp_path / "run").exists(), "the run itself is not begun"


def test_rates_per_part_grow_together(tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    step = train_loop.take_step

    def watched(trainer: Any, steps: Any) -> Any:
        seen.append(sorted({group["lr"] for group in trainer.optimizer.param_groups}))
        row = step(trainer, steps)
        losses = {1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0, 5: 3.0, 6: 30.0}
        return {**row, "loss": losses.get(row["step"], 90.0)}

    monkeypatch.setattr(train_loop, "take_step", watched)
    recipe = small_recipe(tmp_path, tiny_clip_folder, train={"learning_rate": {"vision": 0.001, "default": 0.01}})
    find_learning_rate(recipe, lowest=1e-6, highest=1e-3, steps=20, output=tmp_path / "found")
    assert all(high / low == pytest.approx(10) for low, high in seen), "their ratio stays"
    assert seen[0][-1] == pytest.approx(1e-6)
    assert len(seen) < 12, "it ends where the loss diverges"
    assert "the loss diverges" in (tmp_path / "found" / "run.log").read_text()


def test_one_lucky_batch_at_the_start_does_not_end_it(
    tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, lucky = train_loop.take_step, [0.1, 5.0, 5.0, 5.0, 4.0, 3.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0]

    def watched(trainer: Any, steps: Any) -> Any:
        row = step(trainer, steps)
        return {**row, "loss": lucky[row["step"] - 1]}

    monkeypatch.setattr(train_loop, "take_step", watched)
    found = find_learning_rate(small_recipe(tmp_path, tiny_clip_folder), lowest=1e-6, highest=1e-3, steps=len(lucky))
    told = json.loads(found.json.read_text())["rows"]
    assert len(told) == len(lucky)
    assert found.suggestion == pytest.approx(told[6]["learning_rate"] / 10)


def test_a_range_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"lowest 1 and highest 0.1.*\nsteps 3: .*at least 10"):
        find_learning_rate(tmp_path / "no.yaml", lowest=1.0, highest=0.1, steps=3)
    assert learning_rate_run.FEWEST_STEPS == 10
