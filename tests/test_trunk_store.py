"""The store of a trunk: what comes back is what was added, in every process, and memory stays as it is."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtune import trunk_shelf
from mmtune.content_memory import ContentMemory
from mmtune.ground.errors import RecipeError
from mmtune.stored_states import DTYPES, Stored
from mmtune.trunk_shelf import cache_root, memory_root, room_for
from mmtune.trunk_store import TrunkStore

ABOUT = {"backbone": "a/b", "family": "clip", "part": "vision", "depth": 8}
GROWTH = 16 * 2**20
"""Bytes that memory may grow while 300 MB are written and while they are read: the allocator's and SQLite's own few."""
WAIT = 60.0
"""Seconds another process may take; it needs one or two."""


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def states_of(number: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random bits that depend on the number alone, NaN and infinity among the floats."""
    generator = torch.Generator().manual_seed(number)
    sides = (*(shape or (3, 8)), dtype.itemsize)
    if dtype is torch.bool:
        return torch.randint(0, 2, sides[:-1], generator=generator).bool()
    return torch.randint(0, 256, sides, dtype=torch.uint8, generator=generator).view(dtype).squeeze(-1)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def is_state(stored: Stored | None, number: int) -> bool:
    return stored is not None and bits(stored.states) == bits(states_of(number))


@pytest.fixture
def store(tmp_path: Path) -> TrunkStore:
    return TrunkStore(tmp_path / "root" / "ab12", about=ABOUT)


