"""A small image-text data set and a recipe on a tiny twin, for tests that train for a few steps."""

import json
import socket
from pathlib import Path
from typing import Any

from PIL import Image

from mmtune.recipe_schema import Recipe, load_recipe


def write_pairs(folder: Path, num: int = 24) -> Path:
    """Pictures of one colour each, with two captions; every fourth is for validation or test."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num):
        name = f"{number}.png"
        colour = (number * 10 % 256, 255 - number * 9 % 256, number * 37 % 256)
        Image.new("RGB", (40, 36), colour).save(folder / "images" / name)
        split = {2: "val", 3: "test"}.get(number % 4, "train")
        captions = [f"picture {number}", f"the colour of number {number}"]
        rows.append({"image": name, "caption": captions, "split": split})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small_recipe(folder: Path, backbone: Path, *overrides: str, **sections: dict[str, Any]) -> Recipe:
    """A recipe of four steps on the pairs in ``folder``; ``sections`` replace keys of a section."""
    table = folder / "pairs.jsonl"
    if not table.exists():
        write_pairs(folder)
    recipe: dict[str, dict[str, Any]] = {
        "backbone": {"id": str(backbone)},
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "parts": ["vision", "text"], "targets": ["attention"]},
        "data": {
            "kind": "jsonl",
            "path": str(table),
            "images": str(folder / "images"),
            "splits": {"train": "train", "validation": "val", "test": "test"},
        },
        "task": {"kind": "retrieval", "loss": {"kind": "infonce"}},
        "train": {"length": "4 steps", "batch": 4, "learning_rate": 0.01, "log_every": "1 steps", "precision": "fp32"},
        "checkpoint": {"every": "2 steps", "keep": 2},
    }
    for section, values in sections.items():
        recipe[section] = {**recipe[section], **values}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**recipe, "output": str(folder / "run"), "seed": 1}))
    return load_recipe(path, overrides)


def free_port() -> int:
    """A port of this machine that nobody listens on, for ranks to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
