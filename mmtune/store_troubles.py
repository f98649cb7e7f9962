"""What went wrong with a store, said once each, and what it still does: read and write, only read, or nothing."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 3
"""How often in a row writing or reading may fail for a passing reason (a busy table, a folder deleted meanwhile), and
how often in all a table may be found damaged, before this process leaves it alone."""


def say_to_stderr(line: str) -> None:
    """What a store says where nobody listens."""
    print(line, file=sys.stderr, flush=True)


class StoreTroubles:
    """Counts troubles and draws the line. Can be pickled; then it speaks to standard error.

    Attributes:
        writing: more may be written.
        reading: what is there may be read; where it may not, nothing is written either.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.writing = self.reading = True
        self._say = say
        self._said: set[str] = set()
        self._writes = self._reads = self._damaged = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_say": say_to_stderr}

    def tell(self, place: Path, kind: str, line: str) -> None:
        """Say one line of a kind, the first time."""
        if kind not in self._said:
            self._said.add(kind)
            self._say(f"trunk cache {place}: {line}")

    def wrote(self) -> None:
        """A write went well."""
        self._writes = 0

    def did_read(self) -> None:
        """A read went well."""
        self._reads = 0

    def cannot_write_now(self, place: Path, reason: str) -> None:
        """A write failed; the next may not."""
        self._writes += 1
        if self._writes >= PATIENCE:
            self.stop_writing(place, f"it cannot be written ({reason})")

    def cannot_read_now(self, place: Path, problem: Exception) -> None:
        """A read failed, perhaps after seconds of waiting; the next may not."""
        self._reads += 1
        if self._reads >= PATIENCE:
            self.stop_reading(place, f"it cannot be read ({in_short(problem)})")

    def is_damaged(self, place: Path, problem: Exception) -> None:
        """The table had to be begun anew."""
        self._damaged += 1
        self.tell(place, "table", f"its table is damaged ({problem}); it is begun anew, the states are computed again")
        if self._damaged > PATIENCE:
            self.stop_reading(place, "its table is damaged again and again")

    def stop_writing(self, place: Path, reason: str) -> None:
        """Nothing more is written by this process."""
        self.writing = False
        self.tell(
            place,
            "stop",
            f"{reason}; what is there is still read, nothing more is kept. "
            "`mmtune cache clear` makes room, or choose a larger limit or another folder",
        )

    def stop_reading(self, place: Path, reason: str) -> None:
        """Nothing more is read or written by this process."""
        self.reading = self.writing = False
        self.tell(place, "read", f"{reason}; everything is computed again. Choose another folder, or delete this one")


def in_short(problem: Exception) -> str:
    """An error's reason without its number and path."""
    return getattr(problem, "strerror", None) or str(problem)
