"""Memory of a process whose trunk cache grows from 1,000 to 20,000 samples on disk: it must stay as it is.

    python scripts/benchmarks/cache_memory.py --json scripts/benchmarks/results/cache_memory.json
    python scripts/benchmarks/cache_memory.py --tiny                     # does it run at all

A process of its own writes states of real size (50 tokens of width 768, as those under the last layers of ViT-B/32)
into a store in batches of 32, as a first epoch does, and at each mark reads 2,000 of what is there in random order, as
a later epoch does. Everything that it reads is compared with what was written. The process's resident memory is taken
after every batch, the highest up to each mark is shown; pages of the files that it has mapped count in it.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]

from scripts.benchmarks.paired_timing import MIB, memory_now, publish, table  # noqa: E402

SHAPE = (50, 768)
MARKS = (1_000, 2_000, 5_000, 10_000, 20_000)
BATCH, READ = 32, 2_000
ALLOWED = 1.10


def key_of(number: int) -> bytes:
    """A sample's key."""
    return hashlib.sha256(str(number).encode()).digest()


def states_of(number: int, pool: Any) -> Any:
    """Its states float32[T, D], found again by its number: a row of noise, and the number in the first place."""
    states = pool[number % len(pool)].clone()
    states[0, 0] = float(number)
    return states


def measure(folder: Path, marks: list[int]) -> list[dict[str, Any]]:
    """Fill and read in this process; per mark: entries, bytes on disk, memory, seconds."""
    import torch

    from mmtune.trunk_store import Stored, TrunkStore

    pool = torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    store = TrunkStore(folder / "trunk", about={})
    found, filled, highest, wrong = [], 0, 0, 0
    for mark in marks:
        started = time.perf_counter()
        first = filled
        for start in range(filled, mark, BATCH):
            numbers = range(start, min(start + BATCH, mark))
            store.add([(key_of(number), Stored(states_of(number, pool))) for number in numbers])
            highest = max(highest, memory_now())
        filled, written = mark, time.perf_counter()
        for number in torch.randint(0, mark, (READ,), generator=random).tolist():
            stored = store.find(key_of(number))
            wrong += stored is None or not torch.equal(stored.states, states_of(number, pool))
            highest = max(highest, memory_now())
        seconds = {"write": (written - started) / (mark - first), "read": (time.perf_counter() - written) / READ}
        row = {"entries": store.num_entries, "bytes": store.num_bytes(), "memory": highest, "now": memory_now()}
        found.append({**row, "wrong": int(wrong), "seconds": seconds})
    store.close()
    return found


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="memory while the trunk cache grows")
    parser.add_argument("--tiny", action="store_true", help="40 to 200 samples")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = read_arguments()
    marks = [40, 100, 200] if given.tiny else list(MARKS)
    if given.folder:
        print(json.dumps(measure(given.folder, marks)))
        return
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--folder", name, *(["--tiny"] if given.tiny else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    growth = found[-1]["memory"] / found[0]["memory"]
    rows = [
        [f"{one['entries']:,}", f"{one['bytes'] / MIB:,.0f}", f"{one['memory'] / MIB:,.0f}",
         f"{one['seconds']['write'] * 1e3:.2f}", f"{one['seconds']['read'] * 1e3:.2f}", one["wrong"]]
        for one in found
    ]  # fmt: skip
    shown = table(("samples", "MiB on disk", "MiB of the process", "ms to write", "ms to read", "wrong"), rows)
    shown += f"\n\nmemory at the last over the first: {growth:.3f} (allowed {ALLOWED})"
    publish({"marks": found, "growth": growth, "allowed": ALLOWED, "shape": list(SHAPE)}, given.json, shown)


if __name__ == "__main__":
    main()
