"""A way to look at the keys of the trunk cache: what a run keeps of its frozen layers, where, and in which format."""

import shutil
from pathlib import Path
from typing import Any

from key_worlds import World

from mmtune.recipe_schema import Recipe


def kept(world: World, recipe: Recipe) -> Any:
    """Entries of every trunk with their formats, by folder, and what a log says is not kept; all begun anew."""
    from mmtune.training_run import fit
    from mmtune.trunk_shelf import list_trunks

    roots = {name: world.folder / name for name in ("kept", "kept elsewhere", "kept by default")}
    run = Path(recipe.output)
    for folder in (run, *roots.values()):
        shutil.rmtree(folder, ignore_errors=True)
    with world.patch.context() as patch:
        patch.setenv("MMTUNE_CACHE", str(roots["kept by default"]))
        fit(recipe)
    found = {name: sorted((it.num_entries, it.dtypes) for it in list_trunks(root)) for name, root in roots.items()}
    lines = [
        line.split("trunk cache: ")[1]
        for line in (run / "run.log").read_text().splitlines()
        if "trunk cache: off" in line
    ]
    return found, lines


def fused(world: World, recipe: Recipe) -> list[str]:
    """The layers that a run says it computes with fewer operations."""
    from mmtune.training_run import fit

    run = Path(recipe.output)
    shutil.rmtree(run, ignore_errors=True)
    fit(recipe)
    return [line for line in (run / "run.log").read_text().splitlines() if "fused layers: " in line]
