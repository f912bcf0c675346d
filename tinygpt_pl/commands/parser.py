"""The words of the command line, and how a mistake in them is told. jsonargparse alone, which starts fast."""

import difflib
import os
import re
import sys
import time
from typing import NoReturn

from jsonargparse import ArgumentParser

PROG = "python -m tinygpt_pl"
VERBS = {
    "fit": "train a network, or go on with --ckpt_path last",
    "validate": "repeat the evaluation of a checkpoint, with the run's own windows",
    "test": "score a checkpoint on the whole validation split, every token once",
    "diagnose": "say what the curve of a run shows, from its event files",
    "generate": "write text with a checkpoint",
    "export": "turn a checkpoint into a folder that Hugging Face transformers opens",
    "import": "turn such a folder, with a GPT-2, Llama or Qwen3 of this kind, into a checkpoint",
}
PATIENCE = 5.0
"""Seconds that the other processes of a machine leave to the first to say what is wrong."""


class Parser(ArgumentParser):
    """An ArgumentParser that says what is wrong in three lines at most."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Name the value, the rule and the way out, and exit with 2."""
        refuse(message, self._suggestion(message))
        sys.exit(2)

    def add_checkpoint(self) -> None:
        """Add the options that choose a checkpoint to read."""
        names = "last or best (of --run_dir, else of the newest run), or a file"
        self.add_argument("--ckpt_path", type=str, default="best", help=names)
        self.add_argument("--run_dir", type=str | None, help="folder of the run; the newest one if left out")

    def _suggestion(self, message: str) -> str:
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        for word in re.findall(r"[\w.]{4,}", message):
            close = difflib.get_close_matches(f"--{word}", options, n=1, cutoff=0.8)
            if close and close != [f"--{word}"]:
                return f"did you mean {close[0]}? All options: {self.prog} --help"
        return f"all options: {self.prog} --help"


def fail(message: str, hint: str = "") -> None:
    """Print an error in two lines and a hint in a third; what others have to say can be longer than that."""
    first, *rest = (line.strip() for line in message.splitlines() if line.strip())
    lines = [first[:400], " ".join(rest)[:400], hint]
    print("error: " + "\n".join(line for line in lines if line), file=sys.stderr)


def refuse(message: str, hint: str = "") -> None:
    """Print an error in a setting or file, once for all processes that torchrun or srun has started on a machine.

    The first of them sees the same, and its end ends the others; whoever is still there then has seen another one.
    """
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if os.environ.get("LOCAL_RANK" if torchrun else "SLURM_LOCALID", "0") != "0":
        time.sleep(PATIENCE)
    fail(message, hint)
