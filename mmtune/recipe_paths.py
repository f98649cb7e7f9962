"""Relative paths of a recipe mean the folder that a run was started in, wherever a later command is called from."""

from pathlib import Path
from typing import Any

from mmtune.ground.sections import StrictSection
from mmtune.recipe_schema import Recipe

PATH_KEYS = ("path", "images")
"""Keys of data sections that name files or folders; a mapping of splits to files counts too."""


def anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with paths that exist below ``folder`` made absolute; everything else is left as it is.

    Args:
        recipe: as it was resolved when the run started.
        folder: where it was started.
    """
    data = recipe.data
    moved = {key: _anchor(getattr(data, key), folder) for key in PATH_KEYS if hasattr(data, key)}
    backbone = recipe.backbone.model_copy(update={"id": _anchor(recipe.backbone.id, folder)})
    return recipe.model_copy(update={"data": data.model_copy(update=moved), "backbone": backbone})


def _anchor(value: Any, folder: Path) -> Any:
    if isinstance(value, StrictSection):
        return value.model_copy(update={key: _anchor(each, folder) for key, each in value})
    if isinstance(value, str) and (folder / value).exists():
        return str(folder / value)
    return value
