"""Relative paths of a recipe mean the folder that a run was started in, wherever a later command is called from."""

from pathlib import Path
from typing import Any

from mmtune.ground.file_patterns import any_file
from mmtune.ground.sections import StrictSection
from mmtune.recipe_schema import Recipe

PATH_KEYS = ("path", "images", "sounds", "downloads")
"""Keys of data sections that name files or folders; a mapping of splits to files counts too."""


def anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with paths that exist below ``folder`` made absolute; everything else is left as it is.

    Args:
        recipe: as it was resolved when the run started.
        folder: where it was started.
    """
    models = {key: _anchor(getattr(recipe.backbone, key), folder) for key in ("id", "vision", "text")}
    backbone = recipe.backbone.model_copy(update=models)
    train = recipe.train.model_copy(update={"trunk_cache": _anchor_cache(recipe.train.trunk_cache, folder)})
    return recipe.model_copy(update={"data": _anchor_data(recipe.data, folder), "backbone": backbone, "train": train})


def _anchor_cache(cache: Any, folder: Path) -> Any:
    return cache if isinstance(cache, str) else cache.model_copy(update={"folder": _anchor(cache.folder, folder)})


def _anchor_data(data: Any, folder: Path) -> Any:
    """A data section, and in a mix those of its sources."""
    keys = (*PATH_KEYS, "id") if data.kind == "hub" else PATH_KEYS
    moved = {key: _anchor(getattr(data, key), folder) for key in keys if hasattr(data, key)}
    if data.kind == "mix":
        moved["sources"] = {name: _anchor_data(source, folder) for name, source in data.sources.items()}
    return data.model_copy(update=moved)


def _anchor(value: Any, folder: Path) -> Any:
    if isinstance(value, StrictSection):
        return value.model_copy(update={key: _anchor(each, folder) for key, each in value})
    if isinstance(value, str) and ((folder / value).exists() or any_file(str(folder / value))):
        return str(folder / value)
    return value
