"""The store of a trunk when writers are killed, and files are deleted, full, busy or not allowed: right, or nothing."""

import errno
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trunk_world import KEYS, World, entry, is_right

from mmtune import shared_table
from mmtune.ground.errors import RecipeError
from mmtune.stored_states import Stored
from mmtune.trunk_shelf import ABOUT as ABOUT_FILE
from mmtune.trunk_shelf import INDEX, cache_root, clear_trunks, list_trunks, room_for
from mmtune.trunk_store import TrunkStore


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- writers that are killed


def killed_after(num_writes: int, seconds: float, work: Callable[[int], Any]) -> None:
    """Fork, wait until the child did ``work(number)`` so often and a moment longer, and end it like a power cut."""
    heard, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for number in range(10_000):
                work(number)
                os.write(tell, b".")
        finally:
            os._exit(0)
    os.close(tell)
    left = num_writes
    while left > 0 and (said := os.read(heard, left)):
        left -= len(said)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(heard)


def test_writers_killed_at_any_time(tmp_path: Path) -> None:
    store = TrunkStore(tmp_path / "t", about={}, say=lambda line: None)
    draw, found, trials = random.Random(0), 0, 25

    def names(trial: int, number: int) -> list[bytes]:
        return [(trial * 10_000 + number * 5 + each).to_bytes(16, "big") for each in range(5)]

    for trial in range(trials):

        def write(number: int, trial: int = trial) -> None:
            content = Stored(torch.full((400,), float(number)), {"at": torch.tensor(trial)})
            store.add([(name, content) for name in names(trial, number)])

        killed_after(trial % 5, draw.uniform(0, 0.004), write)
    for trial in range(trials):
        for number in range(60):
            stored = [store.find(name) for name in names(trial, number)]
            right = [each for each in stored if each is not None and each.states.tolist() == [float(number)] * 400]
            assert len(right) in (0, 5) and all(each.beside["at"] == trial for each in right)  # all of an add, or none
            assert number >= trial % 5 or len(right) == 5  # what was written stays
            found += len(right)
    assert found == store.found >= sum(5 * (trial % 5) for trial in range(trials)) and store.damaged == 0
    assert store.add([(b"new", Stored(torch.ones(3)))]) == 1 and store.find(b"new") is not None


