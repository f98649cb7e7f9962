"""Whether a run starts, goes on or is refused, and that nothing of the user's is moved or overwritten."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import small_recipe

from mmtune.ground.errors import CheckpointError, DataError, RecipeError
from mmtune.ground.safe_files import read_json
from mmtune.run_folder import (
    LOCK,
    RESOLVED,
    clear_if_unused,
    differing_keys,
    is_locked,
    locked,
    open_run,
    same_revision,
    write_recipe,
)
from mmtune.training_run import fit


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, tiny_clip_folder: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_clip_folder)
    run = Path(recipe.output)
    run.mkdir()
    (run / "holiday.jpg").write_bytes(b"mine")
    for restart in (False, True):
        with pytest.raises(RecipeError, match=r"other files \(holiday.jpg\)"):
            open_run(recipe, restart=restart)
    assert (run / "holiday.jpg").read_bytes() == b"mine" and [p.name for p in tmp_path.glob("run*")] == ["run"]


def test_a_start_that_failed_early_leaves_the_folder_free(tmp_path: Path, tiny_clip_folder: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_clip_folder)
    run = Path(recipe.output)
    open_run(recipe)
    (run / "run.log").write_text("half a start\n")
    assert open_run(recipe).checkpoint is None
    write_recipe(run, recipe)
    start = open_run(small_recipe(tmp_path, tiny_clip_folder, "train.micro_batch=2"))
    assert start.checkpoint is None and "train.micro_batch" in start.notes[0]


def test_a_run_that_never_began_leaves_no_folder(tmp_path: Path, tiny_clip_folder: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_clip_folder)
    (tmp_path / "pairs.jsonl").write_text("no line of JSON\n" * 9)
    run = Path(recipe.output)
    with pytest.raises(DataError):
        fit(recipe)
    assert not run.exists()
    run.mkdir()
    with pytest.raises(DataError):
        fit(recipe)
    assert run.is_dir(), "a folder that was there stays"
    (run / LOCK).unlink()
    run.rmdir()
    made = open_run(recipe)
    (run / "words.txt").write_text("put there meanwhile")
    clear_if_unused(run, made)
    assert (run / "words.txt").exists() and made.made


def test_a_finished_run_without_its_checkpoints_is_not_trained_over(tmp_path: Path, tiny_clip_folder: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_clip_folder)
    run = fit(recipe)
    assert open_run(recipe).finished
    for folder in (run / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    with pytest.raises(CheckpointError, match="they were removed"):
        open_run(recipe)


def test_other_data_or_weights_are_not_gone_on_with(tmp_path: Path, tiny_clip_folder: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_clip_folder)
    run = fit(recipe)
    longer = small_recipe(tmp_path, tiny_clip_folder, "train.length=6 steps")
    table = tmp_path / "pairs.jsonl"
    rows = table.read_text()
    table.write_text(rows.replace("picture 0", "another picture"))
    with pytest.raises(CheckpointError, match="training samples are not those"):
        fit(longer)
    table.write_text(rows)
    state = run / "checkpoints" / "step-000004" / "state.json"
    assert read_json(state)["weight_hash"] == read_json(run / "manifest.json")["backbone"]["weight_hash"]
    assert fit(longer) == run and read_json(run / "manifest.json")["steps"] == 6
    with pytest.raises(RecipeError, match="trained for 6 steps already"):
        fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=5 steps"))


def test_a_run_that_was_interrupted_may_be_made_shorter(tmp_path: Path, tiny_clip_folder: Path) -> None:
    """4 of 40 steps are trained: 6 go on, 3 do not."""
    run = fit(small_recipe(tmp_path, tiny_clip_folder))
    write_recipe(run, small_recipe(tmp_path, tiny_clip_folder, "train.length=40 steps"))
    manifest = read_json(run / "manifest.json")
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "stopped"}))
    with pytest.raises(RecipeError, match="trained for 4 steps already"):
        fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=3 steps"))
    fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=6 steps"))
    assert read_json(run / "manifest.json")["steps"] == 6
    assert "train.length changed from 40 steps to 6 steps" in (run / "run.log").read_text()


def test_a_run_is_found_from_anywhere(tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths mean the folder that the run was started in."""
    from mmtune.model_loading import resolve
    from mmtune.sources import open_split

    monkeypatch.chdir(tmp_path)
    recipe = small_recipe(tmp_path, tiny_clip_folder, data={"path": "pairs.jsonl", "images": "images"})
    run = fit(recipe)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(DataError):
        open_split(recipe.data, "test", seed=0)
    found = resolve(run).recipe
    assert found is not None and open_split(found.data, "test", seed=0).samples
    assert read_json(run / RESOLVED)["data"]["path"] == "pairs.jsonl", "what ran is kept as it was written"


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    script = f"""
import sys
sys.path.insert(0, {str(root)!r})
from pathlib import Path
from mmtune.run_folder import locked
with locked(Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.readline()
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RecipeError, match="another process is training"), locked(tmp_path):
            pass
        assert is_locked(tmp_path)
    finally:
        other.kill()
        other.wait()
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists(), "a lock goes with its process"
    assert not is_locked(tmp_path) and not is_locked(tmp_path / "nowhere")


def test_keys_that_differ_are_named_and_the_folder_may_move() -> None:
    old = {"train": {"batch": 4, "length": "2 steps"}, "seed": 1, "output": "a"}
    new = {"train": {"batch": 8, "length": "2 steps"}, "seed": 1, "output": "b"}
    assert differing_keys(old, new) == {"train.batch"}
    assert differing_keys(old, {**new, "train": {"batch": 4}}) == {"train.length"}


def test_a_resumed_run_loads_the_commit_it_began_with(tmp_path: Path) -> None:
    from mmtune.backbones import Section

    section = Section(id="someone/clip", revision="main")
    assert same_revision(section, tmp_path) is section
    (tmp_path / "manifest.json").write_text(json.dumps({"backbone": {"commit": "c" * 40}}))
    assert same_revision(section, tmp_path).revision == "c" * 40
    assert RESOLVED.endswith(".json")


def test_what_does_not_fit_the_backbone_is_refused_before_weights(
    tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("mmtune.backbones.load", never)
    with pytest.raises(RecipeError, match="adapter.layers.*last 40"):
        fit(small_recipe(tmp_path, tiny_clip_folder, "adapter.layers=last 40"))
    assert not (tmp_path / "run").exists(), "and nothing is left behind"


def test_a_mistyped_run_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmtune import score
    from mmtune.model_loading import resolve

    (tmp_path / "runs" / "shop").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("runs/shpo", "./nowhere", "a/b/c"):
        with pytest.raises(CheckpointError, match=f"there is no folder {name}"):
            resolve(name)
    with pytest.raises(CheckpointError, match=r"there is no folder runs/shpo; did you mean runs/shop\?; runs has shop"):
        resolve("runs/shpo")
    assert resolve("shop").kind == "model", "a folder that holds no model is not what is meant"
    (tmp_path / "runs" / "shop" / "recipe.resolved.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"there is no folder shop; did you mean runs/shop\?$"):
        score("shop")
    with pytest.raises(RecipeError, match="there is no folder other here, and a model of the hub does not say where"):
        score("other")
    assert resolve("openai/clip-vit-base-patch32").kind == "model", "a hub id is left to the hub"


def test_fit_takes_the_path_of_a_recipe(tmp_path: Path, tiny_clip_folder: Path) -> None:
    small_recipe(tmp_path, tiny_clip_folder)
    assert fit(tmp_path / "recipe.yaml") == tmp_path / "run"
