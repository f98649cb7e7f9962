"""Which content a file had when it was last read, by its path, size and time of change: a warm epoch reads no image."""

import os
import time
import zlib
from contextlib import suppress
from pathlib import Path

from mmtune.shared_table import Busy, Damaged, SharedTable, TableTrouble, Unusable

FILE = "contents.sqlite"

FRESH = 2_000_000_000
"""Nanoseconds during which a changed file may change again without its time telling: FAT counts in steps of 2 s."""

PATIENCE = 3
"""Failures in a row, each perhaps after seconds of waiting, before this process remembers and recalls nothing more."""

COLUMNS = "path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, touched INTEGER, content BLOB, checksum INTEGER"

Stamp = tuple[str, int, int, int]
"""Absolute path, size in bytes, times of the last change in nanoseconds (``st_mtime_ns``, ``st_ctime_ns``)."""


class ContentMemory:
    """``root/contents.sqlite``: stamp of a file -> hash of its content.

    Can be pickled, is opened per process, and never fails: what cannot be recalled is hashed again, and after a write
    that failed for more than a busy moment nothing more is written.
    """

    def __init__(self, root: Path) -> None:
        self._table = SharedTable(Path(root) / FILE, COLUMNS)
        self._stopped = False
        self._failures = 0

    def recall(self, stamp: Stamp) -> bytes | None:
        """The content's hash, or None where it is not known for sure."""
        if self._failures >= PATIENCE:
            return None
        path, stated = os.fsencode(stamp[0]), stamp[1:]
        question = "SELECT size, changed, touched, content, checksum FROM entries WHERE path = ?"
        try:
            row = self._table.fetch(question, (path,))
        except Damaged:
            self._begin_anew()
            return None
        except (TableTrouble, OSError):
            self._failures += 1
            return None
        self._failures = 0
        if row is None or row[:3] != stated or not isinstance(row[3], bytes):
            return None
        return row[3] if row[4] == _checksum(path, stated, row[3]) else None

    def remember(self, stamp: Stamp, content: bytes) -> None:
        """Keep it, unless the file changed within the last 2 s: it could change again under the same stamp."""
        if self._stopped or self._failures >= PATIENCE or time.time_ns() - stamp[2] < FRESH:
            return
        path, stated = os.fsencode(stamp[0]), stamp[1:]
        row = (path, *stated, content, _checksum(path, stated, content))
        try:
            self._table.write("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", [row])
        except Damaged:
            self._begin_anew()
        except FileNotFoundError:
            return  # the folder was deleted at this moment
        except Busy:
            self._failures += 1
        except (Unusable, OSError):
            self._stopped = True

    def close(self) -> None:
        """Let go of the file."""
        self._table.close()

    def _begin_anew(self) -> None:
        with suppress(OSError, TableTrouble):
            self._table.remove()


def _checksum(path: bytes, stated: tuple[int, ...], content: bytes) -> int:
    numbers = " ".join(map(str, (*stated, len(path)))).encode()
    return zlib.crc32(b" ".join((numbers, path, content)))
