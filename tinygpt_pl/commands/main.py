"""The command line: the commands, each imported when it is asked for."""

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from tinygpt_pl.commands.classes import Classes
from tinygpt_pl.commands.outcome import Work, carry_out
from tinygpt_pl.commands.parser import VERBS, repeated
from tinygpt_pl.system.loading import loading
from tinygpt_pl.system.signals import ended_by_signals
from tinygpt_pl.system.streams import close_output, secure_streams
from tinygpt_pl.system.terminal import called_as, fail, program, warn

if TYPE_CHECKING:
    from tinygpt_pl.data import TextDataModule
    from tinygpt_pl.module import TinyGPT

COMMANDS = {
    "fit": ("fit", "fit"),
    "validate": ("score", "validate"),
    "test": ("score", "test"),
    "diagnose": ("diagnose", "diagnose_runs"),
    "generate": ("generate", "generate_text"),
    "export": ("convert", "export_checkpoint"),
    "import": ("convert", "import_model"),
}
"""Command to its module and function; importing Lightning takes seconds, which those who want text should not pay."""

TRAINING = {"fit", "validate", "test"}
"""Commands with a Trainer, which looks after signals itself."""

MODELS = {*TRAINING, "generate"}
"""Commands that build a model, and so use the subclasses given to `main`."""

HELP = {"-h", "--help"}
"""Options that print a help text and end the command."""

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""What Lightning reads while it is imported."""

SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID")
"""Other numbers that it reads."""


def main(
    args: Sequence[str] | None = None,
    *,
    module: "type[TinyGPT] | None" = None,
    data: "type[TextDataModule] | None" = None,
) -> int:
    """Run a command.

    Args:
        args: its words; those of the shell if left out.
        module: a subclass to use instead of TinyGPT; its added arguments become options, `--model.name`.
        data: a subclass to use instead of TextDataModule; its added arguments become `--data.name`.

    Returns:
        The exit code: 0, 1 for a run that failed, 2 for a wrong setting or file, 3 for a curve that shows a fault, and
        128 and the signal's number if one stopped it: 129, 130, 138 or 143.

    Raises:
        SystemExit: from the parser, with code 0 after a help text and 2 at a word that it does not understand.
    """
    args = sys.argv[1:] if args is None else args
    called_as(sys.argv[0])
    secure_streams(training=list(args[:1]) == ["fit"] and not HELP & {*args})
    try:
        return _dispatch(args, Classes(module, data))
    finally:
        close_output()


def _dispatch(args: Sequence[str], classes: Classes) -> int:
    if not args or args[0] in HELP:
        return carry_out(lambda work: _list_commands()) or (0 if args else 2)
    verb, *options = args
    if verb not in COMMANDS:
        fail(f"no command {verb!r}: it has to be one of {', '.join(COMMANDS)}", _command_meant(args))
        return 2
    first = all(os.environ.get(name, "0") == "0" for name in RANKS)  # of several processes, which get the same words
    for name in repeated(options) if first else ():
        warn(f"{name} is given twice; the last one counts")
    if verb in TRAINING:
        return carry_out(lambda work: _run(verb, options, work, classes))
    with ended_by_signals():
        return carry_out(lambda work: _run(verb, options, work, classes))


def _list_commands() -> None:
    """Print the commands, each with its help."""
    print(f"usage: {program()} COMMAND --help", *(f"  {verb:10}{text}" for verb, text in VERBS.items()), sep="\n")


def _command_meant(args: Sequence[str]) -> str:
    """A hint for words that begin with no command."""
    if args[0].startswith("-"):
        later = [word for word in args if word in COMMANDS]
        return f"the command comes first: {program()} {(later or ['COMMAND'])[0]} {args[0]} …"
    words = {word: verb for verb, text in VERBS.items() for word in (*text.split(), verb)}  # train, a word of fit's
    close = difflib.get_close_matches(args[0].lower(), words, n=1, cutoff=0.75)
    return f"did you mean {words[close[0]]}?" if close else ""


def _run(verb: str, options: Sequence[str], work: Work, classes: Classes) -> int | None:
    for name in (*RANKS, *SIZES) if verb in TRAINING else ():
        if not os.environ.get(name, "0").isdecimal():
            raise ValueError(f"{name} must be a number, got {os.environ[name]!r}; unset it")
    module, function = COMMANDS[verb]
    with loading():
        command = getattr(import_module(f"tinygpt_pl.commands.{module}"), function)
    code: int | None = command(options, work, classes) if verb in MODELS else command(options, work)
    return code
