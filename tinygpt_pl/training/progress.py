"""How long a run takes: the progress bar with the time left, and an early notice of a run of hours."""

import math
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch import Tensor
from tqdm import tqdm

from tinygpt_pl.system.terminal import say
from tinygpt_pl.windows import Batch

FORWARD_SHARE = 1 / 3
"""A forward pass in a training step: the backward pass has two products for each of its one."""


class LongRunNotice(Callback):
    """Says early if a run will take hours: a few batches of the evaluation at iteration 0 tell."""

    BATCHES = 4
    HOURS = 1.0
    LARGE = 2_000_000  # parameters; cpu.yaml has 1.1 million

    def __init__(self, eval_interval: int, alternative: str, smaller: str = "") -> None:
        """Prepare the notice.

        Args:
            eval_interval: optimizer steps from evaluation to evaluation.
            alternative: what helps.
            smaller: what helps instead if the model is LARGE.
        """
        self.eval_interval, self.alternative, self.smaller = eval_interval, alternative, smaller
        self.seen, self.start = 0, 0.0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Time the batches after the first, which pays for warming up."""
        if trainer.global_step > 0:
            return
        self.seen += 1
        if self.seen not in (1, 1 + self.BATCHES):
            return
        torch.zeros((), device=pl_module.device).item()  # waits for the device
        if self.seen == 1:
            self.start = time.perf_counter()
        else:
            forward = (time.perf_counter() - self.start) / self.BATCHES
            evaluations = 1 + math.ceil(trainer.max_steps / self.eval_interval)
            steps = trainer.max_steps * trainer.accumulate_grad_batches
            training, evaluating = steps / FORWARD_SHARE, evaluations * sum(trainer.num_val_batches)
            hours = forward * (training + evaluating) / 3600
            large = sum(p.numel() for p in pl_module.parameters()) > self.LARGE
            advice = (self.smaller if large else "") or self.alternative
            if evaluating > training:
                advice = "most of them to evaluate: --data.eval_coverage sampled with few --data.eval_iters helps"
            if hours >= self.HOURS and trainer.is_global_zero:
                say(f"NOTE: on this machine the run takes about {hours:.1f} hours; {advice}")


class StepProgressBar(ProgressBar):
    """A bar over the optimizer steps: how many are done, the time left, evaluations included, and the loss."""

    TERMINAL_SECONDS, FILE_SECONDS = 0.25, 30.0  # from one redrawing to the next; a log file needs few

    def __init__(self, eval_interval: int) -> None:
        super().__init__()
        self.eval_interval = eval_interval
        self.interval = self.TERMINAL_SECONDS if sys.stderr.isatty() else self.FILE_SECONDS
        self.bar: tqdm[Any] | None = None
        self.enabled = True
        self.loss: Tensor | None = None
        self.first_step = self.evaluations = 0
        self.training = self.evaluating = self.mark = 0.0  # seconds in each, and when the present one began
        self.resting = False  # from the end of an evaluation to the next step: samples, checkpoints
        self.redrawn = 0.0

    def disable(self) -> None:
        """Show nothing; Lightning calls it on all processes but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar where the run starts or goes on."""
        self.first_step, self.mark = trainer.global_step, time.monotonic()
        form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=self.first_step,
            disable=not self.enabled,
            bar_format=form,
            miniters=math.inf,
        )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Count the time since the evaluation ended as part of it."""
        if self.resting:
            now = time.monotonic()
            self.evaluating, self.mark, self.resting = self.evaluating + now - self.mark, now, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the time of the step, and redraw."""
        self.loss = outputs["loss"]
        now = time.monotonic()
        self.training, self.mark = self.training + now - self.mark, now
        self._redraw(trainer, "training")

    def _redraw(self, trainer: pl.Trainer, doing: str, *, now: bool = False) -> None:
        """Show the present state, if it is time to: reading the loss waits for the device."""
        if self.bar is None or not (now or time.monotonic() - self.redrawn >= self.interval):
            return
        self.bar.n, self.bar.total = trainer.global_step, trainer.max_steps
        self.bar.set_description_str(f"{doing} ", refresh=False)
        if self.loss is not None:
            left = tqdm.format_interval(self._seconds_left(trainer))
            loss = self.loss.item() * trainer.accumulate_grad_batches
            self.bar.set_postfix_str(f"{left} left, loss {loss:.4f}", refresh=False)
        self.bar.refresh()
        self.redrawn = time.monotonic()

    def _seconds_left(self, trainer: pl.Trainer) -> float:
        step, last = trainer.global_step, trainer.max_steps
        seconds = (last - step) * self.training / max(step - self.first_step, 1)
        if self.evaluations and step < last:
            to_come = math.ceil(last / self.eval_interval) - step // self.eval_interval
            seconds += to_come * self.evaluating / self.evaluations
        return seconds

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the time of an evaluation apart."""
        now = time.monotonic()
        self.training, self.mark = self.training + now - self.mark, now

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say how far an evaluation is."""
        sizes = [int(size) for size in trainer.num_val_batches]
        self._redraw(trainer, f"evaluating {sum(sizes[:dataloader_idx]) + batch_idx + 1}/{sum(sizes)}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the evaluation; samples and checkpoints after it belong to its time."""
        self.evaluations += 1
        self.resting = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar at its last step."""
        self._redraw(trainer, "training", now=True)
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error has a line of its own."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
