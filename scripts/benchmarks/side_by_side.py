"""mmtune beside its peers, on the same work in one run: seconds, final loss, memory, and the limit of the machine.

    python scripts/benchmarks/side_by_side.py all --json scripts/benchmarks/results/side_by_side.json    # under 30 min
    python scripts/benchmarks/side_by_side.py clip_last4 --quick
    python scripts/benchmarks/side_by_side.py clip_last4 --tiny          # does it run at all
    python scripts/benchmarks/side_by_side.py clip_last4 --profile       # where the time goes, as text

Run it with a Python that has the peers: ``pip install mmtune[bench]``. Every arm runs in a process of its own, on the
same files, weights, order of samples and threads; arms take turns within a repeat. ``Trainer`` is tried with 0 and 2
loader processes in the first work, and the peers go on with the faster. With ``--json`` every finished run is kept at
once, and a set that was interrupted goes on where it stopped.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]

from scripts.benchmarks.paired_timing import (  # noqa: E402
    MIB,
    RESULTS,
    compare,
    describe_machine,
    read_json,
    table,
    take_turns,
    write_json,
)
from scripts.benchmarks.work_table import WORKS, Work, choose  # noqa: E402

ARMS = ("mmtune", "trainer", "trainer_kept", "sentence_transformers", "trl")
PACKAGES = {"sentence_transformers": "sentence_transformers", "trl": "trl"}
FITTING = {"sentence_transformers": ("clip",), "trl": ("llava",)}
MARK = "RECORD "
EVERY_ARM = (*ARMS, "mmtune_without_cache")


def fitting_arms(arms: Sequence[str], work: Work) -> list[str]:
    """The arms that can do the work and are installed here; what is left out is said."""
    kept = []
    for arm in arms:
        if work.family not in FITTING.get(arm, (work.family,)):
            continue
        if arm in PACKAGES and importlib.util.find_spec(PACKAGES[arm]) is None:
            print(f"{arm}: not installed here, left out", file=sys.stderr)
            continue
        kept.append(arm)
    return kept


def seconds_of(record: Mapping[str, Any], work: Work) -> float:
    """What is compared, in seconds: all epochs, or one of those after the first (their mean)."""
    steps = record["step_seconds"]
    return sum(steps) if work.compared == "all" else sum(steps[work.steps :]) / (work.epochs - 1)


def epoch_seconds(record: Mapping[str, Any], work: Work) -> list[float]:
    """Seconds of every epoch."""
    steps = record["step_seconds"]
    return [sum(steps[at : at + work.steps]) for at in range(0, len(steps), work.steps)]


class Runs:
    """The runs of one work: what is there already, and how the rest is made."""

    def __init__(self, name: str, work: Work, given: argparse.Namespace) -> None:
        self.name, self.work, self.given = name, work, given
        self.path: Path | None = given.json
        about = {**asdict(work), "threads": given.threads, "size": _size(given)}
        about = json.loads(json.dumps(about))
        old = (read_json(self.path) if self.path else {}).get("works", {}).get(name, {})
        if old.get("about") != about:
            old = {"about": about, "arms": {}, "limit": None, "workers": None}
        self.record: dict[str, Any] = old

    def keep(self) -> None:
        """Write what there is."""
        if self.path is not None:
            whole = read_json(self.path)
            works = {**whole.get("works", {}), self.name: self.record}
            write_json(self.path, {**whole, "works": works, "machine": describe_machine()})

    def finish(self, arms: Sequence[str]) -> None:
        """Run what is missing."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if self.record["limit"] is None or self._missing(arms):
                self._child("inputs", folder, folder)
            if self.record["limit"] is None:
                self.record["limit"] = self._child("limit", folder, folder)
                self.keep()
            for repeat, arm in take_turns(arms, self.work.repeats):
                self._run(arm, repeat, folder)

    def _missing(self, arms: Sequence[str]) -> bool:
        return any(len(self.record["arms"].get(arm, [])) < self.work.repeats for arm in arms)

    def _run(self, arm: str, repeat: int, folder: Path) -> None:
        runs = self.record["arms"].setdefault(arm, [])
        if len(runs) > repeat:
            return
        if self.record["workers"] is None and arm != "mmtune":
            self.record["workers"] = self._known_workers()
        if arm == "trainer" and self.record["workers"] is None:
            found = {workers: self._timed(f"trainer_{workers}", folder) for workers in (0, 2)}
            best = min(found, key=lambda workers: seconds_of(found[workers], self.work))
            tried = {str(workers): seconds_of(one, self.work) for workers, one in found.items()}
            self.record |= {"workers": best, "workers_tried": tried}
            runs.append(found[best])
        else:
            workers = self.record["workers"] or 0
            plain = arm in ("mmtune", "mmtune_without_cache", "trainer_kept")
            runs.append(self._timed(arm if plain else f"{arm}_{workers}", folder))
        self.keep()
        seconds = seconds_of(runs[-1], self.work)
        print(f"{self.name} {arm} {repeat + 1}/{self.work.repeats}: {seconds:.2f} s", file=sys.stderr, flush=True)

    def _known_workers(self) -> int | None:
        """What was faster in an earlier work, or what was asked for."""
        if self.given.workers != "try":
            return int(self.given.workers)
        works = (read_json(self.path) if self.path else {}).get("works", {})
        same = [one for one in works.values() if one["about"]["size"] == _size(self.given) and one.get("workers_tried")]
        return same[0]["workers"] if same else None

    def _timed(self, arm: str, folder: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            return self._child(arm, folder, Path(own))

    def _child(self, arm: str, folder: Path, own: Path, *options: str) -> Any:
        """One arm in a process of its own."""
        given = ["--arm", arm, "--folder", str(folder), "--own", str(own), *options]
        command = [sys.executable, str(Path(__file__).resolve()), self.name, *given, *_size_options(self.given)]
        threads = str(self.given.threads)
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(own / "datasets"), "TOKENIZERS_PARALLELISM": "false"}
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **offline}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{self.name}, {arm}: failed\n{done.stderr[-4000:]}")
        line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith(MARK))
        return json.loads(line.removeprefix(MARK))

    def profile(self, arms: Sequence[str]) -> None:
        """A table of where the time goes, for each arm, beside the results."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self._child("inputs", folder, folder)
            for arm in arms:
                whole = arm if arm in ("mmtune", "trainer_kept") else f"{arm}_0"
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    text = self._child(whole, folder, Path(own), "--profile")
                path = (self.path.parent if self.path else RESULTS) / f"profile_{self.name}_{arm}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                head = f"{self.work.title}; {arm}; {describe_machine()['device']}; one epoch of {self.work.steps} steps"
                path.write_text(f"{head}\n\n{text}\n", encoding="utf-8")
                print(f"written: {path.name}", file=sys.stderr)


def _size(given: argparse.Namespace) -> str:
    return "tiny" if given.tiny else "quick" if given.quick else "whole"


def _size_options(given: argparse.Namespace) -> list[str]:
    named = [f"--{name}" for name in ("tiny", "quick") if getattr(given, name)]
    return [*named, *(["--steps", str(given.steps)] if given.steps else [])]


def in_this_process(given: argparse.Namespace, work: Work) -> Any:
    """What a child does."""
    from scripts.benchmarks import made_inputs, operation_limit, timed_arms

    if given.arm == "inputs":
        made_inputs.make_data(given.folder, work)
        made_inputs.save_model(given.folder / "model", work)
        return None
    if given.arm == "limit":
        return operation_limit.measure_limit(given.folder, work)
    run = timed_arms.profile_arm if given.profile else timed_arms.run_arm
    return run(given.arm, given.folder, work, given.own)


def share_of(record: Mapping[str, Any], work: Work, arm: str = "mmtune", kind: str = "layers") -> float:
    """The limit over an arm's median seconds of a step after the first epoch."""
    steps = [one for run in record["arms"][arm] for one in run["step_seconds"][work.steps :]]
    return float(record["limit"]["seconds"][kind] / statistics.median(steps))


