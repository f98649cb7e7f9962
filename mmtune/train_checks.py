"""What `train` says against itself and against the adapter; `recipe_checks` runs these with its own.

Each check takes the recipe and yields (key path, what is wrong; what would be right).
"""

from collections.abc import Callable, Iterator
from typing import Any

from mmtune.ground.recipe_text import KeyPath
from mmtune.recipe_keys import suggest

Finding = tuple[KeyPath, str]

TEMPERATURE, PROJECTION, DEFAULT = "temperature", "projection", "default"
"""Parts that no tower is: what is trained besides, and what stands for all that are not named."""


def check_learning_rates(recipe: Any, world_size: int) -> Iterator[Finding]:
    """Rates per part name parts that are trained, and all of them."""
    rates, adapter = recipe.train.learning_rate, recipe.adapter
    if not isinstance(rates, dict):
        return
    has_temperature = adapter.temperature and recipe.task.kind in ("retrieval", "classification")
    trained = [*adapter.parts, *([TEMPERATURE] if has_temperature else [])]
    for name in rates:
        if name not in (*trained, PROJECTION, DEFAULT):
            near = suggest(name, [*trained, DEFAULT])
            meant = f"did you mean {near[0]}? Trained are" if near else "trained are"
            yield ("train", "learning_rate", name), f"the adapter trains no part {name!r}; {meant} {', '.join(trained)}"
    missing = [name for name in trained if name not in rates]
    if missing and DEFAULT not in rates:
        what = f"{', '.join(missing)} is trained too and has no rate; name it, or give a {DEFAULT}"
        yield ("train", "learning_rate"), what


def check_early_stopping(recipe: Any, world_size: int) -> Iterator[Finding]:
    """Nothing can stop early by a score that is never taken."""
    if recipe.train.early_stopping is not None and recipe.train.evaluate_every is None:
        what = "goes by validation scores, and none are made; write train.evaluate_every, such as 10%"
        yield ("train", "early_stopping"), f"{what}, or early_stopping: null"


def check_trackers(recipe: Any, world_size: int) -> Iterator[Finding]:
    """A tracker is named once."""
    trackers = recipe.train.trackers
    twice = sorted({name for name in trackers if trackers.count(name) > 1})
    if twice:
        yield ("train", "trackers"), f"named twice: {', '.join(twice)}; write each once"


def check_trunk_cache(recipe: Any, world_size: int) -> Iterator[Finding]:
    """A folder is named only where states are kept in one."""
    section = recipe.train.trunk_cache
    if isinstance(section, str) or section.folder is None:
        return
    if section.mode in ("memory", "off"):
        why = {"memory": "states are kept in memory", "off": "none are kept"}[section.mode]
        yield ("train", "trunk_cache", "folder"), f"{why}, so no folder is used; write mode: disk, or leave folder out"


TRAIN_CHECKS: tuple[Callable[[Any, int], Iterator[Finding]], ...] = (
    check_learning_rates,
    check_early_stopping,
    check_trackers,
    check_trunk_cache,
)
