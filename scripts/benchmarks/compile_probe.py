"""Whether torch.compile pays: LoRA in all layers of CLIP, compiled beside as it is, steps taking turns.

    python scripts/benchmarks/compile_probe.py --json scripts/benchmarks/results/compile_probe.json
    python scripts/benchmarks/compile_probe.py --tiny                    # does it run at all

Both are the same model object with stock peft; a step is forward, CLIP's loss, backward, on decoded tensors of one
shape, so that nothing is compiled twice. Without a C++ compiler there is nothing to measure on a CPU, which is said.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]

import torch  # noqa: E402

from scripts.benchmarks.lora_overhead import make_inputs, make_model, with_lora  # noqa: E402
from scripts.benchmarks.paired_timing import compare, publish, read_arguments, table, time_paired  # noqa: E402


def step_of(model: Any, trained: Any, inputs: dict[str, Any]) -> float:
    """Forward and backward; the gradients of ``trained`` are thrown away again."""
    loss = model(**inputs, return_loss=True).loss
    loss.backward()
    trained.zero_grad(set_to_none=True)
    return float(loss.detach())


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds to compile, seconds of each step, and how far the losses lie apart."""
    model = with_lora(make_model(given.tiny), layers="all")
    inputs = make_inputs(model.config, given.batch)
    compiled = torch.compile(model)
    started = time.perf_counter()
    losses = [step_of(model, model, inputs)]
    plain = time.perf_counter() - started
    started = time.perf_counter()
    losses.append(step_of(compiled, model, inputs))
    first = time.perf_counter() - started
    arms = {
        "as it is": lambda: step_of(model, model, inputs),
        "compiled": lambda: step_of(compiled, model, inputs),
    }
    seconds = time_paired(arms, given.repeats)
    return {"seconds": seconds, "compile_seconds": first - plain, "difference": abs(losses[0] - losses[1])}


def main() -> None:
    """Measure and print."""
    given = read_arguments("torch.compile beside none", 8)
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        publish({"skipped": "no C++ compiler here"}, given.json, "no C++ compiler here: nothing to measure on a CPU")
        return
    found = measure(given)
    ratio = compare(found["seconds"]["as it is"], found["seconds"]["compiled"])
    rows = [[name, f"{min(times):.2f}", f"{max(times):.2f}"] for name, times in found["seconds"].items()]
    shown = table(("step", "least s", "most s"), rows)
    shown += f"\n\nas it is / compiled: {ratio}; {found['compile_seconds']:.0f} s to compile; "
    shown += f"losses {found['difference']:.1e} apart"
    saved = max(1e-9, min(found["seconds"]["as it is"]) - min(found["seconds"]["compiled"]))
    steps = found["compile_seconds"] / saved
    shown += f"; pays after {steps:,.0f} steps" if ratio.median > 1 else "; never pays"
    publish({**found, "ratio": vars(ratio), "batch": given.batch}, given.json, shown)


if __name__ == "__main__":
    main()
