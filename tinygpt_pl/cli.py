"""The command line: which command, and the module that carries it out, imported when it is asked for."""

import sys
from collections.abc import Sequence
from importlib import import_module

from tinygpt_pl.parser import PROG, VERBS, fail

HOMES = {
    **dict.fromkeys(("fit", "validate", "test"), "training"),
    "generate": "generation",
    **dict.fromkeys(("export", "import"), "exchange"),
}
"""Lightning takes seconds to import, which those who want some text should not pay."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: its words; those of the shell if left out.

    Returns:
        The exit code: 0, 1 for a run that failed, 2 for a wrong setting or file, 130 or 143 if a signal stopped it.

    Raises:
        SystemExit: from the parser, with code 0 after a help text and 2 at a word that it does not understand.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: {PROG} COMMAND --help", *(f"  {verb:10}{text}" for verb, text in VERBS.items()), sep="\n")
        return 0 if args else 2
    verb, *options = args
    if verb not in VERBS:
        fail(f"no command {verb!r}: it has to be one of {', '.join(VERBS)}")
        return 2
    code: int = import_module(f"tinygpt_pl.{HOMES[verb]}").run(verb, options)
    return code
