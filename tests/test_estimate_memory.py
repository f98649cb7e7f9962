"""`scripts/estimate_memory.py`: sizes of the published models for the shipped recipes, or that it knows none."""

import json
import re
import sys
from pathlib import Path

import pytest

from mmtune.backbones import Section, describe
from mmtune.part_sizes import empty_model
from mmtune.recipe_schema import load_recipe

sys.path.append(str(Path(__file__).resolve().parents[1]))

from scripts.estimate_memory import IN_ARCHIVE, KNOWN, ROOT, config_of, main  # noqa: E402

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

PUBLISHED = {
    "Salesforce/blip2-opt-2.7b": 3.7,
    "google/gemma-3-4b-it": 4.3,
    "Qwen/Qwen3-VL-4B-Instruct": 4.4,
    "OpenGVLab/InternVL3-2B-hf": 2.1,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 0.5,
    "florence-community/Florence-2-base": 0.23,
    "google/paligemma-3b-pt-224": 2.9,
    "Salesforce/instructblip-vicuna-7b": 7.9,
}
"""Hub id -> billions of weights, as the models' pages and papers give them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_has_the_weights_of_the_published_model(name: str, tmp_path: Path) -> None:
    found = config_of(name)
    assert found is not None
    (tmp_path / "config.json").write_text(json.dumps(found[1]), encoding="utf-8")
    model = empty_model(describe(Section(id=str(tmp_path))))
    weights = sum(value.numel() for value in model.parameters()) / 1e9
    assert weights == pytest.approx(PUBLISHED[name], abs=0.5 * 10 ** (-2 if PUBLISHED[name] < 0.3 else -1))


def test_a_recipe_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(ROOT / "recipes" / "git_captioning_lora.yaml")]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^# Needs: an estimate, not run: 0\.18 B weights are 70\d\.\d MB in float32; training the", out, re.M
    )


def test_what_is_not_known_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "git_captioning_lora.yaml").read_text(encoding="utf-8")
    changed = tmp_path / "other.yaml"
    changed.write_text(text.replace("microsoft/git-base-coco", "someone/git-huge"), encoding="utf-8")
    assert main([str(changed)]) == 0
    assert capsys.readouterr().out == "other.yaml: not known here (someone/git-huge)\n"


def test_every_recipe_that_answers_has_a_known_size() -> None:
    recipes = [load_recipe(path) for path in RECIPES]
    names = {one.backbone.name for one in recipes if one.task.kind not in ("retrieval", "classification")}
    assert {name for name in names if not name.startswith("builtin:")} <= {*KNOWN, *IN_ARCHIVE}
