"""Whole runs on the tiny twins of Chinese-CLIP, ALIGN, BLIP and BLIP-2: trained, judged alive, scored and loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small_recipe

from mmtune.backbones import Section, load, tiny_folder
from mmtune.evaluation_run import score
from mmtune.model_loading import load_model
from mmtune.recipe_schema import load_recipe
from mmtune.training_run import fit

LORA = {"kind": "lora", "rank": 4, "targets": ["attention", "mlp"]}
RUNS: dict[str, dict[str, Any]] = {
    "chinese_clip": {**LORA, "parts": ["vision", "text"], "layers": "last 1"},
    "align": {"kind": "full", "parts": ["vision", "text"], "temperature": True},
    "blip": {**LORA, "parts": ["vision", "text"]},
    "blip2": {**LORA, "parts": ["vision", "qformer"]},
}


@pytest.mark.parametrize("family", RUNS)
def test_a_run_of_four_steps(family: str, tmp_path: Path) -> None:
    twin = tiny_folder(family, tmp_path / "twin")
    small_recipe(tmp_path, twin)
    written = json.loads((tmp_path / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(json.dumps({**written, "adapter": RUNS[family]}))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    fit(recipe)
    rows = [json.loads(line) for line in (Path(recipe.output) / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 4 and all(loss == loss for loss in losses)
    assert score(recipe.output, split="test")["tuned"]
    base, tuned = load(Section(id=str(twin))), load_model(recipe.output)
    for name in base.traits.temperature:
        assert not base.model.get_parameter(name).equal(tuned.model.get_parameter(name)), "the temperature was trained"
    buffers = dict(tuned.model.named_buffers())
    assert not [name for name, value in base.model.named_buffers() if not torch.equal(value, buffers[name])]
