"""Fixtures that several test files share: texts, folders, disks and the command line."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference import english
from tests.small_runs import RUN, Fitted, Run, small
from tinygpt_pl.text.corpus import default_cache_dir

ROOT = Path(__file__).parent.parent
COPIES = [
    folder / "tinyshakespeare.txt"
    for folder in (default_cache_dir(), ROOT / "data", ROOT.parent / "shared" / "corpora")
]

# A script that starts the tests in the background turns Ctrl-C off for them and for every run that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup does so with this one


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Give each test the same variables and one thread.

    With the MASTER_ADDR that Lightning leaves behind, a run waits for others; its launcher sets a thread for each CPU.
    """
    torch.set_num_threads(1)  # small models are faster on one, and test runs beside each other do not slow each other
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Token files of tests lie in a cache of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text with 27 symbols, in one place for all tests: the settings of a run that they share name it."""
    path = tmp_path_factory.mktemp("text") / "english.txt"
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
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the cache, and all requests sent to a port of this machine that nobody listens on."""
    monkeypatch.delenv("TINYGPT_CACHE", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of the first request


@pytest.fixture(scope="session")
def parser_of() -> Callable[[str], Any]:
    """`build_parser` of fit, validate and test, which takes as long as many a test, once for each command."""
    from tinygpt_pl.commands.settings import build_parser

    return functools.cache(build_parser)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parser_of: Callable[[str], Any]) -> Run:
    """Run a command in this process; gives its exit code, its output and its errors."""
    monkeypatch.setattr("tinygpt_pl.commands.settings.build_parser", parser_of)

    def run(*args: str) -> tuple[int, str, str]:
        from tinygpt_pl.commands.main import main

        try:
            code = main(args)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def shared_runs() -> dict[tuple[str, ...], tuple[Path, str]]:
    """Folder and output of each run that `fitted` has trained, by its options."""
    return {}


@pytest.fixture
def fitted(
    cli: Run,
    text_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
    shared_runs: dict[tuple[str, ...], tuple[Path, str]],
) -> Fitted:
    """Put a finished run of `small` into a folder; gives what `fit` printed.

    The first test that asks for a run trains it, the others get copies: where to start from, not what to test.
    """

    def put(run_dir: Path | str = RUN, **changes: Any) -> str:
        options = tuple(small(text_file, **changes))
        if options not in shared_runs:
            folder = tmp_path_factory.mktemp("run")
            with contextlib.chdir(folder):
                code, out, err = cli("fit", *options)
            assert code == 0, err
            shared_runs[options] = folder / RUN, out
        trained, out = shared_runs[options]
        shutil.copytree(trained, run_dir)
        return out

    return put


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in its own temporary folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting takes the rights of root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only until the test ends, also for root."""
    mounted = []

    def protect(folder: Path) -> None:
        if os.getuid():
            folder.chmod(0o555)
            return
        for options in (["--bind", folder], ["-o", "remount,ro,bind"]):
            if subprocess.run(["mount", *options, folder], capture_output=True, check=False).returncode:
                pytest.skip("this sandbox allows no mounts")
        mounted.append(folder.absolute())

    yield protect
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)
