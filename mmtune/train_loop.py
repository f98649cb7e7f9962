"""The loop: accumulate, clip, step, log, score, save, stop on non-finite. No set-up happens here."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.batch_building import Batch, EncodedPairs, Layout, open_loader
from mmtune.contrastive_step import StepContext, contrastive_step
from mmtune.ground.errors import DataError, MemoryExhausted, TrainingError
from mmtune.ground.process_group import gather_objects, rank
from mmtune.ground.records import BadItem
from mmtune.ground.run_log import RunLog
from mmtune.metrics import higher_is_better
from mmtune.optimizer_setup import move_schedule
from mmtune.run_checkpoint import TrainState, checkpoint_name, save_checkpoint
from mmtune.run_folder import update_manifest

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

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
    pairs: EncodedPairs
    layout: Layout
    optimizer: "Optimizer"
    schedule: "LambdaLR"
    accelerator: "Accelerator"
    cadence: Cadence
    log: RunLog
    liveness: Any
    validate: Callable[[], tuple[dict[str, float], list[BadItem]]] | None
    num_seen: dict[str, int]
    state: TrainState = field(default_factory=TrainState)
    window: "Window" = field(default_factory=lambda: Window())


@dataclass
class Window:
    """What happened since the last logged step."""

    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0


def train(trainer: Trainer) -> TrainState:
    """Run from ``trainer.state.step`` to the end and return the final state.

    Raises:
        TrainingError: non-finite loss or gradient, a dead part, no memory.
        DataError: more than ``max_bad_fraction`` of the data failed to decode.
    """
    from mmtune.adapters import set_modes

    state, cadence = trainer.state, trainer.cadence
    steps = _steps(trainer, state.step, cadence.total)
    set_modes(trainer.adapted)
    with trainer.log.progress(state.step, cadence.total):
        while state.step < cadence.total:
            row = _one_step(trainer, steps)
            if cadence.due(cadence.log, state.step):
                _log(trainer, row)
            better = cadence.due(cadence.evaluate, state.step) and _validate(trainer)
            if better or cadence.due(cadence.save, state.step):
                _save(trainer)
    return state


def _save(trainer: Trainer) -> None:
    """Write the checkpoint of this step; the manifest names the best one only when it is safe."""
    state, scaler = trainer.state, trainer.accelerator.scaler
    state.scaler = dict(scaler.state_dict()) if scaler is not None else {}
    save_checkpoint(trainer.run, trainer.adapted, trainer.optimizer, state, keep=trainer.recipe.checkpoint.keep)
    update_manifest(trainer.run, best_checkpoint=state.best_checkpoint, steps=state.step)


def _steps(trainer: Trainer, first: int, last: int) -> Iterator[list[Batch]]:
    """This rank's micro-batches, one list per optimizer step."""
    loader = open_loader(
        trainer.pairs,
        trainer.layout,
        rank=rank(),
        first_step=first,
        last_step=last,
        workers=trainer.recipe.train.workers,
    )
    batches = iter(loader)
    for _ in range(first, last):
        yield [next(batches) for _ in range(trainer.layout.micro_batches_per_step)]


def _one_step(trainer: Trainer, steps: Iterator[list[Batch]]) -> dict[str, Any]:
    """One optimizer step; returns the row that would be logged."""
    state = trainer.state
    started = time.perf_counter()
    batches = next(steps)
    waited = time.perf_counter() - started
    trainer.window.samples += _account(trainer, batches)
    rate = trainer.optimizer.param_groups[0]["lr"]
    with _memory_advice(trainer):
        loss = _forward_backward(trainer, batches)
        grad_norm = _update(trainer, batches, loss)
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
        "memory": _memory(),
    }


def _account(trainer: Trainer, batches: list[Batch]) -> int:
    """Count samples and long captions of all ranks, and quarantine what failed to decode."""
    state = trainer.state
    mine = (
        sum(map(len, batches)),
        [key for batch in batches for key in batch.long_keys],
        [item for batch in batches for item in batch.bad],
    )
    facts = gather_objects([mine])
    num_samples = sum(count for count, _, _ in facts)
    state.num_samples += num_samples
    long_keys = {key for _, keys, _ in facts for key in keys}
    if not long_keys <= set(state.long_keys):
        state.long_keys = sorted({*state.long_keys, *long_keys})
    _quarantine(trainer, [item for _, _, items in facts for item in items])
    if num_samples == 0:
        raise DataError(f"step {state.step + 1}: every sample of the batch is bad")
    return num_samples