def summary(record: Mapping[str, Any], work: Work) -> list[list[str]]:
    """The rows of one work, an arm each, under ``HEADS``."""
    rows = []
    ours = record["arms"].get("mmtune", [])
    for arm in (arm for arm in EVERY_ARM if record["arms"].get(arm)):
        runs = record["arms"][arm]
        times = [seconds_of(one, work) for one in runs]
        epochs = work.epochs if work.compared == "all" else 1
        samples = work.steps * work.batch * epochs
        count = min(len(runs), len(ours))
        ratio = compare(times[:count], [seconds_of(one, work) for one in ours[:count]]) if count else None
        rows.append(
            [
                arm,
                f"{statistics.median(times) / epochs:.2f}",
                "" if ratio is None or arm == "mmtune" else str(ratio),
                f"{samples / statistics.median(times):.2f}",
                f"{runs[-1]['losses'][-1]:.6f}",
                _difference(runs, ours),
                f"{max(one['peak'] for one in runs) / MIB:,.0f}",
                " / ".join(f"{share_of(record, work, arm, kind):.0%}" for kind in ("layers", "strict")),
            ]
        )
    return rows


HEADS = (
    "arm",
    "s per epoch",
    "times mmtune's (range)",
    "samples/s",
    "final loss",
    "largest difference of a step's loss",
    "peak MiB",
    "share of the limit (layers / strict)",
)


