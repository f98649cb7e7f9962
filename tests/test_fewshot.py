"""Whole runs of classification on a tiny twin, and few-shot studies with their baselines."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_runs import small_recipe

import mmtune
from mmtune.fewshot_run import fewshot
from mmtune.ground.errors import DataError, MmtuneError, RecipeError
from mmtune.launcher_call import repeated
from mmtune.shot_baselines import PROBE_C, linear_probe, nearest_class_mean

CLASSES = {"red": (230, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 240), "grey": (128, 128, 128)}


def write_colours(folder: Path) -> None:
    """48 pictures, each of one of four colours, with some noise."""
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    rows = []
    for number in range(48):
        name = list(CLASSES)[number % 4]
        pixels = np.clip(np.array(CLASSES[name]) + noise.normal(0, 25, (40, 36, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        split = {8: "val", 9: "test", 10: "test", 11: "test"}.get(number // 4, "train")
        rows.append({"image": f"{number}.png", "caption": name, "split": split})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(tmp_path: Path, tiny_clip_folder: Path) -> Any:
    write_colours(tmp_path)
    made = small_recipe(
        tmp_path, tiny_clip_folder, train={"length": "30 steps", "batch": 8, "evaluate_every": "15 steps"}
    )
    task = {"kind": "classification", "classes": list(CLASSES), "templates": ["{}"]}
    values = {**made.model_dump(mode="json"), "task": task}
    from mmtune.recipe_schema import recipe_from_json

    return recipe_from_json(values)


def test_a_run_learns_is_scored_merged_and_predicts(recipe: Any, tmp_path: Path) -> None:
    run = mmtune.fit(recipe)
    result = mmtune.score(run)
    assert result["tuned"]["accuracy"] > result["base"]["accuracy"] + 0.3
    assert set(result["tuned"]) == {"accuracy", "mean_class_recall", "macro_f1"}
    assert result["majority"]["share"] == 0.25
    merged = mmtune.merge(run)
    assert (Path(merged) / "merge_report.json").is_file()
    from mmtune.predict_run import predict

    predict(run, tmp_path / "images", output=tmp_path / "said.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert len(rows) == 48 and {row["answer"] for row in rows} <= set(CLASSES)
    assert all(0.25 <= row["confidence"] <= 1 for row in rows)


def test_an_image_of_no_class_is_quarantined(recipe: Any, tmp_path: Path) -> None:
    table = tmp_path / "pairs.jsonl"
    table.write_text(table.read_text().replace('"caption": "grey"', '"caption": "gray"', 1))
    with pytest.raises(DataError, match="1 of 32 items of split 'train' are bad"):
        mmtune.fit(recipe)
    (bad,) = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert "class 'gray' is not among task.classes ('red', 'green', 'blue', 'grey')" in bad


def test_a_study_goes_over_shots_and_seeds_and_goes_on(recipe: Any, tmp_path: Path, capsys: Any) -> None:
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"evaluate_every": None})})
    result = fewshot(short, shots=[2, 1], seeds=2, steps_per_shot=2, output=tmp_path / "study")
    assert [row["shots"] for row in result["summary"]] == [1, 2] and result["num_seeds"] == 2
    assert {"zero_shot", "nearest_class_mean", "linear_probe", "tuned"} < set(result["runs"][0])
    runs = sorted(path.name for path in (tmp_path / "study").iterdir() if path.is_dir())
    assert runs == ["shots001_seed1", "shots001_seed2", "shots002_seed1", "shots002_seed2"]
    manifest = json.loads((tmp_path / "study" / "shots002_seed1" / "manifest.json").read_text())
    assert manifest["steps"] == 4 and manifest["data"]["train_items"] == 8, "two of each of four classes"
    assert manifest["data"]["samples_trained"] == 4 * 8, "a batch that so few can fill"
    assert (tmp_path / "study" / "fewshot.png").is_file()
    saved = json.loads((tmp_path / "study" / "fewshot.json").read_text())
    assert saved["runs"] == result["runs"]
    assert result["runs"][0]["nearest_class_mean"]["accuracy"] > 0.25, "colours can be told apart"
    zero = {row["zero_shot"]["accuracy"] for row in result["runs"]}
    assert len(zero) == 1, "zero-shot knows nothing of shots"
    capsys.readouterr()
    again = fewshot(short, shots=[1, 2], seeds=2, steps_per_shot=2, output=tmp_path / "study")
    assert again["runs"] == result["runs"] and "finished" in capsys.readouterr().out


def test_base_to_novel_learns_one_half(recipe: Any, tmp_path: Path) -> None:
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"evaluate_every": None})})
    result = fewshot(short, shots=[1], seeds=1, steps_per_shot=2, base_to_novel=True, output=tmp_path / "study")
    assert result["classes"] == {"base_": ["red", "green"], "novel_": ["blue", "grey"]}
    (row,) = result["runs"]
    base, novel = row["tuned"]["base_accuracy"], row["tuned"]["novel_accuracy"]
    expected = 2 * base * novel / (base + novel) if base + novel else 0
    assert row["tuned"]["harmonic_accuracy"] == pytest.approx(expected)
    assert "linear_probe" not in row, "it has no word for classes that it never saw"
    resolved = json.loads((tmp_path / "study" / "base_shots001_seed1" / "recipe.resolved.json").read_text())
    assert resolved["task"]["classes"] == ["red", "green"]


def test_what_no_study_can_be_made_of(recipe: Any, tmp_path: Path, tiny_clip_folder: Path) -> None:
    retrieval = small_recipe(tmp_path, tiny_clip_folder)
    with pytest.raises(RecipeError, match="(?s)fewshot is for classification.*--shots.*--seeds"):
        fewshot(retrieval, shots=[0], seeds=0)
    two = recipe.model_copy(update={"task": recipe.task.model_copy(update={"classes": ["red", "green"]})})
    with pytest.raises(RecipeError, match="each half needs two"):
        fewshot(two, base_to_novel=True)
    with pytest.raises(MmtuneError, match="'blue' is not among task.classes"):
        fewshot(two, shots=[1], seeds=1)


def test_shots_as_they_are_written() -> None:
    given = ["fewshot", "r.yaml", "--shots", "1", "2", "16", "--seeds", "3", "a.b=4"]
    assert repeated(given, "--shots")[2:8] == ["--shots", "1", "--shots", "2", "--shots", "16"]
    assert repeated(given, "--shots")[8:] == ["--seeds", "3", "a.b=4"]
    assert repeated(["--shots", "1", "--shots", "2"], "--shots") == ["--shots", "1", "--shots", "2"]


def test_baselines_on_planted_embeddings() -> None:
    noise = np.random.default_rng(1)
    centres = noise.normal(size=(3, 16))
    labels = np.arange(60) % 3

    def drawn() -> np.ndarray:
        rows = centres[labels] + 0.4 * noise.normal(size=(60, 16))
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    shots, queries = drawn(), drawn()
    for method in (nearest_class_mean, linear_probe):
        assert (method(shots, labels, queries) == labels).mean() > 0.95
        assert (method(shots, np.roll(labels, 1), queries) == labels).mean() < 0.1, "it learns what it is told"


def test_the_probe_is_the_minimum_of_its_loss() -> None:
    """Against scipy's minimiser of the same loss written a second time, in numpy."""
    optimize = pytest.importorskip("scipy.optimize")
    noise = np.random.default_rng(2)
    shots, labels = noise.normal(size=(12, 5)), np.arange(12) % 3
    queries = noise.normal(size=(200, 5))

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[:15].reshape(3, 5), flat[15:]
        logits = shots * 5**0.5 @ weight.T + bias
        logits = logits - logits.max(axis=1, keepdims=True)
        right = logits[np.arange(12), labels] - np.log(np.exp(logits).sum(axis=1))
        return float((weight**2).sum() / 2 - PROBE_C * right.sum())

    best = optimize.minimize(loss, np.zeros(18), method="BFGS", options={"gtol": 1e-8}).x
    expected = (queries @ best[:15].reshape(3, 5).T + best[15:] / 5**0.5).argmax(axis=1)
    assert (linear_probe(shots, labels, queries) == expected).mean() > 0.99


def test_the_command_takes_shots_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    from mmtune import command_line, fewshot_run

    asked: dict[str, Any] = {}
    monkeypatch.setattr(fewshot_run, "fewshot", lambda recipe, **options: asked.update(options))
    recipe = Path(__file__).parents[1] / "recipes" / "clip_fewshot_lora.yaml"
    monkeypatch.setattr(sys, "argv", ["mmtune", "fewshot", str(recipe), "--shots", "1", "4", "--base-to-novel"])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 0 and asked["shots"] == [1, 4] and asked["base_to_novel"] and asked["seeds"] == 3
