"""The thirty cases of docs/faults.md: what may go wrong with a run, and what has to come of it."""

import contextlib
import itertools
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.reference import GPT_CONFIG, OPTIM, lightning_fit
from tests.small_runs import FORKS, MODERN, Run, assert_same, finish, load, outcome, scalars, shell, small, start, table
from tinygpt_pl import TinyGPT, module
from tinygpt_pl.commands import job
from tinygpt_pl.commands.parser import VERBS
from tinygpt_pl.guards import Diverged
from tinygpt_pl.runs.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from tinygpt_pl.system.files import PARTIAL, sweep
from tinygpt_pl.windows import Batch

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
BEST = RUN / "checkpoints" / "best.ckpt"
DROPOUT = {"model__gpt__dropout": 0.2, "data__batch_size": 2, "trainer__accumulate_grad_batches": 2}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def three_lines(err: str) -> str:
    """The error that a user sees, after the progress bar's line."""
    message = err[err.index("error: ") :].strip()
    assert len(message.splitlines()) <= 3, message
    assert "Traceback" not in err
    return message


# Saving


def write_forever(path: str) -> None:
    for n in itertools.count():
        write_checkpoint({"n": n, "tensor": torch.full((200_000,), float(n))}, Path(path))


def test_fault_01_killed_inside_a_save(tmp_path: Path) -> None:
    """The old file or the new one, never half of one; what was not finished is swept."""
    path, left, newest = tmp_path / "x.ckpt", 0, -1
    draw = random.Random(1)
    for _ in range(20):
        before = path.stat().st_ino if path.exists() else 0
        process = FORKS.Process(target=write_forever, args=(str(path),))
        process.start()
        while not path.exists() or path.stat().st_ino == before:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.02))
        process.kill()
        process.join()
        left += len(list(tmp_path.glob(f"*{PARTIAL}")))
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        checkpoint = load(path)
        assert torch.equal(checkpoint["tensor"], torch.full((200_000,), float(checkpoint["n"])))
        newest = max(newest, checkpoint["n"])
        sweep(tmp_path, "*.ckpt")
        assert list(tmp_path.iterdir()) == [path]
    assert left > 0, "no save was ever interrupted"
    assert newest > 0


class KeepEarlierLast(Callback):
    """Keeps a copy of last.ckpt as it is before the evaluation at iteration 8 is saved."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 8:
            shutil.copy(LAST, "earlier.ckpt")


def test_fault_02_killed_between_two_files(cli: Run, text_file: Path) -> None:
    """Best is of iteration 8 already, last still of 4; each file speaks for itself, so nothing points astray."""
    keep = "--trainer.callbacks=tests.test_faults.KeepEarlierLast"
    assert cli("fit", *small(text_file, **DROPOUT, trainer__max_steps=8), keep)[0] == 0
    alone = outcome(RUN)
    assert load(BEST)["global_step"] == 8
    shutil.copy("earlier.ckpt", LAST)
    assert load(LAST)["global_step"] == 4
    assert cli("fit", "--run_dir", str(RUN), "--ckpt_path=last", "--trainer.callbacks=null")[0] == 0
    assert_same(outcome(RUN), alone)


@pytest.mark.parametrize("length", [0, 1, 0.5, -1])
def test_fault_03_a_truncated_checkpoint(cli: Run, text_file: Path, length: float) -> None:
    cli("fit", *small(text_file, trainer__max_steps=4))
    whole = LAST.read_bytes()
    LAST.write_bytes(whole[: len(whole) // 2] if length == 0.5 else whole[: int(length)])
    damaged = LAST.read_bytes()
    for verb in ("fit", "validate", "test"):
        code, _, err = cli(verb, "--ckpt_path=last")
        assert code == 2
        message = three_lines(err)
        assert f"{LAST} is damaged or no checkpoint" in message
        assert f"the newest sound one beside it is {BEST}, of iteration 4" in message
    assert LAST.read_bytes() == damaged
    assert cli("fit", f"--ckpt_path={BEST}", "--trainer.max_steps=6")[0] == 0, "the way out that was offered"
    assert load(LAST)["global_step"] == 6


def test_fault_04_a_flipped_bit(cli: Run, text_file: Path) -> None:
    """torch loads such a file without a word."""
    cli("fit", *small(text_file, trainer__max_steps=4))
    raw = bytearray(LAST.read_bytes())
    with zipfile.ZipFile(LAST) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size if "/data/" in entry.filename else 0)
        offset = raw.index(archive.read(entry)) + entry.file_size // 2
    raw[offset] ^= 1
    LAST.write_bytes(raw)
    torch.load(LAST, weights_only=True)
    code, _, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=6")
    assert code == 2
    assert f"{LAST} is damaged: the check sum of " in three_lines(err)


def limited(limit: int, args: list[str]) -> None:
    """Run a command that may write files of `limit` bytes at most."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with open("output", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from tinygpt_pl.commands.main import main

    sys.exit(main(args))


