"""The store of one trunk: its output for images or texts, kept on disk and shared by epochs, runs and processes.

Nothing that is found was not written under the same key: every entry is checked before it is given out. Nothing that
happens to the files ends a run: what cannot be read is computed again, what cannot be written is not kept, and both are
said once.
"""

import errno
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmtune.part_sizes import in_words
from mmtune.shared_table import Busy, Damaged, SharedTable, TableTrouble
from mmtune.state_files import StateFiles
from mmtune.store_troubles import StoreTroubles, in_short, say_to_stderr
from mmtune.stored_states import (
    DTYPES,
    FORMAT,
    Entry,
    Stored,
    as_bytes,
    as_row,
    checksum,
    entry_from_row,
    entry_of,
    narrowed,
    unpack_beside,
)
from mmtune.trunk_shelf import ABOUT, INDEX, MARK, folder_bytes, free_bytes, read_about, write_about

COLUMNS = (
    "key BLOB PRIMARY KEY, file BLOB, offset INTEGER, shape BLOB, dtype BLOB, origin BLOB, checksum INTEGER, "
    "beside BLOB"
)
FIND = "SELECT file, offset, shape, dtype, origin, checksum, beside FROM entries WHERE key = ?"
ADD = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
HAS = "SELECT 1 FROM entries WHERE key = ?"
COUNT = "SELECT count(*) FROM entries"
FORGET = "DELETE FROM entries WHERE key = ?"

ROW_BYTES = 300
"""About what an entry takes in the table; counted before it is there."""

_PASSING = {errno.ENOENT, errno.ESTALE, errno.EINTR}