def _difference(runs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> str:
    if not ours or runs is ours:
        return ""
    pairs = zip(runs[-1]["losses"], ours[-1]["losses"], strict=True)
    return f"{max(abs(one - other) for one, other in pairs):.1e}"


def works_of(given: argparse.Namespace) -> Iterator[tuple[str, Work]]:
    """The works that were named, in the size that was asked for."""
    from dataclasses import replace

    for name in WORKS if given.work == "all" else [given.work]:
        work = choose(name, is_quick=given.quick, is_tiny=given.tiny)
        if given.steps:
            work = replace(work, images=max(1, given.steps * work.batch // work.captions))
        yield name, replace(work, repeats=given.repeats or work.repeats)


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="mmtune beside its peers")
    parser.add_argument("work", choices=("all", *WORKS))
    parser.add_argument("--arms", nargs="+", choices=EVERY_ARM, help="instead of the work's own")
    parser.add_argument("--steps", type=int, help="steps of an epoch, instead of the work's own")
    parser.add_argument("--repeats", type=int, help="paired runs, instead of the work's own number")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", choices=("0", "2", "try"), default="try", help="loader processes of the peers")
    parser.add_argument("--quick", action="store_true", help="fewer steps and repeats: under 12 minutes")
    parser.add_argument("--tiny", action="store_true", help="models of width 32: does it run at all")
    parser.add_argument("--json", type=Path, help="keep every run here, and go on from what is there")
    parser.add_argument("--profile", action="store_true", help="write where the time goes instead")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--own", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure and print."""
    given = read_arguments()
    if given.arm:
        record = in_this_process(given, next(works_of(given))[1])
        print(MARK + json.dumps(record), flush=True)
        return
    for name, work in works_of(given):
        runs, arms = Runs(name, work, given), fitting_arms(given.arms or ("mmtune", "trainer", *work.peers), work)
        if given.profile:
            runs.profile([arm for arm in arms if arm in ("mmtune", "trainer")])
            continue
        runs.finish(arms)
        limit = runs.record["limit"]
        print(f"\n{work.title}: batch {work.batch}, {work.steps} steps x {work.epochs} epochs; ", end="")
        print(f"{limit['rate'] / 1e9:.0f} GFLOP/s; {runs.record['workers'] or 0} loader processes of the peers\n")
        print(table(HEADS, summary(runs.record, work)), flush=True)


if __name__ == "__main__":
    main()
