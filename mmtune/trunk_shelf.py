"""The folder that all trunks are kept in: where it is, what it holds, what still fits, and how it is cleared.

``ROOT/FINGERPRINT/`` is one trunk: ``about.json`` says what it is of, ``index.sqlite`` where each entry lies, and
``states-*.bin`` hold the states. Nothing here imports torch.
"""

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.content_memory import FILE as CONTENTS
from mmtune.ground.errors import DataError, RecipeError
from mmtune.ground.safe_files import read_json, write_json
from mmtune.part_sizes import in_words
from mmtune.shared_table import SharedTable, TableTrouble

ABOUT, INDEX = "about.json", "index.sqlite"

MARK = "mmtune_trunk_format"
"""The key of ``about.json`` that makes a folder ours, and gives the format of what lies in it."""

OURS = re.compile(r"about\.json|index\.sqlite(-journal)?|states-[0-9a-f]{32}\.bin|\.(about|index)\..*\.part")
"""Names of files that a trunk's folder may hold; nothing else is ever deleted."""

MARGIN = 1_000_000_000
"""Bytes of a file system, or a fiftieth of it where that is less, that the cache leaves free for checkpoints."""

MEMORY = Path("/dev/shm")
"""Where Linux keeps files in RAM."""

PROCESSES, GROUP = Path("/proc"), Path("/sys/fs/cgroup")
"""Where Linux says how much memory is left, and a container how much it may take."""


def cache_root(folder: str | None = None) -> Path:
    """Where trunks are kept: ``folder``, else $MMTUNE_CACHE, else $XDG_CACHE_HOME/mmtune, else ~/.cache/mmtune.

    Raises:
        RecipeError: nothing says where, and this account has no home.
    """
    if chosen := folder or os.environ.get("MMTUNE_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base and os.path.isabs(base) else Path("~/.cache").expanduser()) / "mmtune"
    except RuntimeError:  # an account without an entry, as in some containers
        raise RecipeError(
            "train.trunk_cache: there is no home folder to keep states in: set MMTUNE_CACHE to a folder, or write off"
        ) from None


@dataclass(frozen=True)
class Trunk:
    """What lies in one trunk's folder.

    Attributes:
        folder: its name is the trunk's fingerprint.
        about: what it is of, as it was described when the folder was made.
        num_entries: images or texts; None where the table cannot be read.
        dtypes: what their states are stored in.
        num_bytes: of all files.
        last_use: seconds since 1970.
    """

    folder: Path
    about: Mapping[str, Any]
    num_entries: int | None
    dtypes: tuple[str, ...]
    num_bytes: int
    last_use: float


def list_trunks(root: Path) -> list[Trunk]:
    """The trunks below ``root``, last used first. Folders that are not ours are passed over.

    Raises:
        DataError: ``root`` is there and cannot be read.
    """
    found = [_trunk(folder, about) for folder in _folders(root) if (about := read_about(folder)) is not None]
    return sorted(found, key=lambda trunk: (-trunk.last_use, trunk.folder.name))


def clear_trunks(root: Path, trunks: Sequence[Trunk]) -> int:
    """Delete these trunks, and what is remembered of files where no trunk is left. A run that uses one goes on without.

    Returns:
        bytes freed.

    Raises:
        DataError: after all else is deleted, for what could not be.
    """
    freed, kept = 0, []
    for trunk in trunks:
        try:
            freed += _clear(trunk.folder)
        except (OSError, TableTrouble) as problem:
            kept.append(f"{trunk.folder} could not be cleared: {getattr(problem, 'strerror', None) or problem}")
    if not kept and not list_trunks(root):
        with suppress(OSError, TableTrouble):  # little, and only ever right
            size = _size(root / CONTENTS)
            freed += size if SharedTable(root / CONTENTS, "").remove() else 0
    if kept:
        raise DataError("\n".join([*kept, f"the others were cleared: {in_words(freed)} freed"]))
    return freed


def read_about(folder: Path) -> dict[str, Any] | None:
    """What ``about.json`` says, with the format under `MARK`; None where it is missing, damaged or not ours."""
    try:
        content = read_json(folder / ABOUT)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get(MARK), int):
        return None
    about = content.get("about")
    return {**(about if isinstance(about, dict) else {}), MARK: content[MARK]}


def write_about(folder: Path, about: Mapping[str, Any], number: int) -> None:
    """Say what a folder is of.

    Raises:
        OSError: it cannot be written.
    """
    write_json(folder / ABOUT, {MARK: number, "about": dict(about)})


def folder_bytes(folder: Path) -> int:
    """Bytes of the files of one folder; what vanishes meanwhile is not counted."""
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
    return total


