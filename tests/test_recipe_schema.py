"""The recipe: what it accepts, what it refuses, and that nothing is lost on the way to JSON and back."""

import json
import string
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmtune.ground.durations import Span
from mmtune.ground.errors import RecipeError
from mmtune.recipe_keys import Key, explain_unknown_key, walk_keys
from mmtune.recipe_schema import Recipe, check_recipe, json_schema, load_recipe, recipe_from_json, resolved_json

ROOT = Path(__file__).resolve().parents[1]
SOUND = """\
backbone: {id: "builtin:glyph-clip"}
adapter: {kind: lora, parts: [vision, text], rank: 8}
data: {kind: glyphs, look: camera}
task: {kind: retrieval, loss: {kind: infonce}}
train: {length: 100 steps, batch: 128, learning_rate: 1e-4}
output: runs/x
"""


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.yaml"
    path.write_text(SOUND)
    return path


def test_a_sound_recipe_has_the_values_that_it_says(sound: Path) -> None:
    recipe = load_recipe(sound)
    assert recipe.backbone.id == "builtin:glyph-clip"
    assert (recipe.adapter.kind, recipe.adapter.parts, recipe.adapter.rank) == ("lora", ["vision", "text"], 8)
    assert recipe.train.length == Span(100, "steps") and recipe.train.warmup == Span(5, "%")
    assert isinstance(recipe.train.learning_rate, float) and recipe.train.learning_rate == 1e-4
    assert recipe.seed == 0 and recipe.checkpoint.keep == 2


def test_a_recipe_cannot_be_changed(sound: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(sound).train.batch = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.length=3 epochs", "train.warmup=7 steps", "train.evaluate_every=12.5%", "train.micro_batch=32"],
        ["adapter.rank={vision: 4, text: 2}", "adapter.layers=[0-1, 2]", "train.betas=[0.8, 0.95]", "seed=7"],
        [
            "adapter={kind: full, parts: [vision], temperature: false}",
            "task.loss.kind=sigmoid",
            "train.trackers=[tensorboard]",
        ],
    ],
)
def test_resolved_json_reads_back_equal(sound: Path, overrides: list[str]) -> None:
    recipe = load_recipe(sound, overrides)
    written = json.loads(json.dumps(resolved_json(recipe)))
    assert recipe_from_json(written) == recipe
    assert all(not key.field.is_required() or key.path[0] in written for key in walk_keys(Recipe))
    other = load_recipe(sound, [*overrides, "train.weight_decay=0.5"])
    assert recipe_from_json(resolved_json(other)) != recipe


def test_resolved_json_is_a_recipe_file_too(sound: Path, tmp_path: Path) -> None:
    recipe = load_recipe(sound, ["train.evaluate_every=10%"])
    path = tmp_path / "recipe.resolved.json"
    path.write_text(json.dumps(resolved_json(recipe), indent=2))
    assert load_recipe(path) == recipe


def test_an_edited_resolved_json_is_refused_with_the_key(sound: Path) -> None:
    values = resolved_json(load_recipe(sound))
    values["train"]["batsh"] = values["train"].pop("batch")
    with pytest.raises(RecipeError) as caught:
        recipe_from_json(values)
    assert "train.batsh: is no key of this section; did you mean batch?" in str(caught.value)
    assert "train.batch: is missing" in str(caught.value)


def test_overrides_replace_and_add(sound: Path) -> None:
    recipe = load_recipe(
        sound, ["train.batch=64", "data.augment.flip=true", "backbone.revision=null", "checkpoint.keep=5"]
    )
    assert recipe.train.batch == 64 and recipe.data.augment.flip and recipe.checkpoint.keep == 5
    assert load_recipe(sound).train.batch == 128 and not load_recipe(sound).data.augment.flip


# --- contradictions

