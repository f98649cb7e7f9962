"""Ending a run from outside: the first SIGTERM or Ctrl-C asks, the second ends at once.

A run that is asked finishes its step, writes a checkpoint and goes, so that going on later gives the same result as
never having stopped. All ranks agree on the step: they exchange what they heard after every one.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmtune.ground.process_group import all_reduce_sum, world_size

HEARD = (signal.SIGINT, signal.SIGTERM)
SAME_REQUEST = 1.0
"""Seconds within which a signal repeats the first one: a terminal and a launcher both pass Ctrl-C on to the ranks."""
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Variables that launchers set for their children."""

_parent = os.getppid()  # when this is imported first: `finetune` does so before anything slow


class StopSignals:
    """What this process was asked. Nothing is heard outside ``listening()``.

    Attributes:
        number: the signal that came, 0 while none has.
    """

    def __init__(self) -> None:
        self.number = 0
        self._first = 0.0
        self._watch_parent = any(name in os.environ for name in LAUNCHERS)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals while the block runs; in another thread than the main one Python allows none to be heard."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in HEARD}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._first = number, now
        elif now - self._first > SAME_REQUEST:
            os._exit(128 + number)

    def agreed(self, device: Any = "cpu") -> int:
        """The signal that any rank was sent, the same on every rank; 0 where none was. Every rank must call this.

        A launcher of one process that is ended leaves its child behind: the child then acts as if asked itself.
        """
        if self._watch_parent and os.getppid() != _parent and not self.number:
            self.number = signal.SIGTERM
        if world_size() == 1:
            return int(self.number)
        import torch

        heard = all_reduce_sum(torch.tensor([self.number == number for number in HEARD], dtype=torch.int32).to(device))
        return next((int(number) for number, count in zip(HEARD, heard.tolist(), strict=True) if count), 0)


class _Deaf:
    """A worker's handler: the first signal is the whole group's and the main process's business, the second ends it."""

    def __init__(self) -> None:
        self.num_heard = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.num_heard += 1
        if self.num_heard > 1:
            os._exit(128 + number)


def leave_signals_to_parent(_worker: int = 0) -> None:
    """For processes that read data: Ctrl-C reaches them too, and what to do about it the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _Deaf())
