"""The story of ``finetune``: recipe in, run folder out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtune.recipe_schema import Recipe


def fit(recipe: "Recipe | str | Path", *, resume: str = "auto", restart: bool = False) -> Path:
    """Fine-tune as ``recipe`` says and return the run folder.

    Args:
        recipe: a recipe (``mmtune.load_recipe``), or the path of one.
        resume: ``auto`` goes on where the run folder holds the same recipe; ``never`` refuses to.
        restart: move an old run aside and begin anew.

    Raises:
        RunStopped: SIGTERM or Ctrl-C came; the checkpoint is written.
        MmtuneError: whatever else the user can mend; see ``mmtune.ground.errors``.
    """
    from mmtune.adapter_start import refuse_missing_start
    from mmtune.ground.run_log import RunLog
    from mmtune.recipe_schema import Recipe, check_recipe, load_recipe
    from mmtune.run_folder import clear_if_unused, forget_manifest, locked, open_run
    from mmtune.run_setup import refuse_misfit, start_accelerator
    from mmtune.run_trackers import start_trackers
    from mmtune.trainer_building import build_trainer

    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    refuse_missing_start(recipe, restart=restart)
    accelerator = start_accelerator(recipe)
    check_recipe(recipe, world_size=accelerator.num_processes)
    refuse_misfit(recipe)
    start = open_run(recipe, resume=resume, restart=restart)
    run = Path(recipe.output)
    log = RunLog(run)
    if start.finished:
        log.line(start.notes[-1])
        return run
    with locked(run):
        for note in start.notes:
            log.line(note)
        if start.checkpoint is None:
            forget_manifest(run)
        try:
            trainer = build_trainer(recipe, accelerator, log, start.checkpoint)
        except BaseException:
            clear_if_unused(run, start)
            raise
        start_trackers(accelerator, recipe)
        if start.checkpoint:
            _go_on(trainer, start.checkpoint)
        _train(trainer)
    return run


def _go_on(trainer: Any, checkpoint: Path) -> None:
    """Put a checkpoint back.

    Raises:
        CheckpointError: backbone or data are not those that the run began with.
        RecipeError: the run is longer already than the recipe asks for.
    """
    from mmtune.ground.errors import RecipeError
    from mmtune.optimizer_setup import move_schedule
    from mmtune.run_checkpoint import refuse_other_inputs, restore_checkpoint

    fresh = trainer.state
    trainer.state = restore_checkpoint(checkpoint, trainer.adapted, trainer.optimizer, trainer.average)
    refuse_other_inputs(trainer.run, trainer.state, fresh)
    move_schedule(trainer.schedule, trainer.state.step)
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(trainer.state.scaler)
    if trainer.state.step > trainer.cadence.total:
        raise RecipeError(
            f"train.length: {trainer.run} was trained for {trainer.state.step} steps already, more than the "
            f"{trainer.cadence.total} of train.length {trainer.recipe.train.length}: make it longer, or use --restart"
        )


def _train(trainer: Any) -> None:
    from mmtune.ground.errors import RunStopped
    from mmtune.run_folder import update_manifest, write_quarantine, write_recipe
    from mmtune.run_report import draw_curves
    from mmtune.run_trackers import finish_trackers
    from mmtune.train_data import describe_end, describe_run, describe_start
    from mmtune.train_loop import train

    write_recipe(trainer.run, trainer.recipe)
    trainer.log.cut_after(trainer.state.step)
    update_manifest(trainer.run, status="running", scores=None, **describe_run(trainer))
    write_quarantine(trainer.run, trainer.state.bad)
    for line in describe_start(trainer):
        trainer.log.line(line)
    try:
        train(trainer)
    except RunStopped:
        update_manifest(trainer.run, status="stopped", **describe_run(trainer))
        finish_trackers(trainer.accelerator)
        raise
    finally:
        write_quarantine(trainer.run, trainer.state.bad)
        trainer.trunk.close()
    update_manifest(trainer.run, status="finished", **describe_run(trainer))
    finish_trackers(trainer.accelerator)
    if trainer.log.active:
        draw_curves(trainer.run)
    for line in describe_end(trainer):
        trainer.log.line(line)
