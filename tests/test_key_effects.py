"""No setting is read by nothing: for every key of the schema, changing it changes something one can see."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import effects_adapter
import effects_answers
import effects_backbone
import effects_chat
import effects_classification
import effects_data
import effects_methods
import effects_pixels
import effects_sources
import effects_start
import effects_tasks
import effects_train
import effects_trunk
import pytest
from key_effect import Effect
from key_worlds import Refused, World

from mmtune.recipe_keys import Key, sections_in, walk_keys
from mmtune.recipe_schema import Recipe

EFFECTS: dict[str, Effect] = (
    effects_backbone.EFFECTS
    | effects_chat.EFFECTS
    | effects_classification.EFFECTS
    | effects_adapter.EFFECTS
    | effects_methods.EFFECTS
    | effects_pixels.EFFECTS
    | effects_data.EFFECTS
    | effects_sources.EFFECTS
    | effects_answers.EFFECTS
    | effects_train.EFFECTS
    | effects_start.EFFECTS
    | effects_tasks.EFFECTS
    | effects_trunk.EFFECTS
)


def label(one: Key) -> str:
    return ".".join(one.path) + (f":{one.kind}" if one.kind else "")


def holds_a_value(one: Key) -> bool:
    """Whether a value can be written for the key itself, and not only a section."""
    choices = get_args(one.field.annotation) or (one.field.annotation,)
    return any(not sections_in(choice) for choice in choices if choice is not type(None))


def settable() -> Iterator[str]:
    yield from dict.fromkeys(label(one) for one in walk_keys(Recipe) if holds_a_value(one))


def test_every_key_of_the_schema_has_an_entry_and_every_entry_a_key() -> None:
    missing = set(settable()) - set(EFFECTS)
    assert not missing, "say in EFFECTS how one sees the new key at work"
    known = {label(one) for one in walk_keys(Recipe)}
    assert not set(EFFECTS) - known, "these keys are gone"


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
