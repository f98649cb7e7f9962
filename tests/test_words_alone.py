"""Conversations in words alone among those with images: a step that shows nothing says nothing about a vision part."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmtune import fit
from mmtune.backbones import tiny_folder
from mmtune.ground.errors import TrainingError
from mmtune.ground.safe_files import read_json
from mmtune.recipe_schema import Recipe, load_recipe

NUM = 8


def recipe_of(folder: Path, with_image: set[int], steps: int) -> Recipe:
    """Short talks in words alone, and long ones with an image, grouped by length; vision and text are trained."""
    Image.new("RGB", (32, 32), (200, 30, 90)).save(folder / "one.png")
    rows = []
    for number in range(NUM):
        shows = number in with_image
        asked = {"from": "human", "value": "<image>what is it?" if shows else "hello"}
        said = {"from": "gpt", "value": f"{number} is it"}
        rows.append({"conversations": [asked, said], **({"image": "one.png"} if shows else {})})
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "backbone": {"id": str(tiny_folder("chat", folder / "tiny", model_type="llava"))},
        "adapter": {"kind": "lora", "rank": 2, "parts": ["vision", "text"], "targets": ["attention"]},
        "data": {"kind": "conversations", "path": {"train": str(folder / "talks.jsonl")}},
        "task": {"kind": "chat"},
        "train": {"length": f"{steps} steps", "batch": 1, "learning_rate": 1e-2, "warmup": "0 steps"},
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(values))
    return load_recipe(folder / "recipe.yaml")


def test_a_vision_part_is_judged_by_steps_that_show_something(tmp_path: Path) -> None:
    run = fit(recipe_of(tmp_path, {0}, 3 * NUM))
    assert read_json(run / "manifest.json")["steps"] == 3 * NUM
    (table,) = (line for line in (run / "run.log").read_text().splitlines() if "vision" in line and "8/8" in line)
    assert float(table.split()[-3]) > 0, "its gradient"


def test_a_part_that_nothing_ever_reaches_is_dead_as_before(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="after 3 updates .*\n?.*part 'vision': no gradient reaches it"):
        fit(recipe_of(tmp_path, set(), 6))
