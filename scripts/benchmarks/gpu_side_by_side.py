"""The comparison on a GPU, in one script that fits in ten minutes: bf16, batches that fill the card, share of its peak.

    python scripts/benchmarks/gpu_side_by_side.py --json scripts/benchmarks/results/gpu_side_by_side.json
    python scripts/benchmarks/gpu_side_by_side.py --dry-run              # its logic, on the CPU at tiny size

CLIP ViT-B/32 and ViT-L/14 with LoRA in the last 4 layers of both towers, and ViT-B/32 with LoRA in all. The batch is
doubled until a step of stock peft no longer fits into four fifths of the card's memory, or holds 1,024; both take the
same, with eight loader processes each. They train on the same files, each in a process of its own, and the epoch after
the first is compared. The peak is that of bf16 matrix products measured on this card, and the share is of the
operations that the trained part needs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]

from scripts.benchmarks.paired_timing import compare, describe_machine, measure_rate, publish, table  # noqa: E402
from scripts.benchmarks.work_table import WORKS, Work  # noqa: E402

NAMES = ("clip_last4", "clip_large_last4", "clip_all")
LARGEST, STEPS, SHARE = 1_024, 4, 0.8
WORKERS = 8
ARMS = (f"trainer_{WORKERS}", f"mmtune_{WORKERS}")
BUDGET = 9 * 60
PEAK_SIZES = [(8_192, 8_192, 8_192)]
MARK = "RECORD "


def work_for(name: str, batch: int, dry_run: bool) -> Work:
    """The work at a batch size, two epochs of ``STEPS`` steps."""
    work = WORKS[name]
    if dry_run:
        work = replace(work, model="tiny", layers="last 1" if work.layers != "all" else "all")
    steps = 2 if dry_run else STEPS
    return replace(work, batch=batch, images=batch * steps, repeats=1)


def fits(name: str, batch: int, dry_run: bool) -> bool:
    """Whether a step of stock peft with random inputs stays within the share of the card's memory."""
    import torch

    from scripts.benchmarks.lora_overhead import make_inputs
    from scripts.benchmarks.made_inputs import make_clip
    from scripts.benchmarks.peer_trainer import target_names

    if dry_run:
        return batch <= 4
    import peft

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model, _ = make_clip(WORKS[name].model)
    model.requires_grad_(False)
    peft.inject_adapter_in_model(peft.LoraConfig(r=8, target_modules=target_names(model, WORKS[name])), model)
    model.cuda()
    try:
        inputs = {key: value.cuda() for key, value in make_inputs(model.config, batch).items()}
        with torch.autocast("cuda", torch.bfloat16):
            model(**inputs, return_loss=True).loss.backward()
    except torch.cuda.OutOfMemoryError:
        return False
    return torch.cuda.max_memory_allocated() <= SHARE * torch.cuda.get_device_properties(0).total_memory


def largest_batch(name: str, dry_run: bool) -> int:
    """Doubled from 2 (dry) or 64 as long as it fits."""
    batch = 2 if dry_run else 64
    while batch * 2 <= LARGEST and fits(name, batch * 2, dry_run):
        batch *= 2
    return batch


def measure_arm(arm: str, folder: Path, work: Work, own: Path, dry_run: bool) -> dict[str, Any]:
    """One arm in this process, in bf16 on a GPU; memory is the card's."""
    import torch

    from scripts.benchmarks import made_inputs, operation_limit, peer_trainer, timed_arms

    if arm == "inputs":
        made_inputs.make_data(folder, work)
        made_inputs.save_model(folder / "model", work)
        return {}
    if arm == "limit":
        return operation_limit.measure_limit(folder, work, rate=1.0)
    if not dry_run:
        timed_arms.RECIPE = timed_arms.RECIPE.replace("precision: fp32", "precision: bf16")
        plain = peer_trainer.arguments
        peer_trainer.arguments = lambda *args, **own: plain(*args, **own, bf16=True)
    record = timed_arms.run_arm(arm, folder, work, own)
    return {**record, "peak": record["peak"] if dry_run else torch.cuda.max_memory_allocated()}