@pytest.mark.slow
def test_fault_05_no_room_for_a_checkpoint(text_file: Path, tmp_path: Path) -> None:
    """The limit on the size of a file lets the curve through, but no checkpoint."""
    run = [*small(text_file, trainer__max_steps=4, trainer__enable_progress_bar="false"), "--run_dir=run"]
    finish(start(["fit", *run], tmp_path), tmp_path)
    before = {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()}
    longer = ["fit", "--run_dir=run", "--ckpt_path=last", "--trainer.max_steps=12"]
    process = FORKS.Process(target=limited, args=(30_000, longer))
    process.start()
    output = finish(process, tmp_path, code=1)
    assert len(re.findall(r"WARNING: .*last.ckpt could not be written \(File too large\); the next save", output)) == 1
    assert [row[0] for row in table(output)] == ["0", "4", "8", "12"], "training went on"
    unwritten = "; ".join(f"run/checkpoints/{name}.ckpt (File too large)" for name in ("best", "last"))
    assert f"error: could not be written: {unwritten}\niteration 4 is safe: " in output
    assert "Traceback" not in output
    assert {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()} == before
    finish(start(longer, tmp_path), tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting takes the rights of root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


class Disk(Callback):
    """Fills the disk up when the run starts; empties it again before the evaluation at `empty`."""

    def __init__(self, empty: int = 0) -> None:
        self.empty = empty

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with open("disk/filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(512)):
                pass

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self.empty:
            Path("disk/filler").unlink()


@pytest.mark.parametrize("empty", [32, 0])
def test_fault_05_and_30_a_full_disk(text_file: Path, tmp_path: Path, small_disk: Path, empty: int) -> None:
    """Neither a checkpoint nor a row of the curve can be written; with room again, the next save succeeds."""
    disk = f'[{{"class_path": "tests.test_faults.Disk", "init_args": {{"empty": {empty}}}}}]'
    options = small(text_file, trainer__max_steps=4, trainer__enable_progress_bar="false")
    finish(start(["fit", *options, "--run_dir=disk/run"], tmp_path), tmp_path)
    longer = ["fit", "--run_dir=disk/run", "--ckpt_path=last", "--trainer.max_steps=40", f"--trainer.callbacks={disk}"]
    longer += ["--save_minutes=0", "--trainer.log_every_n_steps=1"]
    output = finish(start(longer, tmp_path), tmp_path, code=0 if empty else 1)
    assert "last.ckpt could not be written (No space left on device); the next save tries again" in output
    assert "WARNING: the curve ends here, since it cannot be written: [Errno 28] No space left on device" in output
    assert "Traceback" not in output
    assert "Exception" not in output
    assert [int(row[0]) for row in table(output)] == list(range(0, 41, 4))
    assert read_checkpoint(Path("disk/run/checkpoints/last.ckpt"))["global_step"] == (40 if empty else 4)
    assert read_checkpoint(Path("disk/run/checkpoints/best.ckpt"))
    assert not list(Path("disk").rglob(f"*{PARTIAL}"))


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


@pytest.mark.parametrize("folder", [".", "checkpoints"])
def test_fault_06_a_folder_that_cannot_be_written_to(
    cli: Run, text_file: Path, folder: str, read_only: Callable[[Path], None]
) -> None:
    cli("fit", *small(text_file, trainer__max_steps=4))
    read_only(RUN / folder)
    code, _, err = cli("fit", "--ckpt_path=last", LONGER)
    assert code == 2
    assert str(RUN / folder) in three_lines(err)
    assert cli("test")[0] == 0, "reading is still possible"


LONGER = "--trainer.max_steps=12"


class Scripted(TinyGPT):
    """The validation losses are these, whatever is learnt."""

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = {0: 3.3, 4: 3.2, 8: 3.0, 12: 3.1}[self.global_step]
        (self.val_loss, self.train_loss)[dataloader_idx].update(torch.tensor(loss), 1)


class BlockBest(Callback):
    """Lets nothing be written to best.ckpt after the evaluation at iteration 8."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 8:
            Path(f"{BEST}{PARTIAL}").mkdir()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, idx: int) -> None:
        if trainer.global_step == 8:
            Path(f"{BEST}{PARTIAL}").rmdir()


def test_fault_05_a_best_that_was_not_saved_is_none(cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iteration 8 had the lowest loss, but no file of it exists; that of 12 is better than that of 4."""
    monkeypatch.setattr(job, "TinyGPT", Scripted)
    code, out, err = cli("fit", *small(text_file), LONGER, "--trainer.callbacks=tests.test_faults.BlockBest")
    assert code == 0
    assert "best.ckpt could not be written (Is a directory); the next save tries again" in err
    assert load(BEST)["global_step"] == 12
    assert "best: iter 12 | val 3.1000" in out


class RemoveCheckpoints(Callback):
    """Takes the folder of the checkpoints away while the run goes on, and puts a file in its place if asked to."""

    def __init__(self, file: bool = False) -> None:
        self.file = file

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 8:
            shutil.rmtree(RUN / "checkpoints")
            if self.file:
                (RUN / "checkpoints").touch()


@pytest.mark.parametrize("file", [False, True])
def test_fault_06_a_folder_that_goes_away(cli: Run, text_file: Path, file: bool) -> None:
    remove = f'[{{"class_path": "tests.test_faults.RemoveCheckpoints", "init_args": {{"file": {str(file).lower()}}}}}]'
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


# Stopping


class SignalAt(Callback):
    """Sends this process a signal at the end of a micro-batch, or during the evaluation, of an optimizer step."""

    def __init__(self, step: int, signum: int = 15, micro_batch: int = 0, evaluation: bool = False) -> None:
        self.step, self.signum, self.micro_batch, self.evaluation = step, signum, micro_batch, evaluation

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        steps, micro_batch = divmod(batch_idx, trainer.accumulate_grad_batches)
        if not self.evaluation and (steps, micro_batch) == (self.step, self.micro_batch):
            signal.raise_signal(self.signum)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.evaluation and trainer.global_step == self.step and (dataloader_idx, batch_idx) == (1, 1):
            signal.raise_signal(self.signum)


def signal_at(**where: Any) -> str:
    settings = ", ".join(f'"{name}": {str(value).lower()}' for name, value in where.items())
    return f'--trainer.callbacks=[{{"class_path": "tests.test_faults.SignalAt", "init_args": {{{settings}}}}}]'


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
    cli: Run, text_file: Path, where: dict[str, Any], iteration: int, modern: dict[str, Any]
) -> None:
    """Nothing in the rest of the run shows where it was stopped, and no row of the curve is missing or there twice.

    In the middle of an evaluation, an average of the weights is in their place.
    """
    options = small(text_file, **DROPOUT, **modern)
    code, straight, _ = cli("fit", *options, "--run_dir=alone")
    assert code == 0
    code, _, err = cli("fit", *options, "--run_dir=run", signal_at(**where))
    assert code == 143, err
    last = Path("run/checkpoints/last.ckpt")
    assert f"stopped by SIGTERM at iteration {iteration}; go on with: " in err
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


def test_fault_10_stopped_twice_in_a_row(cli: Run, text_file: Path) -> None:
    options = small(text_file, **DROPOUT)
    cli("fit", *options, "--run_dir=alone")
    assert cli("fit", *options, signal_at(step=2))[0] == 143
    assert cli("fit", "--ckpt_path=last", signal_at(step=4, evaluation=True))[0] == 143
    assert cli("fit", "--ckpt_path=last", signal_at(step=4, evaluation=True))[0] == 143
    assert cli("fit", "--ckpt_path=last", signal_at(step=4, micro_batch=0))[0] == 143
    assert cli("fit", "--ckpt_path=last", "--trainer.callbacks=null")[0] == 0
    assert_same(outcome(RUN), outcome(Path("alone")))


def run_forked(text_file: Path, tmp_path: Path, *more: str) -> Any:
    """Start a long run in a process of its own, and wait until it trains."""
    options = small(text_file, **DROPOUT, trainer__max_steps=100_000, eval_interval=100_000)
    process = start(["fit", *options, "--run_dir=run", "--trainer.enable_progress_bar=false", *more], tmp_path)
    wait_for((tmp_path / "run/checkpoints/last.ckpt").exists)
    return process


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_fault_09_a_signal_from_outside(text_file: Path, tmp_path: Path, signum: int, code: int) -> None:
    process = run_forked(text_file, tmp_path)
    time.sleep(0.3)
    os.kill(process.pid, signum)
    output = finish(process, tmp_path, code=code)
    stopped = re.search(r"stopped by SIG\w+ at iteration (\d+); go on with: .* (\S+)$", output.strip().splitlines()[-1])
    assert stopped, output
    assert load(Path(stopped[2]))["global_step"] == int(stopped[1]) > 0
    assert "Traceback" not in output


class SlowSave(Callback):
    """Makes the save of a stopped run take long, by waiting before it."""

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        if trainer.global_step > 0:
            Path("saving").touch()
            time.sleep(60)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_fault_08_and_09_a_second_signal_stops_at_once(text_file: Path, tmp_path: Path, signum: int, code: int) -> None:
    process = run_forked(text_file, tmp_path, "--trainer.callbacks=tests.test_faults.SlowSave")
    before = Path("run/checkpoints/last.ckpt").read_bytes()
    os.kill(process.pid, signum)
    wait_for(Path("saving").exists)
    began = time.monotonic()
    os.kill(process.pid, signum)
    finish(process, tmp_path, code=code)
    assert time.monotonic() - began < 5
    assert Path("run/checkpoints/last.ckpt").read_bytes() == before
    read_checkpoint(Path("run/checkpoints/last.ckpt"))


def test_fault_09_an_interrupt_that_the_shell_has_turned_off_is_ignored(cli: Run, text_file: Path) -> None:
    """As for a job in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert cli("fit", *small(text_file), signal_at(step=2, signum=int(signal.SIGINT)))[0] == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert load(LAST)["global_step"] == 10


def test_signals_are_given_back(cli: Run, text_file: Path) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    cli("fit", *small(text_file), signal_at(step=2))
    cli("fit", "--ckpt_path=last", "--trainer.callbacks=null")
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


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
    assert read_checkpoint(LAST)["global_step"] > 0


# Going on


class Windows(Callback):
    """Writes down a sum over the tokens of each micro-batch."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, idx: int) -> None:
        weights = torch.arange(batch[0].numel())
        with open("windows", "a") as file:
            file.write(f"{idx} {int((batch[0].flatten() * weights).sum())}\n")


def test_fault_11_the_windows_after_a_resume(cli: Run, text_file: Path) -> None:
    see = "--trainer.callbacks=tests.test_faults.Windows"
    options = small(text_file, **DROPOUT)
    cli("fit", *options, "--run_dir=alone", see)
    straight = Path("windows").read_text().splitlines()
    assert len({line.split()[1] for line in straight}) == len(straight) == 20
    Path("windows").unlink()
    cli("fit", *options, "--run_dir=run", see, "--trainer.max_steps=6")
    cli("fit", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.max_steps=10", see)
    assert Path("windows").read_text().splitlines() == straight


def test_fault_12_the_same_seed_and_another(cli: Run, text_file: Path) -> None:
    for run, seed in (("one", 1), ("two", 1), ("three", 2)):
        assert cli("fit", *small(text_file, **DROPOUT, seed_everything=seed), f"--run_dir={run}")[0] == 0
    one, two, three = (outcome(Path(run)) for run in ("one", "two", "three"))
    assert_same(one, two)
    for tag in ("train/loss", "eval/val_loss", "optim/grad_norm"):
        assert all(a != b for a, b in zip(one["curve"][tag], three["curve"][tag], strict=True))


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--model.gpt.n_embd=32", "n_embd is 16 in the checkpoint and 32 here"),
        ("--model.gpt.block_size=16", "block_size is 8 in the checkpoint and 16 here"),
        (
            "--data.corpus=other.txt",
            r"data.corpus has to stay \S+english.txt \(SHA-256 \w+…\) in a run that goes on, got other.txt",
        ),
        ("--data.batch_size=3", "the number of windows in a step .* has to stay 4 in a run that goes on, got 3"),
        ("--seed_everything=7", "seed_everything has to stay 1337 in a run that goes on, got 7"),
        ("--model.optim.optimizer=muon", "model.optim.optimizer has to stay adamw in a run that goes on, got muon"),
        ("--ema_decay=0.9", "ema_decay has to stay None in a run that goes on, got 0.9"),
    ],
)
def test_fault_13_going_on_as_another_run(cli: Run, text_file: Path, option: str, named: str) -> None:
    Path("other.txt").write_text("abc" * 500)
    cli("fit", *small(text_file, trainer__max_steps=4))
    before = LAST.read_bytes()
    code, _, err = cli("fit", "--ckpt_path=last", option, LONGER)
    assert code == 2
    assert re.search(named, three_lines(err)), err
    assert LAST.read_bytes() == before


