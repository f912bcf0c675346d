"""The files that --config takes: shipped configurations by name, and files that build on others."""

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # in a list of names that mypy cannot follow

from tinygpt_pl.commands import strict_yaml

PACKAGE = Path(__file__).parent.parent
FOLDER = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
"""The shipped configurations: inside an installed package, or beside the package in a checkout."""


class UnknownConfigError(ArgumentTypeError, ValueError):
    """argparse prints the message of an ArgumentTypeError, and jsonargparse that of a ValueError inside a file."""


def find_config(given: Any) -> Any:
    """Replace the bare name of a shipped configuration by its path; anything else stays as it is.

    A file of that name in the working folder comes first.

    Raises:
        UnknownConfigError: for a bare name that is neither, and for a pipe.
    """
    if not isinstance(given, str):  # the list of files that have been read, which jsonargparse checks in the end
        return given
    if os.path.exists(given) and Path(given).is_fifo():  # the words of a command are parsed more than once
        raise UnknownConfigError(f"must be a file that can be read twice; save {given} as a file")
    if not re.fullmatch(r"[\w-]+", given) or os.path.isfile(given):  # pathlib raises for a long name
        return given
    shipped = {path.stem: path for path in FOLDER.glob("*.yaml")}
    if given not in shipped:
        raise UnknownConfigError(f"must be a file or one of {', '.join(sorted(shipped))}; got {given}")
    return str(shipped[given])


class StackedFiles(ActionConfigFile):
    """Applies a file of settings after the file that it builds on, as if both had been given.

    jsonargparse alone lets a group of the later file, such as `trainer`, replace that of the earlier one whole.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Apply the files that a value of --config stands for.

        Raises:
            TypeError: for a value that is wrong, which the parser reports.
        """
        try:
            files = stacked(values)
        except ValueError as error:
            raise TypeError(f'Parser key "{self.dest}": {error}') from error
        for file in files:
            self.apply_config(parser, cfg, self.dest, file)


def stacked(given: str) -> list[str]:
    """A file of settings, or settings in place of one, after the files that it builds on, the lowest first.

    Raises:
        ValueError: for files that build on each other.
        UnknownConfigError: for the bare name of a file that does not exist.
    """
    if not os.path.isfile(given):
        return _stacked_settings(given)
    files = [given]
    while base := _base(files[0]):
        if any(Path(base).resolve() == Path(file).resolve() for file in files):
            raise ValueError(f"{given} builds on itself, by its config")
        files.insert(0, base)
    return files


def _stacked_settings(given: str) -> list[str]:
    try:
        settings = strict_yaml.load(given)
    except yaml.YAMLError:  # which is reported when it is applied
        return [given]
    if not isinstance(settings, dict) or not isinstance(settings.get("config"), str):
        return [given]
    files = stacked(find_config(settings.pop("config")))
    return [*files, strict_yaml.dump(settings)] if settings else files


def _base(file: str) -> str | None:
    """The file that a file of settings builds on; what is wrong with its YAML is reported when it is applied."""
    try:
        tree = yaml.compose(Path(file).read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    for key, value in tree.value if isinstance(tree, yaml.MappingNode) else ():
        if key.value == "config" and value.tag.endswith(":str"):
            return str(Path(file).parent / find_config(value.value))
    return None