def free_bytes(root: Path) -> int | None:
    """What may still be written on the file system of ``root``, its margin left out; None where that is not known."""
    there = next((path for path in [root, *root.parents] if os.path.isdir(path)), root)  # Path.is_dir may raise
    try:
        space = os.statvfs(there)
    except (OSError, AttributeError):
        return None
    size = space.f_blocks * space.f_frsize
    return space.f_bavail * space.f_frsize - min(MARGIN, size // 50) if size else None


def held_bytes(root: Path) -> int:
    """Bytes of all trunks below a folder.

    Raises:
        DataError: it cannot be read.
    """
    return sum(folder_bytes(folder) for folder in _folders(root) if read_about(folder) is not None)


def room_for(root: Path, num_bytes: int, limit: int | None = None) -> str | None:
    """Why so many more bytes do not fit below ``root``, or None where they do.

    Args:
        root: of the cache; it need not be there yet.
        num_bytes: to come.
        limit: most bytes of all trunks together; None: as many as the file system takes.
    """
    try:
        held = held_bytes(root)
    except DataError as problem:  # a cache of another user must not keep a run from going on without one
        return str(problem)
    if limit is not None and held + num_bytes > limit:
        already = f", and {in_words(held)} are there already" if held else ""
        return f"{in_words(num_bytes)} do not fit: the limit is {in_words(limit)}{already} ({root})"
    free = free_bytes(root)
    if free is not None and num_bytes > free:
        return f"{in_words(num_bytes)} do not fit: {root} has room for {in_words(max(free, 0))}"
    return None


class MemoryRoot:
    """A private folder in RAM, to be given as root; removed by ``close``, after a ``with`` and when the process ends.

    Attributes:
        folder: the root.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._end = weakref.finalize(self, _remove_memory, folder, lock, os.getpid())

    def close(self) -> None:
        """Remove the folder; a forked child leaves it to its parent."""
        self._end()

    def __enter__(self) -> "MemoryRoot":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def memory_root(num_bytes: int = 0) -> MemoryRoot:
    """Make a folder in RAM, and remove those that killed processes left there.

    Args:
        num_bytes: what it must have room for.

    Raises:
        RecipeError: there is no such place, or no room in it.
    """
    if not MEMORY.is_dir():
        raise RecipeError(f"states cannot be kept in memory: {MEMORY} is not there; keep them on disk")
    _sweep_memory()
    free, unused = free_bytes(MEMORY), unused_memory()
    if free is not None and free < max(num_bytes, 1):
        raise RecipeError(
            f"states cannot be kept in memory: {in_words(num_bytes)} are wanted and {MEMORY} has room for "
            f"{in_words(max(free, 0))}; keep them on disk, or give it more (docker run --shm-size)"
        )
    if unused is not None and unused < num_bytes:
        raise RecipeError(
            f"states cannot be kept in memory: {in_words(num_bytes)} are wanted and {in_words(max(unused, 0))} are not "
            "in use; keep them on disk"
        )
    try:
        made = Path(tempfile.mkdtemp(prefix=".mmtune-", dir=MEMORY))
        lock = _lock(made)
        folder = made.rename(
            MEMORY / f"mmtune-trunks-{made.name[8:]}"
        )  # under this name it may be swept, if not locked
        return MemoryRoot(folder, lock)
    except OSError as problem:
        raise RecipeError(f"states cannot be kept in memory: {problem}; keep them on disk") from problem


def unused_memory() -> int | None:
    """Bytes of RAM that nobody needs, the page cache included; at most what a container still may take. None: unknown.

    Source: proc(5), ``MemAvailable``; the kernel's cgroup-v2, ``memory.max``, ``memory.current``, ``memory.stat``.
    """
    amounts = []
    with suppress(OSError, ValueError, KeyError):
        lines = (line.split() for line in (PROCESSES / "meminfo").read_text().splitlines())
        amounts.append(1024 * int({line[0]: line[1] for line in lines}["MemAvailable:"]))
    with suppress(OSError, ValueError, KeyError):
        most, held = (int((GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        parts = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        amounts.append(most - held + int(parts["file"]) - int(parts["shmem"]))
    return min(amounts, default=None)


def _lock(folder: Path) -> int:
    """Mark a folder as in use: the lock goes with the last process that holds it, however that ends.

    Raises:
        OSError: another process uses it.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _sweep_memory() -> None:
    for folder in MEMORY.glob("mmtune-trunks-*"):
        with suppress(OSError):
            handle = _lock(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _remove_memory(folder: Path, lock: int, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as problem:
        raise DataError(f"{root} cannot be read: {problem.strerror or problem}") from problem


def _trunk(folder: Path, about: dict[str, Any]) -> Trunk:
    table = SharedTable(folder / INDEX, "")
    try:
        row = table.fetch("SELECT count(*), group_concat(DISTINCT CAST(dtype AS TEXT)) FROM entries") or (0, None)
    except TableTrouble:
        row = (None, None)
    finally:
        table.close()
    dtypes = sorted(row[1].decode(errors="replace").split(",")) if row[1] else []
    try:
        last_use = (folder / ABOUT).stat().st_mtime
    except OSError:
        last_use = 0.0
    return Trunk(folder, about, row[0], tuple(dtypes), folder_bytes(folder), last_use)


def _clear(folder: Path) -> int:
    """Delete what is ours in a folder: the table first, so that it points to nothing missing, ``about.json`` last."""
    names = [name for name in os.listdir(folder) if OURS.fullmatch(name)]
    freed = sum(_size(folder / name) for name in names)
    SharedTable(folder / INDEX, "").remove()
    for name in sorted(names, key=lambda name: (name == ABOUT, name)):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()  # stays where something else lies in it
    return freed


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
