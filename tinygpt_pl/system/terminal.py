"""Lines printed for a person: results on the output, warnings and errors on the error stream."""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

PATIENCE = 5.0
"""Seconds that the other processes of a machine leave to the first to print what is wrong."""


_program = "python -m tinygpt_pl"


def program() -> str:
    """The command that runs this program."""
    return _program


def called_as(script: str) -> None:
    """Set the command from sys.argv[0]: a script that calls `main`, or this package."""
    global _program
    own = script.endswith(".py") and os.path.basename(script) != "__main__.py"
    _program = f"python {quoted(Path(script))}" if own else "python -m tinygpt_pl"


def quoted(path: Path) -> str:
    """A path as a word of a command that is to be typed; with /, so that Windows needs no quotes for its own."""
    return shlex.quote(path.as_posix())


def readable(text: str) -> str:
    """A text without what is no character: the bytes of a file's name that are not UTF-8."""
    return text.encode(errors="replace").decode()


def say(*lines: str) -> None:
    """Print the lines that are not empty on the output, above any progress bar."""
    for line in filter(None, lines):
        if sys.stderr.isatty():
            tqdm.write(line)  # above the bar
        else:
            print(line)
    sys.stdout.flush()  # a table in a pipe or file is read while the run trains


def warn(message: str) -> None:
    """Print a warning on the error stream, above any progress bar."""
    tqdm.write(f"WARNING: {message}", file=sys.stderr)


def progress_bar(name: str, total: int, **options: Any) -> "tqdm[Any]":
    """A bar with the time left, in place of any other one; it stays hidden where the work takes no time."""
    seconds = 0.25 if sys.stderr.isatty() else 10.0  # from one redrawing to the next; a log file needs few
    return tqdm(total=total, desc=name, delay=1.0, leave=False, position=0, mininterval=seconds, **options)


def fail(message: str, hint: str = "") -> None:
    """Print an error in two lines and a hint in a third; messages of libraries can be longer than that."""
    first, *rest = (line.strip() for line in message.splitlines() if line.strip())
    lines = [first[:400], " ".join(rest)[:400], hint]
    print("error: " + "\n".join(line for line in lines if line), file=sys.stderr)


def refuse(message: str, hint: str = "") -> None:
    """Print an error in a setting or file, once for all processes that torchrun or srun has started on a machine.

    The first of them finds the same error, and its end ends the others; one that is still there then has found another.
    """
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if os.environ.get("LOCAL_RANK" if torchrun else "SLURM_LOCALID", "0") != "0":
        time.sleep(PATIENCE)
    fail(message, hint)
