"""YAML in which nothing is lost or changed without a word, for every file and value that the parser reads."""

import itertools
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader

OTHER_BASE = re.compile(r"[-+]?0[0-9_]+|.*:.*")
"""Plain numbers that YAML reads in base 8 or 60: 010 is 8, and 1:30 is 90."""

LARGEST = 10_000
"""Values in a file: more than any run has, and fewer than aliases of aliases need to fill the memory."""

_load = get_loader("yaml")  # jsonargparse's own, before it is replaced


def use() -> None:
    """Have jsonargparse load YAML by `load`, and write it by `dump`."""
    set_loader("yaml", load, (yaml.YAMLError,))
    set_dumper("yaml", dump)


class Dumper(yaml.SafeDumper):
    """Writes members of an enumeration as their values; classes of Lightning have some as defaults."""


Dumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def dump(content: Any) -> str:
    """Settings as YAML, in their own order.

    Raises:
        ValueError: for a value that YAML has no way to write.
    """
    try:
        text: str = yaml.dump(content, Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    except yaml.representer.RepresenterError as error:
        _, value = error.args
        raise ValueError(f"a setting has the value {value!r}, which cannot be written to config.yaml") from None
    return text


def load(text: str, path: str = "") -> Any:
    """The content of a file of settings, or of a value on the command line.

    Args:
        text: in YAML.
        path: the file's name, for errors.

    Raises:
        yaml.YAMLError: for what is no YAML, a key that a mapping has twice, a number in base 8 or 60, a file
            without settings, or one with too many.
    """
    where = f"{path}: " if path else ""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _named(error, where) from None
    except RecursionError:
        raise yaml.YAMLError(f"{where}too many levels of settings") from None
    for ambiguity in _ambiguities(tree, "", set(), {}):
        raise yaml.YAMLError(f"{where}{ambiguity}")
    if _size(tree, {}) > LARGEST:
        raise yaml.YAMLError(f"{where}more than {LARGEST:,} values")
    if path:
        _check_file(tree, where)
    try:
        content = _load(text)
    except yaml.MarkedYAMLError as error:
        raise _named(error, where) from None
    if path:
        content.pop("config", None)  # which has been applied before (configs.py)
    return content


def _named(error: yaml.MarkedYAMLError, where: str) -> yaml.YAMLError:
    """An error with the file and line that it is of."""
    line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
    what = error.problem
    if what and what.startswith("but "):
        what = f"{error.context} {what}"
    return yaml.YAMLError(f"{where}{what}{line}")


def _check_file(tree: yaml.Node | None, where: str) -> None:
    """See that a file holds settings, and that those of a file that it builds on do not replace its own.

    Raises:
        yaml.YAMLError: if not.
    """
    if not isinstance(tree, yaml.MappingNode) or not tree.value:
        raise yaml.YAMLError(f"{where}it has to hold settings, as in eval_interval: 100")
    for place, (key, value) in enumerate(tree.value):
        if key.value != "config":
            continue
        if not (isinstance(value, yaml.ScalarNode) and value.tag.endswith((":str", ":null"))):
            got = value.value if isinstance(value, yaml.ScalarNode) else "several values"
            raise yaml.YAMLError(f"{where}config must be the name of one file, got {got}")
        if place:
            raise yaml.YAMLError(f"{where}config in line {key.start_mark.line + 1} must come before the settings")
    if len(tree.value) == 1 and not tree.value[0][1].value:
        raise yaml.YAMLError(f"{where}{tree.value[0][0].value} has no value; write null for none")


def _ambiguities(
    node: yaml.Node | None, name: str, seen: set[int], lines: dict[str, int], above: frozenset[int] = frozenset()
) -> Iterator[str]:
    """What is not clear about a node and all below it, which is looked at once however many aliases lead there.

    Args:
        node: of the tree.
        name: of the setting, with dots.
        seen: nodes that have been looked at.
        lines: each setting and its line so far, for a.b: 1 is the same setting as b: 1 below a.
        above: nodes that this one is a part of.
    """
    if id(node) in above:
        yield f"{name} contains itself"
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    above |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below, line = f"{name}.{key.value}".lstrip("."), key.start_mark.line + 1
            if below in lines:
                yield f"{below} is given twice, in line {lines[below]} and in line {line}; keep one of them"
            lines[below] = line
            yield from _ambiguities(value, below, seen, lines, above)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _ambiguities(item, name, seen, {}, above)
    elif node.tag.endswith((":int", ":float")) and OTHER_BASE.fullmatch(node.value):
        line, value = node.start_mark.line + 1, yaml.safe_load(node.value)
        yield f"{name} in line {line} is {node.value}, which YAML reads as {value}; write {value}, or quotes around it"


def _size(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Number of values in a node, each alias counted as what it stands for."""
    if id(node) not in sizes:
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        below = itertools.chain.from_iterable(part if isinstance(part, tuple) else (part,) for part in parts)
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in below)
    return sizes[id(node)]