@pytest.mark.parametrize("dtype", [each for each in DTYPES.values() if each is not torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5,), (1, 1), (7, 3, 2), (0, 4), (2, 577)])
def test_comes_back_as_added(store: TrunkStore, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    states = states_of(1, *shape, dtype=dtype)
    beside = {"mask": torch.tensor([True, False]), "length": torch.tensor(7), "grid": torch.tensor([[1, 2, 3]])}
    assert store.add([(b"k", Stored(states, beside)), (b"other", Stored(states_of(2, *shape, dtype=dtype)))]) == 2
    found = store.find(b"k")
    assert found is not None and found.states.dtype == dtype and found.states.shape == shape
    assert bits(found.states) == bits(states)
    assert {name: (each.dtype, each.tolist()) for name, each in found.beside.items()} == {
        name: (each.dtype, each.tolist()) for name, each in beside.items()
    }
    other = store.find(b"other")
    assert other is not None and not other.beside and (bits(other.states) != bits(states) or states.numel() < 2)


def test_a_single_number_a_view_and_a_gradient(store: TrunkStore) -> None:
    wide = torch.arange(12.0).reshape(3, 4)
    store.add([(b"one", Stored(torch.tensor(2.5))), (b"view", Stored(wide.T[1:]))])
    store.add([(b"grad", Stored(wide.clone().requires_grad_()))])
    one, view, grad = store.find(b"one"), store.find(b"view"), store.find(b"grad")
    assert one is not None and one.states.shape == () and one.states.item() == 2.5
    assert view is not None and torch.equal(view.states, wide.T[1:])
    assert grad is not None and torch.equal(grad.states, wide) and not grad.states.requires_grad


@pytest.mark.parametrize("kept", ["float16", "bfloat16"])
def test_wider_states_are_stored_narrowed_and_come_back_wide(tmp_path: Path, kept: str) -> None:
    store, exact = (TrunkStore(tmp_path / name, about=ABOUT, dtype=name) for name in (kept, "float32"))
    states = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    for each in (store, exact):
        each.add([(b"k", Stored(states))])
    found, full = store.find(b"k"), exact.find(b"k")
    assert found is not None and full is not None and found.states.dtype == torch.float32
    assert torch.equal(found.states, states.to(DTYPES[kept]).float()) and not torch.equal(found.states, states)
    assert torch.equal(full.states, states)
    assert exact.num_bytes() - store.num_bytes() == states.numel() * 2


def test_only_what_is_wider_and_fits_is_narrowed(tmp_path: Path) -> None:
    store = TrunkStore(tmp_path / "t", about=ABOUT, dtype="float16")
    brain, whole = states_of(1, dtype=torch.bfloat16), torch.tensor([1, 70_000])
    huge, endless = torch.tensor([1 / 3, 70_000.0]), torch.tensor([1 / 3, float("inf")])
    store.add([(b"a", Stored(brain)), (b"b", Stored(whole)), (b"c", Stored(huge)), (b"d", Stored(endless))])
    found = {key: stored.states for key in (b"a", b"b", b"c", b"d") if (stored := store.find(key)) is not None}
    assert bits(found[b"a"]) == bits(brain) and torch.equal(found[b"b"], whole)
    assert torch.equal(found[b"c"], huge)  # 70,000 would have become infinity
    assert torch.equal(found[b"d"], endless.half().float())


def test_what_was_narrowed_is_not_found_by_who_wants_it_exact(tmp_path: Path) -> None:
    half, full = (TrunkStore(tmp_path / "t", about=ABOUT, dtype=dtype) for dtype in ("float16", "float32"))
    half.add([(b"k", Stored(torch.tensor([1 / 3])))])
    assert full.find(b"k") is None and not full.has(b"k") and half.has(b"k")
    assert full.add([(b"k", Stored(torch.tensor([1 / 3])))]) == 1
    exact, rounded = full.find(b"k"), half.find(b"k")
    assert exact is not None and rounded is not None and exact.states != rounded.states
    assert full.num_entries == 2


def test_stays_and_is_counted(store: TrunkStore, tmp_path: Path) -> None:
    assert not store.has(key_of(1)) and store.find(key_of(1)) is None and not store.folder.exists()
    assert store.add([(key_of(n), Stored(states_of(n))) for n in (1, 2, 2)]) == 2
    size = store.num_bytes()
    assert store.add([(key_of(n), Stored(states_of(n))) for n in (2, 1)]) == 0 and store.num_bytes() == size
    store.close()
    again = TrunkStore(tmp_path / "root" / "ab12", about={})
    assert again.num_entries == 2 and again.num_bytes() == size
    assert all(is_state(again.find(key_of(n)), n) for n in (1, 2)) and not is_state(again.find(key_of(1)), 2)
    assert again.find(key_of(3)) is None
    assert (again.found, again.missed, again.damaged) == (3, 1, 0)


def test_another_trunks_files_are_not_believed(store: TrunkStore) -> None:
    store.add([(key_of(1), Stored(states_of(1)))])
    store.close()
    shutil.copytree(store.folder, store.folder.with_name("cd34"))
    other = TrunkStore(store.folder.with_name("cd34"), about=ABOUT, say=lambda line: None)
    assert other.has(key_of(1)) and other.find(key_of(1)) is None and other.damaged == 1
    assert is_state(store.find(key_of(1)), 1)


def test_memory_stays_as_it_is(store: TrunkStore) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    base = torch.randn(25_000)
    for start in range(0, 64, 16):
        store.add([(key_of(n), Stored(base + n)) for n in range(start, start + 16)])
    before = resident()
    for start in range(64, 3000, 16):
        store.add([(key_of(n), Stored(base + n)) for n in range(start, min(start + 16, 3000))])
    written = resident()
    for n in range(3000):
        found = store.find(key_of(n))
        assert found is not None and found.states[7] == base[7] + n
    assert store.num_bytes() > 3000 * base.nbytes
    assert written - before < GROWTH and resident() - written < GROWTH
    shutil.rmtree(store.folder)


# --- several processes


def _in_child(work: Callable[[], Any]) -> int:
    """Run in a forked process that ends without Python's cleaning up, as a loader's worker does."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return child


def _ended(child: int) -> int:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    return -9


def test_forked_with_an_open_connection(store: TrunkStore) -> None:
    store.add([(key_of(1), Stored(states_of(1)))])
    assert is_state(store.find(key_of(1)), 1)

    def work() -> bool:
        for n in range(10, 30):
            store.add([(key_of(n), Stored(states_of(n)))])
        return is_state(store.find(key_of(1)), 1) and is_state(store.find(key_of(20)), 20) and store.found == 2

    child = _in_child(work)
    for n in range(30, 50):
        store.add([(key_of(n), Stored(states_of(n)))])
    assert _ended(child) == 0
    assert all(is_state(store.find(key_of(n)), n) for n in (1, *range(10, 50)))
    assert len(list(store.folder.glob("states-*.bin"))) == 2


def test_many_write_and_read_the_same_at_once(store: TrunkStore) -> None:
    def work() -> bool:
        right = True
        for start in range(0, 120, 8):
            store.add([(key_of(n), Stored(states_of(n))) for n in range(start, start + 8)])
            stored = [store.find(key_of(n)) for n in range(start, start + 8)]
            right &= all(each is None or is_state(each, start + n) for n, each in enumerate(stored))
        return right and store.found > 0 and store.damaged == 0

    assert [_ended(child) for child in [_in_child(work) for _ in range(4)]] == [0] * 4
    assert all(is_state(store.find(key_of(n)), n) for n in range(120)) and store.num_entries == 120


def _spawned(store: TrunkStore, memory: ContentMemory) -> None:
    assert is_state(store.find(key_of(1)), 1) and store.found == 1
    assert store.add([(key_of(n), Stored(states_of(n))) for n in (1, 2)]) == 1
    assert memory.recall(("/a", 1, 2, 3)) == b"a"
    memory.remember(("/b", 1, 2, 3), b"b")


def test_goes_to_a_spawned_process(store: TrunkStore, tmp_path: Path) -> None:
    memory = ContentMemory(tmp_path)
    memory.remember(("/a", 1, 2, 3), b"a")
    store.add([(key_of(1), Stored(states_of(1)))])
    worker = multiprocessing.get_context("spawn").Process(target=_spawned, args=(store, memory))
    worker.start()
    worker.join(WAIT)
    assert worker.exitcode == 0
    assert is_state(store.find(key_of(2)), 2) and memory.recall(("/b", 1, 2, 3)) == b"b"
    assert is_state(pickle.loads(pickle.dumps(store)).find(key_of(2)), 2)


# --- how much


def test_stops_at_its_limit_and_says_so_once(tmp_path: Path) -> None:
    lines: list[str] = []
    store = TrunkStore(tmp_path / "t", about=ABOUT, limit=100_000, say=lines.append)
    added = [store.add([(key_of(n), Stored(torch.full((2500,), float(n))))]) for n in range(20)]
    assert 5 <= sum(added) < 10 and added == sorted(added, reverse=True)
    assert store.num_bytes() <= 100_000
    assert len(lines) == 1 and "limit of 100.0 kB" in lines[0] and "mmtune cache clear" in lines[0]
    assert store.find(key_of(0)) is not None and store.find(key_of(19)) is None


def test_leaves_a_margin_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    store = TrunkStore(tmp_path / "t", about=ABOUT, say=lines.append)
    assert store.add([(b"a", Stored(torch.ones(10)))]) == 1
    space = os.statvfs(tmp_path)
    left = os.statvfs_result([*space[:3], trunk_shelf.MARGIN // space.f_frsize, 0, *space[5:]])
    monkeypatch.setattr(os, "statvfs", lambda path: left)
    assert store.add([(b"b", Stored(torch.ones(10_000_000)))]) == 0
    assert len(lines) == 1 and "nearly full" in lines[0]


def test_room_is_forecast(store: TrunkStore, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert room_for(root, 10**6) is None and room_for(root, 10**6, 10**6) is None and not root.exists()
    assert "has room for" in str(room_for(root, 10**18))
    store.add([(b"a", Stored(torch.ones(10_000)))])
    assert room_for(root, 40_000, 100_000) is None
    why = str(room_for(root, 70_000, 100_000))
    assert "70.0 kB do not fit" in why and "limit is 100.0 kB" in why and "there already" in why


def test_root_in_memory_goes_with_the_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trunk_shelf, "MEMORY", tmp_path)
    with pytest.raises(KeyError), memory_root() as root:
        left = root.folder
        TrunkStore(left / "t", about=ABOUT).add([(b"a", Stored(torch.ones(3)))])
        assert left.parent == tmp_path and left.stat().st_mode & 0o77 == 0
        assert _ended(_in_child(lambda: root.close() or True)) == 0 and left.exists()
        raise KeyError
    assert not left.exists()
    with pytest.raises(RecipeError, match="has room for"):
        memory_root(10**18)
    monkeypatch.setattr(trunk_shelf, "MEMORY", tmp_path / "missing")
    with pytest.raises(RecipeError, match="keep them on disk"):
        memory_root()


def test_memory_in_use_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MEMORY", "PROCESSES", "GROUP"):
        monkeypatch.setattr(trunk_shelf, name, tmp_path)
    assert trunk_shelf.unused_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   2000 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert trunk_shelf.unused_memory() == 2_048_000
    for name, text in (("max", "1000000\n"), ("current", "900000\n"), ("stat", "anon 1\nfile 500000\nshmem 100000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert trunk_shelf.unused_memory() == 500_000
    memory_root(500_000).close()
    with pytest.raises(RecipeError, match="500.0 kB are not in use"):
        memory_root(500_001)


def test_root_in_memory_of_a_killed_process_is_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trunk_shelf, "MEMORY", tmp_path)
    kept = memory_root()

    def work() -> bool:
        made = memory_root()
        os.kill(os.getpid(), 9)
        return made.folder.exists()

    assert _ended(_in_child(work)) == -9
    assert len(list(tmp_path.iterdir())) == 2
    with memory_root():
        assert len(list(tmp_path.iterdir())) == 2 and kept.folder.exists()
    kept.close()
    assert not list(tmp_path.iterdir())


def test_root_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MMTUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "mmtune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "mmtune"
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "ours"))
    assert cache_root() == tmp_path / "ours" and cache_root("~/x") == tmp_path / "x"


def test_the_shelf_needs_no_torch() -> None:
    code = "import sys, mmtune.trunk_shelf, mmtune.cache_run; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
