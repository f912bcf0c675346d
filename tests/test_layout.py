"""The rooms of the package: what each may import, and which of them start without Lightning."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tinygpt_pl"
RECIPE = {"gpt", "optim", "muon", "windows", "data", "module", "guards"}
ROOMS: dict[str, set[str]] = {
    "system": set(),
    "text": {"system"},
    "gpt": set(),
    "muon": set(),
    "guards": set(),
    "windows": set(),
    "optim": {"gpt", "muon"},
    "data": {"windows", "text"},
    "module": {"gpt", "optim", "windows", "guards", "text"},
    "runs": RECIPE | {"text", "system"},
    "insight": {"optim", "guards"},
    "generation": {"gpt"},
    "exchange": {"gpt", "text", "runs", "system"},
    "training": RECIPE | {"text", "system", "runs", "insight", "generation"},
    "commands": RECIPE | {"text", "system", "runs", "insight", "generation", "exchange", "training"},
    "__main__": {"commands", "system"},
    "__init__": RECIPE | {"text", "generation", "training"},
}
"""Room, or file of the recipe, to what it may import besides its own files."""

WITHOUT_LIGHTNING = (
    "system",
    "text",
    "gpt",
    "muon",
    "guards",
    "windows",
    "optim",
    "runs",
    "insight",
    "generation",
    "exchange",
)
"""Importing Lightning takes seconds, which a script that wants the model alone should not pay."""


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The rooms that a file names in its imports, those inside functions too."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    named = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    named += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[1] for name in named if name.startswith("tinygpt_pl.")}


def test_every_file_has_a_room() -> None:
    assert {room(file) for file in files()} == ROOMS.keys()


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_what_it_may(name: str) -> None:
    for file in files():
        if room(file) == name:
            assert imported(file) <= ROOMS[name] | {name}, file


def test_nothing_imports_in_a_circle() -> None:
    """In an order of floors, each room imports what lies below it."""
    floors: list[set[str]] = []
    left = dict(ROOMS)
    while left:
        floor = {name for name, below in left.items() if below <= set().union(*floors)}
        assert floor, f"a circle among {left.keys()}"
        floors.append(floor)
        left = {name: below for name, below in left.items() if name not in floor}


INTERNALS = {"lightning_internals.py", "torch_internals.py"}
INNER = {"epoch_loop", "val_loop", "fit_loop", "found_inf", "optim_progress", "batch_progress"}
"""Names without an underscore that are no part of the public interface of Lightning or torch."""


@pytest.mark.parametrize("file", [file for file in files() if file.name not in INTERNALS], ids=lambda file: file.name)
def test_private_interfaces_of_libraries_are_in_their_one_file(file: Path) -> None:
    """A private attribute belongs to the file that defines it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stores = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    own |= {node.attr for node in stores if isinstance(node.value, ast.Name) and node.value.id == "self"}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    private = {name for name in used - own if name.startswith("_") and not name.startswith("__")}
    assert private <= {"_exit"}  # of os, and public
    assert not used & INNER


def test_the_core_starts_without_lightning() -> None:
    """And counts the parameters of a model without torch's compiler, which `generate` does before it builds one."""
    modules = [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for file in files()
        if room(file) in WITHOUT_LIGHTNING
    ]
    imports = "; ".join(f"import {module.removesuffix('.__init__')}" for module in modules)
    count = "from tinygpt_pl.gpt import GPTConfig, parameter_count; parameter_count(GPTConfig())"
    code = f"import sys; {imports}; {count}; print({{'lightning', 'torch._dynamo'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names() -> None:
    import tinygpt_pl

    for name in tinygpt_pl.__all__:
        assert getattr(tinygpt_pl, name).__name__ == name
    assert set(tinygpt_pl.__all__) <= set(dir(tinygpt_pl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tinygpt_pl.nothing
