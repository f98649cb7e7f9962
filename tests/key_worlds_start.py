"""Looks at an adapter for `test_key_effects`: the values it begins with, whatever they are taken from."""

from pathlib import Path
from typing import Any

from adapter_examples import make_run
from key_worlds import Refused, World

from mmtune.ground.errors import MmtuneError
from mmtune.recipe_schema import Recipe, resolved_json


def begun(world: World, recipe: Recipe) -> Any:
    """What is trained and its values before step 0; the run that ``start_from`` names is made when it is looked for."""
    from mmtune.adapter_start import start_adapter
    from mmtune.adapters import attach
    from mmtune.backbones import load

    start = recipe.adapter.start_from
    if start is not None and not Path(start).exists():
        values = {**resolved_json(recipe)["adapter"], "start_from": None}
        make_run(Path(start), {"id": str(world.folder / "tiny")}, values)
    try:
        made = attach(load(recipe.backbone), recipe.adapter, seed=recipe.seed)
        start_adapter(made, recipe)
    except MmtuneError as error:
        return Refused(error)
    trained = {name: value.detach().double() for name, value in made.trainable().items()}
    return {name: (tuple(value.shape), float(value.norm())) for name, value in trained.items()}
