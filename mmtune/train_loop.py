"""The loop: accumulate, clip, step, average, log, score, save, stop. No set-up happens here."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.additive_step import additive_step
from mmtune.backbones import clamp_temperature
from mmtune.bad_samples import Quarantine, count_batches
from mmtune.batch_building import Batch, EncodedItems, Layout, open_loader
from mmtune.contrastive_step import contrastive_step
from mmtune.early_stopping import describe_stop, note_score
from mmtune.ground.errors import NotFinite, RunStopped
from mmtune.ground.process_group import gather_objects, rank
from mmtune.ground.records import BadItem, NoMedia
from mmtune.ground.run_log import RunLog
from mmtune.ground.stop_signals import StopSignals
from mmtune.memory_advice import advise_on_memory, peak_memory
from mmtune.optimizer_setup import has_moved, highest_rate, move_schedule
from mmtune.prompt_step import prompt_step
from mmtune.run_checkpoint import TrainState, checkpoint_name, save_checkpoint
from mmtune.run_folder import update_manifest
from mmtune.step_context import StepContext
from mmtune.tasks import best_score, reads_prompts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from mmtune.trunk_cache import TrunkCache
    from mmtune.weight_average import WeightAverage

MAX_SKIPPED_IN_ROW = 10
"""Steps in a row that the fp16 scaler may skip: it halves its scale each time, so ten means a factor of 1,024."""


@dataclass(frozen=True)
class Cadence:
    """When things are due, in optimizer steps; 0 means never."""

    total: int
    log: int
    save: int
    evaluate: int

    def due(self, every: int, step: int) -> bool:
        """Whether something that happens every ``every`` steps happens after ``step``; the last step always counts."""
        return every > 0 and (step % every == 0 or step == self.total)


@dataclass
class Trainer:
    """Everything the loop calls, already built."""

    recipe: Any
    run: Path
    adapted: Any
    context: StepContext
    items: EncodedItems
    layout: Layout
    optimizer: "Optimizer"
    schedule: "LambdaLR"
    accelerator: "Accelerator"
    cadence: Cadence
    log: RunLog
    liveness: Any
    validate: Callable[[], tuple[dict[str, float], list[BadItem]]] | None
    quarantine: Quarantine
    trunk: "TrunkCache"
    average: "WeightAverage | None" = None
    state: TrainState = field(default_factory=TrainState)
    window: "Window" = field(default_factory=lambda: Window())
    signals: StopSignals = field(default_factory=StopSignals)
    notes: tuple[str, ...] = ()


@dataclass
class Window:
    """What happened since the last logged step."""

    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0


def train(trainer: Trainer) -> TrainState:
    """Run from ``trainer.state.step`` to the end, or until early stopping, and return the final state.

    Raises:
        TrainingError: non-finite loss or gradients, a dead part, no memory.
        DataError: more than ``max_bad_fraction`` of the data failed to decode.
        RunStopped: the run was asked to stop; its checkpoint is written.
    """
    from mmtune.adapters import set_modes

    state, cadence = trainer.state, trainer.cadence
    steps = read_steps(trainer, state.step, cadence.total)
    set_modes(trainer.adapted)
    with trainer.signals.listening(), trainer.log.progress(state.step, cadence.total):
        while state.step < cadence.total and not state.stopped_early:
            row = take_step(trainer, steps)
            if cadence.due(cadence.log, state.step):
                _log(trainer, row)
            better = cadence.due(cadence.evaluate, state.step) and _validate(trainer)
            asked = trainer.signals.agreed(trainer.context.device)
            if better or asked or state.stopped_early or cadence.due(cadence.save, state.step):
                _save(trainer)
            if asked and state.step < cadence.total and not state.stopped_early:
                _stop_as_asked(trainer, asked)
    return state


def _stop_as_asked(trainer: Trainer, number: int) -> None:
    message = (
        f"stopped by {signal.Signals(number).name} after step {trainer.state.step} of {trainer.cadence.total}; "
        f"{checkpoint_name(trainer.state.step)} is written, and the same command goes on from it"
    )
    trainer.log.keep(message)  # it is said where the error is shown
    raise RunStopped(message, 128 + number)


def _save(trainer: Trainer) -> None:
    """Write the checkpoint of this step; the manifest names the best one only when it is safe."""
    state, scaler = trainer.state, trainer.accelerator.scaler
    state.scaler = dict(scaler.state_dict()) if scaler is not None else {}
    keep, average = trainer.recipe.checkpoint.keep, trainer.average
    save_checkpoint(trainer.run, trainer.adapted, trainer.optimizer, state, keep=keep, average=average)
    update_manifest(trainer.run, best_checkpoint=state.best_checkpoint, steps=state.step)


def read_steps(trainer: Trainer, first: int, last: int) -> Iterator[list[Batch]]:
    """This rank's micro-batches, one list per optimizer step."""
    loader = open_loader(
        trainer.items,
        trainer.layout,
        rank=rank(),
        first_step=first,
        last_step=last,
        workers=trainer.recipe.train.workers,
    )
    batches = iter(loader)
    for _ in range(first, last):
        yield [next(batches) for _ in range(trainer.layout.micro_batches_per_step)]


