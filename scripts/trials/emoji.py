"""A trial on data that nobody here drew: `builtin:glyph-clip` learns emoji from a table, as a user's own data would be.

    python scripts/trials/emoji.py FOLDER
    python scripts/trials/emoji.py FOLDER --length "2 steps"      # does it run at all

FOLDER holds `captions.jsonl` (id, caption, split) and `images/high-contrast/ID.png`; it is not part of this
repository. The table with an image column and the runs go to `.cache/trials/emoji`. A run of another length has a
folder of its own; a finished one is not trained again.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import mmtune  # noqa: E402
from mmtune.metrics import retrieval_scores  # noqa: E402

CACHE = ROOT / ".cache" / "trials" / "emoji"
STYLE = "high-contrast"
SPLITS = ("train", "validation", "test")
LENGTH = "40 epochs"


def find_missing(folder: Path) -> str:
    """Why the trial cannot run; "" when it can."""
    if not folder.is_dir():
        return f"{folder} is no folder"
    for name in ("captions.jsonl", f"images/{STYLE}"):
        if not (folder / name).exists():
            return f"{folder} holds no {name}"
    return ""


def write_table(folder: Path, cache: Path) -> tuple[Path, Counter[str]]:
    """``emoji.jsonl``: id, caption, split and image of every emoji drawn in the style; and how many each split has."""
    rows, counts = [], Counter[str]()
    for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        image = f"{row['id']}.png"
        if (folder / "images" / STYLE / image).is_file():
            rows.append({**{key: row[key] for key in ("id", "caption", "split")}, "image": image})
            counts[row["split"]] += 1
        else:
            counts["without an image"] += 1
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / "emoji.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path, counts


def make_recipe(folder: Path, table: Path, length: str) -> Any:
    """The recipe, read through a file as a user's would be."""
    values = {
        "backbone": {"id": "builtin:glyph-clip"},
        "adapter": {"kind": "lora", "parts": ["vision", "text"], "targets": ["attention", "mlp"], "rank": 16,
                    "alpha": 32, "dropout": 0.1},
        "data": {"kind": "jsonl", "path": str(table), "images": str(folder.resolve() / "images" / STYLE), "id": "id",
                 "splits": {name: name for name in SPLITS}, "augment": {"crop": 0.8}},
        "task": {"kind": "retrieval", "loss": {"kind": "infonce"}},
        "train": {"length": length, "batch": 128, "learning_rate": 2e-3, "evaluate_every": "5 epochs"},
        "checkpoint": {"every": "5 epochs", "keep": 2},
        "output": str(table.parent / f"run-{length.replace(' ', '-')}"),
    }  # fmt: skip
    path = table.with_name("recipe.yaml")
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    return mmtune.load_recipe(path)


def describe(result: dict[str, Any], manifest: dict[str, Any], counts: Counter[str]) -> Iterator[str]:
    """Base and tuned with the interval of the change, and what was trained."""
    yield "| score | base | tuned | change | 95 % interval |"
    yield "|---|---|---|---|---|"
    for score in retrieval_scores():
        base, tuned, interval = (result[key][score.name] for key in ("base", "tuned", "interval95"))
        shown = "-" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"
        yield f"| {score.name} | {base:.3f} | {tuned:.3f} | {tuned - base:+.3f} | {shown} |"
    trained, data = manifest["trainable"], manifest["data"]
    yield ""
    yield f"- emoji: {', '.join(f'{count} {name}' for name, count in counts.items())}; style {STYLE}"
    yield f"- scored: test split, {result['images']} images, {result['texts']} captions, {result['bad']} bad"
    yield f"- steps: {manifest['steps']}, samples: {data['samples_trained']:,}, bad: {data['bad']}"
    yield f"- trained: {trained['count']:,} weights ({100 * trained['share']:.2f} %) in {manifest['seconds']:.0f} s"
    yield f"- checkpoint: {result['checkpoint']}, chosen by validation {manifest['validation']}"


def main() -> int:
    """Train, score and print; 0 also when the data is not there."""
    parser = argparse.ArgumentParser(description="adapt builtin:glyph-clip to emoji")
    parser.add_argument("folder", type=Path, help="the unpacked emoji: captions.jsonl and images")
    parser.add_argument("--length", default=LENGTH, help="length of the run")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the table and the runs go")
    given = parser.parse_args()
    if missing := find_missing(given.folder):
        print(f"skipped: {missing}; this trial's data is not shipped")
        return 0
    table, counts = write_table(given.folder, given.cache)
    run = mmtune.fit(make_recipe(given.folder, table, given.length))
    result = mmtune.score(run)
    manifest = json.loads((run / "manifest.json").read_text())
    print("\n" + "\n".join(describe(result, manifest, counts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
