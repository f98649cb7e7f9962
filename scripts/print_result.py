"""Print what a run changed, base beside tuned, and the files worth opening.

    python scripts/print_result.py runs/quickstart

Reads scores.json and manifest.json of the run folder; needs nothing but Python.
"""

import json
import sys
from pathlib import Path

FILES = {
    "retrievals.png": "queries, what the base finds for them and what the tuned model finds",
    "curves.png": "loss and scores over the run",
    "scores.json": "every score of base and tuned, with the interval of the difference",
    "ranks.jsonl": "the rank of the right answer, query by query",
    "metrics.jsonl": "one line per logged step",
    "manifest.json": "what ran, on which weights, for how long",
    "recipe.resolved.json": "the recipe with every default written out",
    "merged": "the tuned model as a plain folder: transformers loads it without mmtune",
    "merged/merge_report.json": "the proof that the merged folder is the tuned model",
}


def score_rows(scores: dict) -> list[str]:
    """One line per score: name, base, tuned, difference, 95 % interval where there is one."""
    rows = []
    for name, base in scores["base"].items():
        tuned = scores["tuned"][name]
        interval = scores.get("interval95", {}).get(name)
        span = f"   95 % [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
        rows.append(f"  {name:<34}{base:>9.3f} -> {tuned:<9.3f}{tuned - base:+9.3f}{span}")
    return rows


def describe(run: Path) -> str:
    """The whole report as text."""
    scores = json.loads((run / "scores.json").read_text())
    manifest = json.loads((run / "manifest.json").read_text())
    trained = manifest.get("trainable", {})
    lines = ["", f"== {run}: base -> tuned on the {scores['samples']:,} samples of the {scores['split']} split"]
    lines += score_rows(scores)
    if trained:
        lines.append(f"  trained {trained['count']:,} of the weights ({100 * trained['share']:.2f} %)")
    if manifest.get("seconds"):
        lines.append(f"  in {manifest['seconds']:.0f} s of training")
    lines += ["", "Files to open:"]
    lines += [f"  {run / name}   {what}" for name, what in FILES.items() if (run / name).exists()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe(Path(sys.argv[1])))