def take_step(trainer: Trainer, steps: Iterator[list[Batch]]) -> dict[str, Any]:
    """One optimizer step; returns the row that would be logged."""
    state = trainer.state
    started = time.perf_counter()
    batches = next(steps)
    waited = time.perf_counter() - started
    trainer.window.samples += count_batches(state, batches, trainer.quarantine)
    parts = trainer.adapted.part_of.values()
    rate = highest_rate(trainer.recipe.train, parts) * trainer.schedule.lr_lambdas[0](state.step)
    with advise_on_memory(trainer.layout, state.step + 1):
        loss = _forward_backward(trainer, batches)
        grad_norm = _update(trainer, batches, loss)
    if trainer.average is not None and grad_norm is not None:
        trainer.average.update(state.step - state.num_skipped)
    if state.step <= trainer.liveness.last_step:
        trainer.liveness.after_step(state.step, trainer.log.line)
    seconds = time.perf_counter() - started
    trainer.window.seconds += seconds
    trainer.window.waited += waited
    state.seconds += seconds
    return {
        "step": state.step,
        "epoch": round(state.step / trainer.layout.steps_per_epoch, 4),
        "loss": loss,
        "learning_rate": rate,
        "grad_norm": grad_norm,
        "samples_per_second": round(trainer.window.samples / trainer.window.seconds, 2),
        "data_wait": round(trainer.window.waited / trainer.window.seconds, 4),
        "memory": peak_memory(),
    }


def _forward_backward(trainer: Trainer, batches: list[Batch]) -> float:
    """Gradients of the whole batch in place; returns its loss."""
    trainer.optimizer.zero_grad(set_to_none=True)
    return float(_step_of(trainer.context)(trainer.context, batches, trainer.state.step))


def _step_of(context: StepContext) -> Callable[[StepContext, list[Batch], int], Any]:
    """How the task's loss of a whole batch is computed."""
    if context.ability != "embed":
        return additive_step
    return prompt_step if reads_prompts(context.task) else contrastive_step