def test_what_may_change_is_honoured_and_named(cli: Run, text_file: Path) -> None:
    """Other micro-batches take the same steps."""
    options = small(text_file, data__batch_size=2, trainer__accumulate_grad_batches=2)
    cli("fit", *options, "--run_dir=alone")
    assert cli("fit", *options, "--run_dir=run", signal_at(step=4))[0] == 143
    code, out, _ = cli(
        *("fit", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.callbacks=null", "--data.batch_size=4"),
        *("--trainer.accumulate_grad_batches=1", "--trainer.log_every_n_steps=1"),
    )
    assert code == 0
    changed = [line for line in out.splitlines() if line.startswith("changed: ") and "callbacks" not in line]
    assert sorted(changed) == [
        "changed: data.batch_size 2 -> 4",
        "changed: trainer.accumulate_grad_batches 2 -> 1",
        "changed: trainer.log_every_n_steps 2 -> 1",
    ]
    a, b = (scalars(Path(run)) for run in ("alone", "run"))
    assert [step for step, _ in b["train/loss"]] == [0, 2, 4, 5, 6, 7, 8, 9]
    assert [step for step, _ in b["eval/val_loss"]] == [0, 4, 8, 10]
    for tag in ("train/loss", "eval/val_loss", "optim/lr", "progress/tokens_seen"):
        rows = dict(b[tag])
        for step, value in a[tag]:
            assert rows[step] == pytest.approx(value, rel=1e-4)


def test_a_new_end_moves_the_schedule_and_says_so(cli: Run, text_file: Path) -> None:
    cli("fit", *small(text_file, trainer__max_steps=4))
    code, out, _ = cli("fit", "--ckpt_path=last", LONGER)
    assert code == 0
    assert out.splitlines()[:3] == [
        f"going on from iteration 4 of {LAST}",
        "changed: trainer.max_steps 4 -> 12",
        "changed: the learning rate of the next step 1.00e-03 -> 9.14e-03",
    ]


def test_going_back_to_the_best_starts_a_branch(cli: Run, text_file: Path) -> None:
    """In its own folder it would write over what came after."""
    worse = ["--model.optim.max_lr=0.3", "--model.optim.min_lr=0.3"]
    cli("fit", *small(text_file, trainer__max_steps=4))
    cli("fit", "--ckpt_path=last", "--trainer.max_steps=8", *worse)
    assert (load(BEST)["global_step"], load(LAST)["global_step"]) == (4, 8)
    code, _, err = cli("fit", "--ckpt_path=best", "--trainer.max_steps=6", f"--run_dir={RUN}")
    assert code == 2
    assert f"{RUN} has gone on from {BEST} (iteration 4) to iteration 8; go on with --ckpt_path {LAST}" in err
    code, out, err = cli("fit", "--ckpt_path=best", "--trainer.max_steps=6")
    assert code == 0, err
    assert f"NOTE: {RUN} has gone on from {BEST} (iteration 4) to iteration 8: this is a new run that starts" in out
    assert (load(BEST)["global_step"], load(LAST)["global_step"]) == (4, 8)
    branch = Path("lightning_logs/version_1")
    assert load(branch / "checkpoints/last.ckpt")["global_step"] == 6
    assert [step for step, _ in scalars(branch)["eval/val_loss"]] == [6]
    texts = EventAccumulator(str(branch)).Reload().Tags()["tensors"]
    assert {"config/text_summary", "custom_scalars__config__"} <= set(texts)
    assert "dirpath" not in err


def test_files_of_others_are_left_alone(cli: Run, text_file: Path) -> None:
    """A folder called checkpoints does not make its parent a run, and a run's folder may hold other files."""
    cli("fit", *small(text_file, trainer__max_steps=4))
    for folder in (Path("mine"), Path("mine/checkpoints"), Path("new")):
        folder.mkdir()
    others = {
        **{Path(f"mine/{name}"): name for name in ("config.yaml", "movie.partial", "events.out.tfevents.123.other")},
        **{Path(f"new/{name}"): name for name in ("movie.partial", "events.out.tfevents.123.other")},
    }
    for path, text in others.items():
        path.write_text(text)
    shutil.copy(LAST, "mine/checkpoints/mine.ckpt")
    code, _, err = cli("fit", "--ckpt_path=mine/checkpoints/mine.ckpt", LONGER)
    assert code == 0, err
    assert load(Path("lightning_logs/version_1/checkpoints/last.ckpt"))["global_step"] == 12
    assert cli("fit", f"--ckpt_path={LAST}", LONGER, "--run_dir=new")[0] == 0
    assert {path: path.read_text() for path in others} == others


def test_a_run_that_goes_on_meanwhile_is_not_cut(cli: Run, text_file: Path) -> None:
    """Its checkpoint was read before its folder could be had."""
    cli("fit", *small(text_file, trainer__max_steps=4))
    late = job.Job("fit", ["--ckpt_path=last", LONGER])
    assert cli("fit", "--ckpt_path=last", "--trainer.max_steps=8")[0] == 0
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file() and path.name != ".lock"}
    try:
        with pytest.raises(ValueError, match="has just been written anew; give the command again"):
            late.prepare()
    finally:
        late.close()
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_with_a_dollar_is_one_folder(cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS", "elsewhere")
    assert cli("fit", *small(text_file), "--run_dir=$RUNS/a")[0] == 0
    assert [step for step, _ in scalars(Path("$RUNS/a"))["eval/val_loss"]] == [0, 4, 8, 10]
    assert not Path("elsewhere").exists()


def test_a_run_without_its_configuration_is_not_written_over(cli: Run, text_file: Path) -> None:
    cli("fit", *small(text_file), "--run_dir=run")
    Path("run/config.yaml").unlink()
    code, _, err = cli("fit", *small(text_file), "--run_dir=run")
    assert code == 2
    assert "run holds a run already" in three_lines(err)


def test_a_home_folder_is_one_folder(cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path().absolute()))
    assert cli("fit", *small(text_file, trainer__max_steps=4), "--run_dir=~/run")[0] == 0
    assert cli("fit", "--run_dir=~/run", "--ckpt_path=last", "--trainer.max_steps=6")[0] == 0
    assert load(Path("run/checkpoints/last.ckpt"))["global_step"] == 6


