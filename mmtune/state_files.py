"""The files that the bytes of states lie in: one per writing process, appended to, never changed, never synced.

Every entry is read by its place and checked before it is used. So the files need no order and no header: what a killed
or failing writer left, what was cut off or flipped, shows by its checksum, one entry at a time.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from mmtune.stored_states import DTYPES, FILE_NAME, Entry, as_bytes

MOST_OPEN = 32
"""Files that a process keeps open for reading."""


@dataclass
class _Writing:
    """The one file that this process appends to."""

    path: Path
    handle: int
    process: int


class StateFiles:
    """The files ``states-*.bin`` of a folder: one per process that writes, appended to and never changed.

    They are read into a tensor's own memory and not mapped: a mapped file that shrinks, or a bad sector under it, ends
    the process with SIGBUS, and mapped pages count as the process's memory; a read gives an error and costs no more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing: _Writing | None = None
        self._reading: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_writing": None, "_reading": {}}

    def append(self, contents: Sequence[memoryview]) -> tuple[str, list[int]]:
        """Write contents one behind the other; gives the file's name and the place of each.

        Raises:
            OSError: nothing of them is left in the file, as far as it can be shortened.
        """
        writing = self._open_for_writing()
        start = os.fstat(writing.handle).st_size
        try:
            places = [start]
            for content in contents:
                _write_all(writing.handle, content)
                places.append(places[-1] + len(content))
        except OSError:
            self.undo(start)
            raise
        return writing.path.name, places[:-1]

    def undo(self, start: int) -> None:
        """Shorten this process's file to what it was before an ``append``."""
        if self._writing is not None and self._writing.process == os.getpid():
            with suppress(OSError):
                os.ftruncate(self._writing.handle, start)

    def read(self, entry: Entry) -> Tensor | None:
        """The states as they are stored, unchecked; None where the file is shorter than the entry.

        Raises:
            FileNotFoundError: there is no such file any more.
            OSError: it cannot be read.
        """
        handle, length = self._open_for_reading(entry.file), entry.num_bytes
        if os.fstat(handle).st_size < entry.offset + length:
            return None
        states = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        content, done = as_bytes(states), 0
        while done < length:
            count = os.preadv(handle, [content[done:]], entry.offset + done)
            if count == 0:
                return None
            done += count
        return states

    def remove(self) -> None:
        """Delete every file of states of the folder.

        Raises:
            OSError: one cannot be deleted.
        """
        self.close()
        for path in list(self._folder.iterdir()):
            if FILE_NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files; a child that was forked closes its own copies."""
        handles = [*self._reading.values(), *([self._writing.handle] if self._writing else [])]
        self._reading, self._writing = {}, None
        for handle in handles:
            with suppress(OSError):
                os.close(handle)

    def _open_for_writing(self) -> _Writing:
        """This process's file, begun anew where it was forked or the file was deleted."""
        mine = self._writing
        if mine is not None and mine.process == os.getpid() and _is_at(mine.path, mine.handle):
            return mine
        if mine is not None:
            with suppress(OSError):
                os.close(mine.handle)
        path = self._folder / f"states-{uuid4().hex}.bin"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._writing = _Writing(path, handle, os.getpid())
        return self._writing

    def _open_for_reading(self, name: str) -> int:
        if (handle := self._reading.get(name)) is not None:
            return handle
        while len(self._reading) >= MOST_OPEN:
            os.close(self._reading.pop(next(iter(self._reading))))
        self._reading[name] = os.open(self._folder / name, os.O_RDONLY)
        return self._reading[name]


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _write_all(handle: int, content: memoryview) -> None:
    done = 0
    while done < len(content):
        done += os.write(handle, content[done:])
