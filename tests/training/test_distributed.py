"""Several processes on this machine take the step of one, by DDP and by FSDP2."""

import atexit
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.conftest import ROOT
from tests.small_runs import (
    MODERN,
    Run,
    assert_same,
    finish,
    launch,
    load,
    outcome,
    shell,
    small,
    start,
    table,
    wait_for,
)
from tinygpt_pl.runs.checkpoint import read_checkpoint
from tinygpt_pl.windows import Batch

TWO = {"data__batch_size": 2, "trainer__devices": 2}
EXACT = {
    **{"trainer__precision": "64-true", "trainer__max_steps": 20, "eval_interval": 10, "model__optim__max_iters": 20},
    "trainer__enable_progress_bar": "false",
}
"""Rounding apart, the order in which devices add up is all that differs; a schedule that no stop moves."""
WITHIN = 1e-6


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the callbacks in here


class KeepWindows(Callback):
    """Writes down the windows that this process trains on, and which threads of gloo's it leaves to Python's end."""

    def __init__(self) -> None:
        self.windows: list[torch.Tensor] = []
        # Before the Trainer's, hence called after it.
        atexit.register(self.write_threads, Path(f"threads-{os.getpid()}").absolute())

    @staticmethod
    def write_threads(file: Path) -> None:
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        file.write_text(" ".join(name for name in names if "gloo" in name))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.windows.append(batch[0])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save(torch.stack(self.windows), f"windows-{trainer.global_rank}-of-{trainer.world_size}")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{}, {**MODERN, "trainer__precision": "64-true"}], ids=["recipe", "modern"])
def test_two_devices_share_the_windows_of_one(cli: Run, text_file: Path, tmp_path: Path, parts: dict[str, Any]) -> None:
    """Muon makes much of the rounding of a gradient that is nearly nothing, hence its double precision."""
    code, one, _ = cli("fit", *small(text_file, **parts), "--run_dir=one")
    assert code == 0
    options = small(text_file, data__batch_size=2, trainer__devices=2, trainer__strategy="ddp", **parts)
    two = shell("fit", *options, "--run_dir=two", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert [row[0] for row in table(two.stdout)] == ["0", "4", "8", "10"], "only the first process prints"
    assert "sync_dist" not in two.stderr
    for a, b in zip(table(one), table(two.stdout), strict=True):
        assert [float(x) for x in a[1:]] == pytest.approx([float(x) for x in b[1:]], abs=2e-4)
    for verb in ("validate", "test"):
        done = shell(verb, "--run_dir=two", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        scores = [cli(verb, "--run_dir=one")[1], done.stdout]
        numbers = [[float(x) for x in re.findall(r"\d+\.\d{4}", score)] for score in scores]
        assert len(numbers[0]) >= 2
        assert numbers[0] == pytest.approx(numbers[1], abs=2e-4)
    a, b = (load(tmp_path / run / "checkpoints/last.ckpt")["state_dict"] for run in ("one", "two"))
    for name in a:
        if not name.endswith("c_attn.bias"):  # whose key part has no gradient but rounding
            assert (a[name] - b[name]).abs().max() < 1e-4 * a[name].abs().max(), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_devices_come_to_what_one_does(cli: Run, text_file: Path, tmp_path: Path, strategy: str) -> None:
    """Weights, optimizer state, counters and every row of the curve; a window seen twice or never would show.

    The 13 windows of the validation split make four batches for one device and three for the other: an evaluation in
    which they wait for each other at every batch never ends.
    """
    keep = "--trainer.callbacks=tests.training.test_distributed.KeepWindows"
    parts = {"model__gpt__block_size": 32, **EXACT}  # long enough for no two windows to read the same
    parts["data__eval_coverage"] = "full"
    assert cli("fit", *small(text_file, **parts), keep, "--run_dir=one")[0] == 0
    options = small(text_file, **parts | TWO, trainer__strategy=strategy)
    two = shell("fit", *options, keep, "--run_dir=two", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert [row[0] for row in table(two.stdout)] == ["0", "10", "20"], "only the first process prints"
    left = [path.read_text() for path in tmp_path.glob("threads-*")]
    assert len(left) == 2
    if strategy == "ddp":  # torch's caches of FSDP2 hold their groups for ever
        assert left == ["", ""], "a thread of gloo's that frees a tensor while Python shuts down aborts the process"
    assert_same(outcome(Path("one")), outcome(Path("two")), within=WITHIN)
    alone, *shared = (torch.load(f"windows-{name}") for name in ("0-of-1", "0-of-2", "1-of-2"))
    for step, windows in enumerate(alone.tolist()):
        first, second = (part[step].tolist() for part in shared)
        assert not [window for window in first if window in second], "the same window twice"
        assert sorted(first + second) == sorted(windows)
    for verb in ("validate", "test"):
        done = shell(verb, "--run_dir=two", "--trainer.callbacks=null", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.replace("two/", "one/") == cli(verb, "--run_dir=one", "--trainer.callbacks=null")[1]


@pytest.mark.slow
def test_one_device_divides_by_one(cli: Run, text_file: Path, tmp_path: Path) -> None:
    """Sharded weights, the hooks that gather them, samples and the file, without a second process to wait for."""
    exact = {"trainer__precision": "64-true", "trainer__max_steps": 4}
    assert cli("fit", *small(text_file, **exact), "--run_dir=one")[0] == 0
    options = small(text_file, **exact, trainer__strategy="fsdp2")
    finish(start(["fit", *options, "--run_dir=sharded"], tmp_path), tmp_path)
    assert_same(outcome(Path("one")), outcome(Path("sharded")), within=WITHIN)
    more = ["--run_dir=sharded", "--ckpt_path=last", "--trainer.max_steps=8"]
    finish(start(["fit", *more], tmp_path), tmp_path)
    assert cli("fit", "--run_dir=one", "--ckpt_path=last", "--trainer.max_steps=8")[0] == 0
    assert_same(outcome(Path("one")), outcome(Path("sharded")), within=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("chain", [("fsdp2", "auto", "ddp")])
def test_a_run_goes_on_with_other_devices(cli: Run, text_file: Path, tmp_path: Path, chain: tuple[str, ...]) -> None:
    """A checkpoint is of one kind: an optimizer state in another order would pass unseen, as shapes repeat."""
    parts = {"model__gpt__n_layer": 2, **EXACT}
    assert cli("fit", *small(text_file, **parts), "--run_dir=one")[0] == 0
    options = small(text_file, **parts)
    for strategy, stop in zip(chain, (7, 14, 20), strict=True):
        devices = ["--trainer.devices=1", "--data.batch_size=4"]
        if strategy != "auto":
            devices = ["--trainer.devices=2", "--data.batch_size=2"]
        options += [*devices, f"--trainer.strategy={strategy}", f"--trainer.max_steps={stop}", "--run_dir=run"]
        done = shell("fit", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert table(done.stdout)[-1][0] == str(stop)
        options = ["--ckpt_path=last"]
    one, run = (load(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "run"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "val_loss"):
        assert_same(one[part], run[part], part, within=WITHIN)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--model.optim.optimizer=muon", "muon orthogonalises whole matrices"),
        ("--ema_decay=0.9", "ema_decay averages whole weights"),
        ("--trainer.precision=16-mixed", "16-mixed scales a loss by whole gradients"),
        ("--trainer.strategy=fsdp", "trainer.strategy fsdp is not supported; fsdp2 divides"),
        ("--trainer.num_nodes=2", "this command knows of no other machine; start it on each by torchrun or srun"),
    ],
)
def test_what_divided_weights_cannot_do(cli: Run, text_file: Path, word: str, message: str) -> None:
    """Each would end in a traceback of torch's, wait for half an hour, or train something else."""
    code, out, err = cli("fit", *small(text_file, **TWO, trainer__strategy="fsdp2"), word, "--run_dir=run")
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) <= 3
    assert not Path("run").exists()


def test_a_strategy_of_another_class_is_no_way_around(cli: Run, text_file: Path) -> None:
    """Lightning's own would write folders in place of files."""
    word = "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy"
    code, _, err = cli("fit", *small(text_file, **TWO), word)
    assert code == 2
    assert err.startswith("error: trainer.strategy lightning.pytorch.strategies.ModelParallelStrategy is not supported")


# Ends


def running(text_file: Path, strategy: str) -> list[str]:
    """A run without an end, which saves at each step."""
    options = small(text_file, **TWO, trainer__strategy=strategy, eval_interval=50, save_minutes=0)
    return [*options, "--trainer.max_steps=100000", "--trainer.enable_progress_bar=false", "--run_dir=run"]


def wait_for_line(path: Path, line: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(1000):
        if line in path.read_text():
            return
        assert process.poll() is None, path.read_text()
        time.sleep(0.1)
    raise AssertionError(path.read_text())


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in done.stdout.split()]


def gone(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def goes_on(cwd: Path, *words: str) -> None:
    """Ten more steps from what is left, on one device."""
    step = load(cwd / "run/checkpoints/last.ckpt")["global_step"]
    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--data.batch_size=4", f"--trainer.max_steps={step + 10}"]
    done = shell("fit", "--ckpt_path=last", "--run_dir=run", *one, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert table(done.stdout)[-1][0] == str(step + 10)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "first"), [("ddp", True), ("fsdp2", False)])
def test_a_process_that_dies_ends_the_others(text_file: Path, tmp_path: Path, strategy: str, first: bool) -> None:
    """Those that are left would wait for it, and hold a device each: the first has nobody to watch over it."""
    process = launch(["tinygpt_pl", "fit", *running(text_file, strategy)], tmp_path, "output")
    wait_for_line(tmp_path / "output", "iter 50 ", process)
    (other,) = children(process)
    os.kill(process.pid if first else other, signal.SIGKILL)
    assert process.wait(timeout=60) not in (0, 2)
    assert gone(other, 60)
    goes_on(tmp_path)


class SlowEnd(Callback):
    """Takes its time in the first process, when the run has been stopped."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero:
            time.sleep(8)  # Lightning looks for processes that have failed every five seconds


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2"])
def test_a_signal_stops_all_processes_between_two_steps(text_file: Path, tmp_path: Path, strategy: str) -> None:
    """The first was killed in the middle of its end, since the other had ended with an exit code above 0."""
    slow = "--trainer.callbacks=tests.training.test_distributed.SlowEnd"
    process = launch(["tinygpt_pl", "fit", *running(text_file, strategy), slow], tmp_path, "output")
    wait_for_line(tmp_path / "output", "iter 50 ", process)
    (other,) = children(process)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert gone(other, 1)
    output = (tmp_path / "output").read_text()
    assert output.count("stopped by SIGTERM at iteration ") == 1
    goes_on(tmp_path, "--trainer.callbacks=null")


class StopInEvaluation(Callback):
    """Sends SIGTERM to the second process in the middle of the evaluation at iteration 10."""

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if (trainer.global_step, trainer.global_rank, batch_idx) == (10, 1, 1):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_divided_weights_are_saved_in_the_middle_of_an_evaluation(cli: Run, text_file: Path, tmp_path: Path) -> None:
    """Each process holds all of them there, and yet the file has to be like any other."""
    assert cli("fit", *small(text_file, **EXACT), "--run_dir=one")[0] == 0
    stop = "--trainer.callbacks=tests.training.test_distributed.StopInEvaluation"
    options = small(text_file, **EXACT | TWO, trainer__strategy="fsdp2")
    stopped = shell("fit", *options, stop, "--run_dir=two", cwd=tmp_path)
    assert stopped.returncode == 143, stopped.stderr
    assert "stopped by SIGTERM at iteration 10" in stopped.stderr
    done = shell("fit", "--run_dir=two", "--ckpt_path=last", "--trainer.callbacks=null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(outcome(Path("one")), outcome(Path("two")), within=WITHIN)


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
    step = read_checkpoint(Path("run/checkpoints/last.ckpt")).iteration
    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--data.batch_size=4", f"--trainer.max_steps={step + 10}"]
    done = shell("fit", "--ckpt_path=run/checkpoints/last.ckpt", *one, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert table(done.stdout)[-1][0] == str(step + 10)
