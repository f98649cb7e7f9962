"""Where metrics go besides ``metrics.jsonl``: the trackers that accelerate knows, and what they are told."""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import RecipeError
from mmtune.ground.secret_patterns import find_secrets, is_secret_value

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmtune.recipe_schema import Recipe

INSTALL = {"tensorboard": "'mmtune[tensorboard]'", "comet_ml": "comet-ml"}
"""Tracker -> what pip is asked for, where that is not the tracker's name."""
LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
ABSOLUTE = re.compile(r"(?:^|(?<=[{,]))(?:/|~|[A-Za-z]:[\\/]|\\\\|file://)[^,{}]*")
"""An absolute path, alone or among the alternatives of a pattern (``{/data/a,/data/b}.tar``)."""


def refuse_missing(trackers: Sequence[str]) -> None:
    """accelerate drops a tracker that is not installed without a word; this does not.

    Raises:
        RecipeError: packages of trackers that cannot be imported, and how to install them.
    """
    missing = [name for name in trackers if importlib.util.find_spec(name) is None]
    if missing:
        wanted = " ".join(INSTALL.get(name, name) for name in missing)
        raise RecipeError(f"train.trackers: {', '.join(missing)} not installed: pip install {wanted}, or drop it")


def refuse_dropped(accelerator: "Accelerator", trackers: Sequence[str]) -> None:
    """The same for what accelerate itself does not take for installed.

    Raises:
        RecipeError: trackers that it left out.
    """
    kept = {str(getattr(each, "value", each)) for each in accelerator.log_with}
    dropped = [name for name in trackers if name not in kept]
    if dropped:
        wanted = " ".join(INSTALL.get(name, name) for name in dropped)
        raise RecipeError(
            f"train.trackers: accelerate finds no usable {', '.join(dropped)}: pip install -U {wanted}, or drop it"
        )


def start_trackers(accelerator: "Accelerator", recipe: "Recipe") -> None:
    """Open the trackers with the recipe's plain values."""
    if recipe.train.trackers:
        accelerator.init_trackers(Path(recipe.output).name, config=shown_config(recipe))


def finish_trackers(accelerator: "Accelerator") -> None:
    """Close the trackers. The process group stays, so that every rank keeps its number for what comes after."""
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()


def shown_config(recipe: "Recipe") -> dict[str, str]:
    """The recipe as dotted keys with text values, fit for another machine: no absolute path, no secret, no login."""
    return {key: _shown(key, value) for key, value in _leaves("", recipe.model_dump(mode="json"))}


def _leaves(above: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no mapping; an entry of a list has its number for a key."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if not inner:
        yield above, value
        return
    for key, each in inner:
        yield from _leaves(f"{above}.{key}" if above else str(key), each)


def _shown(key: str, value: Any) -> str:
    text = LOGIN.sub("", str(value))
    if value is not None and (is_secret_value(key, text) or find_secrets(text)):
        return "(not shown)"
    return _last_name(text) if ABSOLUTE.match(text) else ABSOLUTE.sub(lambda path: _last_name(path[0]), text)


def _last_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
