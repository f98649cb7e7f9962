"""Trackers: missing ones stop a run before it costs anything, and what they are told can be shown to anybody."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import small_recipe

from mmtune.ground.errors import RecipeError
from mmtune.recipe_schema import load_recipe
from mmtune.run_setup import start_accelerator
from mmtune.run_trackers import shown_config
from mmtune.training_run import fit

FAKE = """
calls = []
class Config(dict):
    def update(self, values, **_): calls.append(("config", dict(values)))
config = Config()
class Run:
    def log(self, values, step=None, **_): calls.append(("log", step, dict(values)))
    def finish(self, *_, **__): calls.append(("finish",))
def init(project=None, **_):
    calls.append(("init", project))
    return Run()
"""


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of that name that only notes what it is told."""
    site = tmp_path / "site"
    (site / "wandb").mkdir(parents=True)
    (site / "wandb" / "__init__.py").write_text(FAKE)
    (site / "wandb-9.9.dist-info").mkdir()
    (site / "wandb-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("wandb", None)


def test_a_missing_tracker_is_an_error_before_weights(
    tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmtune import backbones

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(backbones, "load", loaded)
    recipe = small_recipe(tmp_path, tiny_clip_folder, train={"trackers": ["comet_ml", "aim"]})
    with pytest.raises(RecipeError, match="comet_ml, aim not installed: pip install comet-ml aim, or drop it"):
        fit(recipe)
    assert not (tmp_path / "run").exists()


def test_one_that_accelerate_would_drop_is_an_error_too(
    tmp_path: Path, tiny_clip_folder: Path, fake_wandb: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    recipe = small_recipe(tmp_path, tiny_clip_folder, train={"trackers": ["wandb"]})
    with pytest.raises(RecipeError, match="accelerate finds no usable wandb: pip install -U wandb"):
        start_accelerator(recipe)


def test_a_tracker_is_told_steps_validation_and_a_clean_recipe(
    tmp_path: Path, tiny_clip_folder: Path, fake_wandb: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import LoggerType

    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])  # filled when first imported
    train = {"trackers": ["wandb"], "evaluate_every": "2 steps"}
    fit(small_recipe(tmp_path, tiny_clip_folder, train=train))
    calls = sys.modules["wandb"].calls
    assert calls[0] == ("init", "run") and calls[-1] == ("finish",)
    told = next(values for name, *values in calls if name == "config")[0]
    assert told["train.batch"] == "4" and told["data.path"] == "pairs.jsonl" and told["output"] == "run"
    assert str(tmp_path) not in str(calls) and str(tiny_clip_folder.parent) not in str(calls)
    logged = [(step, set(values)) for name, *rest in calls if name == "log" for step, values in [rest]]
    assert [step for step, names in logged if "loss" in names] == [1, 2, 3, 4]
    assert [step for step, names in logged if "validation/text_to_image_recall@1" in names] == [2, 4]


def test_no_path_secret_or_login_is_shown(
    tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, tiny_clip_folder)
    values = {
        "path": {"train": "/home/someone/a.jsonl"},
        "images": "~/pictures/all",
        "shards": "{/home/someone/a,/home/someone/b}.tar",
        "share": "\\\\nas\\someone\\c.jsonl",
        "splits": {"api_key": "0123456789", "train": "https://me:word@host.org/x", "test": "h" + "f_" + "a1" * 15},
    }
    monkeypatch.setattr(type(recipe), "model_dump", lambda *_, **__: {"data": values, "adapter": {"parts": ["vision"]}})
    shown = shown_config(recipe)
    assert shown["data.path.train"] == "a.jsonl" and shown["data.images"] == "all"
    assert shown["data.shards"] == "{a,b}.tar" and shown["data.share"] == "c.jsonl"
    assert shown["data.splits.api_key"] == shown["data.splits.test"] == "(not shown)"
    assert "word" not in str(shown) and "someone" not in str(shown) and str(tmp_path) not in str(shown)
    assert shown["adapter.parts.0"] == "vision"


def test_a_tracker_is_named_once(tmp_path: Path, tiny_clip_folder: Path) -> None:
    small_recipe(tmp_path, tiny_clip_folder)
    with pytest.raises(RecipeError, match="train.trackers: named twice: tensorboard"):
        load_recipe(tmp_path / "recipe.yaml", ["train.trackers=[tensorboard, tensorboard]"])