CONTRADICTIONS = [
    (["train.batch=127"], 2, "train.batch: 127 is not divisible by 2 ranks; write 126 or 128"),
    (
        ["train.micro_batch=48"],
        2,
        "not divisible by 2 ranks x micro_batch 48; write batch 96 or 192, or micro_batch 32",
    ),
    (["train.micro_batch=65"], 2, "train.micro_batch: 65 is more than the 64 samples each rank has; write 64"),
    (["train.batch=1"], 1, "train.batch: infonce compares samples of one batch"),
    (["train.warmup=100 steps"], 1, "train.warmup: 100 steps is not shorter than the run of 100 steps"),
    (["train.warmup=12800 samples"], 1, "train.warmup: 12800 samples is not shorter"),
    (["train.length=2 epochs", "train.warmup=3 epochs"], 1, "train.warmup: 3 epochs is not shorter"),
    (["train.warmup=100%"], 1, "train.warmup: 100% leaves nothing to train"),
    (["train.warmup=101%"], 1, "train.warmup: 101% is more than the whole run"),
    (["train.length=50%"], 1, "train.length: 50% has nothing to be a share of"),
    (["train.length=0 steps"], 1, "train.length: 0 steps is nothing"),
    (["checkpoint.every=0 epochs"], 1, "checkpoint.every: 0 epochs is nothing"),
    (["train.evaluate_every=150%"], 1, "train.evaluate_every: 150% is more than the whole run"),
    (["train.log_every=0%"], 1, "train.log_every: 0% is nothing"),
    (["train.best=text_to_image_recall@2"], 1, "train.best: there is no score 'text_to_image_recall@2'; did you mean"),
    (["train.best=image_to_text_mrr"], 1, "train.best: chooses among validation scores, and none are made"),
    (["adapter={kind: full, parts: [vision]}", "backbone.quantize=4bit"], 1, "adapter.kind: full trains every weight"),
    (["adapter.use_dora=true", "backbone.quantize=8bit"], 1, "adapter.use_dora: DoRA needs the norm"),
    (
        ["adapter={kind: head_only, parts: [text]}", "backbone.dtype=float16"],
        1,
        "backbone.dtype: float16 is too coarse",
    ),
    (["backbone.trust_remote_code=true", "backbone.revision=main"], 1, "trust_remote_code"),
]
AGREEMENTS = [
    (["train.batch=126"], 2),
    (["train.micro_batch=32"], 2),
    (["train.batch=1", "task.loss.kind=sigmoid"], 1),
    (["train.warmup=99 steps"], 1),
    (["train.warmup=0 steps"], 1),
    (["train.warmup=3 epochs"], 1),  # how many steps that is shows when the data is counted
    (["train.evaluate_every=100%", "train.best=image_to_text_mrr"], 1),
    (["adapter={kind: head_only, parts: [text]}", "backbone.quantize=4bit"], 1),
    (["adapter.use_dora=true", "backbone.quantize=4bit"], 1),
    (["adapter.use_dora=true"], 1),
    (["backbone.dtype=float16"], 1),
]


@pytest.mark.parametrize(("overrides", "ranks", "message"), CONTRADICTIONS)
def test_contradictions_are_refused(sound: Path, overrides: list[str], ranks: int, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(sound, overrides, world_size=ranks)
    assert message in str(caught.value)


@pytest.mark.parametrize(("overrides", "ranks"), AGREEMENTS)
def test_their_neighbours_are_accepted(sound: Path, overrides: list[str], ranks: int) -> None:
    load_recipe(sound, overrides, world_size=ranks)


def test_a_recipe_made_in_python_is_checked_for_contradictions(sound: Path) -> None:
    recipe = load_recipe(sound)
    check_recipe(recipe, world_size=2)
    with pytest.raises(RecipeError, match=r"recipe: train\.batch: 128 is not divisible by 3 ranks"):
        check_recipe(recipe, world_size=3)


# --- the schema itself


def test_every_key_says_what_it_is() -> None:
    assert not [key for key in walk_keys(Recipe) if not key.field.description]


def test_no_key_goes_by_another_name() -> None:
    assert not [key for key in walk_keys(Recipe) if key.field.alias or key.field.validation_alias]


def test_the_committed_schema_is_the_one_that_is_generated() -> None:
    committed = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert committed == json_schema(), "stale: mmtune schema > recipes/recipe.schema.json"


def test_the_schema_writes_defaults_as_a_recipe_does() -> None:
    written = json_schema()["$defs"]["TrainSection"]["properties"]
    assert written["warmup"]["default"] == "5%" and written["log_every"]["default"] == "10 steps"


def test_the_schema_knows_every_key() -> None:
    text = json.dumps(json_schema())
    assert not [key.path for key in walk_keys(Recipe) if f'"{key.path[-1]}"' not in text]


# --- typos


def one_edit_typos(word: str) -> set[str]:
    letters = string.ascii_lowercase + "_"
    cuts = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    deleted = {left + right[1:] for left, right in cuts if right}
    swapped = {left + right[1] + right[0] + right[2:] for left, right in cuts if len(right) > 1}
    replaced = {left + letter + right[1:] for left, right in cuts if right for letter in letters}
    inserted = {left + letter + right for left, right in cuts for letter in letters}
    return (deleted | swapped | replaced | inserted) - {word, ""}


def levels() -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Path of a section of one kind and the keys it has there."""
    found: dict[tuple[tuple[str, ...], type], list[Key]] = defaultdict(list)
    for key in walk_keys(Recipe):
        found[key.path[:-1], key.section].append(key)
    for (path, _), keys in found.items():
        yield path, [key.path[-1] for key in keys]


def test_the_first_suggestion_is_right_for_nearly_every_typo() -> None:
    right = wrong = 0
    for path, names in levels():
        for name in names:
            for typo in one_edit_typos(name) - set(names):
                if f"did you mean {name}?" in explain_unknown_key(Recipe, (*path, typo), names):
                    right += 1
                else:
                    wrong += 1
    assert right + wrong > 10_000
    assert right / (right + wrong) >= 0.95


def test_a_word_that_is_no_typo_gets_the_list_of_keys() -> None:
    said = explain_unknown_key(Recipe, ("train", "zzzzzz"), ["length", "batch"])
    assert said == "is no key of this section; it has length, batch"
    assert "did you mean" not in said


def test_a_key_of_another_section_is_sent_there() -> None:
    assert "it belongs under train" in explain_unknown_key(Recipe, ("adapter", "learning_rate"), ["kind", "rank"])
    assert "did you mean train.learning_rate?" in explain_unknown_key(Recipe, ("learning_rat",), ["train", "seed"])
