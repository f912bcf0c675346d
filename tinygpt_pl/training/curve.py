"""The loss curve: its rows at the true optimizer step, for the loggers and for whoever reads the curve meanwhile."""

import math
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from tinygpt_pl.insight.history import History
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.system.machine import matmul_flops
from tinygpt_pl.training.record import RunRecord
from tinygpt_pl.windows import Batch


class Curve(Callback):
    """Writes the loss curve at the true optimizer step.

    A row at x speaks of the network after x steps: its evaluation, the loss of its next batch, the gradient norm and
    learning rate of its next step. Nothing more is read from the device between rows.
    """

    def __init__(
        self, log_every_n_steps: int = 10, peak_flops: float | None = None, record: RunRecord | None = None
    ) -> None:
        """Prepare the rows.

        Args:
            log_every_n_steps: optimizer steps from row to row.
            peak_flops: peak floating-point operations a second of a device, for `perf/mfu`; measured if left out.
            record: which has the earlier rows of a run that resumes, and its setups.
        """
        self.log_every_n_steps, self.peak_flops, self.record = log_every_n_steps, peak_flops, record
        self.history = History()
        """All rows so far; read by others, and written here alone."""
        self.stepping = False
        self.clipped: Tensor | float = 0.0
        self.steps = 0  # since the last row
        self.lr: tuple[float, ...] = ()  # of the decayed and of the other parameters
        self.tokens, self.seconds = 0, 0.0  # of training since the last row, in this process
        self.since: float | None = None  # when the clock was started; None while it stands still
        self.ceiling = math.nan

    def state_dict(self) -> dict[str, Any]:
        """What has been counted since the last row."""
        return {"clipped": float(self.clipped), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what had been counted since the last row."""
        self.clipped, self.steps = state_dict["clipped"], state_dict["steps"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the rows in place of the module, whose own have no throughput, and lie at Lightning's steps."""
        assert isinstance(pl_module, TinyGPT)
        pl_module.logs = False

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        assert isinstance(pl_module, TinyGPT)
        pl_module.logs = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the rows so far, and measure the peak FLOP/s if --peak_tflops is not set."""
        if self.record:
            self.history = self.record.history
        peak = self.peak_flops or matmul_flops(pl_module.device, trainer.precision)
        self.ceiling = peak * trainer.world_size

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Start the clock where it stands still: at first, and after an evaluation and its checkpoints."""
        if self.since is None:
            self.since = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock: throughput is that of training."""
        torch.zeros((), device=pl_module.device).item()  # waits for the device
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
        self.since = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write an evaluation."""
        report = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith("eval/")}
        self._write(trainer, report, trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the learning rate from the optimizer itself, at the moment it is used."""
        self.stepping = True
        self.lr = tuple(group["lr"] for group in optimizer.param_groups)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """At the end of a step count it, and write a row if one is due."""
        if not self.stepping:
            return
        assert isinstance(pl_module, TinyGPT)
        self.stepping = False
        self.steps += 1
        self.clipped = self.clipped + (pl_module.grad_norm > (trainer.gradient_clip_val or math.inf))
        tokens = batch[0].numel() * trainer.accumulate_grad_batches * trainer.world_size
        self.tokens += tokens
        it = trainer.global_step - 1
        if it % self.log_every_n_steps == 0:
            pl_module.check_steps()
            self._write(trainer, self._row(trainer, pl_module, tokens, it), it)
            self.clipped, self.steps = 0.0, 0
            self.tokens, self.seconds, self.since = 0, 0.0, time.perf_counter()

    def _row(self, trainer: pl.Trainer, module: TinyGPT, tokens: int, it: int) -> dict[str, float]:
        loss = trainer.strategy.reduce(module.step_loss, reduce_op="mean").item()  # waits for the device
        assert self.since is not None
        speed = self.tokens / (self.seconds + time.perf_counter() - self.since)
        return {
            "train/loss": loss,
            "optim/lr": self.lr[0],
            "optim/lr_no_decay": self.lr[-1],
            "optim/grad_norm": module.grad_norm.item(),
            "optim/clipped_share": float(self.clipped) / self.steps,
            "perf/tokens_per_second": speed,
            "perf/mfu": speed * module.gpt.flops_per_token() / self.ceiling,
            "progress/tokens_seen": tokens * (it + 1),
        }

    def _write(self, trainer: pl.Trainer, row: dict[str, float], step: int) -> None:
        self.history.add(row, step)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step)
