"""Importing libraries: sooner, and with a Ctrl-C that is heard."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import libraries in this block: Ctrl-C ends the process with 130, and nobody looks for garbage meanwhile.

    There is nothing to save yet, some libraries swallow a KeyboardInterrupt, and half of a library cannot be used. None
    of what is imported is garbage, and looking for some takes a part of the start.
    """
    before = signal.getsignal(signal.SIGINT)
    heard = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if heard:
        signal.signal(signal.SIGINT, lambda signum, frame: os._exit(130))
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if heard:
            signal.signal(signal.SIGINT, before)
