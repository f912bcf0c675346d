"""A signal stops a run between two steps, and the run resumes as if it had never stopped."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.small_runs import (
    DROPOUT,
    LAST,
    MODERN,
    RUN,
    Fitted,
    Run,
    assert_same,
    finish,
    load,
    outcome,
    run_forked,
    signal_at,
    small,
    start,
    table,
    wait_for,
)
from tinygpt_pl.runs.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.mark.parametrize(
    ("where", "iteration", "modern"),
    [
        ({"step": 1, "micro_batch": 0}, 2, {}),
        ({"step": 5, "micro_batch": 1}, 6, {}),
        ({"step": 3, "micro_batch": 1}, 4, {}),
        ({"step": 0, "evaluation": True}, 0, {}),
        ({"step": 4, "evaluation": True}, 4, {}),
        ({"step": 9, "micro_batch": 1}, 10, {}),
        ({"step": 10, "evaluation": True}, 10, {}),
        ({"step": 5, "micro_batch": 0}, 6, MODERN),
        ({"step": 4, "evaluation": True}, 4, MODERN),
        ({"step": 10, "evaluation": True}, 10, MODERN),
    ],
    ids=[
        *("mid-accumulation", "step", "boundary", "first evaluation", "evaluation", "last step", "last evaluation"),
        *("modern", "modern, evaluation", "modern, last evaluation"),
    ],
)
def test_fault_08_and_10_stopped_anywhere_and_resumed(
    cli: Run, fitted: Fitted, text_file: Path, where: dict[str, Any], iteration: int, modern: dict[str, Any]
) -> None:
    """Nothing in the rest of the run shows where it was stopped, and no row of the curve is missing or there twice.

    In the middle of an evaluation, an average of the weights is in their place.
    """
    straight = fitted("alone", **DROPOUT, **modern)
    code, _, err = cli("fit", *small(text_file, **DROPOUT, **modern), "--run_dir=run", signal_at(**where))
    assert code == 143, err
    last = Path("run/checkpoints/last.ckpt")
    assert f"stopped by SIGTERM at iteration {iteration}; resume with: " in err
    assert err.strip().endswith(f"python -m tinygpt_pl fit --ckpt_path {last}")
    assert load(last)["global_step"] == iteration
    code, rest, _ = cli("fit", f"--ckpt_path={last}", "--trainer.callbacks=null")
    assert code == 0
    assert_same(outcome(Path("run")), outcome(Path("alone")))
    assert table(rest) == [row for row in table(straight) if int(row[0]) >= iteration]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_fault_10_stopped_and_resumed_in_another_precision(cli: Run, text_file: Path, precision: str) -> None:
    """Lightning loads the weights before it converts the network, which would round a float64."""
    options = small(text_file, **DROPOUT, trainer__precision=precision)
    cli("fit", *options, "--run_dir=alone")
    assert cli("fit", *options, signal_at(step=6))[0] == 143
    assert cli("fit", "--ckpt_path=last", "--trainer.callbacks=null")[0] == 0
    assert_same(outcome(RUN), outcome(Path("alone")))


def test_fault_10_stopped_twice_in_a_row(cli: Run, fitted: Fitted, text_file: Path) -> None:
    fitted("alone", **DROPOUT)
    assert cli("fit", *small(text_file, **DROPOUT), signal_at(step=2))[0] == 143
    assert cli("fit", "--ckpt_path=last", signal_at(step=4, evaluation=True))[0] == 143
    assert cli("fit", "--ckpt_path=last", signal_at(step=4, evaluation=True))[0] == 143
    assert cli("fit", "--ckpt_path=last", signal_at(step=4, micro_batch=0))[0] == 143
    assert cli("fit", "--ckpt_path=last", "--trainer.callbacks=null")[0] == 0
    assert_same(outcome(RUN), outcome(Path("alone")))


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=str,
)
def test_fault_09_a_signal_from_outside(text_file: Path, tmp_path: Path, signum: int, code: int) -> None:
    process = run_forked(text_file, tmp_path)
    time.sleep(0.3)
    os.kill(process.pid, signum)
    output = finish(process, tmp_path, code=code)
    stopped = re.search(
        r"stopped by SIG\w+ at iteration (\d+); resume with: .* (\S+)$", output.strip().splitlines()[-1]
    )
    assert stopped, output
    assert load(Path(stopped[2]))["global_step"] == int(stopped[1]) > 0
    assert "Traceback" not in output


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_fault_08_and_09_a_second_signal_stops_at_once(text_file: Path, tmp_path: Path, signum: int, code: int) -> None:
    process = run_forked(text_file, tmp_path, "--trainer.callbacks=tests.callbacks.SlowSave")
    before = Path("run/checkpoints/last.ckpt").read_bytes()
    os.kill(process.pid, signum)
    wait_for(Path("saving").exists)
    began = time.monotonic()
    os.kill(process.pid, signum)
    finish(process, tmp_path, code=code)
    assert time.monotonic() - began < 5
    assert Path("run/checkpoints/last.ckpt").read_bytes() == before
    read_checkpoint(Path("run/checkpoints/last.ckpt"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_fault_09_an_interrupt_that_the_shell_has_turned_off_is_ignored(
    cli: Run, text_file: Path, signum: signal.Signals
) -> None:
    """As for a job in the background of a script, and under nohup."""
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        assert cli("fit", *small(text_file), signal_at(step=2, signum=int(signum)))[0] == 0
    finally:
        signal.signal(signum, before)
    assert load(LAST)["global_step"] == 10


def test_signals_are_given_back(cli: Run, text_file: Path) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    cli("fit", *small(text_file), signal_at(step=2))
    cli("fit", "--ckpt_path=last", "--trainer.callbacks=null")
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.slow
def test_fault_09_a_signal_that_ends_the_reader_too(text_file: Path, tmp_path: Path) -> None:
    """Ctrl-C with `2>&1 | tee log`: nobody reads what is said, and the state is saved all the same."""
    options = small(text_file, trainer__max_steps=100_000, eval_interval=100_000)
    command = [sys.executable, "-m", "tinygpt_pl", "fit", *options, "--trainer.enable_progress_bar=false"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_for(LAST.exists)
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert read_checkpoint(LAST).iteration > 0


def test_a_terminal_that_closes_sends_more_than_one_hangup(text_file: Path, tmp_path: Path) -> None:
    """One from the shell, one from the system; and the machine that shuts down a SIGTERM."""
    process = run_forked(text_file, tmp_path)
    for signum in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, signum)
    output = finish(process, tmp_path, code=143)
    assert "stopped by SIGTERM at iteration " in output
    assert load(Path("run/checkpoints/last.ckpt"))["global_step"] > 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_text_is_prepared_leaves_nothing_unfinished(tmp_path: Path, signum: signal.Signals) -> None:
    """Token files of gigabytes would fill the disk."""
    Path("word.txt").write_text("".join(random.Random(1).choices("etaoinshrdlu", k=300_000)))  # takes many seconds
    options = small(tmp_path / "word.txt", data__tokenizer="bpe", data__vocab_size=1000, data__cache_dir="cache")
    process = start(["fit", *options], tmp_path)
    wait_for(lambda: bool(list(tmp_path.glob("cache/tokens/*.partial"))))
    assert process.pid
    os.kill(process.pid, signum)
    finish(process, tmp_path, code=128 + signum)
    assert not list(tmp_path.rglob("*.partial"))
