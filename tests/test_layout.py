"""The floors: a module imports only what lies below it, and Lightning only where it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tinygpt_pl"
FLOORS = [
    {"gpt", "muon", "tokenizer", "guards", "history", "files", "machine", "parser", "drawing", "windows", "cluster"},
    {"optim", "decoding", "texts", "checkpoint", "runs", "gpt2", "llama", "sharding"},
    {"evidence", "sampling", "huggingface", "corpus"},
    {"generation", "exchange", "tokens", "symptoms", "generalization", "panels"},
    {"diagnosis", "data"},
    {"module", "options", "resume"},
    {"console", "report"},
    {"curve", "saving", "averaging", "review"},
    {"callbacks"},
    {"job"},
    {"training"},
    {"cli"},
    {"__main__", "__init__"},
]
WITHOUT_LIGHTNING = [
    *("gpt", "muon", "optim", "tokenizer", "guards", "history", "files", "machine", "parser", "drawing"),
    *("decoding", "windows", "texts", "corpus", "tokens", "checkpoint", "runs", "sampling", "generation", "cli"),
    *("gpt2", "llama", "huggingface", "exchange"),
    *("evidence", "symptoms", "generalization", "diagnosis", "panels", "report", "review"),
]


def imported(module: str) -> set[str]:
    """The modules of the package that a module names in its imports."""
    nodes = list(ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))))
    named = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    named += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.removeprefix("tinygpt_pl.") for name in named if name.startswith("tinygpt_pl.")}


def test_every_module_has_a_floor() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set().union(*FLOORS)


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_imports_go_down_only(floor: int) -> None:
    below = set().union(*FLOORS[:floor])
    for module in FLOORS[floor]:
        assert imported(module) <= below, f"{module} imports {imported(module) - below}"


def test_the_core_starts_without_lightning() -> None:
    """Importing Lightning takes seconds, which a script that wants the network alone should not pay."""
    imports = "; ".join(f"import tinygpt_pl.{module}" for module in WITHOUT_LIGHTNING)
    code = f"import sys; {imports}; from tinygpt_pl import GPT; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names() -> None:
    import tinygpt_pl

    for name in tinygpt_pl.__all__:
        assert getattr(tinygpt_pl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tinygpt_pl.nothing
