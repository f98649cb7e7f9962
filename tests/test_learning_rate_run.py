"""The range test: rates grow in equal factors, the run ends when the loss diverges, and nothing is left behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_runs import small_recipe

from mmtune import learning_rate_run, train_loop
from mmtune.ground.errors import RecipeError, TrainingError
from mmtune.learning_rate_picture import _shown_range
from mmtune.learning_rate_run import find_learning_rate, smooth, smoothing_width, suggest_rate


def rows(losses: list[float], width: int = 3) -> list[dict[str, float]]:
    means = smooth(losses, width)
    return [
        {"step": n, "learning_rate": 10.0**-n, "loss": loss, "mean": mean}
        for n, (loss, mean) in enumerate(zip(losses, means, strict=True))
    ]


def test_the_mean_does_not_lag() -> None:
    assert smooth([5.0, 3.0, 1.0, 3.0, 5.0], 3) == [5.0, 3.0, 7 / 3, 3.0, 5.0]
    assert smooth([1.0], 3) == [1.0]
    assert smoothing_width(100) == 9 and smoothing_width(10) == 3


def suggested(losses: list[float], width: int = 3) -> tuple[float | None, str]:
    return suggest_rate(rows(losses, width), width)


def test_the_suggestion_is_a_tenth_of_the_lowest() -> None:
    assert suggested([4.0, 3.0, 2.0, 1.0, 2.0, 9.0]) == (pytest.approx(10.0**-3 / 10), "")
    assert suggested([0.5, 4.0, 3.0, 2.0, 1.0, 2.0, 9.0, 0.5])[0] == pytest.approx(10.0**-4 / 10), "lucky ends"
    for losses in ([], [1.0, 2.0, 3.0, 4.0], [2.0] * 9):
        assert suggested(losses) == (None, "")


def test_what_speaks_against_a_suggestion_is_said() -> None:
    """Easy batches at the first rates are chance; a fall within the scatter of the losses may be."""
    rate, note = suggested([1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0, 3.8, 3.2, 3.0, 3.0, 3.0, 8.0, 9.0, 9.0, 9.0])
    assert rate is None, "from the median of the first quarter it only rose"
    rate, note = suggested([1.0, 1.0, 1.0, 4.0, 4.0, 4.0] + [4.0] * 20 + [3.0, 2.0, 2.0, 2.0, 8.0])
    assert rate == pytest.approx(10.0**-28 / 10) and note.startswith("the smoothed loss was lowest at the very first")
    rate, note = suggested([3.0, 2.0, 3.0, 2.0, 3.0, 2.0, 3.0, 2.0, 2.0, 3.0])
    assert rate is not None and "scatter by" in note and "more steps" in note


@pytest.mark.parametrize("seed", range(8))
def test_noise_alone_is_called_so(seed: int) -> None:
    generator = np.random.default_rng(seed)
    noise = generator.normal(2.0, 0.2, 100)
    table = rows(noise.tolist(), 9)
    rate, note = suggest_rate(table, 9)
    assert rate is None or "more steps or a larger batch would tell more" in note
    falling = [row["loss"] - 1.5 * n / 100 for n, row in enumerate(table)]
    assert suggest_rate(rows(falling, 9), 9)[1] == "", "the negation: a fall that is one"


def test_a_loss_that_never_fell_is_drawn_all_the_same(
    tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = train_loop.take_step

    def watched(trainer: Any, steps: Any) -> Any:
        row = step(trainer, steps)
        return {**row, "loss": 2.0 + row["step"] / 10}

    monkeypatch.setattr(train_loop, "take_step", watched)
    found = tmp_path / "found" / "learning_rate_search"
    with pytest.raises(TrainingError) as caught:
        find_learning_rate(small_recipe(tmp_path, tiny_clip_folder), steps=24, output=found.parent)
    said = str(caught.value)
    assert (
        f"from 1e-07 to 1; see {found}.png and {found}.json. 24 steps are few" in said and caught.value.exit_code == 2
    )
    assert json.loads(found.with_suffix(".json").read_text())["suggestion"] is None
    assert Image.open(found.with_suffix(".png")).size[0] > 500
    assert capsys.readouterr().out.count("step ") <= learning_rate_run.MOST_LINES


def test_the_axis_holds_the_curve_and_little_else() -> None:
    low, high, scale = _shown_range([3.0, 2.0, 1.0, 9.0], [2.5, 1.2, 2.9])
    assert scale == "linear" and 0.85 < low < 1.0 and 2.9 < high < 4.5, "one lone loss does not press it flat"
    low, high, scale = _shown_range([3.0, 2.0, 1.0, 900.0], [2.5, 1.2, 500.0])
    assert scale == "log" and low < 1.0 and high > 500


def test_a_search_leaves_a_picture_and_numbers_and_no_checkpoint(
    tmp_path: Path, tiny_clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"learning_rate": {"vision": 0.001, "default": 0.01}, "ema": {}, "trackers": ["tensorboard"], "batch": 6}
    recipe = small_recipe(tmp_path, tiny_clip_folder, train=train)
    found = find_learning_rate(recipe, lowest=1e-4, highest=1.0, steps=24)
    assert capsys.readouterr().out.count(f"suggested train.learning_rate: {found.suggestion:.2g}") == 1
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
