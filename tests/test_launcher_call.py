"""Options after ``--`` reach ``accelerate launch`` as they are; ours reach ``finetune``."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmtune import command_line, launcher_call
from mmtune.ground.errors import RecipeError
from mmtune.launcher_call import ASKED, launch, launcher_command, refuse_fewer_ranks, split_arguments

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

    def replace_process(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        seen.append((program, arguments))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", replace_process)
    assert call(monkeypatch, "finetune", RECIPE, "seed=3", "--restart", "--tiny", "--", "--num_processes", "2") == 0
    ours = [RECIPE, "seed=3", "--restart", "--tiny"]
    assert seen == [(sys.executable, launcher_command(ours, ["--num_processes", "2"]))]


def test_a_recipe_mistake_is_found_before_processes_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("a launcher was started"))
    assert call(monkeypatch, "finetune", RECIPE, "train.batsh=3", "--", "--num_processes", "2") == 2
    assert "did you mean batch?" in capsys.readouterr().err


def test_other_commands_have_no_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "check", RECIPE, "--", "--num_processes", "2") == 2
    assert "which only finetune has" in capsys.readouterr().err


def test_a_launcher_inside_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(RecipeError, match="a launcher's process already"):
        launch([RECIPE], ["--num_processes", "2"])


def test_an_option_that_is_the_launcher_s_is_told_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "finetune", RECIPE, "--num_processes", "2") == 2
    said = capsys.readouterr().err
    assert "finetune has no option --num_processes" in said and "-- --num_processes ..." in said
    assert call(monkeypatch, "finetune", RECIPE, "--resume=auto", "--print-resolved", "--tiny", "--help") == 0


@pytest.mark.parametrize(
    ("given", "ranks", "fits"),
    [
        (["--num_processes", "2"], "1", False),
        (["--multi_gpu", "--num_processes=4"], "2", False),
        (["--num-processes", "2"], "2", True),
        (["--mixed_precision", "no"], "1", True),
    ],
)
def test_fewer_processes_than_asked_for_stop(
    monkeypatch: pytest.MonkeyPatch, given: list[str], ranks: str, fits: bool
) -> None:
    """accelerate takes a machine without GPUs for a single process, and says nothing."""
    handed_on: dict[str, str] = {}
    monkeypatch.setattr(os, "execve", lambda *called: handed_on.update(called[2]))
    launch([RECIPE], given)
    monkeypatch.setenv(ASKED, handed_on[ASKED])
    monkeypatch.setenv("WORLD_SIZE", ranks)
    if fits:
        refuse_fewer_ranks()
        return
    with pytest.raises(RecipeError, match="--multi_gpu"):
        refuse_fewer_ranks()


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


@pytest.mark.parametrize(
    ("way", "code", "said"),
    [
        ("nothing", 0, ""),
        ("asked", 143, ""),
        ("one", 2, ""),
        ("one killed", 137, "the run was ended by SIGKILL"),
        ("ranks", 2, ""),
        ("rank killed", 137, "rank 1 was ended by SIGKILL"),
    ],
)
def test_a_launch_ends_with_the_code_of_its_run_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str, code: int, said: str
) -> None:
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    failure = {"ranks": 2, "rank killed": -9}.get(way, 1)
    raised: dict[str, Exception] = {
        "asked": SignalException("asked", signal.SIGTERM),
        "one": subprocess.CalledProcessError(2, "finetune"),
        "one killed": subprocess.CalledProcessError(-9, "finetune"),
        "ranks": ChildFailedError("finetune", {1: ProcessFailure(1, 10, failure, "none")}),
        "rank killed": ChildFailedError("finetune", {1: ProcessFailure(1, 10, failure, "none")}),
    }

    def ended() -> None:
        if way in raised:
            raise raised[way]

    monkeypatch.setattr(accelerate_launch, "main", ended)
    assert launcher_call.main() == code
    assert capsys.readouterr().err.strip() == said


def test_sigterm_to_a_launch_of_two_ranks_ends_with_143(tmp_path: Path) -> None:
    """No traceback, no process left, and what was asked for is said once."""
    changes = [
        "train.length=100000 steps",
        "train.workers=0",
        "checkpoint.every=100000 steps",
        f"output={tmp_path}/run",
    ]
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command = [sys.executable, "-m", "mmtune.command_line", "finetune", RECIPE, *changes, "--tiny", "--", *options]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "said", "w") as said:
        launched = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
    rows = tmp_path / "run_tiny" / "metrics.jsonl"
    deadline = time.monotonic() + 280
    try:
        while not (rows.exists() and '"step": 2,' in rows.read_text()):
            assert launched.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.1)
        launched.terminate()
        assert launched.wait(timeout=120) == 143
        with pytest.raises(ProcessLookupError):
            os.killpg(launched.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launched.pid, signal.SIGKILL)
    text = (tmp_path / "said").read_text()
    assert "Traceback" not in text and text.count("stopped by SIGTERM") == 1
    assert "stopped by SIGTERM" in (tmp_path / "run_tiny" / "run.log").read_text()