def test_fault_03_a_damaged_best_is_replaced(cli: Run, text_file: Path) -> None:
    worse = ["--model.optim.max_lr=0.3", "--model.optim.min_lr=0.3"]
    cli("fit", *small(text_file, trainer__max_steps=4))
    BEST.write_bytes(BEST.read_bytes()[:-7])
    code, out, _ = cli("fit", "--ckpt_path=last", "--trainer.max_steps=8", *worse)
    assert code == 0
    assert "best: iter 8" in out


def test_fault_14_nothing_left_to_do(cli: Run, text_file: Path) -> None:
    cli("fit", *small(text_file, trainer__max_steps=4))
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    code, out, _ = cli("fit", "--ckpt_path=last")
    assert (code, out) == (0, "nothing to do: iteration 4 is reached; a larger --trainer.max_steps goes on\n")
    code, _, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=3")
    assert code == 2
    assert "the checkpoint is of iteration 4, beyond trainer.max_steps 3" in three_lines(err)
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before


# Reading


@pytest.mark.parametrize("version", [None, FORMAT + 1])
@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_fault_15_a_checkpoint_of_another_format(cli: Run, text_file: Path, verb: str, version: int | None) -> None:
    cli("fit", *small(text_file, trainer__max_steps=4))
    checkpoint = load(LAST)
    if version is None:
        del checkpoint["format"]
    else:
        checkpoint["format"] = version
    torch.save(checkpoint, LAST)
    code, _, err = cli(verb, "--ckpt_path=last")
    assert code == 2
    assert f"{LAST} has format {version or 0}, but this version of tinygpt_pl reads format {FORMAT} alone" in err
    three_lines(err)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def bombs(sound: Path) -> dict[str, bytes]:
    """Files that run a command when they are unpickled: plain, in torch's format, and two kinds of file in one."""
    checkpoint = load(sound)
    checkpoint["config"] = Bomb()
    torch.save(checkpoint, "zipped.ckpt")
    torch.save(checkpoint, "legacy.ckpt", _use_new_zipfile_serialization=False)
    zipped, legacy = (Path(f"{name}.ckpt").read_bytes() for name in ("zipped", "legacy"))
    plain = pickle.dumps(Bomb())
    return {"plain": plain, "zipped": zipped, "legacy": legacy, "polyglot": plain + sound.read_bytes()}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("import", "diagnose")])
