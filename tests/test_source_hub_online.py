"""The real client against a hub on this machine: fetched once at a commit, then from the cache; no code is run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_hub import COMMIT, NAME, content, data_hub

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys
from mmtune.ground.errors import DataError
from mmtune.sources.hub import Section, open_split
try:
    section = Section(kind="hub", id=sys.argv[1], caption="text", splits={"train": "train", "test": "test"})
    found = open_split(section, "train", seed=0)
    print(" ".join(sample.captions[0] for sample in found.samples), found.samples[0].media.read().mode, *found.notes)
except DataError as error:
    print("DataError", error)
"""


def last_line(folder: Path, address: str, name: str = NAME, **more: str) -> str:
    unset = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, env={**environment, **more}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.timeout(240)
def test_fetched_once_and_then_from_the_cache(tmp_path: Path) -> None:
    good = f"t1 t2 t3 RGB {NAME} at commit {COMMIT}"
    with data_hub(content()) as (address, asked):
        assert last_line(tmp_path / "home", address) == good
        assert sum("train-00000" in line for line in asked) == 2, "a HEAD and a GET"
        asked.clear()
        assert last_line(tmp_path / "home", address) == good
        assert not [line for line in asked if "resolve" in line], "it asks for the commit and fetches nothing"
        asked.clear()
        assert last_line(tmp_path / "home", address, HF_HUB_OFFLINE="1") == (
            f"{good} (the one in the cache: HF_HUB_OFFLINE is set)"
        )
        assert not asked
    assert last_line(tmp_path / "home", address) == f"{good} (the one in the cache: the hub cannot be reached)"


@pytest.mark.timeout(240)
def test_what_is_not_there_and_what_has_code(tmp_path: Path) -> None:
    planted = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
    with data_hub({**content(), "Some_Name.py": planted}) as (address, _):
        found = last_line(tmp_path / "home", address)
        assert found.startswith(f"DataError data.id: '{NAME}' is made by code of its own, which is not run")
        missing = last_line(tmp_path / "home", address, "owner/none")
        assert missing.startswith("DataError data.id: 'owner/none' is neither a folder here nor a data set at http")
    assert not (tmp_path / "ran").exists()
