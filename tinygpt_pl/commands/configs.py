"""The names of the shipped configurations, which --config takes in place of a path."""

import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

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
    if Path(given).is_fifo():  # the words of a command are parsed more than once
        raise UnknownConfigError(f"must be a file that can be read twice; save {given} as a file")
    if not re.fullmatch(r"[\w-]+", given) or Path(given).is_file():
        return given
    shipped = {path.stem: path for path in FOLDER.glob("*.yaml")}
    if given not in shipped:
        raise UnknownConfigError(f"must be a file or one of {', '.join(sorted(shipped))}; got {given}")
    return str(shipped[given])
