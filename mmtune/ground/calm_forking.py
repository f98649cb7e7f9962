"""Forking without a deadlock: a worker is forked when no thread is just beginning or ending.

A process that forks while one of its threads is being taken down leaves the child waiting for a lock that nobody holds
there (CPython 3.11, ``_PyThreadState_DeleteExcept``): a worker that never answers. The threads that come and go here
are those that feed the queues of the loader before.
"""

import os
import threading
import time

CALM_SECONDS = 0.02
"""Threads that end are gone within a millisecond or two."""

LONGEST_SECONDS = 1.0
"""Something that starts threads all the time shall not keep a run from going on."""


def wait_for_calm(calm: float = CALM_SECONDS, longest: float = LONGEST_SECONDS) -> None:
    """Return when no thread has begun or ended for ``calm`` seconds, at the latest after ``longest``."""
    started = changed = time.monotonic()
    before = _threads()
    while time.monotonic() - changed < calm and time.monotonic() - started < longest:
        time.sleep(calm / 8)
        now = _threads()
        if now != before:
            before, changed = now, time.monotonic()


def _threads() -> set[str]:
    """The operating system's threads of this process; where it does not list them, Python's."""
    try:
        return set(os.listdir("/proc/self/task"))
    except OSError:
        return {str(thread.native_id) for thread in threading.enumerate()}
