"""What a terminal shows."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from tests.reference import GPT_CONFIG, OPTIM, lightning_fit
from tests.small_runs import FORKS, Run, small, table
from tinygpt_pl.commands.main import main
from tinygpt_pl.gpt import GPTConfig, parameter_count
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.training.progress import LongRunNotice, StepProgressBar
from tinygpt_pl.windows import Batch


class Slow(TinyGPT):
    """A network whose evaluation takes 20 ms a batch and more, and that notes when each batch was done."""

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        time.sleep(0.02)
        super().validation_step(batch, batch_idx, dataloader_idx)
        self.ends = [*getattr(self, "ends", []), time.perf_counter()]


class Enough(Exception):
    """Ends a run after its first evaluation."""


class StopAtFirstStep(Callback):
    def on_train_batch_start(self, *args: object) -> None:
        raise Enough


@pytest.mark.parametrize(("max_steps", "announced"), [(100_000, True), (100, False)])
def test_a_long_run_is_announced_and_a_short_one_is_not(
    text_file: Path, capsys: pytest.CaptureFixture[str], max_steps: int, announced: bool
) -> None:
    """100,000 steps of thrice 20 ms are 1.67 hours, and more where the machine is busy."""
    torch.manual_seed(0)
    module = Slow(GPT_CONFIG, OPTIM)
    notice = LongRunNotice(eval_interval=100_000, alternative="TRY THIS")
    with pytest.raises(Enough):
        lightning_fit(text_file, module, callbacks=(notice, StopAtFirstStep()), max_steps=max_steps)
    said = re.findall(r"NOTE: on this machine the run takes about (\d+\.\d) hours; TRY THIS", capsys.readouterr().out)
    assert len(said) == announced
    if announced:
        forward = (module.ends[4] - module.ends[0]) / 4
        assert float(said[0]) == pytest.approx(forward * (3 * max_steps + 2 * 6) / 3600, rel=0.1)
        assert float(said[0]) >= 1.6


def test_a_run_that_is_long_for_its_evaluations_is_told_so(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As with a text of gigabytes under a configuration that evaluates on all of its validation split."""
    notice = LongRunNotice(eval_interval=1, alternative="TRY THIS")
    module = Slow(GPT_CONFIG, OPTIM)
    with pytest.raises(Enough):
        lightning_fit(text_file, module, callbacks=(notice, StopAtFirstStep()), max_steps=100_000)
    said = capsys.readouterr().out
    assert re.search(r"takes about \d+\.\d hours; most of them to evaluate: --data.eval_coverage sampled", said)
    assert "TRY THIS" not in said


def attached(terminal: str, args: list[str], folder: Path) -> None:
    """Run a command with this terminal for its input, its output and its errors."""
    slave = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    for stream in range(3):
        os.dup2(slave, stream)
    os.close(slave)
    os.chdir(folder)
    sys.exit(main(args))


def on_a_terminal(*args: str, cwd: Path) -> str:
    """Run a command with a terminal for its output; gives all that it showed."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))  # 40 lines of 100 characters
    process = FORKS.Process(target=attached, args=(os.ttyname(slave), [*args], cwd))
    process.start()
    shown = b""
    while process.is_alive() or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.1)[0]:
            shown += os.read(master, 65536)
    os.close(slave)
    os.close(master)
    assert process.exitcode == 0, shown.decode()
    return shown.decode()


def test_the_bar_counts_optimizer_steps_also_after_a_resume(text_file: Path, tmp_path: Path) -> None:
    options = small(text_file, data__batch_size=2, trainer__accumulate_grad_batches=2, model__optim__max_iters=10)
    first = on_a_terminal("fit", *options, "--trainer.max_steps=8", "--run_dir=run", cwd=tmp_path)
    assert re.search(r" 0/8 \[00:0\d", first)
    assert re.search(r"training 100%\|█+\| 8/8 \[00:\d\d, 00:00 left, loss \d\.\d{4}\]", first)
    rest = on_a_terminal("fit", "--run_dir=run", "--ckpt_path=last", "--trainer.max_steps=10", cwd=tmp_path)
    assert " 0/10 [" not in rest
    assert re.search(r" 8/10 \[00:0\d", rest)
    assert re.search(r"training 100%\|█+\| 10/10 \[00:\d\d, 00:00 left", rest)


def test_the_time_left_is_that_of_steps_and_evaluations() -> None:
    bar = StepProgressBar(eval_interval=10)
    bar.first_step, bar.training = 20, 30.0  # 15 steps of 2 s since a resume at 20
    bar.evaluations, bar.evaluating = 2, 10.0  # 5 s each
    trainer = pl.Trainer(accelerator="cpu", max_steps=65, logger=False, enable_checkpointing=False)
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 35
    assert trainer.global_step == 35
    assert bar._seconds_left(trainer) == 30 * 2.0 + 4 * 5.0  # evaluations at 40, 50, 60 and 65


@pytest.mark.slow
def test_a_piped_table_is_read_while_the_run_goes_on(text_file: Path, tmp_path: Path) -> None:
    """`fit | tee table`: the bar on a terminal, the table in a pipe."""
    _, slave = pty.openpty()
    command = [sys.executable, "-m", "tinygpt_pl", "fit", *small(text_file, trainer__max_steps=100_000)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=slave, text=True, env=env) as process:
        assert process.stdout is not None
        try:
            assert any(line.startswith("iter 4 ") for line in process.stdout)
            assert process.poll() is None
        finally:
            process.kill()


def test_the_bar_can_be_left_out(cli: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("fit", *small(text_file), "--trainer.enable_progress_bar=false")
    assert code == 0
    assert err == ""
    assert len(table(out)) == 4


def test_a_large_model_is_told_of_a_smaller_one(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As long as it is larger than that of cpu.yaml, whose own notice would name itself."""
    for large in (True, False):
        notice = LongRunNotice(100_000, "TRY THIS", "TRY A SMALLER ONE")
        notice.LARGE = 0 if large else LongRunNotice.LARGE
        with pytest.raises(Enough):
            lightning_fit(text_file, Slow(GPT_CONFIG, OPTIM), callbacks=(notice, StopAtFirstStep()), max_steps=100_000)
        assert capsys.readouterr().out.rstrip().endswith("TRY A SMALLER ONE" if large else "TRY THIS")
    small_config = yaml.safe_load((Path(__file__).parents[2] / "configs/cpu.yaml").read_text())["model"]["gpt"]
    assert parameter_count(GPTConfig(**small_config)) < LongRunNotice.LARGE < parameter_count(GPTConfig())


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"model__optim__warmup_iters": 200},
            "the warm-up takes 200 steps and the run has 10: ",
        ),
        ({"model__optim__warmup_iters": 10}, "the warm-up takes 10 steps and the run has 10: "),
        (
            {"model__optim__warmup_iters": 5, "model__optim__max_iters": 4},
            "max_iters 4 is within the warm-up of 5 ",
        ),
        ({"model__optim__warmup_iters": 9}, ""),
        ({"model__optim__warmup_iters": 0, "model__optim__max_iters": 1}, ""),
    ],
)
def test_a_warm_up_that_leaves_no_room_is_reported_before_the_first_step(
    cli: Run, text_file: Path, changes: dict[str, Any], note: str
) -> None:
    code, out, _ = cli("fit", *small(text_file, **changes))
    assert code == 0
    before, _ = out.split("iter 0 ", 1)
    assert (f"NOTE: {note}" in before) is bool(note)
    assert "NOTE" in before or not note
