"""A process that hears signals and says so, for the tests of stop signals; it imports no torch.

Usage: ``python signalled_process.py WAY``. ``twice``: sends itself two SIGTERM, more than a second apart. ``repeated``:
two at once. ``worker``: what a data loader's worker does.
"""

import os
import signal
import sys
import time

from mmtune.ground import stop_signals

way = sys.argv[1]
signals = stop_signals.StopSignals()
if way == "worker":
    stop_signals.leave_signals_to_parent()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print("deaf", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive", flush=True)
with signals.listening():
    os.kill(os.getpid(), signal.SIGTERM)
    print("heard", signals.number, flush=True)
    if way == "twice":
        time.sleep(stop_signals.SAME_REQUEST + 0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "what was there before is put back"
