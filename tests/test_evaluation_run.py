"""`evaluate` from a run folder to its files: base is a fresh load, both are scored alike, nothing else is touched."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmtune
from mmtune import command_line
from mmtune.adapters import merge_into
from mmtune.evaluation_run import evaluate, score
from mmtune.ground.errors import CheckpointError, DataError, RecipeError
from mmtune.metrics import retrieval_scores
from mmtune.metrics.recall import recall
from mmtune.model_loading import attach_target, load_base, load_model, resolve
from mmtune.recipe_schema import load_recipe
from mmtune.run_checkpoint import checkpoints
from mmtune.scoring_loop import embed_split, score_embeddings
from mmtune.sources import open_split

RECIPE = """
backbone: {{id: {backbone}}}
adapter: {{kind: lora, parts: [vision, text], rank: 4, alpha: 64, targets: [attention, mlp]}}
data:
  kind: jsonl
  path: {data}/pairs.jsonl
  images: {data}
  splits: {{train: train, validation: val, test: test}}
  max_bad_fraction: 0.2
task: {{kind: retrieval}}
train: {{length: 12 steps, batch: 8, learning_rate: 1e-2, evaluate_every: 6 steps, log_every: 2 steps}}
checkpoint: {{every: 6 steps, keep: 3}}
output: {output}
"""
SCORES = [each.name for each in retrieval_scores()]


def write_pairs(folder: Path) -> Path:
    """24 + 8 + 16 coloured pictures with two captions each; captions of every fourth test picture are shared."""
    folder.mkdir()
    rows = []
    for n in range(48):
        split = "train" if n < 24 else "val" if n < 32 else "test"
        pixels = np.random.default_rng(n).integers(0, 256, size=(40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        second = "shared by some" if n >= 32 and n % 4 == 0 else f"again number {n}"
        rows.append({"image": f"{n}.png", "caption": [f"picture {n}", second], "split": split})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_clip_folder: Path) -> Path:
    """A finished run on a copy of the tiny CLIP. Read only: copy it to change it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluation")
    data = write_pairs(folder / "data")
    text = RECIPE.format(backbone=tiny_clip_folder, data=data, output=folder / "run")
    (folder / "recipe.yaml").write_text(text)
    return mmtune.fit(load_recipe(folder / "recipe.yaml"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def recipe_of(trained: Path, overrides: Sequence[str] = ()) -> Any:
    return load_recipe(trained.parent / "recipe.yaml", overrides)


def scores_by_hand(backbone: Any, trained: Path) -> dict[str, float]:
    samples = open_split(recipe_of(trained).data, "test", seed=0).samples
    return score_embeddings(embed_split(backbone, samples, device="cpu", batch=64)).values


def test_base_is_a_fresh_load_and_tuned_is_the_best_checkpoint(run: Path, trained: Path, tiny_clip_folder: Path):
    result = score(run)
    assert result["base"] == scores_by_hand(load_model(str(tiny_clip_folder)), trained)
    assert result["tuned"] == scores_by_hand(load_model(run), trained)
    assert result["base"] != result["tuned"]
    assert result["checkpoint"] == json.loads((run / "manifest.json").read_text())["best_checkpoint"]
    assert result["delta"] == {name: result["tuned"][name] - result["base"][name] for name in SCORES}
    assert all(low <= high for low, high in result["interval95"].values())


def test_the_files(run: Path):
    result = score(run)
    written = ["scores.json", "ranks.jsonl", "retrievals.png", "curves.png"]
    assert [Path(name).name for name in result.pop("files")] == written
    assert all((run / name).is_file() for name in written)
    assert json.loads((run / "scores.json").read_text()) == result
    assert (result["samples"], result["images"], result["texts"], result["bad"]) == (16, 16, 16 + 12 + 1, 0)
    assert result["bootstrap"]["groups"] == 12 + 1 and result["bootstrap"]["resamples"] == 2000
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["scores"]["tuned"] == result["tuned"] and manifest["status"] == "finished"
    rows = [json.loads(line) for line in (run / "ranks.jsonl").read_text().splitlines()]
    ranks = [row["tuned"] for row in rows if row["direction"] == "text_to_image"]
    assert recall(np.array(ranks), 5) == result["tuned"]["text_to_image_recall@5"]
    assert len(rows) == result["texts"] + result["images"]


def test_other_splits_and_checkpoints_leave_the_scores_of_the_run_alone(run: Path):
    score(run)
    before = {name: (run / name).read_bytes() for name in ("scores.json", "ranks.jsonl", "manifest.json", "curves.png")}
    validation = score(run, split="validation")
    first = checkpoints(run)[0].name
    named = score(run, checkpoint=first)
    assert Path(validation["files"][0]).name == "scores_validation.json"
    assert Path(named["files"][0]).name == f"scores_{first}.json" and named["checkpoint"] == first
    assert score(run / "checkpoints" / first)["files"] == named["files"]
    assert {name: (run / name).read_bytes() for name in before} == before
    assert validation["base"] != named["base"]


def test_the_validation_score_that_chose_is_the_one_that_evaluate_finds(run: Path):
    manifest = json.loads((run / "manifest.json").read_text())
    found = score(run, split="validation")["tuned"]["text_to_image_recall@1"]
    assert manifest["validation"] == {"text_to_image_recall@1": found}


def test_other_data_is_scored_and_nothing_is_written_unless_asked(run: Path, trained: Path, tmp_path: Path):
    before = sorted(path.name for path in run.iterdir())
    other = recipe_of(trained, ["data.splits.test=val", "data.splits.validation=test"])
    result = score(run, recipe=other)
    assert result["files"] == [] and result["images"] == 8
    assert sorted(path.name for path in run.iterdir()) == before
    result = score(run, recipe=other, output=tmp_path / "elsewhere")
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == [
        "ranks.jsonl",
        "retrievals.png",
        "scores.json",
    ]


def test_a_plain_model_has_scores_of_its_own(run: Path, trained: Path, tiny_clip_folder: Path, tmp_path: Path):
    result = score(str(tiny_clip_folder), recipe=recipe_of(trained))
    assert result["scores"] == score(run)["base"]
    assert "base" not in result and "delta" not in result and result["files"] == []


def evaluate_by_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """``mmtune evaluate ARGUMENTS`` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["mmtune", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return int(ended.value.code or 0)


def test_the_command_scores_a_peft_adapter_beside_its_base(
    run: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The adapter alone, as `save_pretrained` of peft would have written it: no run, no recipe, no manifest."""
    chosen = json.loads((run / "manifest.json").read_text())["best_checkpoint"]
    adapter = Path(shutil.copytree(run / "checkpoints" / chosen / "adapter", tmp_path / "adapter"))
    recipe, output = trained.parent / "recipe.yaml", tmp_path / "scores"
    assert evaluate_by_command(monkeypatch, adapter, "--recipe", recipe, "-o", output) == 0
    result, expected = json.loads((output / "scores.json").read_text()), score(run)
    for key in ("base", "tuned", "delta", "interval95"):
        assert result[key] == expected[key], key
    assert result["target"] == str(adapter) and result["checkpoint"] is None
    assert evaluate_by_command(monkeypatch, adapter) == 2, "an adapter does not say where the data is"


def test_the_command_scores_a_model_folder(
    run: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_clip_folder: Path
):
    """The untouched backbone scores like the run's base, the adapted one, written as a plain folder, like the tuned."""
    target = resolve(run)
    backbone = load_base(target)
    plain: Any = merge_into(attach_target(backbone, target))
    plain.save_pretrained(tmp_path / "plain")
    backbone.processor.save_pretrained(tmp_path / "plain")
    expected, recipe = score(run), trained.parent / "recipe.yaml"
    for folder, name in ((tiny_clip_folder, "base"), (tmp_path / "plain", "tuned")):
        output = tmp_path / f"scores of {name}"
        assert evaluate_by_command(monkeypatch, folder, "--recipe", recipe, "-o", output) == 0
        result = json.loads((output / "scores.json").read_text())
        assert result["scores"] == pytest.approx(expected[name], abs=1e-12), name
        assert "base" not in result and sorted(path.name for path in output.iterdir()) == [
            "ranks.jsonl",
            "retrievals.png",
            "scores.json",
        ]
    validation = tmp_path / "validation"
    overridden = ("--recipe", recipe, "-o", validation, "data.splits.test=val", "data.splits.validation=test")
    assert evaluate_by_command(monkeypatch, tiny_clip_folder, *overridden) == 0
    assert json.loads((validation / "scores.json").read_text())["images"] == 8, "overrides change the recipe's data"


def test_a_recipe_stands_for_its_run(trained: Path):
    result = mmtune.score(recipe_of(trained))
    assert Path(result["target"]) == trained and result["files"]


def test_the_table(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    result = evaluate(run)
    shown = capsys.readouterr().out
    assert all(name in shown for name in SCORES)
    assert f"{result['base']['text_to_image_mrr']:.3f}" in shown and "95 % interval" in shown
    assert f"{result['delta']['image_to_text_median_rank']:+.1f}" in shown and "scores.json" in shown


def test_what_is_missing_is_said(run: Path, tiny_clip_folder: Path):
    with pytest.raises(RecipeError, match="does not say where its data is: give a recipe"):
        score(str(tiny_clip_folder))
    with pytest.raises(DataError, match="no split 'tset'; the source has"):
        score(run, split="tset")
    with pytest.raises(CheckpointError, match="no checkpoint 'step-7'; it has step-000006, step-000012"):
        score(run, checkpoint="step-7")


def test_bad_images_are_counted_and_too_many_stop(trained: Path, run: Path, tmp_path: Path, tiny_clip_folder: Path):
    data = tmp_path / "data"
    shutil.copytree(trained.parent / "data", data)
    damaged = (data / "40.png").read_bytes()
    (data / "40.png").write_bytes(damaged[: len(damaged) // 2])
    overrides = [f"data.path={data}/pairs.jsonl", f"data.images={data}"]
    result = score(run, recipe=recipe_of(trained, overrides))
    assert (result["bad"], result["images"], result["samples"]) == (1, 15, 15)
    assert "40.png" in result["quarantined"][0]["where"]
    with pytest.raises(DataError, match="1 of 16 items of split 'test' are bad"):
        score(run, recipe=recipe_of(trained, [*overrides, "data.max_bad_fraction=0.01"]))
