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


HEADLINE = ("text_to_image_recall@1", "image_to_text_recall@1")


def score_rows(scores: dict) -> list[str]:
    """One line per headline score: name, base, tuned, difference, 95 % interval of the difference."""
    rows = []
    for name in HEADLINE:
        base, tuned, (low, high) = scores["base"][name], scores["tuned"][name], scores["interval95"][name]
        rows.append(f"  {name}  {base:.3f} -> {tuned:.3f}  ({tuned - base:+.3f}, 95 % {low:+.3f} to {high:+.3f})")
    return rows


def describe(run: Path) -> str:
    """The whole report as text."""
    scores = json.loads((run / "scores.json").read_text())
    manifest = json.loads((run / "manifest.json").read_text())
    trained, seconds = manifest["trainable"], manifest["seconds"]
    found = {name: what for name, what in FILES.items() if (run / name).exists()}
    width = max(len(str(run / name)) for name in found)
    lines = [
        "",
        f"What changed: base -> tuned, on the {scores['split']} split, which the run did not train on",
        *score_rows(scores),
        f"  {trained['count']:,} weights trained ({100 * trained['share']:.2f} %), {seconds:.0f} s of training",
        "",
        "Files to open:",
        *(f"  {str(run / name):<{width}}  {what}" for name, what in found.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe(Path(sys.argv[1])))
