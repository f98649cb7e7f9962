"""Every recipe that travels with mmtune is sound, says what it is, and what it needs."""

import re
from pathlib import Path

import pytest

from mmtune.ground.errors import RecipeError
from mmtune.recipe_schema import load_recipe, recipe_from_json, resolved_json
from mmtune.recipe_shelf import find_recipe, find_shelf, shipped_recipes, summary_of

NUM_RECIPES = 30
RECIPES = sorted(shipped_recipes().items())


def test_their_number_is_known() -> None:
    assert len(RECIPES) == NUM_RECIPES


def test_nothing_else_lies_on_the_shelf() -> None:
    names = {path.name for path in find_shelf().iterdir() if path.name != "__pycache__"}
    assert names == {f"{name}.yaml" for name, _ in RECIPES} | {"recipe.schema.json"}


@pytest.mark.parametrize(("name", "path"), RECIPES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_is_sound_on_one_two_and_four_ranks(name: str, path: Path, ranks: int) -> None:
    recipe = load_recipe(path, world_size=ranks)
    assert recipe_from_json(resolved_json(recipe)) == recipe
    assert recipe.output == f"runs/{name}"


@pytest.mark.parametrize(("name", "path"), RECIPES)
def test_each_begins_with_schema_purpose_and_command(name: str, path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert lines[1] == f"# {summary_of(path)}" and len(summary_of(path)) > 30
    assert lines[2].startswith(f"# Run:   accelerate launch mmtune/finetune.py recipes/{name}.yaml")


@pytest.mark.parametrize(("name", "path"), RECIPES)
def test_the_command_that_each_header_gives_is_sound(name: str, path: Path) -> None:
    overrides = re.findall(r"[a-z_.]+=\S+", path.read_text().splitlines()[2])
    recipe = load_recipe(path, overrides)
    assert recipe.data.kind != "jsonl" or recipe.data.path in (
        "pairs.csv",
        "clips.csv",
        "questions.jsonl",
        "statements.csv",
    )


def test_what_each_recipe_is_about() -> None:
    recipes = {name: load_recipe(path) for name, path in RECIPES}
    assert recipes["quickstart"].backbone.id == "builtin:glyph-clip" and recipes["quickstart"].data.kind == "glyphs"
    quantized = {name: one.backbone.quantize for name, one in recipes.items() if one.backbone.quantize}
    assert quantized.pop("clip_retrieval_8bit_lora") == "8bit"
    four = {"clip_retrieval", "blip2_captioning", "instructblip_vqa", "llava15_chat", "paligemma_vqa"}
    assert quantized == {f"{name}_4bit_lora": "4bit" for name in four}
    others = {name: one.adapter.kind for name, one in recipes.items() if one.adapter.kind != "lora"}
    assert others == {
        "clip_retrieval_full": "full",
        "clip_retrieval_ia3": "ia3",
        "clip_retrieval_vera": "vera",
    }
    assert [name for name, one in recipes.items() if getattr(one.adapter, "use_dora", False)] == ["clip_retrieval_dora"]
    assert recipes["siglip2_sigmoid_lora"].task.loss.kind == "sigmoid"
    assert recipes["clip_hub_lora"].data.kind == "hub" and recipes["clap_audio_lora"].data.sounds
    tasks = {task: {n for n, one in recipes.items() if one.task.kind == task} for task in ("captioning", "vqa", "chat")}
    assert len(tasks["captioning"]) == 5 and len(tasks["vqa"]) == 5 and len(tasks["chat"]) == 5
    shots = recipes["clip_fewshot_lora"]
    assert shots.task.kind == "classification" and (shots.adapter.rank, shots.adapter.alpha) == (2, 1)
    assert shots.train.length.amount == 500 * shots.task.shots and not shots.train.evaluate_every
    assert recipes["blip_matching_lora"].task.kind == "matching" and recipes["blip_matching_lora"].data.label == "label"
    families = {one.backbone.family for name, one in recipes.items() if not name.startswith("quickstart")}
    pairs = {"clip", "siglip", "chinese_clip", "dual_encoder", "clap"}
    towers = {"blip", "blip2", "instructblip", "git", "vilt"}
    chats = {"llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "paligemma", "gemma3", "internvl", "florence2"}
    assert families == pairs | towers | chats


def test_long_models_save_memory() -> None:
    """What has billions of weights computes its activations again, in 4 bit too."""
    large = {name: load_recipe(path) for name, path in RECIPES if "chat" in name or "blip2" in name or "4bit" in name}
    for name, one in large.items():
        assert one.train.activation_checkpointing or one.task.kind == "retrieval", name


def test_a_recipe_is_found_with_and_without_its_ending() -> None:
    assert find_recipe("quickstart") == find_recipe("quickstart.yaml") == dict(RECIPES)["quickstart"]


def test_a_name_that_is_nearly_right_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean clip_retrieval_full"):
        find_recipe("clip_full")
    with pytest.raises(RecipeError, match="did you mean quickstart"):
        find_recipe("quikstart")
    with pytest.raises(RecipeError, match="^there is no shipped recipe 'zzz'; there are: "):
        find_recipe("zzz")
