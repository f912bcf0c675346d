"""A run that is killed at any moment and goes on ends with the bits of a run that was left alone."""

import random
import shutil
import time
from pathlib import Path

import pytest

from tests.small_runs import assert_same, finish, outcome, small, start

LONG = {
    "model__gpt__dropout": 0.2,
    "data__batch_size": 2,
    "trainer__accumulate_grad_batches": 2,
    "trainer__max_steps": 200,
    "trainer__log_every_n_steps": 3,
    "trainer__enable_progress_bar": "false",
    "eval_interval": 20,
    "save_minutes": 0.0003,
}


def inode(path: Path) -> int:
    """Another one for each time that a file was written; each stretch of a run writes its configuration first."""
    return path.stat().st_ino if path.exists() else 0


def assert_kills_leave_no_trace(text_file: Path, folder: Path, kills: int) -> None:
    options = small(text_file, **LONG)
    finish(start(["--help"], folder), folder)  # the first fork waits for the imports
    began = time.monotonic()
    finish(start(["fit", *options, "--run_dir=alone"], folder), folder)
    seconds = time.monotonic() - began
    alone = outcome(folder / "alone")
    assert [step for step, _ in alone["curve"]["train/loss"]] == list(range(0, 200, 3))
    assert [step for step, _ in alone["curve"]["eval/val_loss"]] == list(range(0, 201, 20))

    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the moments of death: {seed}")
    draw = random.Random(seed)
    killed, runs, from_scratch, unfinished = 0, 0, 0, 0
    run = folder / "killed"
    while killed < kills:
        runs += 1
        shutil.rmtree(run, ignore_errors=True)
        while True:
            last = run / "checkpoints" / "last.ckpt"
            if not last.exists():  # nothing to go on from: it is deleted, as the message for this case says
                shutil.rmtree(run, ignore_errors=True)
                args, from_scratch = ["fit", *options, "--run_dir=killed"], from_scratch + 1
            else:
                args = ["fit", "--run_dir=killed", "--ckpt_path=last"]
            before = inode(run / "config.yaml")
            process = start(args, folder)
            if killed == kills:
                finish(process, folder)
                break
            if draw.random() < 0.7:  # the others may be killed before they train
                while process.is_alive() and inode(run / "config.yaml") == before:
                    time.sleep(0.001)
            process.join(timeout=draw.uniform(0, 0.7 * seconds))
            if process.exitcode is not None:
                assert process.exitcode == 0, (folder / "output").read_text()
                break
            process.kill()
            process.join()
            killed += 1
            unfinished += len(list(run.rglob("*.partial")))
        assert_same(outcome(run), alone)
        assert not list(run.rglob("*.partial"))
    print(f"{killed} kills in {runs} runs, {from_scratch} of them before anything was saved, {unfinished} in a save")


def test_fault_01_and_10_ten_kills_leave_no_trace(text_file: Path, tmp_path: Path) -> None:
    assert_kills_leave_no_trace(text_file, tmp_path, 10)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fault_01_and_10_a_hundred_kills_leave_no_trace(text_file: Path, tmp_path: Path) -> None:
    assert_kills_leave_no_trace(text_file, tmp_path, 100)
