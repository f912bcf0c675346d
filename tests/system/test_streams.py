"""A run does not end with whoever reads its table, and no character ends a command."""

import io
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_runs import FORKS, LAST, RUN, Fitted, launch, load, small, wait_for
from tinygpt_pl.commands.main import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

STEPS = 100


def fitting(text_file: Path) -> list[str]:
    """A run that still trains when its reader has gone."""
    return [sys.executable, "-m", "tinygpt_pl", "fit", *small(text_file, trainer__max_steps=STEPS)]


@pytest.mark.parametrize(
    "errors",
    [
        pytest.param(subprocess.PIPE, id="| head"),
        pytest.param(subprocess.STDOUT, id="2>&1 | head", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_without_its_reader(text_file: Path, errors: int) -> None:
    command = [*fitting(text_file), "--trainer.enable_progress_bar=false"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("iter 4 "):
            assert process.poll() is None
        process.stdout.close()
        said = process.stderr.read() if process.stderr else ""
        assert process.wait(timeout=100) == 0
    if process.stderr:
        assert said == "WARNING: the output cannot be written (Broken pipe); the run goes on\n"
    assert load(LAST)["global_step"] == STEPS


def on_a_full_disk(args: list[str]) -> None:
    """Run a command with a full disk behind its output."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    vars(sys).update(dict.fromkeys(("stdout", "__stdout__"), os.fdopen(1, "w", closefd=False)))
    sys.exit(main(args))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
def test_a_full_disk_behind_the_output_costs_a_run_nothing_but_its_table(fitted: Fitted, text_file: Path) -> None:
    """What another command writes is what it was asked for, so that ends with an error."""
    fitted()
    codes = ((["fit", *small(text_file)], 0), (["generate"], 1), (["diagnose"], 1), (["fit", "-h"], 2), (["-h"], 2))
    for args, code in codes:
        process = FORKS.Process(target=on_a_full_disk, args=(args,))
        process.start()
        process.join(timeout=100)
        assert process.exitcode == code, args
    assert load(Path("lightning_logs/version_1/checkpoints/last.ckpt"))["global_step"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start(text_file: Path, closed: str) -> None:
    """The next files get their numbers, and must not get what is meant for them."""
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *fitting(text_file)], timeout=100, check=False)
    assert done.returncode == 0
    assert load(LAST)["global_step"] == STEPS


def on_a_terminal_for_good(terminal: str, args: list[str], folder: Path) -> None:
    """Run a command on this terminal, as after `disown`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.setsid()
    slave = os.open(terminal, os.O_RDWR)  # the terminal of the session
    for stream in range(3):
        os.dup2(slave, stream)
    os.close(slave)
    os.chdir(folder)
    vars(sys).update(dict.fromkeys(("stdout", "__stdout__"), os.fdopen(1, "w", closefd=False)))
    sys.exit(main(args))


def test_a_run_outlasts_its_terminal(text_file: Path, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    args = ["fit", *small(text_file, trainer__max_steps=STEPS)]
    process = FORKS.Process(target=on_a_terminal_for_good, args=(os.ttyname(slave), args, tmp_path))
    process.start()
    shown = b""
    while b"iter 4 " not in shown:
        shown += os.read(master, 65536)
    os.close(slave)
    os.close(master)
    process.join(timeout=100)
    assert process.exitcode == 0
    assert load(LAST)["global_step"] == STEPS


def test_reading_the_head_of_a_text_is_no_fault(fitted: Fitted) -> None:
    """And the reader of the errors may go, too: the text is written to its end."""
    fitted()
    command = [sys.executable, "-m", "tinygpt_pl", "generate", "--max_new_tokens=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert "rror" not in process.stderr.read()
        assert process.wait(timeout=60) == 0


class Ascii(io.TextIOWrapper):
    """An output with 128 characters, as under PYTHONIOENCODING=ascii."""

    def __init__(self) -> None:
        self.written = io.BytesIO()
        super().__init__(self.written, encoding="ascii")


@pytest.mark.parametrize("name", ["свой текст.txt", os.fsdecode(b"caf\xe9.txt")], ids=["Russian", "Latin-1"])
def test_characters_that_the_output_lacks_are_replaced(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In the name of the text and of a folder, and in what is drawn; a name need not even be UTF-8."""
    Path(name).write_text(text_file.read_text() + "ä" * 10 + "ж" * 10, encoding="utf-8")
    commands = [
        ["fit", *small(Path(name), print_samples="true")],
        ["fit", "--ckpt_path=last", "--trainer.max_steps=12"],
        ["test"],
        ["generate", "--prompt=ä"],
        ["diagnose"],
        ["diagnose", "--report"],
        ["export", "--output_dir=вывод"],
    ]
    for command in commands:
        output = Ascii()
        monkeypatch.setattr(sys, "stdout", output)
        assert main(command) == 0, command
        assert output.written.getvalue().isascii()
    assert Path("вывод/config.json").exists()
    if name.isprintable():  # YAML has no way to name the other file
        assert main(["fit", f"--config={RUN}/config.yaml"]) == 0


def test_a_hangup_stops_other_commands_as_it_would(fitted: Fitted, tmp_path: Path) -> None:
    fitted()
    process = launch(["tinygpt_pl", "generate", "--max_new_tokens=10000000"], tmp_path, "output")
    try:
        wait_for(lambda: len(Path("output").read_bytes()) > 1000)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 129
    finally:
        process.kill()
    assert "Traceback" not in Path("output").read_text()
