"""A few-shot study on real pictures: the groups of emoji, drawn in black and white, with the embedded CLIP model.

    python scripts/study_fewshot.py .cache/emoji --output runs/fewshot_emoji
    python scripts/study_fewshot.py .cache/emoji --shots 1 2 --seeds 1 --steps-per-shot 2

The folder holds ``captions.jsonl`` (``id``, ``group``, ``split`` of every emoji) and the pictures of one look in
``images/high-contrast``. The model knows the names of printed characters and has never seen these drawings or the
groups' names. The settings are CLIP-LoRA's, with fewer steps per shot and a higher learning rate. Prints the table of
the README and draws ``fewshot.png``.
"""

import argparse
import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from mmtune.fewshot_run import fewshot  # noqa: E402
from mmtune.recipe_schema import Recipe, recipe_from_json  # noqa: E402
from mmtune.shot_report import METHODS  # noqa: E402

LOOK = "high-contrast"
FEWEST = 16
"""Groups with fewer training pictures are left out: they could not take part in the largest study."""


def write_table(data: Path, folder: Path) -> list[str]:
    """Write ``emoji.csv`` (image, category, split) and return the categories, sorted."""
    rows = [json.loads(line) for line in (data / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if (data / "images" / LOOK / f"{row['id']}.png").is_file()]
    counts = Counter(row["group"] for row in rows if row["split"] == "train")
    groups = sorted(group for group, number in counts.items() if number >= FEWEST)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "emoji.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "category", "split"])
        writer.writerows([f"{row['id']}.png", row["group"], row["split"]] for row in rows if row["group"] in groups)
    return groups


def make_recipe(data: Path, folder: Path, groups: list[str], learning_rate: float) -> Recipe:
    """CLIP-LoRA for the embedded model."""
    values: dict[str, Any] = {
        "backbone": {"id": "builtin:glyph-clip"},
        "adapter": {
            "kind": "lora",
            "rank": 2,
            "alpha": 1,
            "dropout": 0.25,
            "parts": ["vision", "text"],
            "targets": ["q_proj", "k_proj", "v_proj"],
            "temperature": False,
        },
        "data": {
            "kind": "jsonl",
            "path": str(folder / "emoji.csv"),
            "images": str((data / "images" / LOOK).resolve()),
            "caption": "category",
            "splits": {"train": "train", "test": "test"},
        },
        "task": {"kind": "classification", "classes": groups, "templates": ["{}"]},
        "train": {
            "length": "100 steps",
            "batch": 32,
            "learning_rate": learning_rate,
            "weight_decay": 0.01,
            "log_every": "100 steps",
            "max_grad_norm": None,
        },
        "output": str(folder / "run"),
        "seed": 1,
    }
    return recipe_from_json(values)


def as_markdown(result: dict[str, Any]) -> str:
    """The table of the README."""
    methods = [method for method in METHODS if method in result["summary"][0]]
    lines = ["| shots | " + " | ".join(METHODS[method] for method in methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for row in result["summary"]:
        cells = [row[method][result["score"]] for method in methods]
        lines.append(
            f"| {row['shots']} | " + " | ".join(f"{one['mean']:.3f} ± {one['std'] or 0:.3f}" for one in cells) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with captions.jsonl and images")
    parser.add_argument("--output", type=Path, default=Path("runs/fewshot_emoji"))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps-per-shot", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    given = parser.parse_args()
    groups = write_table(given.data, given.output)
    recipe = make_recipe(given.data, given.output, groups, given.learning_rate)
    result = fewshot(
        recipe, shots=given.shots, seeds=given.seeds, steps_per_shot=given.steps_per_shot, output=given.output
    )
    print(as_markdown(result))


if __name__ == "__main__":
    main()