def in_fresh_process(arm: str, folder: Path, own: Path, name: str, batch: int, dry_run: bool) -> Any:
    """``measure_arm`` in a process of its own."""
    given = ["--arm", arm, "--folder", str(folder), "--own", str(own), "--name", name, "--batch", str(batch)]
    command = [sys.executable, str(Path(__file__).resolve()), *given, *(["--dry-run"] if dry_run else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name}, {arm}: failed\n{done.stderr[-3000:]}")
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith(MARK))
    return json.loads(line.removeprefix(MARK))


def measure_work(name: str, dry_run: bool) -> dict[str, Any]:
    """Batch, both arms, and what the trained part needs."""
    batch = in_fresh_process("batch", Path("."), Path("."), name, 0, dry_run)
    found: dict[str, Any] = {"batch": batch, "arms": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        in_fresh_process("inputs", folder, folder, name, batch, dry_run)
        found["limit"] = in_fresh_process("limit", folder, folder, name, batch, dry_run)
        for arm in ARMS:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                found["arms"][arm] = in_fresh_process(arm, folder, Path(own), name, batch, dry_run)
    return found


def row_of(name: str, found: dict[str, Any], peak: float, dry_run: bool) -> list[str]:
    """Samples per second of both after the first epoch, the ratio, shares of the peak, memory."""
    work = work_for(name, found["batch"], dry_run)
    steps = {arm: record["step_seconds"][work.steps :] for arm, record in found["arms"].items()}
    ratio = compare(*(steps[arm] for arm in ARMS))
    needed = found["limit"]["operations"]["layers"]
    speeds = [f"{work.batch * len(steps[arm]) / sum(steps[arm]):,.0f}" for arm in ARMS]
    shares = [f"{needed * len(steps[arm]) / sum(steps[arm]) / peak:.1%}" for arm in ARMS]
    memory = [f"{found['arms'][arm]['peak'] / 2**30:.1f}" for arm in ARMS]
    losses = [found["arms"][arm]["losses"][-1] for arm in ARMS]
    return [name, str(work.batch), *speeds, str(ratio), *shares, *memory, f"{abs(losses[0] - losses[1]):.1e}"]


HEADS = (
    "work",
    "batch",
    "Trainer samples/s",
    "mmtune samples/s",
    "times (steps' range)",
    "Trainer of the peak",
    "mmtune of the peak",
    "Trainer GiB",
    "mmtune GiB",
    "losses apart",
)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="the comparison on a GPU")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at tiny size: the logic alone")
    parser.add_argument("--json", type=Path)
    for hidden in ("--arm", "--name"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=0, help=argparse.SUPPRESS)
    for hidden in ("--folder", "--own"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def refuse_without_gpu(dry_run: bool) -> str:
    """The card's name.

    Raises:
        SystemExit: there is none.
    """
    import torch

    if dry_run:
        return "CPU (dry run)"
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here that torch can use; try the logic with --dry-run")
    return torch.cuda.get_device_name(0)


def main() -> None:
    """Measure and print."""
    given = read_arguments()
    if given.arm == "batch":
        print(MARK + json.dumps(largest_batch(given.name, given.dry_run)))
        return
    if given.arm:
        work = work_for(given.name, given.batch, given.dry_run)
        print(MARK + json.dumps(measure_arm(given.arm, given.folder, work, given.own, given.dry_run)))
        return
    card, started = refuse_without_gpu(given.dry_run), time.perf_counter()
    sizes = [(64, 64, 64)] if given.dry_run else PEAK_SIZES
    kind, place = ("float32", "cpu") if given.dry_run else ("bfloat16", "cuda")
    record: dict[str, Any] = {"peak": measure_rate(sizes, kind, place), "works": {}}
    record |= {"machine": describe_machine(card), "dry_run": given.dry_run}
    rows = []
    for name in NAMES:
        if time.perf_counter() - started > BUDGET * 2 / 3:
            print(f"{name}: left out, the ten minutes are nearly over", file=sys.stderr)
            continue
        record["works"][name] = measure_work(name, given.dry_run)
        rows.append(row_of(name, record["works"][name], record["peak"], given.dry_run))
    record["rows"] = rows
    shown = f"{card}: {record['peak'] / 1e12:.1f} TFLOP/s in matrix products\n\n{table(HEADS, rows)}"
    publish(record, given.json, shown)


if __name__ == "__main__":
    main()
