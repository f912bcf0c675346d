"""A save that fails or is cut off costs no earlier checkpoint, and many saves cost no memory."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.small_runs import (
    BEST,
    DROPOUT,
    FORKS,
    LAST,
    LONGER,
    RUN,
    Fitted,
    Run,
    assert_same,
    finish,
    limited,
    load,
    outcome,
    scalars,
    small,
    start,
    table,
    three_lines,
)
from tinygpt_pl import TinyGPT
from tinygpt_pl.commands import fit
from tinygpt_pl.runs.checkpoint import read_checkpoint
from tinygpt_pl.system.files import PARTIAL
from tinygpt_pl.windows import Batch

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_fault_02_killed_between_two_files(cli: Run, text_file: Path) -> None:
    """Best is of iteration 8 already, last still of 4; each file speaks for itself, so nothing points astray."""
    keep = "--trainer.callbacks=tests.callbacks.KeepEarlierLast"
    assert cli("fit", *small(text_file, **DROPOUT, trainer__max_steps=8), keep)[0] == 0
    alone = outcome(RUN)
    assert load(BEST)["global_step"] == 8
    shutil.copy("earlier.ckpt", LAST)
    assert load(LAST)["global_step"] == 4
    assert cli("fit", "--run_dir", str(RUN), "--ckpt_path=last", "--trainer.callbacks=null")[0] == 0
    assert_same(outcome(RUN), alone)


@pytest.mark.slow
def test_fault_05_no_room_for_a_checkpoint(fitted: Fitted, tmp_path: Path) -> None:
    """The limit on the size of a file lets the curve through, but no checkpoint."""
    fitted("run", trainer__max_steps=4, trainer__enable_progress_bar="false")
    before = {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()}
    longer = ["fit", "--run_dir=run", "--ckpt_path=last", "--trainer.max_steps=12"]
    process = FORKS.Process(target=limited, args=(30_000, longer))
    process.start()
    output = finish(process, tmp_path, code=1)
    assert len(re.findall(r"WARNING: .*last.ckpt could not be written \(File too large\); the next save", output)) == 1
    assert [row[0] for row in table(output)] == ["8", "12"], "training went on"
    unwritten = "; ".join(f"run/checkpoints/{name}.ckpt (File too large)" for name in ("best", "last"))
    assert f"error: could not be written: {unwritten}\niteration 4 is safe: " in output
    assert "Traceback" not in output
    assert {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()} == before
    finish(start(longer, tmp_path), tmp_path)


@pytest.mark.parametrize("empty", [32, 0])
def test_fault_05_and_30_a_full_disk(fitted: Fitted, tmp_path: Path, small_disk: Path, empty: int) -> None:
    """Neither a checkpoint nor a row of the curve can be written; with room again, the next save succeeds."""
    disk = f'[{{"class_path": "tests.callbacks.Disk", "init_args": {{"empty": {empty}}}}}]'
    fitted("disk/run", trainer__max_steps=4, trainer__enable_progress_bar="false")
    longer = ["fit", "--run_dir=disk/run", "--ckpt_path=last", "--trainer.max_steps=40", f"--trainer.callbacks={disk}"]
    longer += ["--save_minutes=0", "--trainer.log_every_n_steps=1"]
    output = finish(start(longer, tmp_path), tmp_path, code=0 if empty else 1)
    assert "last.ckpt could not be written (No space left on device); the next save tries again" in output
    assert "WARNING: the curve ends here, since it cannot be written: [Errno 28] No space left on device" in output
    assert "Traceback" not in output
    assert "Exception" not in output
    assert [int(row[0]) for row in table(output)] == list(range(8, 41, 4))
    assert read_checkpoint(Path("disk/run/checkpoints/last.ckpt")).iteration == (40 if empty else 4)
    assert read_checkpoint(Path("disk/run/checkpoints/best.ckpt"))
    assert not list(Path("disk").rglob(f"*{PARTIAL}"))


class Scripted(TinyGPT):
    """The validation losses are these, whatever is learnt."""

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = {0: 3.3, 4: 3.2, 8: 3.0, 12: 3.1}[self.global_step]
        (self.val_loss, self.train_loss)[dataloader_idx].update(torch.tensor(loss), 1)


def test_fault_05_a_best_that_was_not_saved_is_none(cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iteration 8 had the lowest loss, but no file of it exists; that of 12 is better than that of 4."""
    monkeypatch.setattr(fit, "TinyGPT", Scripted)
    code, out, err = cli("fit", *small(text_file), LONGER, "--trainer.callbacks=tests.callbacks.BlockBest")
    assert code == 0
    assert "best.ckpt could not be written (Is a directory); the next save tries again" in err
    assert load(BEST)["global_step"] == 12
    assert "best: iter 12 | val 3.1000" in out


@pytest.mark.parametrize("file", [False, True])
def test_fault_06_a_folder_that_goes_away(cli: Run, text_file: Path, file: bool) -> None:
    remove = f'[{{"class_path": "tests.callbacks.RemoveCheckpoints", "init_args": {{"file": {str(file).lower()}}}}}]'
    code, out, err = cli("fit", *small(text_file), f"--trainer.callbacks={remove}")
    assert [row[0] for row in table(out)] == ["0", "4", "8", "10"]
    if file:
        assert code == 1
        assert "could not be written" in three_lines(err)
    else:
        assert code == 0
        assert load(LAST)["global_step"] == 10


@pytest.mark.slow
def test_fault_07_a_full_folder_for_temporary_files(text_file: Path, tmp_path: Path, small_disk: Path) -> None:
    """Lightning's own way of saving goes through it, and copies from there."""
    (small_disk / "filler").write_bytes(bytes(400 * 1024))
    environment = {**os.environ, "TMPDIR": str(small_disk)}
    command = [sys.executable, "-m", "tinygpt_pl", "fit", *small(text_file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert load(LAST)["global_step"] == 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process what it holds")
def test_fault_30_ten_thousand_steps_and_two_hundred_saves(text_file: Path, tmp_path: Path) -> None:
    """Memory, open files and threads stay flat, and the best checkpoint is there at the end."""
    options = small(text_file, trainer__max_steps=10_000, eval_interval=50, trainer__enable_progress_bar="false")
    watch = "--trainer.callbacks=tests.callbacks.Watch"
    finish(start(["fit", *options, watch, "--run_dir=run"], tmp_path), tmp_path)
    held = [[int(number) for number in line.split()] for line in Path("held").read_text().splitlines()]
    assert len(held) == 201
    memory, files, threads = zip(*held[20:], strict=True)
    print(f"memory {memory[0] / 1e6:.1f} to {memory[-1] / 1e6:.1f} MB, {set(files)} open files, {set(threads)} threads")
    assert memory[-1] - memory[0] < 10e6
    assert len(set(threads)) == 1
    assert (files[-1], max(files) - min(files)) <= (files[0], 1), "one more is open where a row is being written"
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    losses = [value for _, value in scalars(Path("run"))["eval/val_loss"][1:]]
    assert read_checkpoint(Path("run/checkpoints/best.ckpt")).content["val_loss"] == pytest.approx(
        min(losses), rel=1e-6
    )
