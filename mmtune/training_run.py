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
        MmtuneError: whatever the user can mend; see ``mmtune.ground.errors``.
    """
    from mmtune.ground.run_log import RunLog
    from mmtune.recipe_schema import Recipe, check_recipe, load_recipe
    from mmtune.run_folder import locked, open_run
    from mmtune.run_setup import refuse_misfit, start_accelerator

    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
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
        trainer = _prepare(recipe, accelerator, log, start.checkpoint)
        if start.checkpoint:
            _go_on(trainer, start.checkpoint)
        _train(trainer)
    return run


def _prepare(recipe: "Recipe", accelerator: Any, log: Any, checkpoint: Path | None) -> Any:
    """Data, then backbone, then adapter: what fails cheaply fails first."""
    from mmtune.adapter_liveness import Liveness
    from mmtune.adapters import attach
    from mmtune.backbones import load
    from mmtune.batch_building import EncodedPairs
    from mmtune.ground.kind_folder import kind
    from mmtune.ground.process_group import world_size
    from mmtune.optimizer_setup import make_optimizer, make_schedule
    from mmtune.run_folder import same_revision
    from mmtune.run_setup import in_steps, make_cadence, make_layout, start_trackers
    from mmtune.train_data import hash_samples, make_context, make_validation, open_training_data
    from mmtune.train_loop import Trainer

    data = open_training_data(recipe, log)
    task = kind("tasks", recipe.task)
    layout = make_layout(recipe, len(task.items(data.train.samples, recipe.data.captions)), world_size())
    cadence = make_cadence(recipe, layout)
    section = same_revision(recipe.backbone, log.folder) if checkpoint else recipe.backbone
    backbone = load(section, device=accelerator.device)
    adapted = attach(backbone, recipe.adapter, seed=recipe.seed)
    context = make_context(recipe, adapted, task, accelerator)
    limit = backbone.processor.tokenizer.model_max_length
    pairs = EncodedPairs(data.train.samples, task, backbone.family, backbone.processor, recipe.data, recipe.seed, limit)
    optimizer = make_optimizer(adapted, recipe.train)
    warmup = in_steps(recipe.train.warmup, layout, cadence.total)
    schedule = make_schedule(optimizer, recipe.train, warmup_steps=warmup, total_steps=cadence.total)
    start_trackers(accelerator, recipe)
    trainer = Trainer(
        recipe=recipe,
        run=log.folder,
        adapted=adapted,
        context=context,
        pairs=pairs,
        layout=layout,
        optimizer=optimizer,
        schedule=schedule,
        accelerator=accelerator,
        cadence=cadence,
        log=log,
        liveness=Liveness(adapted),
        validate=make_validation(recipe, adapted, data.splits.get("validation"), context),
        num_seen={split: opened.num_seen for split, opened in data.splits.items()},
    )
    trainer.state.bad.extend(data.bad)
    trainer.state.weight_hash, trainer.state.data_hash = backbone.weight_hash, hash_samples(data.train.samples)
    return trainer


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
    trainer.state = restore_checkpoint(checkpoint, trainer.adapted, trainer.optimizer)
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
    from mmtune.run_folder import update_manifest, write_quarantine, write_recipe
    from mmtune.run_report import draw_curves
    from mmtune.run_setup import finish_trackers
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
    finally:
        write_quarantine(trainer.run, trainer.state.bad)
    update_manifest(trainer.run, status="finished", **describe_run(trainer))
    finish_trackers(trainer.accelerator)
    if trainer.log.active:
        draw_curves(trainer.run)
    for line in describe_end(trainer):
        trainer.log.line(line)