class TrunkStore:
    """One trunk's folder. Can be pickled, is safe to fork: every process opens its files when it first uses them.

    Args:
        folder: ``ROOT/FINGERPRINT``; made by the first ``add``. Where another version of mmtune filled it, a folder
            beside it is taken.
        about: what the trunk is of, for ``mmtune cache list``; JSON values.
        limit: most bytes of the folder; None: as many as the file system takes, a margin left free.
        dtype: the widest type to keep: wider floating point is stored in it. Entries of another `dtype` are not found.
        say: is told, once each, what is damaged and why writing stopped; in another process it is standard error.

    Attributes:
        found, missed, damaged: answers of ``find`` in this process; what is damaged is not counted as missed.
    """

    found: int
    missed: int
    damaged: int

    def __init__(
        self,
        folder: Path,
        *,
        about: Mapping[str, Any],
        limit: int | None = None,
        dtype: str = "float32",
        say: Callable[[str], object] = say_to_stderr,
    ) -> None:
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"states are kept in float32, bfloat16 or float16, not in {dtype!r}")
        self._folder, self._about, self._limit, self._dtype = Path(folder), dict(about), limit, dtype
        self._process: int | None = None
        self._troubles = StoreTroubles(say)
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_lock": None}

    @property
    def folder(self) -> Path:
        """The folder in use."""
        self._use()
        return self._place

    @property
    def num_entries(self) -> int:
        """Entries in the folder, of every `dtype`; 0 where its table cannot be read."""
        self._use()
        with suppress(TableTrouble):
            row = self._table.fetch(COUNT)
            return int(row[0]) if row else 0
        return 0

    def num_bytes(self) -> int:
        """Of all files in the folder."""
        self._use()
        return folder_bytes(self._place)

    def find(self, key: bytes) -> Stored | None:
        """What was added under ``key``, on the CPU and in the type it was added in; None where it must be computed."""
        self._use()
        name = self._name(key)
        row = self._line(name)
        if row is None:
            self.missed += 1
            return None
        try:
            stored = self._read(name, entry_from_row(row))
        except OSError as problem:
            self.missed += 1
            if isinstance(problem, FileNotFoundError):  # cleared meanwhile
                self._forget(name)
            else:
                self._troubles.cannot_read_now(self._place, problem)
            return None
        self._troubles.did_read()
        if stored is None:
            self._count_damaged()
            self._forget(name)
        else:
            self.found += 1
        return stored

    def has(self, key: bytes) -> bool:
        """Whether there is an entry, which may yet prove damaged."""
        self._use()
        with suppress(TableTrouble):
            return self._troubles.reading and self._has(self._name(key))
        return False

    def add(self, entries: Sequence[tuple[bytes, Stored]]) -> int:
        """Keep these, as many as fit; gives how many are new. Never fails for what the file system does."""
        self._use()
        with self._lock:
            if not self._troubles.writing:
                return 0
            try:
                count = self._write(entries)
            except Damaged as problem:
                self._mend(problem)
            except Busy as problem:
                self._troubles.cannot_write_now(self._place, str(problem))
            except (TableTrouble, OSError) as problem:
                if getattr(problem, "errno", None) in _PASSING:
                    self._troubles.cannot_write_now(self._place, "it was deleted meanwhile")
                else:
                    self._troubles.stop_writing(self._place, f"it cannot be written ({in_short(problem)})")
            else:
                self._troubles.wrote()
                return count
            return 0

    def close(self) -> None:
        """Let go of all files and say how much was damaged; the next use opens them again."""
        if self._process == os.getpid():
            if self.damaged > 1:
                self._troubles.tell(self._place, "sum", f"{self.damaged:,} damaged entries in all are computed again")
            with suppress(OSError):
                os.utime(self._place / ABOUT)
        self._table.close()
        self._files.close()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self.found = self.missed = self.damaged = 0
        self._set_place(self._folder)

    def _set_place(self, folder: Path) -> None:
        self._place, self._table, self._files = folder, SharedTable(folder / INDEX, COLUMNS), StateFiles(folder)

    def _use(self) -> None:
        """Begin in this process, where it has not: choose the folder, and mend its description."""
        if self._process == os.getpid():
            return
        self._table.close()
        self._files.close()
        self._process = os.getpid()
        self._begin()
        number = 1
        while (there := read_about(self._place)) is not None and there[MARK] != FORMAT:
            number += 1
            self._set_place(self._folder.with_name(f"{self._folder.name}-{number}"))
        if number > 1:
            self._troubles.tell(
                self._place, "format", f"used instead of {self._folder.name}, which another version of mmtune filled"
            )
        with suppress(OSError):
            os.utime(self._place / ABOUT)  # its time is that of the last use
            if there is None:  # it only describes, and the entries prove themselves: they are kept
                self._troubles.tell(self._place, "about", f"{ABOUT} cannot be read and is written anew")
                write_about(self._place, self._about, FORMAT)

    def _name(self, key: bytes) -> bytes:
        return self._dtype.encode() + b":" + key

    def _has(self, name: bytes) -> bool:
        return self._table.fetch(HAS, (name,)) is not None

    def _line(self, name: bytes) -> tuple[Any, ...] | None:
        """What the table says of an entry; None where it has none or cannot be asked."""
        if self._troubles.reading:
            try:
                return self._table.fetch(FIND, (name,))
            except Damaged as problem:
                self._mend(problem)
            except TableTrouble as problem:
                self._troubles.cannot_read_now(self._place, problem)
        return None

    def _read(self, name: bytes, entry: Entry | None) -> Stored | None:
        """An entry that proves right, or None."""
        states = None if entry is None else self._files.read(entry)
        if entry is None or states is None:
            return None
        if checksum(self._place.name.encode() + name, entry, as_bytes(states)) != entry.checksum:
            return None
        return Stored(states.to(DTYPES[entry.origin]), unpack_beside(entry.beside))

    def _write(self, entries: Sequence[tuple[bytes, Stored]]) -> int:
        """Bytes first, then their lines in one go: no line is there before what it points to."""
        new = {name: stored for key, stored in entries if not self._has(name := self._name(key))}
        if not (self._place / ABOUT).exists():
            self._place.mkdir(parents=True, exist_ok=True)
            write_about(self._place, self._about, FORMAT)
        room, why_full = self._room()
        lines: list[tuple[bytes, Entry]] = []
        contents: list[memoryview] = []
        for name, stored in new.items():
            states = narrowed(stored.states, self._dtype)
            entry = entry_of(self._place.name.encode() + name, stored, states)
            room -= entry.num_bytes + len(entry.beside) + ROW_BYTES
            if room < 0:
                break
            lines.append((name, entry))
            contents.append(as_bytes(states))
        if lines:
            self._commit(lines, contents)
        if len(lines) < len(new):
            self._troubles.stop_writing(self._place, why_full)
        return len(lines)

    def _commit(self, lines: Sequence[tuple[bytes, Entry]], contents: Sequence[memoryview]) -> None:
        file, places = self._files.append(contents)
        try:
            rows = [(name, *as_row(entry, file, at)) for (name, entry), at in zip(lines, places, strict=True)]
            self._table.write(ADD, rows)
        except (TableTrouble, OSError):
            self._files.undo(places[0])
            raise

    def _room(self) -> tuple[float, str]:
        """Bytes that may still be written, and what to say when they are used up."""
        free = free_bytes(self._place)
        on_disk = float("inf") if free is None else float(free)
        allowed = float("inf") if self._limit is None else self._limit - folder_bytes(self._place)
        if self._limit is not None and allowed <= on_disk:
            return allowed, f"it has reached its limit of {in_words(self._limit)}"
        return on_disk, "its file system is nearly full"

    def _count_damaged(self) -> None:
        self.damaged += 1
        self._troubles.tell(self._place, "damaged", "a damaged entry is computed again, and so is every further one")

    def _forget(self, name: bytes) -> None:
        """Take a line out of the table, so that it is added again."""
        if self._troubles.writing:
            try:
                self._table.write(FORGET, [(name,)])
            except Damaged as problem:
                self._mend(problem)
            except (TableTrouble, OSError):
                return  # it stays, and is tried again when it is next found damaged

    def _mend(self, problem: Exception) -> None:
        """Begin a damaged table anew; the states go with it, for nothing else says where they lie."""
        self._troubles.is_damaged(self._place, problem)
        try:
            if self._table.remove():
                self._files.remove()
        except (TableTrouble, OSError) as refusal:
            self._troubles.stop_reading(self._place, f"its damaged table cannot be removed ({in_short(refusal)})")
