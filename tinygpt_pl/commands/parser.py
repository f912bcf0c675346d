"""The command line's parser, and how it reports a mistake. jsonargparse alone, which starts fast."""

import difflib
import itertools
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import Path_fr

from tinygpt_pl.commands.counterparts import COUNTERPARTS
from tinygpt_pl.system.files import decode_utf8
from tinygpt_pl.system.terminal import program, refuse

VERBS = {
    "fit": "train a model, or resume a run with --ckpt_path last",
    "validate": "repeat the evaluation of a checkpoint, with the run's own windows",
    "test": "score a checkpoint on the whole validation split, every token once",
    "diagnose": "say what the curve of a run shows, from its event files",
    "generate": "write text with a checkpoint",
    "export": "turn a checkpoint into a folder that Hugging Face transformers opens",
    "import": "turn such a folder, with a GPT-2, Llama or Qwen3 of this kind, into a checkpoint",
}
"""Each command and its help."""


REPEATABLE = {"--config", "--stop"}
"""Options of which each occurrence counts."""

TEXT = {"prompt"}
"""Settings whose value is any text, also an empty one and the word None."""


class Parser(ArgumentParser):
    """An ArgumentParser that reports what is wrong in three lines at most."""

    words: Sequence[str] = ()
    """Those that are being parsed."""

    @classmethod
    def of(cls, verb: str) -> "Parser":
        """The parser of a command, without options."""
        return cls(prog=f"{program()} {verb}", description=VERBS[verb], allow_abbrev=False)

    def add_checkpoint(self) -> None:
        """Add the options that choose a checkpoint to read."""
        names = "last or best (of --run_dir, else of the newest run), or a file"
        self.add_argument("--ckpt_path", type=str, default="best", help=names)
        self.add_argument("--run_dir", type=str | None, help="folder of the run; the newest one if left out")

    def add_ensemble(self) -> None:
        """Add the option that has several checkpoints evaluated or sampled as one."""
        usage = "further checkpoints with the same vocabulary and window; the probabilities of all are averaged"
        self.add_argument("--ensemble", type=str, nargs="+", default=[], metavar="CKPT", help=usage)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str], namespace: Namespace | None = None, **how: Any
    ) -> Namespace:
        """Parse the words of a command; exits with 2 at one that is wrong, or is no text that anybody means."""
        self.words = args
        config = super().parse_args(args, namespace, **how)
        for name, value in config.items():
            of_a_class = ".init_args." in name  # where the defaults are those of its author
            if isinstance(value, str) and value.lower() in ("", "none") and name not in TEXT and not of_a_class:
                self.error(f"{name} is the text {value!r}; leave it out, or write null for none")
        for word, after in itertools.pairwise([*args, ""]):
            option, joined, text = word.partition("=")
            text, value = text if joined else after, config.get(option.lstrip("-"))
            if option.startswith("--") and isinstance(value, int | float) and ":" in text:
                self.error(f"{option[2:]} is {text}, which YAML reads as {value}; write {value}")
        return config

    def parse_path(self, path: Any, **how: Any) -> Namespace:
        """Parse a file of settings, which is in UTF-8 wherever this runs; the system's own encoding may be another."""
        file = Path_fr(path)
        text = decode_utf8(Path(file.absolute).read_bytes(), str(path))
        with file.relative_path_context():  # for files that it names
            config: Namespace = self.parse_string(text, str(path), **how)
        return config

    def print_help(self, file: Any = None, **how: Any) -> None:
        """Print the help text; a full disk behind the output is an error, which argparse would drop."""
        output = file or sys.stdout
        output.write(self.format_help())
        output.flush()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Name the value, the rule and the way out, and exit with 2."""
        options = sorted(set(re.findall(r"--[\w.]+", self.format_help())))
        if self.prog.startswith(program()):
            way_out = self._way_out(message, options)
            hint = f"{way_out} All options: {self.prog} --help" if way_out else f"all options: {self.prog} --help"
        else:  # the parser of a callback or another class, which jsonargparse makes
            hint = f"its settings: {', '.join(option[2:] for option in options if option != '--help')}"
        refuse(plain(message), hint)
        sys.exit(2)

    def _way_out(self, message: str, options: Sequence[str]) -> str:
        """What was meant, if that can be guessed."""
        if lacking := re.search(r"argument (?:-\w/)?(--[\w.]+): expected one argument", message):
            value = "".join(following(lacking[1], self.words))
            if value and value.partition("=")[0] not in options:
                return f"a value that begins with - is joined by =: {lacking[1]}={shlex.quote(value)}."
        if surplus := re.search(r"unrecognized arguments: ([^-]\S*)", message):
            return f"did you mean --config {surplus[1]}?" if "--config" in options else ""
        if unknown := re.search(r"arguments: --([\w.-]+)|(?:Group '(.*)' .*)?ption '(.*)'", message):
            name = ".".join(part for part in unknown.groups() if part)
            if name.removeprefix("trainer.") in COUNTERPARTS and name.startswith("trainer."):
                return COUNTERPARTS[name.removeprefix("trainer.")]
            found = similar(name.lower().replace("-", "_"), options)
            return f"did you mean {' or '.join(found)}?" if found else ""
        return ""


def following(option: str, words: Sequence[str]) -> Sequence[str]:
    """The word after an option, if there is one."""
    return [after for word, after in itertools.pairwise(words) if word == option][-1:]


def similar(name: str, options: Sequence[str]) -> list[str]:
    """Options that may be meant by a name that is none: of the same last part, with it as a word, or spelt like it."""
    last = name.removeprefix("no_").rpartition(".")[2]
    ends = {option: option.strip("-").rpartition(".")[2] for option in options}
    return (
        [option for option, end in ends.items() if end == last]
        or [option for option, end in ends.items() if last in end.split("_")][:3]
        or difflib.get_close_matches(f"--{name}", options, n=1, cutoff=0.8)
    )


def repeated(words: Sequence[str]) -> list[str]:
    """Options that a later one replaces: the same once more, or a class after one of its settings.

    A list may be added to with `+=`; then the settings of its last item come again.
    """
    given, found = set[str](), []
    for word, after in itertools.pairwise([*words, ""]):
        option, joined, text = word.partition("=")
        if option.endswith("+"):
            given = {earlier for earlier in given if not earlier.startswith(option[:-1])}
        elif option.startswith("--") and " " not in option and option not in REPEATABLE:
            for name in _settings_in(option, text if joined else after):
                if any(f"{earlier}.".startswith(f"{name}.") for earlier in given):
                    found.append(name)
                given.add(name)
    return found


def _settings_in(option: str, value: str) -> list[str]:
    """An option, or those that its value gives if that is a mapping for a group: it leaves the others as they are."""
    try:
        content = yaml.safe_load(value) if value.startswith("{") else None
    except (yaml.YAMLError, RecursionError):  # which is refused later
        return [option]
    return _names(option, content, 2)


def _names(option: str, content: Any, depth: int) -> list[str]:
    if not isinstance(content, dict) or "class_path" in content or not depth:
        return [option]
    return [name for key, value in content.items() for name in _names(f"{option}.{key}", value, depth - 1)]


KINDS = {"int": ["a whole number"], "float": ["a number"], "bool": ["true", "false"], "NoneType": ["null"]}
"""Types in Python, and in words."""

NOISE = re.compile(
    r"^Problems parsing config: |^\s*(- Expected a (path|<class)|(- )?(Does not|Subtypes:|Errors:|Given value)).*\n?",
    re.MULTILINE,
)
"""What jsonargparse says of types besides what is wrong."""


CLASSES = {
    r"Expected a dot import path string: (\S+)": "class {} not found; give your own as module.Class",
    r"Problem with given class_path '(.*?)':\s*(.*)": "{} cannot be used: {}",
}
"""What jsonargparse says of the class of a callback, logger or plugin, and the same without its own terms."""


def plain(message: str) -> str:
    """An error of jsonargparse with the values that a setting may have in place of their types in Python."""
    message = re.sub("required: (.*)", lambda found: f"required: --{found[1].replace(', ', ', --')}", message)
    key, got = re.search(r'Parser key "([\w.]+)"', message), re.search(r"(?:Given|Got) value: (.*)", message)
    types = message.partition("Errors:")[0]
    classes = re.findall(r"<class '(.*?)'>", types)
    named = [word.strip("' ") for group in re.findall(r"Literal\[(.*?)\]", types) for word in group.split(",")]
    for pattern, words in CLASSES.items():
        if found := re.search(pattern, message):
            return (f"--{key[1]}: " if key else "") + words.format(*found.groups())
    expected = {*re.findall(r"Expected a <class '(.*?)'>", message)} - {"NoneType"}
    if key and got and expected in ({"list"}, {"tuple"}) and got[1][:1] not in "[{(":
        return f"{key[1]} must be a list, as in [{got[1]}], got {got[1]}"
    if not (key and got) or not KINDS.keys() >= {*classes} or re.search(r"(list|tuple|Iterable)\b", types):
        return re.sub(r'^Parser key "([\w.]+)":\s*(- )?', r"--\1: ", NOISE.sub("", message))
    allowed = [*dict.fromkeys(named), *(word for name in classes for word in KINDS[name])]
    either = " or ".join(filter(None, (", ".join(allowed[:-1]), allowed[-1])))
    return f"{key[1]} must be {either}, got {'null' if got[1] == 'None' else got[1]}"
