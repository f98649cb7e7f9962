"""The data of a run and what is said about it: splits opened and checked, the validation score, the facts kept."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.adapters import describe_rates
from mmtune.ground.errors import DataError
from mmtune.ground.process_group import gather_objects, world_size
from mmtune.ground.records import BadItem, Sample
from mmtune.ground.run_log import RunLog
from mmtune.sources import OpenedSplit, open_split, split_names
from mmtune.step_context import StepContext
from mmtune.tasks import ability_for, best_score, reads_prompts

if TYPE_CHECKING:
    from mmtune.recipe_schema import Recipe

EVALUATION_BATCH = 64
"""Samples per forward pass when scoring; it changes memory and speed only."""


@dataclass(frozen=True)
class TrainingData:
    """The splits a run reads.

    Attributes:
        splits: ``train``, and ``validation`` where the best checkpoint is chosen by it.
        bad: everything that was quarantined when the splits were opened.
    """

    splits: dict[str, OpenedSplit]
    bad: tuple[BadItem, ...]

    @property
    def train(self) -> OpenedSplit:
        """What is trained on."""
        return self.splits["train"]


def answer_batch(recipe: "Recipe") -> int:
    """Samples per pass when answers are scored: what fits on a rank in training, and no more."""
    return min(EVALUATION_BATCH, recipe.train.micro_batch or max(1, recipe.train.batch // world_size()))


def open_checked(recipe: "Recipe", split: str) -> OpenedSplit:
    """Open a split that has to be there.

    Raises:
        DataError: the split is not there, is empty, or too much of it is bad.
    """
    names = split_names(recipe.data)
    if split not in names:
        raise DataError(f"data: there is no split {split!r}; the source has {', '.join(names) or 'none'}")
    opened = open_split(recipe.data, split, seed=recipe.seed)
    if not opened.samples:
        raise DataError(f"data: split {split!r} is empty")
    return opened


def open_training_data(recipe: "Recipe", log: RunLog) -> TrainingData:
    """Open the training split, and the validation split where the recipe evaluates while training."""
    names = ("train", "validation") if recipe.train.evaluate_every else ("train",)
    splits = {name: open_checked(recipe, name) for name in names}
    bad = tuple(item for opened in splits.values() for item in opened.bad)
    _check_same_on_all_ranks(splits["train"])
    for note in dict.fromkeys(note for opened in splits.values() for note in opened.notes):
        log.line(f"data: {note}")
    for item in bad[:10]:
        log.line(f"quarantined {item.where}: {item.reason}")
    if len(bad) > 10:
        log.line(f"and {len(bad) - 10} more, see quarantine.jsonl")
    return TrainingData(splits, bad)


def hash_samples(samples: Sequence[Sample]) -> str:
    """sha256 over ids and what samples hold, in their order: what a data position is a position in, hex.

    Images count by their place in a conversation, not by their path: data may move.
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update("\x1f".join((sample.id, *sample.captions, "\x1e")).encode("utf-8", "surrogatepass"))
        turns = [(one.role, [each if isinstance(each, str) else None for each in one.content]) for one in sample.turns]
        asked = (sample.question, sample.answers, sample.label, turns)
        if asked != ("", (), None, []):
            digest.update(json.dumps(asked).encode())
    return digest.hexdigest()


def _check_same_on_all_ranks(train: OpenedSplit) -> None:
    """Every rank reads headers itself; ranks that saw different files would train on different orders.

    Raises:
        DataError: the ranks' lists differ.
    """
    lists = gather_objects([(len(train.samples), hash_samples(train.samples))])
    if len(set(lists)) > 1:
        counts = ", ".join(f"rank {rank}: {count}" for rank, (count, _) in enumerate(lists))
        raise DataError(f"data: the ranks do not see the same training samples ({counts}): is the folder shared?")


def make_context(recipe: "Recipe", adapted: Any, task: Any, accelerator: Any) -> StepContext:
    """What one training step needs."""
    scaler = accelerator.scaler
    context = StepContext(
        backbone=adapted.backbone,
        task=task,
        section=recipe.task,
        trainable=adapted.trainable(),
        device=accelerator.device,
        autocast=accelerator.autocast,
        seed=recipe.seed,
        ability=ability_for(task, adapted.backbone.traits) or "embed",
    )
    if scaler is not None:
        context.scale = scaler.scale
    return context


def make_validation(
    recipe: "Recipe", adapted: Any, split: OpenedSplit | None, context: StepContext
) -> Callable[[], tuple[dict[str, float], list[BadItem]]] | None:
    """A function that scores the adapted model on the validation split; it also gives what failed there."""
    if split is None:
        return None
    ranks = context.ability == "embed" and not reads_prompts(context.task)
    make = _embedding_validation if ranks else _answer_validation
    return make(recipe, adapted, split, context)


def _embedding_validation(recipe: "Recipe", adapted: Any, split: OpenedSplit, context: StepContext) -> Any:
    from mmtune.scoring_loop import EncodedBatches, embed_split, score_embeddings

    kept = EncodedBatches()  # the split is read and encoded once, not at every score

    def validate() -> tuple[dict[str, float], list[BadItem]]:
        with context.autocast():
            embedded = embed_split(
                adapted.backbone,
                split.samples,
                device=context.device,
                batch=EVALUATION_BATCH,
                workers=recipe.train.workers,
                split="validation",
                keep=kept,
            )
        return score_embeddings(embedded).values, list(embedded.bad)

    return validate