def test_a_writer_killed_within_its_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.fresh()
    store.find(KEYS[0])
    real = os.write

    def torn(handle: int, content: Any) -> int:
        real(handle, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def work(_number: int) -> None:
        monkeypatch.setattr(os, "write", torn)
        store.add([(b"new", Stored(torch.ones(99)))])

    killed_after(1, 0, work)  # it ends itself before it has written once
    assert sum(path.stat().st_size == 99 * 2 for path in world.folder.glob("states-*")) == 1
    assert store.find(b"new") is None and store.add([(b"new", Stored(torch.ones(99)))]) == 1
    assert world.check(store, "torn") == len(KEYS)


# --- folders that cannot be written or read


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The disk takes as many writes as the list's one number says, then half of one, then none."""
    left, real = [0], os.write

    def write(handle: int, content: Any) -> int:
        left[0] -= 1
        if left[0] < -1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, content if left[0] >= 0 else content[: len(content) // 2])

    monkeypatch.setattr(os, "write", write)
    yield left


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_full_disk(world: World, full_disk: list[int], allowed: int) -> None:
    store = world.fresh()
    full_disk[0] = allowed
    assert store.add([(b"a", Stored(torch.ones(99))), (b"b", Stored(torch.ones(99)))]) == (2 if allowed == 2 else 0)
    assert store.add([(b"c", Stored(torch.ones(99)))]) == 0 and store.add([(b"d", Stored(torch.ones(99)))]) == 0
    assert len(world.lines) == 1 and "No space left" in world.lines[0] and "mmtune cache clear" in world.lines[0]
    assert sum(path.stat().st_size for path in world.folder.glob("states-*")) == 6 * 48 + (
        396 * 2 if allowed == 2 else 0
    )
    assert all(is_right(store.find(key), key) for key in KEYS) and store.find(b"d") is None


def test_a_full_disk_under_the_table(world: World) -> None:
    store = world.fresh()
    store.find(KEYS[0])
    opened = store._table._open()
    assert opened is not None
    opened.connection.execute("PRAGMA max_page_count = 1")  # it cannot grow, as on a full disk
    big = {"mask": torch.ones(9000)}
    assert store.add([(b"a", Stored(torch.ones(9), big))]) == 0 and store.add([(b"b", Stored(torch.ones(9), big))]) == 0
    assert len(world.lines) == 1 and "no space left" in world.lines[0]
    assert all(is_right(store.find(key), key) for key in KEYS) and store.find(b"a") is None


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_may_only_be_read(world: World, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store, real = world.fresh(), os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(code, os.strerror(code))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert [store.add([(b"a", Stored(torch.ones(9)))]) for _ in range(3)] == [0, 0, 0]
    assert len(world.lines) == 1 and os.strerror(code) in world.lines[0]
    assert all(is_right(store.find(key), key) for key in KEYS)


def test_a_file_that_may_not_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real = world.fresh(), os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if str(path).endswith(".bin"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert [store.find(key) for key in KEYS] == [None] * 6
    assert len(world.lines) == 1 and "cannot be read (Permission denied)" in world.lines[0]
    monkeypatch.undo()
    assert all(is_right(world.store().find(key), key) for key in KEYS)  # for others, nothing was lost


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    store = TrunkStore(tmp_path / "file" / "root" / "ab", about={}, say=lines.append)
    assert store.find(b"a") is None and not store.has(b"a") and store.num_bytes() == store.num_entries == 0
    assert store.add([entry(KEYS[0])]) == 0 and store.add([entry(KEYS[0])]) == 0 and store.find(KEYS[0]) is None
    assert len(lines) == 1 and "Not a directory" in lines[0]


def test_a_table_in_use(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_table, "WAIT", 0.01)
    store = world.fresh()
    holder = sqlite3.connect(world.folder / INDEX, isolation_level=None)
    for _ in range(2):
        holder.execute("BEGIN EXCLUSIVE")
        assert store.add([(b"a", Stored(torch.ones(9)))]) == 0 and store.find(KEYS[0]) is None
        holder.execute("COMMIT")
        assert is_right(store.find(KEYS[0]), KEYS[0])
    assert not world.lines and store.add([(b"a", Stored(torch.ones(9)))]) == 1 and store.find(b"a") is not None
    holder.execute("BEGIN EXCLUSIVE")
    assert [store.add([(b"b", Stored(torch.ones(9)))]) for _ in range(4)] == [0] * 4
    assert [store.find(KEYS[0]) for _ in range(4)] == [None] * 4
    assert len(world.lines) == 2 and all("locked" in line for line in world.lines)
    holder.close()


def test_a_cache_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    assert room_for(tmp_path, 1) is None
    with monkeypatch.context() as patch:
        patch.setattr("mmtune.trunk_shelf.os.scandir", refuse)
        assert "cannot be read: Permission denied" in (room_for(tmp_path, 1) or "")
    for name in ("MMTUNE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # nobody has this number
    with pytest.raises(RecipeError, match="set MMTUNE_CACHE"):
        cache_root()


def test_interrupted_within_a_write(tmp_path: Path) -> None:
    def rows() -> Iterator[tuple[int]]:
        yield (2,)
        raise KeyboardInterrupt

    table = shared_table.SharedTable(tmp_path / "index.sqlite", "number INTEGER PRIMARY KEY")
    statement = "INSERT INTO entries VALUES (?)"
    table.write(statement, [(1,)])
    with pytest.raises(KeyboardInterrupt):
        table.write(statement, rows())
    table.write(statement, [(3,)])
    assert table.fetch("SELECT sum(number) FROM entries") == (4,)


def test_cleared_while_in_use(world: World) -> None:
    store, fresh = world.fresh(), (b"n", Stored(torch.ones(5)))
    root = world.folder.parent
    assert is_right(store.find(KEYS[0]), KEYS[0]) and store.add([fresh]) == 1
    for _ in range(5):
        assert store.find(b"n") is not None
        clear_trunks(root, list_trunks(root))
        assert not world.folder.exists()
        assert store.find(KEYS[0]) is None and store.find(b"n") is None and not store.has(b"n")
        assert store.add([fresh]) == 1 and store.num_entries == 1 and (world.folder / ABOUT_FILE).exists()
    assert not world.lines and store.damaged == 0


def test_states_cleared_but_not_the_table(world: World) -> None:
    store = world.fresh()
    (world.folder / world.shard).unlink()
    assert store.find(KEYS[0]) is None and not store.has(KEYS[0]) and store.has(KEYS[1])
    assert world.check(store, "no states") == 0 and store.damaged == 0
