"""What the benchmarks here share: paired repeats, their ratio, memory of a process, the machine, tables, JSON files."""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "pillow", "sentence-transformers", "trl")
MIB = 1 << 20


@dataclass(frozen=True)
class Ratio:
    """How many times faster one arm is than another: the median over pairs, the lowest and the highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def compare(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """The ratio of seconds, pair by pair: the n-th of one was measured beside the n-th of the other.

    Raises:
        ValueError: nothing to compare, or a different number of each.
    """
    if not slow or len(slow) != len(fast):
        raise ValueError(f"{len(slow)} and {len(fast)} times do not make pairs")
    ratios = [left / right for left, right in zip(slow, fast, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def take_turns(arms: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, arm): every arm once per repeat, in the opposite order each time, so that a slow spell hits all."""
    for repeat in range(repeats):
        yield from ((repeat, arm) for arm in (arms if repeat % 2 == 0 else list(reversed(arms))))


def time_paired(
    arms: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each arm in each repeat, by ``clock``; every arm runs once before, unmeasured."""
    for run in arms.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _, arm in take_turns(list(arms), repeats):
        started = clock()
        arms[arm]()
        seconds[arm].append(clock() - started)
    return seconds


def read_arguments(what: str, batch: int) -> argparse.Namespace:
    """The command line of a script that times steps of one model: ``batch``, ``repeats``, ``tiny``, ``json``."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a CLIP of width 32")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def memory_now() -> int:
    """Bytes that this process holds."""
    return _status("VmRSS")


def peak_memory() -> int:
    """The most bytes that this process has held since it began; a child does not count what its parent held."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def describe_machine(device: str = "CPU") -> dict[str, Any]:
    """What the figures depend on: cores, threads, processor, versions, the day. No name of a host, no path."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0))
    return {
        "device": f"{cores} core{'s' if cores > 1 else ''}, {device}",
        "processor": _processor(),
        "system": platform.system(),
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    """What the processor can do, as far as it matters: its widest vectors."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8").split() if info.exists() else []
    widest = next((name for name in ("amx_bf16", "avx512f", "avx2") if name in flags), "")
    return f"{platform.machine()} {widest}".strip()


def measure_rate(shapes: Sequence[tuple[int, int, int]], dtype: str = "float32", device: str = "cpu") -> float:
    """Operations per second of matrix products of these sizes (rows, inner, columns), each for at least 0.3 s.

    The sizes count as often as the operations they hold: the rate is their sum over the sum of their best times.
    """
    import torch

    operations, seconds = 0.0, 0.0
    for rows, inner, columns in shapes:
        left = torch.randn(rows, inner, dtype=getattr(torch, dtype), device=device)
        right = torch.randn(inner, columns, dtype=getattr(torch, dtype), device=device)
        best, until = float("inf"), time.perf_counter() + 0.3
        left @ right
        while time.perf_counter() < until or best == float("inf"):
            started = time.perf_counter()
            left @ right
            if device != "cpu":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        operations += 2.0 * rows * inner * columns
        seconds += best
    return operations / seconds


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (heads, *rows)]
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], marks, *lines[1:]))


def read_json(path: Path) -> dict[str, Any]:
    """What was kept there, or nothing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    beside.replace(path)


def publish(record: Mapping[str, Any], path: Path | None, shown: str) -> None:
    """Print the table and, where a path was given, keep it with the record and what that depends on."""
    print(shown)
    if path is not None:
        write_json(path, {**record, "shown": shown, "machine": record.get("machine") or describe_machine()})
