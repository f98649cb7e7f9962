"""A table in one SQLite file that several processes read and write, and that may be damaged, full, busy or deleted.

Only what can be computed again is kept in such a table. So its file is never synced, a damaged one is removed and
begun anew, and readers check every value they get; there is no log beside it, because several hosts may share it.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

WAIT = 5.0
"""Seconds to wait for another process that is writing; a write takes milliseconds."""

SETTINGS = ("synchronous = OFF", "mmap_size = 0", "trusted_schema = OFF", "cell_size_check = ON")
"""``mmap_size = 0``: a mapped file that another process shortens would end this one with SIGBUS."""

_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_IOERR,  # also where its journal
    sqlite3.SQLITE_CANTOPEN,  # or its folder was deleted at this moment
    sqlite3.SQLITE_ABORT,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_MISUSE,  # also Python's own errors: another thread just closed the connection
}
_UNUSABLE = {
    sqlite3.SQLITE_PERM: "not permitted",
    sqlite3.SQLITE_NOMEM: "out of memory",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_FULL: "no space left",
    sqlite3.SQLITE_AUTH: "not permitted",
    sqlite3.SQLITE_NOLFS: "too large for this file system",
}

_left_behind: list[sqlite3.Connection] = []
"""Connections of a parent process. A forked child must not close them: that could undo what the parent is writing."""


class TableTrouble(Exception):
    """A table that cannot be used just now."""


class Busy(TableTrouble):
    """Another process holds it, or deleted it at this moment; the next time may be better."""


class Damaged(TableTrouble):
    """It is no table of ours any more."""


class Unusable(TableTrouble):
    """The file system does not let it be used."""


@dataclass(frozen=True)
class _Opened:
    connection: sqlite3.Connection
    process: int
    file: tuple[int, int]
    lock: threading.RLock


class SharedTable:
    """One table in a file; opened when first used, in every process for itself. Can be pickled and outlives forks.

    Args:
        path: the file; made whole by the first ``write``.
        columns: as SQL defines them.
    """

    def __init__(self, path: Path, columns: str) -> None:
        self.path = path
        self._columns = columns
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def fetch(self, question: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row of the answer; None where there is none, or no file yet. Text comes as bytes.

        Raises:
            TableTrouble: one of its kinds.
        """
        with self._translated():
            opened = self._open()
            if opened is None:
                return None
            with opened.lock:
                rows: list[tuple[Any, ...]] = opened.connection.execute(question, values).fetchall()
        return rows[0] if rows else None

    def write(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run ``statement`` for each row, all of them or none.

        Raises:
            TableTrouble: one of its kinds; nothing was written.
            OSError: the folder or the file cannot be made.
        """
        with self._translated():
            opened = self._open() or self._begin()
            with opened.lock:
                opened.connection.execute("BEGIN IMMEDIATE")
                try:
                    opened.connection.executemany(statement, rows)
                    opened.connection.execute("COMMIT")
                except BaseException:  # Ctrl-C too: what stays begun would look like damage to the next write
                    with suppress(sqlite3.Error):
                        opened.connection.execute("ROLLBACK")
                    raise

    def remove(self) -> bool:
        """Remove the file if it is the one in use here; False where another process already began a new one.

        Others that are writing are waited for: what they had begun would be played into a new file of the same name.

        Raises:
            OSError: it cannot be removed.
        """
        mine, there = self._opened, self._there()
        if there is None or (mine is not None and mine.file != there):
            self.close()
            return False
        with suppress(sqlite3.Error, UnicodeDecodeError):  # a damaged file has nobody to wait for
            if opened := self._open():
                opened.connection.execute("BEGIN EXCLUSIVE")
        try:
            for name in (f"{self.path.name}-journal", self.path.name):
                self.path.with_name(name).unlink(missing_ok=True)
        finally:
            self.close()
        return True

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        if opened.process != os.getpid():
            _left_behind.append(opened.connection)
            return
        with suppress(sqlite3.Error):
            opened.connection.close()

    def _there(self) -> tuple[int, int] | None:
        """Which file stands at the path."""
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise Unusable(problem.strerror or str(problem)) from problem
        return found.st_dev, found.st_ino

    def _open(self) -> _Opened | None:
        """The connection of this process to the file that stands there now, or None."""
        there = self._there()
        if self._opened is not None and (self._opened.process, self._opened.file) != (os.getpid(), there):
            self.close()
        if self._opened is None and there is not None:
            connection = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            connection.text_factory = bytes  # damaged text need not be UTF-8
            for setting in SETTINGS:
                connection.execute(f"PRAGMA {setting}")
            self._opened = _Opened(connection, os.getpid(), there, threading.RLock())
        return self._opened

    def _begin(self) -> _Opened:
        """Make the file: complete before it gets its name, so that no process meets one without the table."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{uuid4().hex}.part")
        try:
            connection = sqlite3.connect(beside, isolation_level=None)
            connection.execute(f"CREATE TABLE entries ({self._columns}) WITHOUT ROWID")  # no second tree to disagree
            connection.close()
            self._give_name(beside)
        finally:
            beside.unlink(missing_ok=True)
        opened = self._open()
        if opened is None:
            raise Busy("it was deleted at this moment")
        return opened

    def _give_name(self, beside: Path) -> None:
        try:
            os.link(beside, self.path)  # unlike a rename, this does not replace what another process just made
        except FileExistsError:
            return
        except OSError:  # a file system without links
            os.replace(beside, self.path)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors by what can be done about them."""
        try:
            yield
        except sqlite3.Error as problem:
            code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)
            if code & 0xFF in _PASSING or code == sqlite3.SQLITE_READONLY_DBMOVED or self._was_replaced():
                raise Busy(str(problem)) from problem
            if code & 0xFF == sqlite3.SQLITE_READONLY and self._may_be_written():
                raise Damaged("it says of itself that it may not be written") from problem
            if reason := _UNUSABLE.get(code & 0xFF):
                raise Unusable(f"{reason}: {problem}") from problem
            raise Damaged(str(problem)) from problem
        except UnicodeDecodeError as problem:  # SQLite's own message, with damaged text in it
            raise Damaged("it holds text that is none") from problem

    def _was_replaced(self) -> bool:
        """Whether the file in use here was deleted meanwhile: it fails in many ways then, and the next one will not."""
        return self._opened is not None and self._opened.file != self._there()

    def _may_be_written(self) -> bool:
        return os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
