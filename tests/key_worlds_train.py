"""Ways to look at `train` keys beside those of `key_worlds`: what is averaged, when a run stops, what is recomputed."""

import shutil
from pathlib import Path
from typing import Any

from key_worlds import World

from mmtune.recipe_schema import Recipe

SCORES = (0.1, 0.12, 0.14, 0.14, 0.14, 0.14)


def averaged(world: World, recipe: Recipe) -> Any:
    """The adapter that users get at the end of a run, and the names of the files beside it."""
    from mmtune.run_checkpoint import checkpoints
    from mmtune.training_run import fit

    run = Path(recipe.output)
    shutil.rmtree(run, ignore_errors=True)
    fit(recipe)
    newest = checkpoints(run)[-1]
    return (newest / "adapter" / "adapter_model.safetensors").read_bytes(), sorted(p.name for p in newest.iterdir())


def stopped(world: World, recipe: Recipe) -> int:
    """The validation after which a run with these scores stops, 0 if it does not."""
    from mmtune.early_stopping import note_score
    from mmtune.run_checkpoint import TrainState

    state = TrainState()
    for number, score in enumerate(SCORES, 1):
        note_score(state, recipe.train.early_stopping, "text_to_image_recall@1", score)
        if state.stopped_early:
            return number
    return 0


def recomputed(world: World, recipe: Recipe) -> list[str]:
    """The modules that compute again in the backward pass."""
    from mmtune.ground.run_log import RunLog
    from mmtune.run_setup import start_accelerator
    from mmtune.trainer_building import build_trainer

    trainer = build_trainer(recipe, start_accelerator(recipe), RunLog(world.folder / "looked at"))
    modules = trainer.adapted.model.named_modules()
    return [name for name, module in modules if getattr(module, "gradient_checkpointing", False)]
