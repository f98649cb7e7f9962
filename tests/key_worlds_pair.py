"""A look at a backbone made of two encoders, for `test_key_effects`."""

from typing import Any

from key_worlds import Refused, World

from mmtune.ground.errors import MmtuneError
from mmtune.recipe_schema import Recipe


def paired(world: World, recipe: Recipe) -> Any:
    """Which folders at which commits a pair is read from, and its width, or why it is refused."""
    import huggingface_hub.constants

    from mmtune.backbones import describe

    world.patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(world.folder / "hub"))
    try:
        description = describe(recipe.backbone)
    except MmtuneError as error:
        return Refused(error)
    return [place.folder for place in description.places], description.commits, description.config["projection_dim"]
