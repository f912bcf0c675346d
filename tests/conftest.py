"""Texts for the tests: one they write themselves, and Tiny Shakespeare where it is at hand."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reference import english

ROOT = Path(__file__).parent.parent
COPIES = (ROOT / "data" / "tinyshakespeare.txt", ROOT.parent / "shared" / "corpora" / "tinyshakespeare.txt")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small text with 27 symbols."""
    path = tmp_path / "english.txt"
    path.write_text(english(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def shakespeare_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds Tiny Shakespeare."""
    for copy in COPIES:
        if copy.exists():
            cache = tmp_path_factory.mktemp("cache")
            shutil.copy(copy, cache / "tinyshakespeare.txt")
            return cache
    pytest.skip(f"Tiny Shakespeare is not at hand; save it as {COPIES[0]}, or run fit once")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; gives its exit code, its output and its errors."""

    def run(*args: str) -> tuple[int, str, str]:
        from tinygpt_pl.cli import main

        try:
            code = main(args)
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            code = stop.code
        return code, *capsys.readouterr()

    return run
