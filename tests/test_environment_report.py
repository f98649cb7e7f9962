"""What a bug report shows, and what it never shows."""

import getpass
import socket
from pathlib import Path

import pytest
import torch

from mmtune.environment_report import HIDDEN_SETTINGS, PACKAGES, as_markdown, describe_environment


def test_versions_hardware_and_flags_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    rows = dict(describe_environment())
    assert rows["torch"] == torch.__version__ and rows["OMP_NUM_THREADS"] == "3"
    assert set(PACKAGES) <= set(rows) and "cpu cores" in rows and "python" in rows
    assert as_markdown([("a", "1"), ("b", "2")]) == "- a: 1\n- b: 2"


def test_a_missing_package_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtune.environment_report.PACKAGES", ("no-such-package-here",))
    assert dict(describe_environment())["no-such-package-here"] == "not installed"


@pytest.mark.parametrize("name", HIDDEN_SETTINGS)
def test_no_value_of_a_hidden_setting_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "hf_planted/secret/place")
    text = as_markdown(describe_environment())
    assert "planted" not in text and f"- {name}: is set" in text
    monkeypatch.delenv(name)
    assert name not in as_markdown(describe_environment())


def test_no_path_user_or_host_is_told() -> None:
    text = as_markdown(describe_environment())
    assert str(Path.home()) not in text.split() and str(Path.cwd()) not in text
    assert socket.gethostname() not in text
    assert f"/{getpass.getuser()}/" not in text
