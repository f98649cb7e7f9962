"""Files and folders are whole or absent, and what a killed process left is mended."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mmtune.ground import safe_files
from mmtune.ground.safe_files import sweep_leftovers, whole_file, whole_folder, write_json


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    process.wait()
    return process.pid


def make_folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_a_file_is_replaced_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(ZeroDivisionError), whole_file(path) as beside:
        beside.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "1\n"
    with whole_file(path) as beside:
        beside.write_text("whole")
    assert path.read_text() == "whole"
    assert [one.name for one in tmp_path.iterdir()] == ["value.json"]


def test_a_folder_is_replaced_only_when_the_block_ends_well(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", "old")
    with pytest.raises(ZeroDivisionError), whole_folder(folder) as beside:
        (beside / "file").write_text("half")
        _ = 1 / 0
    assert (folder / "file").read_text() == "old"
    with whole_folder(folder) as beside:
        (beside / "file").write_text("new")
    assert (folder / "file").read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "model") as beside:
            (beside / "file").touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "model" / "file").stat().st_mode) == 0o640


def test_paths_without_a_name_of_their_own_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "model" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with whole_folder(Path("..")) as beside:
        (beside / "file").write_text("new")
    monkeypatch.chdir(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["model", "model/file"]


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", "old")
    (tmp_path / "link").symlink_to(folder)
    with whole_folder(tmp_path / "link") as beside:
        (beside / "file").write_text("new")
    assert (folder / "file").read_text() == "new"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "model"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second rename never happens: the folder is gone until the sweep brings it back."""
    folder = make_folder(tmp_path / "step-000010", "old")
    real, renamed = os.replace, []

    def replace_once(source: Path, target: Path) -> None:
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        real(source, target)

    monkeypatch.setattr(safe_files.os, "getpid", lambda: dead)
    monkeypatch.setattr(safe_files.os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as beside:
        (beside / "file").write_text("new")
    monkeypatch.undo()
    assert not folder.exists()
    assert sweep_leftovers(tmp_path) == [tmp_path / f".step-000010.{dead}.old"]
    assert (folder / "file").read_text() == "old"
    assert sweep_leftovers(tmp_path) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path, dead: int) -> None:
    kept = [make_folder(tmp_path / "step-000020", "good"), make_folder(tmp_path / ".hidden.old", "not ours")]
    kept += [make_folder(tmp_path / "model.12.part", "not hidden"), make_folder(tmp_path / ".git", "not ours")]
    gone = [tmp_path / f".scores.json.{dead}.part", tmp_path / f".step-000020.{dead}.old"]
    gone[0].write_text("half")
    make_folder(gone[1], "older")
    gone += [make_folder(tmp_path / ".step-000010.pruned", "dead"), make_folder(tmp_path / f".x.{dead}.part", "half")]
    assert sorted(sweep_leftovers(tmp_path)) == sorted(gone)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert (kept[0] / "file").read_text() == "good", "an old folder takes no one's place"


def test_what_a_running_process_writes_stays(tmp_path: Path) -> None:
    other = make_folder(tmp_path / f".step-000010.{os.getppid()}.part", "being written")
    old = make_folder(tmp_path / f".step-000020.{os.getppid()}.old", "being swapped")
    own = make_folder(tmp_path / f".step-000030.{os.getpid()}.part", "of a process that had this number before")
    assert sweep_leftovers(tmp_path) == [own]
    assert other.is_dir() and old.is_dir() and not own.exists()


def test_of_several_old_folders_the_newest_comes_back(tmp_path: Path, dead: int) -> None:
    for age, pid in ((100, dead), (50, os.getpid())):
        old = make_folder(tmp_path / f".model.{pid}.old", f"{age} s ago")
        os.utime(old, (1_000_000 - age, 1_000_000 - age))
    assert len(sweep_leftovers(tmp_path)) == 2
    assert (tmp_path / "model" / "file").read_text() == "50 s ago"
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_only_one_name_is_swept_where_one_is_given(tmp_path: Path, dead: int) -> None:
    mine, other = (make_folder(tmp_path / f".{name}.{dead}.part", "half") for name in ("merged", "merged.2"))
    assert sweep_leftovers(tmp_path, "merged") == [mine]
    assert other.is_dir()
    assert sweep_leftovers(tmp_path / "absent") == []
