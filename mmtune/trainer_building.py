"""From a recipe to everything the loop calls: data, then backbone, then adapter: what fails cheaply is first."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmtune.batch_building import Layout
    from mmtune.ground.run_log import RunLog
    from mmtune.recipe_schema import Recipe
    from mmtune.train_loop import Cadence, Trainer


def build_trainer(
    recipe: "Recipe", accelerator: "Accelerator", log: "RunLog", checkpoint: Path | None = None
) -> "Trainer":
    """Open, load and check everything that a run needs; nothing is trained yet.

    Args:
        recipe: a checked recipe.
        accelerator: from ``start_accelerator``.
        log: of the run folder.
        checkpoint: where the run will go on from, if it does: the backbone is then loaded at the noted commit.

    Raises:
        MmtuneError: whatever the user can mend.
    """
    from mmtune.adapter_liveness import Liveness
    from mmtune.bad_samples import Quarantine
    from mmtune.epoch_items import epoch_items
    from mmtune.ground.kind_folder import kind
    from mmtune.ground.process_group import world_size
    from mmtune.optimizer_setup import make_optimizer
    from mmtune.run_setup import make_cadence, make_layout
    from mmtune.tasks import prepared
    from mmtune.train_data import hash_samples, make_context, make_validation, open_training_data
    from mmtune.train_loop import Trainer
    from mmtune.trunk_setup import ask_for_trunk, fill_plan, fuse_layers, plan_trunk

    data = open_training_data(recipe, log)
    task = kind("tasks", recipe.task)
    samples = prepared(recipe, data.train.samples)
    layout = make_layout(recipe, len(epoch_items(task, samples, recipe.data, recipe.seed)), world_size())
    cadence = make_cadence(recipe, layout)
    adapted = _adapt(recipe, accelerator, log, checkpoint)
    backbone = adapted.backbone
    context = make_context(recipe, adapted, task, accelerator)
    asked = ask_for_trunk(recipe, context.ability, accelerator.mixed_precision, accelerator.device, log.line)
    trunk = plan_trunk(adapted, asked, recipe.data)
    items = training_items(recipe, backbone, samples, context.ability)
    _say_unknown(items, log)
    layout = lay_out(recipe, items, layout)
    fill_plan(trunk, asked, items, context, cadence.total * layout.batch)
    trunk.lines += fuse_layers(recipe, adapted)
    optimizer = make_optimizer(adapted, recipe.train)
    num_seen = {split: opened.num_seen for split, opened in data.splits.items()}
    trainer = Trainer(
        recipe=recipe,
        run=log.folder,
        adapted=adapted,
        context=context,
        items=items,
        layout=layout,
        optimizer=optimizer,
        schedule=_schedule(recipe, optimizer, layout, cadence),
        accelerator=accelerator,
        cadence=cadence,
        log=log,
        liveness=Liveness(adapted),
        validate=make_validation(recipe, adapted, data.splits.get("validation"), context),
        quarantine=Quarantine(log.folder, recipe.data.max_bad_fraction, num_seen, log.line),
        average=_average(recipe, context),
        notes=data.train.notes,
        trunk=trunk,
    )
    trainer.state.bad.extend(data.bad)
    trainer.state.weight_hash, trainer.state.data_hash = backbone.weight_hash, hash_samples(data.train.samples)
    return trainer


def training_items(recipe: "Recipe", backbone: Any, samples: Any, ability: str) -> Any:
    """The training items, encoded as the task's ability wants them."""
    from mmtune.batch_building import EncodedAnswers, EncodedPairs
    from mmtune.item_encoding import make_asking
    from mmtune.tasks import rendering

    asking = make_asking(recipe.task, backbone, recipe.seed)
    if ability != "embed":
        return EncodedAnswers(samples, asking, recipe.data)
    limit = backbone.processor.tokenizer.model_max_length
    shown = rendering(asking.task, recipe.task)
    return EncodedPairs(samples, shown, backbone.family, backbone.processor, recipe.data, recipe.seed, limit)


def _say_unknown(items: Any, log: "RunLog") -> None:
    """Say how many questions have no answer among those that the model chooses from, where it does.

    Raises:
        DataError: none has one.
    """
    from mmtune.ground.errors import DataError

    asking: Any = getattr(getattr(items, "encode_item", None), "asking", None)
    count: Any = getattr(asking.task, "count_unknown", None) if asking else None
    chosen = (asking.answers or asking.task.candidates(asking.section)) if count else ()
    number = count(items.samples, chosen) if chosen else 0
    if not number:
        return
    what = f"answer among the {len(chosen)} that the model chooses from ({', '.join(map(repr, chosen[:5]))} ...)"
    if number == len(items.samples):
        raise DataError(f"data: no sample has an {what}: nothing it can say is right")
    log.line(f"data: {number} of {len(items.samples)} samples have no {what}: nothing it can say to them is right")


def lay_out(recipe: "Recipe", items: Any, layout: "Layout") -> "Layout":
    """The layout with batches of similar length, where the recipe asks for them."""
    return replace(layout, lengths=_lengths(items)) if recipe.train.group_by_length else layout


def _lengths(items: Any) -> "Callable[[int], list[int]]":
    """Text positions of every item in an epoch, counted when the epoch begins."""
    from mmtune.length_grouping import item_lengths, tokens_per_image

    per_image = tokens_per_image(items)

    @lru_cache(maxsize=1)
    def lengths(epoch: int) -> list[int]:
        return item_lengths(items.encode_item.asking, items.samples, items.items, epoch, image_tokens=per_image)

    return lengths


def _adapt(recipe: "Recipe", accelerator: "Accelerator", log: "RunLog", checkpoint: Path | None) -> Any:
    from mmtune.activation_checkpointing import checkpoint_activations
    from mmtune.adapter_start import start_adapter
    from mmtune.adapters import attach
    from mmtune.backbones import load
    from mmtune.run_folder import same_revision
    from mmtune.tasks import abilities_of

    section = same_revision(recipe.backbone, log.folder) if checkpoint else recipe.backbone
    backbone = load(section, device=accelerator.device, ability=abilities_of(recipe.task))
    for line in backbone.notes:
        log.line(line)
    adapted = attach(backbone, recipe.adapter, seed=recipe.seed)
    for line in start_adapter(adapted, recipe) if checkpoint is None else ():
        log.line(line)
    if recipe.train.activation_checkpointing:
        checkpoint_activations(adapted.backbone, set(adapted.part_of.values()))
    return adapted


def _schedule(recipe: "Recipe", optimizer: Any, layout: "Layout", cadence: "Cadence") -> Any:
    from mmtune.optimizer_setup import make_schedule
    from mmtune.run_setup import in_steps

    warmup = in_steps(recipe.train.warmup, layout, cadence.total)
    return make_schedule(optimizer, recipe.train, warmup_steps=warmup, total_steps=cadence.total)


def _average(recipe: "Recipe", context: Any) -> Any:
    from mmtune.weight_average import WeightAverage

    section = recipe.train.ema
    return WeightAverage(context.trainable, decay=section.decay, warmup=section.warmup) if section else None
