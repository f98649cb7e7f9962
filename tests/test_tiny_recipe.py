"""``--tiny``: every shipped recipe trains, saves, resumes, is scored, merged and reloaded in seconds, offline."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from lifecycle_cases import without_pictures

import mmtune
from mmtune.ground.errors import CheckpointError, RecipeError
from mmtune.recipe_schema import Recipe, load_recipe
from mmtune.recipe_shelf import shipped_recipes
from mmtune.tiny_recipe import shrink, tiny_run

RECIPES = sorted(shipped_recipes().items())


def tiny(path: Path, folder: Path, *overrides: str) -> Recipe:
    """A shipped recipe in a tiny world below ``folder``."""
    given = [f"output={folder / 'run'}", *overrides]
    return shrink(load_recipe(path, given), given)[0]


@pytest.mark.parametrize(("name", "path"), RECIPES, ids=[name for name, _ in RECIPES])
def test_a_shipped_recipe_goes_all_the_way(name: str, path: Path, tmp_path: Path) -> None:
    with without_pictures() if name != "quickstart" else nullcontext():
        _goes_all_the_way(path, tmp_path)


def _goes_all_the_way(path: Path, tmp_path: Path) -> None:
    first = tiny(path, tmp_path, "train.length=2 steps")
    run = mmtune.fit(first)
    assert run == tmp_path / "run_tiny"
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step-000002"]
    longer = tiny(path, tmp_path, "train.length=4 steps")
    assert longer.data == first.data and longer.backbone == first.backbone, "the inputs are written once"
    mmtune.fit(longer)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    scores = mmtune.score(run)
    assert scores["base"].keys() == scores["tuned"].keys() and scores["samples"] > 0
    merged = mmtune.merge(run)  # proven by reloading it in a fresh process
    assert (merged / "merge_report.json").is_file()
    assert mmtune.load(merged).weight_hash != mmtune.load(run).weight_hash


def test_what_is_the_recipe_s_own_stays(tmp_path: Path) -> None:
    path = shipped_recipes()["clip_retrieval_4bit_lora"]
    whole, small = load_recipe(path), tiny(path, tmp_path)
    assert small.backbone.quantize == "4bit" and small.task == whole.task and small.seed == whole.seed
    assert small.adapter == whole.adapter
    assert small.train.learning_rate == whole.train.learning_rate and small.train.betas == whole.train.betas
    assert small.data.kind == whole.data.kind and small.data.split == whole.data.split
    assert small.backbone.id != whole.backbone.id and small.data.path != whole.data.path
    assert small.output == str(tmp_path / "run_tiny")


def test_made_up_rows_have_the_recipe_s_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "backbone: {id: some/model, family: clip}\n"
        "adapter: {kind: lora, parts: [vision, text], layers: {vision: last 4, text: 3-7}}\n"
        "data: {kind: jsonl, path: products.csv, images: photos, image: file, caption: '{title} by {brand}',\n"
        "       split: {validation: 10%, test: 10%, by: product_id}}\n"
        "task: {kind: retrieval}\n"
        "train: {length: 3 epochs, batch: 64, learning_rate: 1e-3, warmup: 100 steps, workers: 8}\n"
        f"output: {tmp_path}/run\n"
    )
    small, notes = shrink(load_recipe(path))
    header = Path(small.data.path).read_text().splitlines()[0]
    assert {"file", "title", "brand", "product_id"} <= set(header.split(","))
    assert small.adapter.layers == {"vision": "last 2", "text": "last 1"}
    told = "\n".join(notes)
    for key in ("train.length", "train.batch", "train.warmup", "train.workers", "adapter.layers"):
        assert f"tiny: {key} is " in told
    assert "train.learning_rate" not in told


def test_numbers_of_the_command_line_stay(tmp_path: Path) -> None:
    path = shipped_recipes()["quickstart"]
    assert tiny(path, tmp_path, "train.length=3 steps", "train.batch=6").train.batch == 6
    assert str(tiny(path, tmp_path, "train.length=3 steps").train.length) == "3 steps"
    assert str(tiny(path, tmp_path).train.length) == "4 steps" and tiny(path, tmp_path).train.batch == 8


def test_other_columns_get_other_rows(tmp_path: Path) -> None:
    path = shipped_recipes()["clip_retrieval_lora"]
    assert "headline" not in Path(tiny(path, tmp_path).data.path).read_text()
    assert "headline" in Path(tiny(path, tmp_path, "data.caption=headline").data.path).read_text()


def test_a_family_that_cannot_be_known_is_asked_for(tmp_path: Path) -> None:
    path = shipped_recipes()["clip_retrieval_lora"]
    with pytest.raises(RecipeError, match=r"write family: one of .*clip.*siglip"):
        tiny(path, tmp_path, "backbone.family=null")


def test_the_batch_stays_divisible_by_the_ranks(tmp_path: Path) -> None:
    recipe = load_recipe(shipped_recipes()["clip_retrieval_lora"], [f"output={tmp_path / 'run'}"])
    for ranks in (1, 2, 4):
        small, _ = shrink(recipe, world_size=ranks)
        assert small.train.batch % (ranks * (small.train.micro_batch or 1)) == 0
    odd = [f"output={tmp_path / 'run'}", "train.batch=5", "train.micro_batch=1"]
    for given in (odd, [*odd[:1], "train.batch=10", "train.micro_batch=5"]):
        small, _ = shrink(load_recipe(shipped_recipes()["clip_retrieval_lora"], given), given)
        assert small.train.batch % small.train.micro_batch == 0 and small.train.micro_batch < small.train.batch


def test_a_run_is_found_by_the_name_it_has_in_earnest(tmp_path: Path) -> None:
    (tmp_path / "x_tiny" / "checkpoints" / "step-000002").mkdir(parents=True)
    assert tiny_run(str(tmp_path / "x")) == str(tmp_path / "x_tiny")
    assert tiny_run(str(tmp_path / "x_tiny")) == str(tmp_path / "x_tiny")
    inside = tiny_run(str(tmp_path / "x" / "checkpoints" / "step-000002"))
    assert inside == str(tmp_path / "x_tiny" / "checkpoints" / "step-000002")
    recipe = tmp_path / "x.yaml"
    recipe.write_text(shipped_recipes()["quickstart"].read_text().replace("runs/quickstart", str(tmp_path / "x")))
    assert tiny_run(str(recipe)) == str(tmp_path / "x_tiny")
    with pytest.raises(CheckpointError, match="finetune RECIPE --tiny"):
        tiny_run(str(tmp_path / "y"))
    (tmp_path / "x" / "other").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="finetune RECIPE --tiny"):
        tiny_run(str(tmp_path / "x" / "other"))  # x_tiny is the run of x, not of what lies in it


def test_the_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import sys

    from mmtune import command_line

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["mmtune", *arguments])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        return int(caught.value.code or 0)

    recipe, output = str(shipped_recipes()["siglip2_sigmoid_lora"]), f"output={tmp_path / 'run'}"
    assert call("check", recipe, output, "--tiny") == 0
    assert "ready to train" in capsys.readouterr().out
    assert call("finetune", recipe, output, "--tiny") == 0
    assert "tiny: backbone google/siglip2" in capsys.readouterr().err
    assert call("evaluate", str(tmp_path / "run"), "--tiny") == 0
    assert (tmp_path / "run_tiny" / "scores.json").is_file()
    pictures = next((tmp_path / "run_tiny_inputs" / "data").rglob("*.png")).parent
    assert call("predict", str(tmp_path / "run"), str(pictures), "-o", str(tmp_path / "e.npy"), "--tiny") == 0
    assert call("find-lr", recipe, output, "--tiny", "--steps", "12") == 0
    assert "suggested train.learning_rate" in capsys.readouterr().out
    assert call("merge", str(tmp_path / "run"), "--tiny") == 0
    assert call("push", str(tmp_path / "run" / "merged"), "someone/model", "--dry-run", "--tiny") == 0
    assert "model.safetensors" in capsys.readouterr().out
