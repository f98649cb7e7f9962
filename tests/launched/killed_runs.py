"""Runs for the resume tests: one interpreter, one forked process per run and rank, some of them killed on the way.

Usage: ``python killed_runs.py PLAN.json``. The plan is a list of groups; the processes of a group (its ranks) run side
by side, the groups one after the other. Each process calls ``fit`` on a recipe; ``kill_at`` names the step after which
rank 0 kills itself with SIGKILL (its partners are killed too, as a launcher would), ``kill_in_save`` the number of
file syncs inside the checkpoint of that step after which it dies. ``signal_at`` names the step after which rank
``signalled`` (0 where it says nothing) sends the signal ``number`` to itself and its workers, as a terminal would.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  (this and the next four: imported once here instead of in every forked process)
import matplotlib.pyplot  # noqa: F401
import peft  # noqa: F401
import torch
from transformers import CLIPModel, CLIPProcessor  # noqa: F401

import mmtune.adapters.lora  # noqa: F401
import mmtune.ground.safe_files as safe_files
import mmtune.train_loop as train_loop
from mmtune.recipe_schema import load_recipe
from mmtune.training_run import fit

os.environ["ACCELERATE_USE_CPU"] = "true"
SECONDS = 240


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def plant_kill(kill_at: int, kill_in_save: int | None) -> None:
    """Die after the optimizer update of step ``kill_at``, or in the middle of writing its checkpoint."""
    update = train_loop._update
    sync_file = safe_files.sync_file
    left = [kill_in_save or 0]

    def killing_sync(path: Path) -> None:
        sync_file(path)
        left[0] -= 1
        if left[0] == 0:
            die()

    def killing_update(trainer: Any, *arguments: Any) -> float:
        norm = update(trainer, *arguments)
        if trainer.state.step == kill_at:
            if kill_in_save is None:
                die()
            safe_files.sync_file = killing_sync
        return norm

    train_loop._update = killing_update


def plant_signal(step: int, number: int) -> None:
    """Ask this process and its children to stop, after the optimizer update of ``step``."""
    update = train_loop._update
    os.setpgid(0, 0)  # the group of this process: nobody but its own workers hears

    def asking_update(trainer: Any, *arguments: Any) -> float:
        norm = update(trainer, *arguments)
        if trainer.state.step == step:
            os.killpg(0, number)
        return norm

    train_loop._update = asking_update


def run_rank(spec: dict[str, Any], rank: int) -> None:
    """One process of a run."""
    ranks = spec.get("ranks", 1)
    if ranks > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(spec["port"]), ACCELERATE_USE_CPU="true",
        )  # fmt: skip
    torch.set_num_threads(1)
    if "kill_at" in spec and rank == 0:
        plant_kill(spec["kill_at"], spec.get("kill_in_save"))
    if "signal_at" in spec and rank == spec.get("signalled", 0):
        plant_signal(spec["signal_at"], spec["number"])
    if "poison_at" in spec:
        plant_poison(spec["poison_at"])
    try:
        fit(load_recipe(spec["recipe"], spec.get("overrides", []), world_size=ranks), **spec.get("fit", {}))
    except ValueError as error:
        Path(spec["error"]).write_text(str(error))
        os._exit(getattr(error, "exit_code", 2))


def plant_poison(step: int) -> None:
    """Make the loss of one step not a number."""
    forward_backward = train_loop._forward_backward

    def poisoned(trainer: Any, batches: Any) -> float:
        loss = forward_backward(trainer, batches)
        return float("nan") if trainer.state.step == step else loss

    train_loop._forward_backward = poisoned


def fork(spec: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run_rank(spec, rank)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_group(spec: dict[str, Any]) -> int:
    """All ranks of a run; returns the signal or exit code of the first that ends, after ending its partners."""
    alive = {fork(spec, rank): rank for rank in range(spec.get("ranks", 1))}
    result, deadline = 0, time.monotonic() + SECONDS
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in alive:
            alive.pop(pid)
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            if code:
                result = result or code
                if code < 0:
                    for partner in alive:
                        os.kill(partner, signal.SIGKILL)
        elif time.monotonic() > deadline:
            for partner in alive:
                os.kill(partner, signal.SIGKILL)
            result = result or -1
            deadline = float("inf")
        else:
            time.sleep(0.02)
    return result


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    codes = [run_group(spec) for spec in plan]
    Path(sys.argv[1]).with_suffix(".codes.json").write_text(json.dumps(codes))
