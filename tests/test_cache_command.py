"""``mmtune cache``: it shows what is kept, and deletes what was named and nothing else."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune import command_line, trunk_shelf
from mmtune.content_memory import FILE as CONTENTS
from mmtune.content_memory import ContentMemory
from mmtune.stored_states import Stored
from mmtune.trunk_store import TrunkStore

VISION = {"backbone": "openai/clip", "family": "clip", "cut": "vision below layer 8"}
WHOLE = {"backbone": "some/blip2", "family": "blip2", "cut": "vision and qformer, all of it"}
DAY = 86_400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two trunks and a memory of files, beside folders that are somebody else's."""
    root = tmp_path / "root"
    for name, about, dtype, number in (("aa11", VISION, "float16", 3), ("ab22", WHOLE, "float32", 1)):
        store = TrunkStore(root / name, about=about, dtype=dtype)
        store.add([(bytes([each]), Stored(torch.ones(1000))) for each in range(number)])
        store.close()
    ContentMemory(root).remember(("/a", 1, 2, 3), b"hash")
    (root / "photos").mkdir()
    (root / "photos" / "states-0.bin").write_text("mine")
    (root / "other").mkdir()
    (root / "other" / "about.json").write_text('{"about": "me"}')
    return root


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: Path) -> Any:
    """``mmtune cache ARGUMENTS`` in this process: exit code and what it printed."""
    monkeypatch.setenv("MMTUNE_CACHE", str(root))

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmtune", "cache", *arguments])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        return int(caught.value.code or 0), "".join(capsys.readouterr())

    return call


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def used(folder: Path, days_ago: float) -> None:
    at = time.time() - days_ago * DAY
    os.utime(folder / "about.json", (at, at))


def test_lists_what_is_kept(run: Any, root: Path) -> None:
    used(root / "aa11", 3.1)
    code, text = run("list")
    newer, older, total = text.splitlines()  # the last used first, and nothing of the other folders
    assert code == 0
    assert older.startswith("aa11  openai/clip (clip), vision below layer 8: 3 entries in float16, ")
    assert older.endswith("kB, used 3 days ago")
    assert newer.startswith("ab22  some/blip2 (blip2), vision and qformer, all of it: 1 entry in float32, ")
    assert newer.endswith("kB, used just now")
    size = sum(trunk_shelf.folder_bytes(root / name) for name in ("aa11", "ab22"))
    assert total == f"2 trunks, {size / 1000:.1f} kB, in {root}"


def test_lists_nothing_and_another_folder(run: Any, root: Path, tmp_path: Path) -> None:
    assert run("list", "--folder", str(tmp_path / "none")) == (0, f"no trunk is kept in {tmp_path / 'none'}\n")
    assert not (tmp_path / "none").exists()
    assert run("list", "--folder", str(root)) == run("list") and run("list")[1].count("used") == 2


def test_lists_a_damaged_table(run: Any, root: Path) -> None:
    (root / "aa11" / "index.sqlite").write_bytes(b"noise" * 999)
    code, text = run("list")
    assert code == 0 and "below layer 8: a damaged table, " in text and "1 entry" in text


def test_clears_all(run: Any, root: Path) -> None:
    held = sum(trunk_shelf.folder_bytes(root / name) for name in ("aa11", "ab22")) + (root / CONTENTS).stat().st_size
    code, text = run("clear")
    assert code == 0 and names(root) == {"photos", "other"}
    assert (root / "photos" / "states-0.bin").read_text() == "mine" and (root / "other" / "about.json").exists()
    assert "cleared aa11" in text and f"{held / 1000:.1f} kB freed, 2 trunks" in text
    assert run("clear")[1].startswith("0 B freed, 0 trunks")


def test_clears_what_is_named(run: Any, root: Path) -> None:
    code, text = run("clear", "aa")
    assert code == 0 and names(root) == {"ab22", "photos", "other", CONTENTS} and "1 trunk," in text
    assert run("clear", "ab22")[0] == 0 and names(root) == {"photos", "other"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("aa11", "missing", "photos"), "there is no trunk 'missing'"),
        (("a",), "'a' may be aa11 or ab22"),
        (("",), "there is no trunk ''"),
        (("--older-than", "soon"), "'soon' is not a time: write '30 days'"),
        (("--older-than", "3 epochs"), "is not a time"),
    ],
)
def test_refuses_before_it_deletes(run: Any, root: Path, arguments: tuple[str, ...], message: str) -> None:
    before = names(root)
    code, text = run("clear", *arguments)
    assert code == 2 and message in text.replace("aa11, ab22", "aa11 or ab22").replace("ab22 or aa11", "aa11 or ab22")
    assert names(root) == before and "Traceback" not in text


def test_clears_what_was_not_used_for_long(run: Any, root: Path) -> None:
    used(root / "aa11", 31)
    used(root / "ab22", 29)
    assert run("clear", "ab22", "--older-than", "30 days")[0] == 0 and {"aa11", "ab22"} <= names(root)
    assert run("clear", "--older-than", "30 days")[0] == 0
    assert names(root) == {"ab22", "photos", "other", CONTENTS}
    TrunkStore(root / "ab22", about=WHOLE).find(b"x")  # a use: it is no longer old
    assert run("clear", "--older-than", "1 hour")[0] == 0 and "ab22" in names(root)
    assert run("clear", "--older-than", "0 minutes")[0] == 0 and "ab22" not in names(root)


def test_keeps_what_is_not_ours(run: Any, root: Path, tmp_path: Path) -> None:
    (root / "aa11" / "thesis.txt").write_text("mine")
    away = tmp_path / "away"
    (root / "ab22").rename(away)
    (root / "ab22").symlink_to(away)
    assert run("clear")[0] == 0
    assert [path.name for path in (root / "aa11").iterdir()] == ["thesis.txt"]
    assert len(list(away.iterdir())) == 3


def test_says_what_it_cannot_delete(run: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "aa11":
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    code, text = run("clear")
    assert code == 2 and f"{root / 'aa11'} could not be cleared: Permission denied" in text
    assert "aa11" in names(root) and "ab22" not in names(root) and CONTENTS in names(root)