def _quarantine(trainer: Trainer, items: Sequence[BadItem]) -> None:
    """List each bad item once, and stop when there are too many; every rank is given the same items.

    Raises:
        DataError: more than ``max_bad_fraction`` of a split is bad.
    """
    state = trainer.state
    known = {item.where for item in state.bad}
    new = [item for item in dict.fromkeys(items) if item.where not in known]
    for item in new:
        state.bad.append(item)
        trainer.log.line(f"quarantined {item.where}: {item.reason}")
    limit = trainer.recipe.data.max_bad_fraction
    for split in {item.split for item in new}:
        num_bad, num_seen = sum(item.split == split for item in state.bad), trainer.num_seen.get(split, 0)
        if num_bad > limit * num_seen:
            raise DataError(
                f"{num_bad} of {num_seen} items of split {split!r} are bad, more than data.max_bad_fraction={limit:g} "
                f"allows; they are listed in {trainer.run / 'quarantine.jsonl'}. Mend them, or raise the limit."
            )


def _forward_backward(trainer: Trainer, batches: list[Batch]) -> float:
    """Gradients of the whole batch in place; returns its loss."""
    trainer.optimizer.zero_grad(set_to_none=True)
    return float(contrastive_step(trainer.context, batches, trainer.state.step))


@contextmanager
def _memory_advice(trainer: Trainer) -> Iterator[None]:
    """Turn running out of memory into a message with the micro-batch to set."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise MemoryExhausted(_smaller_micro_batch(trainer)) from None


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _smaller_micro_batch(trainer: Trainer) -> str:
    micro = trainer.layout.micro_batch
    share = trainer.layout.batch // trainer.layout.num_ranks
    smaller = max((size for size in range(1, micro) if share % size == 0), default=0)
    advice = (
        f"set train.micro_batch: {smaller} (it changes memory and speed, never the result)"
        if smaller
        else "micro_batch is 1 already: use a smaller backbone, backbone.quantize, or fewer adapted layers"
    )
    return f"out of memory in step {trainer.state.step + 1} with train.micro_batch={micro}: {advice}"


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
        trainer.liveness.after_backward()
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
        _count_skipped(trainer, skipped=not finite[1])
    trainer.context.task.clamp(trainer.context.section, trainer.context.temperature())
    move_schedule(trainer.schedule, state.step + 1)
    state.step += 1
    return norm if finite[1] else None


def _stop(trainer: Trainer, batches: list[Batch], loss: float, norm: float) -> None:
    ids = gather_objects([sample for batch in batches for sample in batch.ids])
    shown = ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
    raise TrainingError(
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
        raise TrainingError(
            f"step {state.step + 1}: {MAX_SKIPPED_IN_ROW} updates in a row were skipped by the fp16 scaler: "
            "use train.precision: bf16 or fp32, or a lower learning rate"
        )


def _memory() -> int:
    """Bytes: the most the GPU held, else the most this process held."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _log(trainer: Trainer, row: dict[str, Any]) -> None:
    trainer.window = Window()
    trainer.log.metrics(row)
    trainer.log.step(row, trainer.cadence.total, _time_left(trainer, row))
    numbers = {key: value for key, value in row.items() if key != "step" and value is not None}
    trainer.accelerator.log(numbers, step=row["step"])


def _time_left(trainer: Trainer, row: dict[str, Any]) -> float:
    return (trainer.cadence.total - row["step"]) * trainer.layout.batch / max(row["samples_per_second"], 1e-9)


def _validate(trainer: Trainer) -> bool:
    """Score the validation split; true when it is the best so far (and its checkpoint is about to be written)."""
    from mmtune.adapters import set_modes

    state, name = trainer.state, trainer.recipe.train.best
    if trainer.validate is None:
        return False
    scores, bad = trainer.validate()
    _quarantine(trainer, bad)
    set_modes(trainer.adapted)
    trainer.log.metrics({"step": state.step, "validation": scores})
    trainer.accelerator.log({f"validation/{key}": value for key, value in scores.items()}, step=state.step)
    sign = 1 if higher_is_better(name) else -1
    better = state.best_score is None or sign * scores[name] > sign * state.best_score
    trainer.log.line(f"step {state.step}: validation {name} {scores[name]:.4f}{' (best so far)' if better else ''}")
    if better:
        state.best_score, state.best_checkpoint = scores[name], checkpoint_name(state.step)
    return better
