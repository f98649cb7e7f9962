"""What a run says: a bar with the facts on a terminal, plain lines elsewhere, and the same lines kept in `run.log`."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmtune.ground import run_log
from mmtune.ground.run_log import RunLog, describe_step

ROW: dict[str, Any] = {
    "step": 3,
    "loss": 1.25,
    "samples_per_second": 120.5,
    "data_wait": 0.07,
    "memory": 3 * 2**29,
}
FACTS = ("loss 1.2500", "120.5 samples/s", "data wait 7%", "memory 1.50 GiB", "left 2:05")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error, as it is captured, looks like a terminal of 80 columns."""
    monkeypatch.setattr(run_log, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    for name, value in {"COLUMNS": "80", "TERM": "xterm-256color", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)


def words(shown: str) -> str:
    """What a terminal would show, without colours, cursor moves and line ends."""
    return " ".join(re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown).split())


def test_the_facts_of_a_step() -> None:
    assert describe_step(ROW, 10, 125.9) == f"step 3/10  {'  '.join(FACTS)}"


def test_a_terminal_shows_a_bar_with_the_facts(
    tmp_path: Path, terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path)
    with log.progress(2, 10):
        log.step(ROW, 10, 125.0)
        log.line("quarantined x.png: cut short")
    log.line("finished")
    out, err = capsys.readouterr()
    assert all(fact in words(err) for fact in FACTS) and "3/10" in words(err)
    assert words(err).rfind("━") > words(err).find("quarantined x.png: cut short") > 0, "the bar stays below the line"
    assert out == "finished\n", "after the bar lines are plain again"
    kept = (tmp_path / "run.log").read_text().splitlines()
    assert kept == [describe_step(ROW, 10, 125.0), "quarantined x.png: cut short", "finished"]


def test_elsewhere_there_are_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path)
    with log.progress(2, 10):
        log.step(ROW, 10, 125.0)
    out, err = capsys.readouterr()
    assert (out, err) == (describe_step(ROW, 10, 125.0) + "\n", "")
    assert (tmp_path / "run.log").read_text() == out


def test_the_bar_is_gone_after_an_error(tmp_path: Path, terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path)
    with pytest.raises(ValueError), log.progress(0, 10):
        raise ValueError
    log.line("after")
    assert capsys.readouterr().out == "after\n"


def test_only_the_main_rank_speaks_and_writes(
    tmp_path: Path, terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_log, "is_main", lambda: False)
    log = RunLog(tmp_path / "run")
    with log.progress(0, 10):
        log.step(ROW, 10, 1.0)
        log.metrics(ROW)
        log.line("quiet")
        log.cut_after(1)
    assert capsys.readouterr() == ("", "") and not (tmp_path / "run").exists()


def test_rows_beyond_a_step_are_cut_and_so_is_a_row_that_a_kill_cut_off(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.metrics({"step": step, "loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    log.cut_after(3)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_a_number_that_is_not_finite_is_no_metric(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunLog(tmp_path).metrics({"step": 1, "loss": float("nan")})
