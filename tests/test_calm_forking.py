"""Workers are forked when no thread is just beginning or ending."""

import threading
import time

from mmtune.ground.calm_forking import wait_for_calm


def test_it_waits_for_threads_that_end() -> None:
    ended: list[float] = []

    def end_after(seconds: float) -> None:
        time.sleep(seconds)
        ended.append(time.monotonic())

    threads = [threading.Thread(target=end_after, args=(0.05 * number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    wait_for_calm(calm=0.3, longest=30)
    assert len(ended) == 4 and not any(thread.is_alive() for thread in threads)


def test_threads_that_stay_do_not_hold_it_up() -> None:
    """The negation: a thread that neither begins nor ends is no reason to wait."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        wait_for_calm(calm=0.01, longest=30)
        assert thread.is_alive()
    finally:
        done.set()
        thread.join()


def test_it_does_not_wait_for_ever() -> None:
    stop = threading.Event()

    def restless() -> None:
        while not stop.is_set():
            each = threading.Thread(target=time.sleep, args=(0.001,))
            each.start()
            each.join()

    thread = threading.Thread(target=restless)
    thread.start()
    try:
        wait_for_calm(calm=60, longest=0.2)  # would hang here
        assert thread.is_alive(), "it came back although there was no calm"
    finally:
        stop.set()
        thread.join()
