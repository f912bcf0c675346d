"""Signals that end a command while nothing of it is worth saving."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Those that end a process without a word to Python; Windows has no SIGHUP."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into a SystemExit with 128 and the signal's number, so that nothing unfinished stays."""
    main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.getsignal(signum) for signum in ENDS if main}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(signum, lambda signum, frame: sys.exit(128 + signum))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
