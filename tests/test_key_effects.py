"""No setting is read by nothing: for every key of the schema, changing it changes something one can see."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from key_worlds import (
    COMMITS,
    Look,
    Refused,
    World,
    adapted,
    bad_allowed,
    computed,
    described,
    encoded,
    loaded,
    planned,
    sampled,
    scheduled,
    trained,
    valued,
)

from mmtune.ground.errors import RecipeError
from mmtune.recipe_keys import Key, sections_in, walk_keys
from mmtune.recipe_schema import Recipe


class Effect(NamedTuple):
    """How to see a key at work: a base recipe, two settings of the key, and where to look."""

    look: Look
    base: str
    before: list[str]
    after: list[str]
    aspect: str = ""


def key(look: Look, base: str, before: str, after: str, aspect: str = "", more: tuple[str, ...] = ()) -> Effect:
    """Both settings as one override each ("" for the base recipe's own), ``more`` in both."""
    settings = [[text, *more] if text else list(more) for text in (before, after)]
    return Effect(look, base, settings[0], settings[1], aspect)


HUB = ("backbone.id=some/model",)
PICKLED = ("backbone.id=FOLDER/pickled",)
REMOTE = (*HUB, f"backbone.revision={COMMITS['main']}")
HASH = "data.split={validation: 20%, test: 20%}"
FLAT = ("data.path=FOLDER/flat",)
VALIDATED = ("train.evaluate_every=2 steps",)

EFFECTS: dict[str, Effect] = {
    "backbone.id": key(described, "column", "", "backbone.id=builtin:glyph-clip"),
    "backbone.revision": key(described, "column", "backbone.revision=main", "backbone.revision=old", more=HUB),
    "backbone.dtype": key(loaded, "column", "", "backbone.dtype=bfloat16"),
    "backbone.quantize": key(loaded, "column", "", "backbone.quantize=8bit"),
    "backbone.allow_pickle": key(described, "column", "", "backbone.allow_pickle=true", more=PICKLED),
    "backbone.trust_remote_code": key(described, "column", "", "backbone.trust_remote_code=true", more=REMOTE),
    "adapter.kind:full": key(adapted, "full", "", "adapter.kind=head_only"),
    "adapter.kind:head_only": key(adapted, "head_only", "", "adapter.kind=full"),
    "adapter.kind:lora": key(
        adapted, "column", "adapter={kind: lora, parts: [text]}", "adapter={kind: full, parts: [text]}"
    ),
    "adapter.parts:full": key(adapted, "full", "", "adapter.parts=[text]"),
    "adapter.parts:head_only": key(adapted, "head_only", "", "adapter.parts=[text]"),
    "adapter.parts:lora": key(adapted, "column", "", "adapter.parts=[text]"),
    "adapter.temperature:full": key(adapted, "full", "", "adapter.temperature=false"),
    "adapter.temperature:head_only": key(adapted, "head_only", "", "adapter.temperature=false"),
    "adapter.temperature:lora": key(adapted, "column", "", "adapter.temperature=false"),
    "adapter.layers:lora": key(adapted, "column", "", "adapter.layers=last 1"),
    "adapter.rank:lora": key(adapted, "column", "", "adapter.rank=4"),
    "adapter.alpha:lora": key(adapted, "column", "", "adapter.alpha=3"),
    "adapter.dropout:lora": key(adapted, "column", "", "adapter.dropout=0.1"),
    "adapter.targets:lora": key(adapted, "column", "", "adapter.targets=[mlp]"),
    "adapter.use_rslora:lora": key(adapted, "column", "", "adapter.use_rslora=true"),
    "adapter.use_dora:lora": key(adapted, "column", "", "adapter.use_dora=true"),
    "adapter.init:lora": key(adapted, "column", "", "adapter.init=gaussian"),
    "adapter.lora_plus_ratio:lora": key(adapted, "column", "", "adapter.lora_plus_ratio=16"),
    "data.kind:glyphs": key(sampled, "glyphs", "", "data={kind: image_folder, path: FOLDER/classes}"),
    "data.kind:image_folder": key(sampled, "folders", "", "data={kind: glyphs, characters: 10}"),
    "data.kind:jsonl": key(sampled, "column", "", "data={kind: image_folder, path: FOLDER/classes}"),
    "data.captions:glyphs": key(sampled, "glyphs", "", "data.captions=all"),
    "data.captions:image_folder": key(sampled, "folders", "", "data.captions=all"),
    "data.captions:jsonl": key(sampled, "column", "", "data.captions=all"),
    "data.max_bad_fraction:glyphs": key(bad_allowed, "glyphs", "", "data.max_bad_fraction=0.1"),
    "data.max_bad_fraction:image_folder": key(
        sampled, "folders", "", "data.max_bad_fraction=0.2", more=("data.path=FOLDER/broken",)
    ),
    "data.max_bad_fraction:jsonl": key(
        sampled, "column", "", "data.max_bad_fraction=0.2", more=("data.path=FOLDER/odd.jsonl",)
    ),
    "data.augment.crop": key(encoded, "column", "", "data.augment.crop=0.3"),
    "data.augment.flip": key(encoded, "column", "", "data.augment.flip=true"),
    "data.augment.colour": key(encoded, "column", "", "data.augment.colour=0.5"),
    "data.look:glyphs": key(sampled, "glyphs", "", "data.look=clean"),
    "data.fonts:glyphs": key(sampled, "glyphs", "", "data.fonts=[stix]"),
    "data.seed:glyphs": key(sampled, "glyphs", "", "data.seed=1"),
    "data.characters:glyphs": key(sampled, "glyphs", "", "data.characters=30"),
    "data.path:image_folder": key(sampled, "folders", "", "data.path=FOLDER/classes2"),
    "data.caption:image_folder": key(sampled, "folders", "", "data.caption='no {class}'"),
    "data.path:jsonl": key(sampled, "column", "", "data.path=FOLDER/fewer.jsonl"),
    "data.path.train": key(sampled, "files", "", "data.path.train=FOLDER/train_fewer.jsonl"),
    "data.path.validation": key(sampled, "files", "", "data.path.validation=FOLDER/validation_fewer.jsonl"),
    "data.path.test": key(sampled, "files", "", "data.path.test=FOLDER/test_fewer.jsonl"),
    "data.format:jsonl": key(sampled, "column", "", "data.format=csv"),
    "data.images:jsonl": key(sampled, "column", "", "data.images=FOLDER/others"),
    "data.image:jsonl": key(sampled, "column", "", "data.image=second"),
    "data.caption:jsonl": key(sampled, "column", "", "data.caption='{title} by {sku}'"),
    "data.id:jsonl": key(sampled, "column", "", "data.id=sku"),
    "data.split:jsonl": key(sampled, "hash", "", "data.split={validation: 40%, test: 20%}"),
    "data.split:image_folder": key(sampled, "folders", HASH, "data.split={test: 50%}", more=FLAT),
    "data.split.validation": key(sampled, "hash", "", "data.split.validation=60%"),
    "data.split.test": key(sampled, "hash", "", "data.split.test=60%"),
    "data.split.by": key(sampled, "hash", "", "data.split.by=product"),
    "data.splits.train": key(sampled, "column", "", "data.splits.train=[train, extra]"),
    "data.splits.validation": key(sampled, "column", "", "data.splits.validation=[val, extra]"),
    "data.splits.test": key(sampled, "column", "", "data.splits.test=[test, extra]"),
    "data.splits.column": key(sampled, "column", "", "data.splits.column=fold"),
    "task.loss.kind:infonce": key(valued, "column", "", "task.loss.kind=sigmoid"),
    "task.loss.kind:sigmoid": key(valued, "column", "task.loss.kind=sigmoid", ""),
    "train.length": key(planned, "column", "", "train.length=2 epochs"),
    "train.batch": key(planned, "column", "", "train.batch=16"),
    "train.micro_batch": key(planned, "column", "", "train.micro_batch=4"),
    "train.learning_rate": key(scheduled, "column", "", "train.learning_rate=0.5"),
    "train.schedule": key(scheduled, "column", "", "train.schedule=linear"),
    "train.warmup": key(scheduled, "column", "", "train.warmup=50%"),
    "train.weight_decay": key(scheduled, "column", "", "train.weight_decay=0.5"),
    "train.betas": key(scheduled, "column", "", "train.betas=[0.5, 0.6]"),
    "train.max_grad_norm": key(trained, "column", "", "train.max_grad_norm=1e-3", "losses"),
    "train.precision": key(computed, "column", "", "train.precision=bf16"),
    "train.workers": key(trained, "column", "", "train.workers=1", "workers"),
    "train.evaluate_every": key(trained, "column", "", VALIDATED[0], "validated"),
    "train.best": key(trained, "column", "", "train.best=image_to_text_mrr", "best", more=VALIDATED),
    "train.log_every": key(trained, "column", "", "train.log_every=2 steps", "logged"),
    "train.trackers": key(trained, "column", "", "train.trackers=[tensorboard]", "trackers"),
    "checkpoint.every": key(trained, "column", "", "checkpoint.every=4 steps", "checkpoints"),
    "checkpoint.keep": key(trained, "column", "", "checkpoint.keep=1", "checkpoints"),
    "output": key(trained, "column", "", "output=FOLDER/elsewhere", "folder"),
    "seed": key(trained, "column", "", "seed=1", "losses"),
}
ONLY_VALUE = {"task.kind:retrieval"}
"""Kinds that have no other beside them yet: nothing else can be written."""


def label(one: Key) -> str:
    return ".".join(one.path) + (f":{one.kind}" if one.kind else "")


def holds_a_value(one: Key) -> bool:
    """Whether a value can be written for the key itself, and not only a section."""
    choices = get_args(one.field.annotation) or (one.field.annotation,)
    return any(not sections_in(choice) for choice in choices if choice is not type(None))


def settable() -> Iterator[str]:
    yield from dict.fromkeys(label(one) for one in walk_keys(Recipe) if holds_a_value(one))


def test_every_key_of_the_schema_has_an_entry_and_every_entry_a_key() -> None:
    missing = set(settable()) - set(EFFECTS) - ONLY_VALUE
    assert not missing, "say in EFFECTS how one sees the new key at work"
    known = {label(one) for one in walk_keys(Recipe)}
    assert not (set(EFFECTS) | ONLY_VALUE) - known, "these keys are gone"


def test_the_entries_change_the_keys_they_are_named_after() -> None:
    for name, effect in EFFECTS.items():
        path = name.partition(":")[0]
        changed = {text.partition("=")[0] for text in effect.before + effect.after}
        assert any(path == other or path.startswith(other + ".") for other in changed), name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_clip_folder: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        yield World(tmp_path_factory.mktemp("world"), tiny_clip_folder, patch)


@pytest.fixture(scope="module")
def seen(world: World) -> Callable[[Effect, list[str]], Any]:
    """Looks, each taken once per setting."""
    taken: dict[tuple[str, str, tuple[str, ...]], Any] = {}

    def look(effect: Effect, overrides: list[str]) -> Any:
        place = (effect.look.__name__, effect.base, tuple(overrides))
        if place not in taken:
            taken[place] = effect.look(world, world.recipe(effect.base, overrides))
        return taken[place][effect.aspect] if effect.aspect else taken[place]

    return look


@pytest.mark.parametrize("name", EFFECTS)
def test_changing_the_key_changes_something(seen: Callable[[Effect, list[str]], Any], name: str) -> None:
    effect = EFFECTS[name]
    before, after = seen(effect, effect.before), seen(effect, effect.after)
    assert before != after
    assert not (isinstance(before, Refused) and isinstance(after, Refused)), "neither shows the key at work"


@pytest.mark.parametrize("name", ["adapter.rank:lora", "data.look:glyphs", "data.augment.crop", "train.warmup", "seed"])
def test_changing_nothing_changes_nothing(world: World, seen: Callable[[Effect, list[str]], Any], name: str) -> None:
    """The negation, once per look that has chance in it: two looks at one recipe agree."""
    effect = EFFECTS[name]
    again = effect.look(world, world.recipe(effect.base, effect.before))
    assert seen(effect, effect.before) == (again[effect.aspect] if effect.aspect else again)


@pytest.mark.parametrize("name", sorted(ONLY_VALUE))
def test_the_only_value_is_the_only_one(world: World, name: str) -> None:
    path, _, kind = name.partition(":")
    world.recipe("column", [f"{path}={kind}"])
    with pytest.raises(RecipeError, match=f"write one of {kind}"):
        world.recipe("column", [f"{path}=other"])
