"""Checkpoints: safetensors and JSON, whole or absent, verified before they are believed.

``checkpoints/step-000120/`` holds what the adapter saves (see ``adapters``), ``optimizer.safetensors``,
``rng.safetensors``, ``state.json`` and ``MANIFEST.json`` with the size and sha256 of every other file. The folder is
filled beside its place, synced and renamed, so a folder of that name is complete unless the disk damaged it, and the
manifest finds that.

With ``train.ema`` the adapter's files hold the averaged weights, which is what every command but training uses;
``raw.safetensors`` beside them has the weights to train on from.
"""

import re
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import CheckpointError
from mmtune.ground.process_group import barrier, gather_objects, is_main, rank
from mmtune.ground.records import BadItem
from mmtune.ground.safe_files import (
    file_hash,
    files_below,
    load_tensors,
    read_json,
    save_tensors,
    sync_folder,
    whole_folder,
    write_json,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.weight_average import WeightAverage

FORMAT = 1
MANIFEST = "MANIFEST.json"
NAME = re.compile(r"step-(\d{6,})$")
RAW_FILE = "raw.safetensors"
GONE = "the folder is gone: removed, or pruned by a run that is still training (checkpoint.keep)"


@dataclass
class TrainState:
    """Where a run stands, beside its tensors.

    Attributes:
        step: finished optimizer steps; with the recipe it is the data position and the schedule's position too.
        num_samples: samples that were trained on.
        long_keys: identities of the captions that were cut to the text tower's limit, each once.
        num_skipped: steps that the fp16 scaler skipped, and how many of them in a row until now.
        bad: what was quarantined while training, each once.
        weight_hash: of the backbone's files, so that a run never goes on upon other weights.
        data_hash: of the training samples, whose order a step number stands for.
        best_score: the best validation score so far, and ``best_checkpoint`` that has it.
        last_gain: the last validation score that early stopping counted as a gain, and ``num_without_gain``
            validations since; ``stopped_early`` when these were too many.
        scaler: state of the fp16 scaler.
    """

    step: int = 0
    num_samples: int = 0
    num_skipped: int = 0
    num_skipped_in_row: int = 0
    seconds: float = 0.0
    bad: list[BadItem] = field(default_factory=list)
    long_keys: list[int] = field(default_factory=list)
    weight_hash: str = ""
    data_hash: str = ""
    best_score: float | None = None
    best_checkpoint: str | None = None
    last_gain: float | None = None
    num_without_gain: int = 0
    stopped_early: bool = False
    scaler: dict[str, Any] = field(default_factory=dict)


def checkpoint_name(step: int) -> str:
    """``step-000120``."""
    return f"step-{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if NAME.match(p.name)), key=lambda p: int(p.name.split("-")[1]))


def save_checkpoint(
    run: Path, adapted: Any, optimizer: Any, state: TrainState, *, keep: int, average: "WeightAverage | None" = None
) -> Path:
    """Write the checkpoint of ``state.step`` and prune older ones when it is safe; every rank must call this."""
    from mmtune.adapters import save as save_adapter

    rng = gather_objects([_rng_tensors()])
    folder = run / "checkpoints" / checkpoint_name(state.step)
    if is_main():
        with whole_folder(folder) as beside:
            if average is not None:
                save_tensors(beside / RAW_FILE, average.raw())
            with average.in_place() if average is not None else nullcontext():
                save_adapter(adapted, beside)
            _write(beside, optimizer, state, rng)
        _prune(run, keep=keep, spare=state.best_checkpoint)
    barrier()
    return folder


def _write(folder: Path, optimizer: Any, state: TrainState, rng: "list[dict[str, Tensor]]") -> None:
    from mmtune.optimizer_setup import optimizer_tensors

    save_tensors(folder / "optimizer.safetensors", optimizer_tensors(optimizer))
    save_tensors(folder / "rng.safetensors", {f"{n}.{k}": v for n, each in enumerate(rng) for k, v in each.items()})
    write_json(folder / "state.json", asdict(state))
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": file_hash(path)}
        for path in files_below(folder)
    }
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def _rng_tensors() -> "dict[str, Tensor]":
    import torch

    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def _prune(run: Path, *, keep: int, spare: str | None) -> None:
    """Remove all but the newest ``keep`` checkpoints and the best one; a folder is renamed before it is emptied."""
    for path in checkpoints(run)[:-keep]:
        if path.name == spare:
            continue
        dead = path.with_name(f".{path.name}.pruned")
        path.rename(dead)
        sync_folder(path.parent)
        shutil.rmtree(dead, ignore_errors=True)


