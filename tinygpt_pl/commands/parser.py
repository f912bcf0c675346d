"""The command line's parser, and how it reports a mistake. jsonargparse alone, which starts fast."""

import difflib
import re
import sys
from typing import NoReturn

from jsonargparse import ArgumentParser

from tinygpt_pl.system.terminal import PROG, refuse

VERBS = {
    "fit": "train a network, or go on with --ckpt_path last",
    "validate": "repeat the evaluation of a checkpoint, with the run's own windows",
    "test": "score a checkpoint on the whole validation split, every token once",
    "diagnose": "say what the curve of a run shows, from its event files",
    "generate": "write text with a checkpoint",
    "export": "turn a checkpoint into a folder that Hugging Face transformers opens",
    "import": "turn such a folder, with a GPT-2, Llama or Qwen3 of this kind, into a checkpoint",
}
"""Each command and its help."""


class Parser(ArgumentParser):
    """An ArgumentParser that reports what is wrong in three lines at most."""

    @classmethod
    def of(cls, verb: str) -> "Parser":
        """The parser of a command, without options."""
        return cls(prog=f"{PROG} {verb}", description=VERBS[verb], allow_abbrev=False)

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
        options = sorted(set(re.findall(r"--[\w.]+", self.format_help())))
        for word in re.findall(r"[\w.]{4,}", message):
            close = difflib.get_close_matches(f"--{word}", options, n=1, cutoff=0.8)
            if close and close != [f"--{word}"]:
                return f"did you mean {close[0]}? All options: {self.prog} --help"
        return f"all options: {self.prog} --help"
