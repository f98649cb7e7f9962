"""`mmtune check` says of the trunk cache what a run then does: every entry and byte, and what it is worth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_recipe, write_pairs

import mmtune
from mmtune.adapters import attach
from mmtune.backbones import load, tiny_folder
from mmtune.ground.kind_folder import kind
from mmtune.preflight_run import check
from mmtune.recipe_schema import Recipe, TrunkCacheSection
from mmtune.tasks import abilities_of, ability_for, prepared
from mmtune.train_data import open_checked
from mmtune.trainer_building import training_items
from mmtune.trunk_cuts import Cut
from mmtune.trunk_forecast import Forecast, SideForecast, counting, describe_forecast, forecast
from mmtune.trunk_setup import ask_for_trunk
from mmtune.trunk_shelf import list_trunks

ALL_SEEN = ("data.captions=all", "train.length=1 epochs", "train.batch=8")
"""With these a run shows every image and every caption."""

RETRIEVAL, CAPTIONING = "task={kind: retrieval, loss: {kind: infonce}}", "task={kind: captioning}"
CASES = {
    "clip": ("clip", {}, RETRIEVAL, "adapter.layers=last 1", "float32"),
    "clip in half precision": ("clip", {}, RETRIEVAL, "adapter.layers=last 1", "float16"),
    "clip, text alone": ("clip", {}, RETRIEVAL, "adapter.parts=[text]", "float32"),
    "clip, all layers": ("clip", {}, RETRIEVAL, "adapter.layers=all", "float32"),
    "siglip": ("siglip", {}, RETRIEVAL, "adapter.layers=last 1", "float32"),
    "blip": ("blip", {"architecture": "BlipForConditionalGeneration"}, CAPTIONING, "adapter.parts=[text]", "float32"),
    "llava": ("chat", {"model_type": "llava"}, CAPTIONING, "adapter.parts=[text]", "bfloat16"),
    "qwen": ("chat", {"model_type": "qwen2_5_vl"}, CAPTIONING, "adapter.parts=[text]", "float32"),
}
"""Name -> family, which of its twins, task, what is trained, and what is kept in."""


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny twin, made once."""
    made: dict[str, Path] = {}

    def folder(family: str, **which: str) -> Path:
        name = "-".join([family, *which.values()])
        if name not in made:
            made[name] = tiny_folder(family, tmp_path_factory.mktemp("twins") / name, **which)
        return made[name]

    return folder


def foreseen(recipe: Recipe, num_shown: int = 0) -> tuple[Forecast, Any]:
    """The forecast for a recipe, and the adapted backbone that it was made with."""
    adapted = attach(load(recipe.backbone, ability=abilities_of(recipe.task)), recipe.adapter, seed=recipe.seed)
    ability = ability_for(kind("tasks", recipe.task), adapted.backbone.traits) or ""
    asked = ask_for_trunk(recipe, ability, "no", "cpu", print)
    samples = prepared(recipe, open_checked(recipe, "train").samples)
    make_items = lambda: training_items(recipe, adapted.backbone, samples, ability)  # noqa: E731
    return forecast(adapted, asked, recipe, make_items, num_shown), adapted


@pytest.mark.parametrize("name", CASES)
def test_a_run_stores_what_was_foreseen(tmp_path: Path, twin: Callable[..., Path], name: str) -> None:
    family, which, task, adapter, dtype = CASES[name]
    root = tmp_path / "kept"
    kept = f"train.trunk_cache={{mode: disk, dtype: {dtype}, folder: {root}}}"
    recipe = small_recipe(tmp_path, twin(family, **which), *ALL_SEEN, kept, task, adapter)
    made, _ = foreseen(recipe)
    assert not root.exists(), "a forecast writes nothing"
    mmtune.fit(recipe)
    stored = {
        trunk.about["side"]: (trunk.num_entries, sum(path.stat().st_size for path in trunk.folder.glob("states-*.bin")))
        for trunk in list_trunks(root)
    }
    assert stored, "something is kept"
    assert {side: (it.number, it.num_bytes) for side, it in made.sides.items()} == stored
    warm, _ = foreseen(recipe)
    assert {side: it.num_kept for side, it in warm.sides.items()} == {side: it[0] for side, it in stored.items()}