def problems(folder: Path) -> list[str]:
    """What is wrong with a checkpoint folder; empty when every file is there with its size and hash."""
    found = _file_problems(folder)
    return [GONE] if found and not folder.is_dir() else found


def _file_problems(folder: Path) -> list[str]:
    try:
        manifest = read_json(folder / MANIFEST)
        listed = manifest["files"]
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (ValueError, KeyError, TypeError):
        return [f"{MANIFEST} is damaged"]
    if manifest.get("format") != FORMAT:
        return [f"format {manifest.get('format')} is not {FORMAT}, the one this version reads"]
    found = []
    for name, facts in listed.items():
        path = folder / name
        try:
            size, digest = path.stat().st_size, file_hash(path)
        except FileNotFoundError:
            found.append(f"{name} is missing")
            continue
        if size != facts["size"]:
            found.append(f"{name} has {size} bytes instead of {facts['size']}")
        elif digest != facts["sha256"]:
            found.append(f"{name} does not have the hash in {MANIFEST}")
    return found


def newest_valid(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and one line per newer one that was passed over, saying why."""
    passed_over: list[str] = []
    for folder in reversed(checkpoints(run)):
        found = problems(folder)
        if not found:
            return folder, passed_over
        passed_over.append(f"{folder.name} is passed over: {'; '.join(found)}")
    return None, passed_over


def choose_checkpoint(run: Path, say: Callable[[str], object] | None = None) -> Path:
    """The checkpoint that stands for a run: the best by validation where the manifest names one, else the newest.

    Args:
        run: the run folder.
        say: is told about every checkpoint that is passed over, and why; by default on standard error.

    Raises:
        CheckpointError: none of them verifies.
    """
    say = say or _say
    best = _noted_best(run)
    if best:
        found = problems(run / "checkpoints" / best)
        if not found:
            return run / "checkpoints" / best
        if found == [GONE] and _noted_best(run) != best:
            return choose_checkpoint(run, say)  # the run is still training, and has a better one by now
        say(f"{run}: {best}, the best by validation, is passed over: {'; '.join(found)}")
    folder, passed_over = newest_valid(run)
    if folder is None:
        reasons = "".join(f"\n  {line}" for line in passed_over) or " (it has none)"
        raise CheckpointError(f"{run}: no usable checkpoint:{reasons}\nTrain it first, or again with --restart.")
    for line in passed_over:
        say(f"{run}: {line}")
    return folder


def _noted_best(run: Path) -> str | None:
    manifest = run / "manifest.json"
    best = read_json(manifest).get("best_checkpoint") if manifest.is_file() else None
    return str(best) if best else None


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def read_state(folder: Path) -> TrainState:
    """The ``TrainState`` of a verified checkpoint."""
    values = read_json(folder / "state.json")
    values["bad"] = [BadItem(**item) for item in values["bad"]]
    return TrainState(**values)


def restore_checkpoint(
    folder: Path, adapted: Any, optimizer: Any, average: "WeightAverage | None" = None
) -> TrainState:
    """Put the tensors and generators of a verified checkpoint back and return its state.

    Raises:
        CheckpointError: its tensors are not those of this recipe.
    """
    import torch

    from mmtune.adapters import restore
    from mmtune.optimizer_setup import restore_optimizer

    restore(adapted, folder)
    if average is not None:
        average.take(load_tensors(folder / RAW_FILE))
    restore_optimizer(optimizer, load_tensors(folder / "optimizer.safetensors"))
    rng = load_tensors(folder / "rng.safetensors")
    if f"{rank()}.cpu" in rng:  # more ranks than before: each step seeds its own draws anyway
        torch.set_rng_state(rng[f"{rank()}.cpu"])
    if f"{rank()}.cuda" in rng and torch.cuda.is_available():
        torch.cuda.set_rng_state(rng[f"{rank()}.cuda"])
    return read_state(folder)


def refuse_other_inputs(run: Path, state: TrainState, fresh: TrainState) -> None:
    """Hold what a run goes on with against what it began with, and take over what is newly found to be bad.

    Args:
        run: the run folder, for the message.
        state: of the checkpoint; ``bad`` is extended.
        fresh: as the run would begin today.

    Raises:
        CheckpointError: weights or training samples differ, so that the rest would be another run's.
    """
    found = []
    if state.weight_hash != fresh.weight_hash:
        found.append("the backbone's weights are not those it began with (manifest.json has their hash and commit)")
    if state.data_hash != fresh.data_hash:
        found.append("the training samples are not those it began with: ids, captions or their order changed")
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise CheckpointError(f"{run} cannot go on:{lines}\nPut them back, or use --restart to begin anew.")
    known = {item.where for item in state.bad}
    state.bad.extend(item for item in fresh.bad if item.where not in known)