def _answer_validation(recipe: "Recipe", adapted: Any, split: OpenedSplit, context: StepContext) -> Any:
    from mmtune.answer_scoring import answer_split, score_answers
    from mmtune.item_encoding import make_asking
    from mmtune.scoring_loop import EncodedBatches

    kept = EncodedBatches()
    asking = make_asking(recipe.task, adapted.backbone, recipe.seed)
    samples = asking.task.prepare(split.samples, recipe.seed)

    def validate() -> tuple[dict[str, float], list[BadItem]]:
        with context.autocast():
            answers = answer_split(
                asking,
                adapted.backbone,
                samples,
                device=context.device,
                batch=answer_batch(recipe),
                workers=recipe.train.workers,
                split="validation",
                keep=kept,
            )
        return score_answers(answers), list(answers.bad)

    return validate


def describe_run(trainer: Any) -> dict[str, Any]:
    """The manifest's facts about a run."""
    from mmtune.run_folder import versions

    recipe, adapted, state = trainer.recipe, trainer.adapted, trainer.state
    best = best_score(recipe)
    trained = sum(part.num_trainable for part in adapted.parts)
    return {
        "started_in": str(Path.cwd()),
        "versions": versions(),
        "backbone": {**adapted.backbone.record(), "revision": recipe.backbone.revision},
        "adapter": recipe.adapter.kind,
        **({"start_from": adapted.started_from} if adapted.started_from else {}),
        "task": recipe.task.kind,
        "seed": recipe.seed,
        "world_size": trainer.layout.num_ranks,
        "steps": state.step,
        "best_checkpoint": state.best_checkpoint,
        "stopped_early": state.step if state.stopped_early else None,
        "validation": {best: state.best_score} if state.best_score is not None else None,
        "trainable": {
            "count": trained,
            "share": sum(part.share for part in adapted.parts),
            "parts": [asdict(part) for part in adapted.parts],
        },
        "data": {
            "train_items": trainer.layout.num_items,
            "dropped_per_epoch": trainer.layout.num_dropped,
            "samples_trained": state.num_samples,
            "captions_cut": len(state.long_keys),
            "bad": len(state.bad),
            "notes": [*trainer.notes, *trainer.items.items.lines()],
        },
        "trunk": trainer.trunk.record(),
        "seconds": round(state.seconds, 1),
    }


def describe_start(trainer: Any) -> Iterator[str]:
    """Lines that say what is about to run."""
    layout, backbone = trainer.layout, trainer.adapted.backbone
    commits = [f"{key.replace('_', ' ')} {it}" for key, it in backbone.description.commits.items() if it]
    yield f"backbone {backbone.section.name} ({', '.join([backbone.traits.name, *commits])})"
    yield (
        f"data: {layout.num_items} items, {layout.steps_per_epoch} steps per epoch, {layout.num_dropped} left out of "
        f"each epoch (the last short batch), {len(trainer.state.bad)} quarantined"
    )
    yield from trainer.items.items.lines()
    precision = trainer.accelerator.mixed_precision.replace("no", "fp32")
    yield (
        f"batch {layout.batch} = {layout.num_ranks} rank(s) x {layout.micro_batches_per_step} x micro-batch "
        f"{layout.micro_batch}; {trainer.cadence.total} steps; precision {precision}"
    )
    yield from trainer.liveness.start_table().splitlines()
    yield from describe_rates(trainer.adapted, trainer.optimizer.param_groups)
    yield from trainer.trunk.lines
    yield from _describe_ways(trainer.recipe.train)


def _describe_ways(train: Any) -> Iterator[str]:
    """Lines about what is not everyday."""
    if train.optimizer != "adamw":
        yield f"optimizer {train.optimizer}"
    if train.activation_checkpointing:
        yield "activation checkpointing: layers are computed again in the backward pass"
    if train.ema:
        yield f"averages of what is trained are kept (decay {train.ema.decay:g}), validated and saved"
    if train.early_stopping:
        yield f"stops after {train.early_stopping.patience} validations without a gain"


def describe_end(trainer: Any) -> Iterator[str]:
    """Lines that say what was done, and what was cut, left out or skipped on the way."""
    state, best = trainer.state, best_score(trainer.recipe)
    if state.long_keys:
        limit = trainer.items.limit
        yield f"{len(state.long_keys)} captions were longer than the text tower's {limit} tokens and were cut there"
    if state.bad:
        yield f"{len(state.bad)} items are quarantined, see {trainer.run / 'quarantine.jsonl'}"
    if state.num_skipped:
        yield f"{state.num_skipped} updates were skipped by the fp16 scaler"
    if state.best_checkpoint:
        yield f"best checkpoint by validation {best}: {state.best_checkpoint} ({state.best_score:.4f})"
    yield from trainer.trunk.savings(state.num_samples)
    early = f", stopped early of {trainer.cadence.total}" if state.stopped_early else ""
    done = f"{state.step} steps, {state.num_samples} samples, {state.seconds:.0f} s"
    yield f"finished{early}: {done}; run folder {trainer.run}"
