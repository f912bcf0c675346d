"""Callbacks that tests name on the command line: they disturb a run, or write down what it does."""

import contextlib
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from tests.small_runs import BEST, LAST, RUN
from tinygpt_pl.windows import Batch


class KeepEarlierLast(Callback):
    """Keeps a copy of last.ckpt as it is before the evaluation at iteration 8 is saved."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 8:
            shutil.copy(LAST, "earlier.ckpt")


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


class BlockBest(Callback):
    """Lets nothing be written to best.ckpt after the evaluation at iteration 8."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 8:
            BEST.rename(BEST.with_suffix(".kept"))
            BEST.mkdir()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, idx: int) -> None:
        if trainer.global_step == 8:
            BEST.rmdir()
            BEST.with_suffix(".kept").rename(BEST)


class RemoveCheckpoints(Callback):
    """Takes the folder of the checkpoints away while the run goes on, and puts a file in its place if asked to."""

    def __init__(self, file: bool = False) -> None:
        self.file = file

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 8:
            shutil.rmtree(RUN / "checkpoints")
            if self.file:
                (RUN / "checkpoints").touch()


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


class SlowSave(Callback):
    """Makes the save of a stopped run take long, by waiting before it."""

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        if trainer.global_step > 0:
            Path("saving").touch()
            time.sleep(60)


class Windows(Callback):
    """Writes down a sum over the tokens of each micro-batch."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, idx: int) -> None:
        weights = torch.arange(batch[0].numel())
        with open("windows", "a") as file:
            file.write(f"{idx} {int((batch[0].flatten() * weights).sum())}\n")


class Watch(Callback):
    """Writes down what this process holds, after each evaluation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pages = Path("/proc/self/statm").read_text().split()[1]
        threads = len(list(Path("/proc/self/task").iterdir()))
        with open("held", "a") as file:
            file.write(f"{int(pages) * resource.getpagesize()} {len(os.listdir('/proc/self/fd'))} {threads}\n")
