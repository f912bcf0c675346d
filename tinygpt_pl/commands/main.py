"""The command line: which command, and the module that carries it out, imported when it is asked for."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from tinygpt_pl.commands.parser import PROG, VERBS, fail
from tinygpt_pl.system.machine import out_of_memory

HOMES = {
    **dict.fromkeys(("fit", "validate", "test"), "outcome"),
    "diagnose": "diagnose",
    "generate": "generate",
    **dict.fromkeys(("export", "import"), "convert"),
}
"""Lightning takes seconds to import, which those who want some text should not pay."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: its words; those of the shell if left out.

    Returns:
        The exit code: 0, 1 for a run that failed, 2 for a wrong setting or file, 3 for a curve that shows a fault, and
        128 and the signal's number if one stopped it: 130, 138 or 143.

    Raises:
        SystemExit: from the parser, with code 0 after a help text and 2 at a word that it does not understand.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: what is meant for it would fail, or end up in the other
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: {PROG} COMMAND --help", *(f"  {verb:10}{text}" for verb, text in VERBS.items()), sep="\n")
        return 0 if args else 2
    verb, *options = args
    if verb not in VERBS:
        fail(f"no command {verb!r}: it has to be one of {', '.join(VERBS)}")
        return 2
    module = import_module(f"tinygpt_pl.commands.{HOMES[verb]}")
    if HOMES[verb] == "outcome":  # which has more to tell of its end
        return int(module.run(verb, options))
    before = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # nothing unfinished stays
    try:
        return carry_out(lambda: module.prepare(verb, options))
    finally:
        signal.signal(signal.SIGTERM, before)


def carry_out(prepare: Callable[[], Callable[[], int | None]]) -> int:
    """Prepare a command and do its work; gives the exit code: what fails in the work is no wrong setting any more."""
    code, done = 2, None
    try:
        work = prepare()
        code = 1
        done = work()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        fail(str(error))
        return 2
    except OSError as error:
        fail(str(error))
        return code
    except KeyboardInterrupt:
        return 130
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fail("out of memory")
        return 1
    return done or 0
