"""What stands between a recipe and the loop: the accelerator, precision, the batch layout, and when things are due."""

import os
from typing import TYPE_CHECKING, Any

from mmtune.batch_building import Layout
from mmtune.ground.errors import RecipeError
from mmtune.ground.kind_folder import kind, kinds
from mmtune.ground.library_notes import silence_library_notes
from mmtune.ground.records import MEDIA_WORDS
from mmtune.run_trackers import refuse_dropped, refuse_missing
from mmtune.tasks import abilities_of, ability_for
from mmtune.train_loop import Cadence

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmtune.backbones import Family
    from mmtune.recipe_schema import Recipe


def refuse_launcher() -> None:
    """Refuse launches that shard the model.

    Raises:
        RecipeError: FSDP or DeepSpeed was asked for.
    """
    for name, label in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(name, "false").lower() in ("1", "true", "yes"):
            raise RecipeError(
                f"launched under {label}: it is not supported, because a 0-dim temperature cannot be sharded and "
                "the exact large batch needs whole embeddings on every rank. Launch with --multi_gpu."
            )


def resolve_precision(precision: str) -> str:
    """The mixed precision for accelerate: ``no``, ``bf16`` or ``fp16``; ``auto`` is bf16 on a GPU that has it.

    Raises:
        RecipeError: fp16 without a GPU.
    """
    import torch

    gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    if precision == "auto":
        return "bf16" if gpu and torch.cuda.is_bf16_supported() else "no"
    if precision == "fp16" and not gpu:
        raise RecipeError("train.precision: fp16 needs a GPU; use fp32 or auto here")
    return {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]


def start_accelerator(recipe: "Recipe") -> "Accelerator":
    """Join the process group and start the trackers.

    Raises:
        RecipeError: a tracker whose package is not installed; an unsupported launch; fp16 without a GPU.
    """
    refuse_launcher()
    refuse_missing(recipe.train.trackers)
    silence_library_notes()
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=resolve_precision(recipe.train.precision),
        log_with=list(recipe.train.trackers) or None,
        project_dir=str(recipe.output),
    )
    refuse_dropped(accelerator, recipe.train.trackers)
    return accelerator


def refuse_misfit(recipe: "Recipe") -> None:
    """Hold task and adapter against the backbone's config.json, before data is opened or a weight is loaded.

    Raises:
        RecipeError: everything that does not fit, a line each.
        BackboneError: the backbone cannot be found, or no family answers for it.
    """
    from mmtune.adapters import problems
    from mmtune.backbones import describe

    description = describe(recipe.backbone, ability=abilities_of(recipe.task))
    found = task_problems(recipe, description.traits)
    found += problems(recipe.adapter, recipe.backbone, description)
    found += modality_problems(recipe, description.traits)
    if found:
        raise RecipeError("\n".join(found))


def task_problems(recipe: "Recipe", family: "Family") -> list[str]:
    """The family can do what the task asks; else a message with the tasks and the families that would fit."""
    task = kind("tasks", recipe.task)
    ability = ability_for(task, family)
    if ability == "classify" and getattr(recipe.task, "answers", None) is not None:
        return [
            f"task.answers: family {family.name} chooses from its own list, so these would not be used: leave it out"
        ]
    if ability is not None:
        return []
    wanted, can = " or ".join(task.ABILITIES), ", ".join(sorted(family.abilities)) or "nothing"
    fitting = [name for name, one in kinds("tasks").items() if ability_for(one, family)]
    able = [name for name, one in kinds("backbones").items() if any(ability_for(task, it) for it in _records(one))]
    return [
        f"task.kind: {recipe.task.kind} needs the ability {wanted}, and family {family.name} can {can}; tasks that "
        f"fit: {', '.join(fitting) or 'none'}; families for {recipe.task.kind}: {', '.join(able) or 'none'}"
    ]


def _records(family: Any) -> "list[Family]":
    """A family's records: of one class, or of several (``RECORDS``)."""
    return [family.FAMILY, *getattr(family, "RECORDS", {}).values()]


def refuse_misfit_of(recipe: "Recipe", description: Any) -> None:
    """As ``refuse_misfit``, for a model that may be another than the recipe's: the task alone.

    Raises:
        RecipeError: it does not fit.
    """
    if found := task_problems(recipe, description.traits):
        raise RecipeError("\n".join(found))


def modality_problems(recipe: "Recipe", family: "Family") -> list[str]:
    """The data holds what the family matches with text; else a message that says what would fit."""
    given, wanted = recipe.data.modality, family.modality
    if given == wanted:
        return []
    fitting = [name for name, one in kinds("backbones").items() if one.FAMILY.modality == given]
    keys = {"image": "name them with image and images", "audio": "name them with audio and sounds (kind: jsonl)"}
    return [
        f"data: holds {MEDIA_WORDS[given]}, and family {family.name} matches {MEDIA_WORDS[wanted]} with text: "
        f"{keys[wanted]}, or choose a backbone for {MEDIA_WORDS[given]} (families: {', '.join(fitting)})"
    ]


def make_layout(recipe: "Recipe", num_items: int, num_ranks: int) -> Layout:
    """How the training items are cut into steps.

    Raises:
        RecipeError: the batch does not divide, or is larger than an epoch.
    """
    batch = recipe.train.batch
    share, rest = divmod(batch, num_ranks)
    micro = recipe.train.micro_batch or share
    if rest or share % micro:
        raise RecipeError(
            f"train.batch {batch} is not divisible by {num_ranks} rank(s) x train.micro_batch {micro}: "
            f"try batch {max(1, batch // (num_ranks * micro)) * num_ranks * micro}"
        )
    if num_items < batch:
        raise RecipeError(f"train.batch {batch} is larger than an epoch of {num_items} items: use at most {num_items}")
    return Layout(num_items, batch, micro, num_ranks, recipe.seed)


def total_steps(recipe: "Recipe", layout: Layout) -> int:
    """The run's length in optimizer steps."""
    return recipe.train.length.in_steps(steps_per_epoch=layout.steps_per_epoch, batch=layout.batch)


def in_steps(duration: Any, layout: Layout, total: int) -> int:
    """A duration of the recipe in optimizer steps; None is 0 (never)."""
    if duration is None:
        return 0
    steps: int = duration.in_steps(steps_per_epoch=layout.steps_per_epoch, batch=layout.batch, total_steps=total)
    return steps


def make_cadence(recipe: "Recipe", layout: Layout) -> Cadence:
    """When to log, save and evaluate.

    Raises:
        RecipeError: the warm-up is as long as the run.
    """
    total = total_steps(recipe, layout)
    train = recipe.train
    warmup = in_steps(train.warmup, layout, total)
    if warmup >= total:
        raise RecipeError(f"train.warmup: {train.warmup} is {warmup} steps, and the whole run is {total}: shorten it")
    return Cadence(
        total=total,
        log=in_steps(train.log_every, layout, total),
        save=in_steps(recipe.checkpoint.every, layout, total),
        evaluate=in_steps(train.evaluate_every, layout, total),
    )