def test_fault_16_code_in_a_checkpoint(cli: Run, text_file: Path, verb: str) -> None:
    cli("fit", *small(text_file, trainer__max_steps=4))
    for name, raw in bombs(LAST).items():
        Path(f"{name}.ckpt").write_bytes(raw)
        more = {"fit": [LONGER], "export": ["--output_dir=exported"]}.get(verb, [])
        code, _, err = cli(verb, f"--ckpt_path={name}.ckpt", *more)
        assert not Path("exploded").exists(), name
        assert code == 2
        assert f"{name}.ckpt is damaged or no checkpoint" in three_lines(err)
    with contextlib.suppress(Exception):
        torch.load("zipped.ckpt", weights_only=False)
    assert Path("exploded").exists(), "the bomb would not have gone off anyway"


def test_fault_16_code_named_in_the_settings_of_a_checkpoint(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are text, but text that names a class makes the command line import its module."""
    Path("evil.py").write_text("from pathlib import Path\nPath('exploded').touch()\nclass X: ...")
    monkeypatch.syspath_prepend(str(Path().absolute()))
    cli("fit", *small(text_file, trainer__max_steps=4))
    for callbacks in ("callbacks: evil.X", "callbacks: [{class_path: evil.X}]", "callbacks: {class_path: evil.X}"):
        checkpoint = load(BEST)
        checkpoint["config"] = checkpoint["config"].replace("callbacks: null", callbacks)
        assert "evil" in checkpoint["config"]
        torch.save(checkpoint, "evil.ckpt")
        code, _, err = cli("fit", "--ckpt_path=evil.ckpt", LONGER)
        assert code == 2
        assert "the run had trainer.callbacks with code of its own: give it again" in three_lines(err)
        assert cli("test", "--ckpt_path=evil.ckpt")[0] == 0
        assert cli("fit", "--ckpt_path=evil.ckpt", LONGER, "--trainer.callbacks=null")[0] == 0
    assert not Path("exploded").exists()


Spoil = Callable[[dict[str, Any]], Any]
SPOILT: dict[str, Spoil] = {
    "a weight that is none": lambda c: c["state_dict"]["gpt.wte.weight"].fill_(float("nan")),
    "a weight that is no tensor": lambda c: c["state_dict"].update({"gpt.wte.weight": "x"}),
    "a weight of another shape": lambda c: c["state_dict"].update({"gpt.wte.weight": torch.zeros(3)}),
    "no network": lambda c: c["hyper_parameters"].clear(),
    "no text": lambda c: c["corpus"].clear(),
    "a curve of negative length": lambda c: c["events"].update({"events.out.tfevents.1": -1}),
    "a step before the first": lambda c: c.update(global_step=-3),
    "another step": lambda c: c.update(global_step=3),
    "no schedule": lambda c: c.update(lr_schedulers=[]),
    "no optimizer": lambda c: c.update(optimizer_states=[None]),
    "an optimizer of another shape": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3, 3)),
    "an optimizer of whole numbers": lambda c: c["optimizer_states"][0]["state"][0].update(
        exp_avg=torch.zeros(27, 16, dtype=torch.int64)
    ),
    "no counters": lambda c: c["loops"].clear(),
}


@pytest.mark.parametrize("what", SPOILT)
def test_fault_03_a_checkpoint_that_was_tampered_with(cli: Run, text_file: Path, what: str) -> None:
    cli("fit", *small(text_file, trainer__max_steps=4))
    checkpoint = load(LAST)
    SPOILT[what](checkpoint)
    torch.save(checkpoint, "spoilt.ckpt")
    code, _, err = cli("fit", "--ckpt_path=spoilt.ckpt", LONGER)
    assert code == 2
    assert "damaged" in three_lines(err)
    code, _, err = cli("test", "--ckpt_path=spoilt.ckpt")
    assert code in (0, 2), "what it lacks may be of no use to a score"
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0"]


@pytest.mark.parametrize("config", ["", "[1]", "a: [", "trainer: 3", "trainer: {max_steps: x}", "x: {}\ntrainer: {}"])
def test_fault_03_settings_in_a_checkpoint_that_are_none(cli: Run, text_file: Path, config: str) -> None:
    cli("fit", *small(text_file, trainer__max_steps=4))
    torch.save({**load(LAST), "config": config}, "odd.ckpt")
    for verb in ("fit", "test"):
        code, _, err = cli(verb, "--ckpt_path=odd.ckpt")
        assert code == 2
        three_lines(err)


def test_fault_16_every_load_is_a_safe_one() -> None:
    """No other way of reading a pickle is in the package, and none that falls back to an unsafe one."""
    package = Path(module.__file__).parent
    source = "\n".join(path.read_text() for path in package.rglob("*.py"))
    assert re.findall(r"weights_only=(\w+)", source).count("True") == len(re.findall(r"weights_only=", source)) > 0
    assert not re.search(r"pickle\.|import pickle|joblib|dill", source)
    assert len(re.findall(r"torch\.load\(", source)) == 1


# Numbers


class Spoiled(TinyGPT):
    """From the micro-batch (5, 1) on, the loss or its gradient alone is no number."""

    value, in_loss = float("nan"), True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx < 11:
            return loss
        if self.in_loss:
            spoiled = loss * self.value
            self.step_loss = self.step_loss + spoiled.detach()
            return spoiled
        self.gpt.ln_f.weight.register_hook(lambda gradient: gradient * self.value)  # type: ignore[no-untyped-call]  # torch's gap
        return loss


@pytest.mark.parametrize("in_loss", [True, False], ids=["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fault_18_a_number_that_is_none(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, value: float, in_loss: bool
) -> None:
    """The step is not taken, and nothing of it is saved, not even on the way out."""
    monkeypatch.setattr(Spoiled, "value", value)
    monkeypatch.setattr(Spoiled, "in_loss", in_loss)
    monkeypatch.setattr(job, "TinyGPT", Spoiled)
    code, out, err = cli("fit", *small(text_file, **DROPOUT), "--save_minutes=0")
    assert code == 1
    assert [row[0] for row in table(out)] == ["0", "4"]
    message = three_lines(err)
    number = r"(nan|inf)"
    loss = number if in_loss else r"\d\.\d{4}"
    assert re.search(
        rf"at iteration 5 the loss is {loss} and the gradient norm {number}, at learning rate 7.22e-03; the step",
        message,
    )
    assert "Try a lower --model.optim.max_lr" in message
    assert f"iteration 5 is safe: python -m tinygpt_pl fit --ckpt_path {LAST}" in message
    for path, iteration in ((LAST, 5), (BEST, 4)):
        checkpoint = read_checkpoint(path)
        assert checkpoint["global_step"] == iteration
        assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


@pytest.mark.parametrize("save_minutes", [0, 5])
def test_fault_18_a_number_that_is_none_where_nobody_waits_for_the_device(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, save_minutes: int
) -> None:
    """As on a GPU, where a step is not looked at before it is taken: the kernel leaves it out, and all after it."""
    monkeypatch.setattr(module, "PATIENT_DEVICES", {"cpu"})
    monkeypatch.setattr(job, "TinyGPT", Spoiled)
    code, out, err = cli("fit", *small(text_file, **DROPOUT), f"--save_minutes={save_minutes}")
    assert code == 1
    assert [row[0] for row in table(out)] == ["0", "4"]
    message = three_lines(err)
    assert re.search(r"at iteration 5 the loss is nan and the gradient norm nan, at learning rate 7.22e-03", message)
    assert [step for step, _ in scalars(RUN)["train/loss"]] == [0, 2, 4], "no row has asked"
    sound = 4 if save_minutes else 5
    assert f"iteration {sound} is safe" in message
    assert read_checkpoint(LAST)["global_step"] == sound


def test_fault_18_no_step_is_taken_after_one_that_is_no_number(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENT_DEVICES", {"cpu"})
    weights = []
    for network, steps in ((TinyGPT, 5), (Spoiled, 8)):
        torch.manual_seed(0)
        trained = network(GPT_CONFIG, OPTIM)
        with contextlib.nullcontext() if network is TinyGPT else pytest.raises(Diverged, match="iteration 5"):
            lightning_fit(text_file, trained, accumulate=2, max_steps=steps, val_check_interval=16)
        weights.append(trained.gpt.state_dict())
    assert_same(weights[0], weights[1])


class BlindEvaluation(TinyGPT):
    """From iteration 8 on, an evaluation gives no number."""

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx, dataloader_idx)
        if self.global_step >= 8:
            self.val_loss.total *= float("nan")


def test_fault_18_an_evaluation_that_gives_no_number(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "TinyGPT", BlindEvaluation)
    code, _, err = cli("fit", *small(text_file))
    assert code == 1
    assert "at iteration 8 the loss is" in three_lines(err)
    assert [load(path)["global_step"] for path in (LAST, BEST)] == [4, 4]


def test_fault_19_a_run_that_diverges(cli: Run, text_file: Path) -> None:
    code, out, err = cli("fit", *small(text_file, model__optim__max_lr=10.0, model__optim__min_lr=10.0))
    assert code == 1
    assert [row[0] for row in table(out)] == ["0", "4"]
    assert re.search(r"at iteration 4 the loss is \d{2,}\.\d+ in training .*; a uniform guess has 3.2958", err)
    assert "Try a lower --model.optim.max_lr" in three_lines(err)
    assert not BEST.exists()
    assert load(LAST)["global_step"] == 0


# Texts


@pytest.mark.parametrize(
    "text",
    ["one\r\ntwo\r\n" * 60, "\ufeffabc " * 100, "a\0b" * 200, "🙂🙃 " * 200, "a" * 600],
    ids=["CRLF", "byte-order mark", "NUL", "emoji", "one symbol"],
)
def test_fault_22_an_odd_text_is_taken_as_it_is(cli: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.txt").write_bytes(text.encode())
    code, _, err = cli("fit", *small(tmp_path / "odd.txt"))
    assert code == 0, err
    tokenizer = TinyGPT.load_from_checkpoint(LAST).tokenizer
    assert tokenizer is not None
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


# Company


def test_fault_24_two_runs_in_one_folder(cli: Run, text_file: Path, tmp_path: Path) -> None:
    """The second is refused; after the first was killed, its lock is taken over."""
    first = run_forked(text_file, tmp_path)
    before = Path("run/checkpoints/last.ckpt").read_bytes()
    for options in (["--ckpt_path=run/checkpoints/last.ckpt"], [*small(text_file), "--run_dir=run"]):
        code, _, err = cli("fit", *options)
        assert code == 2
        assert re.search(f"in use by process {first.pid}|holds a run already", three_lines(err))
    assert Path("run/checkpoints/last.ckpt").read_bytes() == before
    first.kill()
    first.join()
    code, _, err = cli("fit", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.max_steps=2", "--eval_interval=4")
    assert code == 0, err


def test_runs_that_start_at_the_same_time_get_folders_of_their_own(text_file: Path, tmp_path: Path) -> None:
    started = [start(["fit", *small(text_file)], tmp_path) for _ in range(4)]
    for process in started:
        finish(process, tmp_path)
    runs = sorted(path.name for path in Path("lightning_logs").iterdir())
    assert runs == [f"version_{n}" for n in range(4)]
    for run in runs:
        assert load(Path("lightning_logs") / run / "checkpoints/last.ckpt")["global_step"] == 10
        assert [step for step, _ in scalars(Path("lightning_logs") / run)["eval/val_loss"]] == [0, 4, 8, 10]


# Devices


def test_fault_28_a_device_that_is_not_there(cli: Run, text_file: Path) -> None:
    if not torch.cuda.is_available():
        code, _, err = cli("fit", *small(text_file, trainer__accelerator="cuda"))
        assert code == 2
        assert "cuda" in three_lines(err).lower()
    if not torch.backends.mps.is_available():
        code, _, err = cli("fit", *small(text_file, trainer__accelerator="mps"))
        assert code == 2
        assert "MPS" in three_lines(err)
    assert not Path("lightning_logs").exists()


def short_of_memory(args: list[str]) -> None:
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + 600_000_000, here + 600_000_000))
    limited(resource.RLIM_INFINITY, args)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process its size")
def test_fault_28_out_of_memory(text_file: Path, tmp_path: Path) -> None:
    """The advice keeps the windows of a step."""
    finish(start(["fit", *small(text_file, trainer__max_steps=4), "--run_dir=run"], tmp_path), tmp_path)
    before = Path("run/checkpoints/last.ckpt").read_bytes()
    big = small(text_file, data__batch_size=400_000, data__eval_iters=1)
    process = FORKS.Process(target=short_of_memory, args=(["fit", *big, "--run_dir=big"],))
    process.start()
    output = finish(process, tmp_path, code=1)
    assert "out of memory with 400000 windows at a time; halve --data.batch_size and double" in three_lines(output)
    assert Path("run/checkpoints/last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_fault_29_a_device_that_dies(text_file: Path, tmp_path: Path) -> None:
    """The job ends with an error soon, and goes on with one device, which sees the same windows."""
    options = small(text_file, data__batch_size=2, trainer__devices=2, trainer__strategy="ddp", eval_interval=50)
    options = [*options, "--trainer.max_steps=100000", "--save_minutes=0", "--run_dir=run"]
    command = [sys.executable, "-m", "tinygpt_pl", "fit", *options, "--trainer.enable_progress_bar=false"]
    with (tmp_path / "output").open("w") as output:
        first = subprocess.Popen(command, stdout=output, stderr=output)
    wait_for(lambda: "iter 50" in (tmp_path / "output").read_text(), 120)
    parent = ["pgrep", "-P", str(first.pid)]
    children = subprocess.run(parent, capture_output=True, text=True, check=True).stdout.split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGKILL)
    assert first.wait(timeout=60) not in (0, 2)
    step = read_checkpoint(Path("run/checkpoints/last.ckpt"))["global_step"]
    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--data.batch_size=4", f"--trainer.max_steps={step + 10}"]
    done = shell("fit", "--ckpt_path=run/checkpoints/last.ckpt", *one, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert table(done.stdout)[-1][0] == str(step + 10)


class Watch(Callback):
    """Writes down what this process holds, after each evaluation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pages = Path("/proc/self/statm").read_text().split()[1]
        threads = len(list(Path("/proc/self/task").iterdir()))
        with open("held", "a") as file:
            file.write(f"{int(pages) * resource.getpagesize()} {len(os.listdir('/proc/self/fd'))} {threads}\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process what it holds")
def test_fault_30_ten_thousand_steps_and_two_hundred_saves(text_file: Path, tmp_path: Path) -> None:
    """Memory, open files and threads stay flat, and the best checkpoint is there at the end."""
    options = small(text_file, trainer__max_steps=10_000, eval_interval=50, trainer__enable_progress_bar="false")
    watch = "--trainer.callbacks=tests.test_faults.Watch"
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
    assert read_checkpoint(Path("run/checkpoints/best.ckpt"))["val_loss"] == pytest.approx(min(losses), rel=1e-6)
