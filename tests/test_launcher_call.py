"""Options after ``--`` reach ``accelerate launch`` as they are; ours reach ``finetune``."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmtune import command_line
from mmtune.ground.errors import RecipeError
from mmtune.launcher_call import launch, launcher_command, split_arguments

ROOT = Path(__file__).resolve().parents[1]
RECIPE = str(ROOT / "recipes" / "quickstart.yaml")


def test_the_first_separator_divides() -> None:
    assert split_arguments(["finetune", "x.yaml", "--", "--num_processes", "2"]) == (
        ["finetune", "x.yaml"],
        ["--num_processes", "2"],
    )
    assert split_arguments(["finetune", "x.yaml"]) == (["finetune", "x.yaml"], [])
    assert split_arguments(["a", "--", "--b", "--", "c"]) == (["a"], ["--b", "--", "c"])


def test_ours_follow_the_module_and_theirs_precede_it() -> None:
    command = launcher_command(["x.yaml", "train.batch=8"], ["--num_processes", "2"])
    assert command[0] == sys.executable
    assert command[3:] == ["--num_processes", "2", "--module", "mmtune.finetune", "x.yaml", "train.batch=8"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mmtune", *arguments])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    return int(caught.value.code or 0)


def test_finetune_becomes_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def replace_process(program: str, arguments: list[str]) -> None:
        seen.append((program, arguments))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", replace_process)
    assert call(monkeypatch, "finetune", RECIPE, "seed=3", "--restart", "--tiny", "--", "--num_processes", "2") == 0
    ours = [RECIPE, "seed=3", "--restart", "--tiny"]
    assert seen == [(sys.executable, launcher_command(ours, ["--num_processes", "2"]))]


def test_a_recipe_mistake_is_found_before_processes_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("a launcher was started"))
    assert call(monkeypatch, "finetune", RECIPE, "train.batsh=3", "--", "--num_processes", "2") == 2
    assert "did you mean batch?" in capsys.readouterr().err


def test_other_commands_have_no_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "check", RECIPE, "--", "--num_processes", "2") == 2
    assert "which only finetune has" in capsys.readouterr().err


def test_a_launcher_inside_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(RecipeError, match="a launcher's process already"):
        launch([RECIPE], ["--num_processes", "2"])


def test_a_real_launch_passes_both_on() -> None:
    command = [sys.executable, "-m", "mmtune.command_line", "finetune", RECIPE, "seed=7", "--print-resolved"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--", "--num_processes", "1", "--mixed_precision", "no"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seed"] == 7
    broken = subprocess.run(
        [*command, "--", "--no_such_option"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert broken.returncode != 0 and "no_such_option" in broken.stderr
