"""Small runs that share a folder of pictures and a trunk cache, and ways to break what they keep."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_recipe

import mmtune
from mmtune.ground.run_log import RunLog
from mmtune.recipe_schema import Recipe
from mmtune.trunk_shelf import list_trunks

CLOSE = 1e-5
"""Of a loss: only the order of sums differs (1e-7), and steps at a high rate carry that on."""
LENGTH = ("adapter.layers=last 1", "train.length=6 steps", "checkpoint.every=3 steps")
OLD = time.time_ns() - 10**12
"""A time of change at which a file is no longer fresh."""


class Runs:
    """Runs over one folder of pictures that share a cache."""

    def __init__(self, folder: Path, data: Path, backbone: Path) -> None:
        self.folder, self.backbone = folder, backbone
        self.data = folder / "data"
        shutil.copytree(data, self.data)
        table = self.data / "pairs.jsonl"
        self.root = folder / "kept"
        self.sources = [f"data.path={table}", f"data.images={self.data / 'images'}"]
        self.cached = f"train.trunk_cache={{mode: disk, folder: {self.root}}}"

    def recipe(self, name: str, *overrides: str, cached: str | None = None, backbone: Path | None = None) -> Recipe:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        shutil.copy(self.data / "pairs.jsonl", folder)
        cache = cached or self.cached
        return small_recipe(folder, backbone or self.backbone, *LENGTH, *self.sources, cache, *overrides)

    def losses(self, name: str, *overrides: str, **others: Any) -> list[float]:
        """Train, and give the loss of every step."""
        run = mmtune.fit(self.recipe(name, *overrides, **others))
        return [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]

    def said(self, name: str) -> str:
        """The lines about the cache in a run's log."""
        lines = (self.folder / name / "run" / "run.log").read_text().splitlines()
        return "\n".join(line for line in lines if "trunk cache" in line)

    def trunks(self) -> list[Path]:
        return sorted(trunk.folder for trunk in list_trunks(self.root))


def num_run(said: str, part: str) -> int:
    """How often the trunk of a part ran."""
    line = next(line for line in said.splitlines() if f"{part} below" in line and " done " in line)
    return int(line.split(" done ")[1].split()[0])


def same(losses: list[float], others: list[float]) -> bool:
    return losses == pytest.approx(others, rel=CLOSE)


def at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> list[int]:
    """While a run is between this step and the next, do something; gives where that is noted."""
    done: list[int] = []
    real = RunLog.metrics

    def metrics(log: RunLog, row: dict[str, Any]) -> None:
        if row.get("step") == step and not done:
            done.append(step)
            act()
        real(log, row)

    patch.setattr(RunLog, "metrics", metrics)
    return done


# --- breaking it


def refuse_writes(patch: pytest.MonkeyPatch, root: Path, number: int, after: int) -> None:
    """From then on the system refuses to write states."""
    real, count = os.write, [0]

    def write(handle: int, content: Any) -> int:
        if os.readlink(f"/proc/self/fd/{handle}").startswith(str(root)):
            count[0] += 1
            if count[0] > after:
                raise OSError(number, os.strerror(number))
        return real(handle, content)

    patch.setattr("mmtune.state_files.os.write", write)


def flip(path: Path, step: int = 7) -> None:
    """Turn over bytes all over a file."""
    content = bytearray(path.read_bytes())
    content[step::step] = bytes(255 - byte for byte in content[step::step])
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    """Leave the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)