def _update(trainer: Trainer, batches: list[Batch], loss: float) -> float | None:
    """Clip, check, step; returns the gradient norm before clipping. Nothing moves when anything is not finite."""
    import torch

    state, optimizer, scaler = trainer.state, trainer.optimizer, trainer.accelerator.scaler
    parameters = list(trainer.context.trainable.values())
    if scaler is not None:
        scaler.unscale_(optimizer)
    limit = trainer.recipe.train.max_grad_norm
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))
    finite = torch.isfinite(torch.tensor([loss, norm])).tolist()
    if not finite[0] or (not finite[1] and scaler is None):
        _stop(trainer, batches, loss, norm)
    if state.step < trainer.liveness.last_step:
        if _shows_something(trainer, batches):
            trainer.liveness.after_backward()
        else:
            trainer.liveness.last_step += 1
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
        _count_skipped(trainer, skipped=not finite[1])
    if trainer.context.ability == "embed":
        clamp_temperature(trainer.context.backbone, trainer.context.task.max_log_scale(trainer.context.section))
    move_schedule(trainer.schedule, state.step + 1)
    state.step += 1
    return norm if finite[1] else None


def _shows_something(trainer: Trainer, batches: list[Batch]) -> bool:
    """Whether a step can tell if a vision part lives: one of words alone cannot, in data that has images too."""
    if any(gather_objects([any(batch.num_shown for batch in batches)])):
        return True
    return all(isinstance(sample.media, NoMedia) for sample in trainer.items.samples)


def _stop(trainer: Trainer, batches: list[Batch], loss: float, norm: float) -> None:
    ids = gather_objects([sample for batch in batches for sample in batch.ids])
    shown = ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
    raise NotFinite(
        f"step {trainer.state.step + 1}: loss {loss:g}, gradient norm {norm:g}: not finite; stopped before the weights "
        f"moved. Samples of the batch: {shown}. A lower train.learning_rate, train.precision: fp32 or a look at these "
        "samples would help."
    )


def _count_skipped(trainer: Trainer, *, skipped: bool) -> None:
    state = trainer.state
    state.num_skipped += skipped
    state.num_skipped_in_row = state.num_skipped_in_row + 1 if skipped else 0
    if skipped:
        trainer.log.line(f"step {state.step + 1}: fp16 overflow, update skipped ({state.num_skipped} so far)")
    if state.num_skipped_in_row >= MAX_SKIPPED_IN_ROW:
        raise NotFinite(
            f"step {state.step + 1}: {MAX_SKIPPED_IN_ROW} updates in a row were skipped by the fp16 scaler: "
            "use train.precision: bf16 or fp32, or a lower learning rate"
        )


def _log(trainer: Trainer, row: dict[str, Any]) -> None:
    trainer.window = Window()
    trainer.log.metrics(row)
    trainer.log.step(row, trainer.cadence.total, _time_left(trainer, row))
    numbers = {key: value for key, value in row.items() if key != "step" and value is not None}
    trainer.accelerator.log(numbers, step=row["step"])


def _time_left(trainer: Trainer, row: dict[str, Any]) -> float:
    return (trainer.cadence.total - row["step"]) * trainer.layout.batch / max(row["samples_per_second"], 1e-9)


def _validate(trainer: Trainer) -> bool:
    """Score the validation split; true when it is the best so far (and its checkpoint is about to be written).

    A score taken before any update moved something is the untrained model's and is no candidate.
    """
    from mmtune.adapters import set_modes

    state, name = trainer.state, best_score(trainer.recipe)
    if trainer.validate is None:
        return False
    average = trainer.average
    with average.in_place() if average is not None else nullcontext():
        scores, bad = trainer.validate()
    trainer.quarantine.add(state, bad)
    set_modes(trainer.adapted)
    trainer.log.metrics({"step": state.step, "validation": scores})
    trainer.accelerator.log({f"validation/{key}": value for key, value in scores.items()}, step=state.step)
    if not has_moved(trainer.schedule, state.step):
        trainer.log.line(f"step {state.step}: validation {name} {scores[name]:.4f} (the learning rate was 0 so far)")
        return False
    better = note_score(state, trainer.recipe.train.early_stopping, name, scores[name])
    trainer.log.line(f"step {state.step}: validation {name} {scores[name]:.4f}{' (best so far)' if better else ''}")
    if state.stopped_early:
        trainer.log.line(describe_stop(state, trainer.recipe.train.early_stopping, name))
    return better