def test_zeros_have_the_shapes_of_what_is_multiplied(tmp_path: Path, twin: Callable[..., Path]) -> None:
    """The count of a linear layer is weights x places; afterwards the model computes as before."""
    import torch

    recipe = small_recipe(tmp_path, twin("clip"))
    backbone = load(recipe.backbone)
    size = backbone.model.config.vision_config.image_size
    inputs = {"pixel_values": torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(1))}
    before = backbone.family.embed_media(backbone.model, inputs)
    with counting(backbone.model) as counted:
        zeros = backbone.family.embed_media(backbone.model, inputs)
    after = backbone.family.embed_media(backbone.model, inputs)
    assert zeros.shape == before.shape and not torch.equal(zeros, before)
    assert torch.equal(before, after)
    layers = backbone.model.vision_model.encoder.layers
    places = 1 + (size // backbone.model.config.vision_config.patch_size) ** 2
    assert counted["vision_model.encoder.layers.0.mlp.fc1"] == 2 * places * layers[0].mlp.fc1.weight.numel()
    assert counted["visual_projection"] == 2 * backbone.model.visual_projection.weight.numel()


def test_the_gain_is_what_its_rule_says(tmp_path: Path, twin: Callable[..., Path]) -> None:
    """Text alone is trained, in both layers: the image tower falls away; a layer counts 1 forwards and 1 back."""
    recipe = small_recipe(tmp_path, twin("clip"), "adapter.parts=[text]", "adapter.rank=1", "train.length=99 epochs")
    made, _ = foreseen(recipe)
    assert made.gain is not None and made.gain > 1.2 and set(made.sides) == {"media"}
    all_trained, _ = foreseen(small_recipe(tmp_path, twin("clip"), "adapter.layers=all"))
    assert all_trained.sides["media"].cut.kind == "pixels" and len(all_trained.off) == 2 and all_trained.gain == 1.0
    assert not any("times as fast" in line for line in describe_forecast(all_trained, recipe.train.trunk))
    halves, _ = foreseen(small_recipe(tmp_path, twin("clip"), "adapter.layers=last 1", "adapter.rank=1"))
    twice = foreseen(
        small_recipe(tmp_path, twin("clip"), "adapter.layers=last 1", "adapter.rank=1", "train.micro_batch=2")
    )[0]
    # two layers, one of them below the cut: (1 + 2) / 2 and, with two forward passes, (2 + 3) / 3; stems add some
    assert halves.gain is not None and 1.5 <= halves.gain < 1.75
    assert twice.gain is not None and halves.gain < twice.gain < 1.95


def test_check_prints_it_and_says_what_falls_away(
    tmp_path: Path, twin: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path)
    recipe = small_recipe(tmp_path, twin("clip"), "train.length=4 steps")
    path = tmp_path / "recipe.yaml"
    root = tmp_path / "kept"
    many = [f"train.trunk_cache={{folder: {root}}}", "adapter.layers=last 1"]
    assert check(path, [*many, "train.length=60 steps"]) == 0
    out = capsys.readouterr().out
    assert "trunk     vision below layer 1 of 2: 12 images, " in out and f"already, in {root}" in out
    assert "text below layer 1 of 2: 24 texts, " in out and "times as fast after the first epoch" in out
    assert not root.exists()
    assert check(path, [*many, "train.trunk_cache.limit_gb=1e-5", "train.length=60 steps"]) == 0
    assert "off for texts: " in (out := capsys.readouterr().out) and "do not fit: the limit is 10.0 kB" in out
    assert check(path, [*many, "train.length=2 steps"]) == 0
    out = capsys.readouterr().out
    assert "off for images: the run shows 8 and there are 12" in out and "times as fast" not in out
    assert check(path, [*many, "data.augment.flip=true", "train.length=60 steps"]) == 0
    assert "off for images: training images are changed at random" in capsys.readouterr().out
    assert check(path, ["train.trunk_cache=off"]) == 0
    assert "trunk     off, as train.trunk_cache says" in capsys.readouterr().out
    assert check(path, ["train.trunk_cache=memory", "adapter.layers=last 1"]) == 0
    assert "; in memory" in capsys.readouterr().out
    assert recipe.output == str(tmp_path / "run") and not Path(recipe.output).exists()


def test_a_trunk_that_is_everything_has_no_number() -> None:
    section = TrunkCacheSection()
    cut = Cut("media", "whole", "vision", 0, ("vision_model",))
    side = SideForecast(cut, "images", 0, 3, 10.0, 0, "there")
    lines = list(describe_forecast(Forecast({"media": side}, ["off for texts: why"], gain=None), section))
    assert lines[0].startswith("vision, all of it: 3 images, 10 B each in float32, 30 B in all")
    assert lines[1:] == ["off for texts: why", "after the first epoch nothing but heads is computed"]
