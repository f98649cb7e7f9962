"""Signals to real processes; that a stopped run goes on bit for bit stands in `test_exact_resume`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_runs import small_recipe

from mmtune.ground.stop_signals import LAUNCHERS, StopSignals

ROOT = Path(__file__).resolve().parents[1]
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
BOUND = 150
"""Seconds after which a process is taken to hang; importing takes most of what it needs, on a busy machine too."""


@pytest.mark.parametrize(
    ("way", "code", "said"),
    [
        ("twice", 143, ["heard 15"]),
        ("repeated", 0, ["heard 15", "still here"]),
        ("worker", 143, ["deaf"]),
    ],
)
def test_the_second_signal_ends_at_once_and_a_repeated_one_does_not(way: str, code: int, said: list[str]) -> None:
    command = [sys.executable, str(ROOT / "tests" / "launched" / "signalled_process.py"), way]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=BOUND
    )
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (code, said, "")


def test_nothing_is_heard_in_another_thread() -> None:
    """Python lets only the main thread hear signals; a run in a notebook's thread must start all the same."""
    seen = []

    def listen() -> None:
        with StopSignals().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_orphan_of_a_launcher_asks_itself_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("mmtune.ground.stop_signals._parent", -1)
    assert StopSignals().agreed() == 0, "a shell that is closed is no launcher: the run goes on"
    monkeypatch.setenv(LAUNCHERS[0], "no")
    assert StopSignals().agreed() == signal.SIGTERM
    monkeypatch.setattr("mmtune.ground.stop_signals._parent", os.getppid())
    assert StopSignals().agreed() == 0


def wait_for(what: str, path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + BOUND
    while not (path.exists() and what in path.read_text()):
        assert process.poll() is None or path.exists(), process.communicate()
        assert time.monotonic() < deadline, f"{what!r} did not come"
        time.sleep(0.05)


def test_ending_the_launcher_stops_the_run_with_a_checkpoint(tmp_path: Path, tiny_clip_folder: Path) -> None:
    """`accelerate launch` of one process passes SIGTERM on to nobody: the run notices that it is alone."""
    train = {"length": "100000 steps", "workers": 1, "schedule": "constant"}
    small_recipe(tmp_path, tiny_clip_folder, "checkpoint.every=100000 steps", train=train)
    run = tmp_path / "run"
    entry = str(ROOT / "mmtune" / "finetune.py")
    overrides = ["checkpoint.every=100000 steps"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        [ACCELERATE, "launch", entry, str(tmp_path / "recipe.yaml"), *overrides],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for('"step": 3,', run / "metrics.jsonl", launcher)
        launcher.terminate()
        wait_for("stopped by SIGTERM after step", run / "run.log", launcher)
        wait_for('"stopped"', run / "manifest.json", launcher)
        _, err = launcher.communicate(timeout=BOUND)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "stopped" and manifest["steps"] >= 3
    assert (run / "checkpoints" / f"step-{manifest['steps']:06d}" / "MANIFEST.json").is_file()
    assert "Traceback" not in err and "and the same command goes on from it" in err
