"""What README.md and CONTRIBUTING.md show works: recipes validate, commands parse, links lead somewhere."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHORT = ["train.length=4 steps", "train.batch=8", "train.micro_batch=null", "train.evaluate_every=null"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shown_commands() -> Iterator[list[str]]:
    """Arguments of every `mmtune` command in a shell block."""
    for block in blocks("sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["mmtune"]:
                yield words[1:]


def test_shown_recipes_are_recipes(tmp_path: Path) -> None:
    from mmtune.recipe_schema import load_recipe

    assert blocks("yaml")
    for block in blocks("yaml"):
        path = tmp_path / "shown.yaml"
        path.write_text(block)
        assert load_recipe(path).train.batch > 0


def parse(words: list[str]) -> Any:
    """Parse a command line without running it."""
    import typer

    from mmtune.command_line import app

    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    return command.make_context("mmtune", list(words))


def test_shown_commands_are_understood() -> None:
    shown = list(shown_commands())
    assert {words[0] for words in shown} >= {"recipes", "check", "evaluate", "merge", "predict"}
    for words in shown:
        assert parse(words)
    with pytest.raises(Exception, match="No such option"):
        parse(["merge", "runs/x", "--scales", "2"])


@pytest.mark.parametrize(("name", "text"), [("README.md", README), ("CONTRIBUTING.md", CONTRIBUTING)])
def test_links_lead_somewhere(name: str, text: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


CHECKS = """
import torch
assert str(run) == "runs/from_python"
assert scores["tuned"].keys() == scores["base"].keys()
ids = processor.tokenizer(["LATIN SMALL LETTER A"], return_tensors="pt")
with torch.no_grad():
    ours, theirs = (each.get_text_features(**ids).pooler_output for each in (tuned.model, model))
assert torch.allclose(ours, theirs, atol=1e-5), (ours - theirs).abs().max()
top = recall.compute(predictions=[[0.1, 0.9], [0.8, 0.2]], references=[[1], [1]], k=1)
assert top == {"text_to_image_recall": 0.5}, top
assert found.num_rows == 1 and found.ids.read_text().split('"')[1] == "white.png"
"""


def test_shown_python_runs(tmp_path: Path) -> None:
    """In a process of its own, as a user would run it, but for a few steps."""
    overrides = ", ".join(map(repr, ["output=runs/from_python", *SHORT, "data.characters=60"]))
    program = "".join(blocks("python")).replace('"output=runs/from_python"', overrides)
    assert overrides in program
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "white").save(tmp_path / "photos" / "white.png")
    (tmp_path / "shown.py").write_text(program + CHECKS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "shown.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_printed_result(tmp_path)


def check_printed_result(place: Path) -> None:
    """What scripts/quickstart prints at its end, on the run that is there now."""
    script = str(ROOT / "scripts" / "print_result.py")
    printed = subprocess.run(
        [sys.executable, "-I", script, "runs/from_python"], cwd=place, capture_output=True, text=True, check=True
    ).stdout
    scores = json.loads((place / "runs" / "from_python" / "scores.json").read_text())
    base, tuned = (scores[which]["text_to_image_recall@1"] for which in ("base", "tuned"))
    assert f"text_to_image_recall@1  {base:.3f} -> {tuned:.3f}" in printed
    named = re.findall(r"^  (runs/\S+)", printed, flags=re.MULTILINE)
    assert {Path(name).name for name in named} >= {"scores.json", "curves.png", "merged", "merge_report.json"}
    assert all((place / name).exists() for name in named)
