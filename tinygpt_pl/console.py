"""What a run shows on the terminal: the table, the progress bar and a word of warning."""

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from tqdm import tqdm

from tinygpt_pl.data import Batch, TextDataModule
from tinygpt_pl.diagnosis import expected_start
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.optim import decay_groups

FORWARD_SHARE = 1 / 3
"""A forward pass in a training step: the backward pass has two products for each of its one."""


class Table(Callback):
    """Prints what is trained, a line per evaluation, and where the result is."""

    def __init__(self, run_dir: Path, data: TextDataModule) -> None:
        self.run_dir, self.data = run_dir, data
        self.elapsed, self.since = 0.0, 0.0
        self.best_loss, self.best_iter = math.inf, 0

    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far and the best evaluation."""
        return {"elapsed": self._seconds(), "best_loss": self.best_loss, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an earlier table."""
        self.elapsed = state_dict["elapsed"]
        self.best_loss, self.best_iter = state_dict["best_loss"], state_dict["best_iter"]

    def _seconds(self) -> float:
        return self.elapsed + time.perf_counter() - self.since

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the head."""
        assert isinstance(pl_module, TinyGPT)
        self.since = time.perf_counter()
        data, config = self.data, pl_module.gpt.config
        total = sum(p.numel() for p in pl_module.gpt.parameters())
        lines = [
            f"{data.corpus_name}: {len(data.splits['train']):,} tokens for training, {len(data.splits['val']):,} for "
            f"validation, {config.vocab_size} different ones",
            f"{total:,} parameters ({total / 1e6:.2f}M)",
        ]
        for label, group in zip(("decayed", "non-decayed"), decay_groups(pl_module.gpt, 0.0), strict=True):
            parameters = group["params"]
            lines.append(f"{label}: {len(parameters)} tensors, {sum(p.numel() for p in parameters):,} parameters")
        lines.append(f"ln({config.vocab_size}) = {expected_start(config.vocab_size):.4f}, the loss of a uniform guess")
        lines.append(f"run: {self.run_dir} on {pl_module.device.type}; tensorboard --logdir {self.run_dir.parent}")
        say(trainer, data.offline_notice, *lines)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print an evaluation and remember the best; the untrained network is never that."""
        assert isinstance(pl_module, TinyGPT)
        if trainer.state.fn is not TrainerFn.FITTING:
            return
        it, metrics = trainer.global_step, trainer.callback_metrics
        val = metrics["eval/val_loss"].item()
        if it > 0 and val < self.best_loss:
            self.best_loss, self.best_iter = val, it
        say(
            trainer,
            f"iter {it} | train {metrics['eval/train_loss'].item():.4f} | val {val:.4f} "
            f"| lr {pl_module.learning_rate(it):.2e} | {self._seconds():.0f}s",
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where the best checkpoint is and how good."""
        best = os.path.relpath(self.run_dir / "checkpoints" / "best.ckpt")
        if math.isfinite(self.best_loss):
            say(
                trainer,
                f"best: iter {self.best_iter} | val {self.best_loss:.4f} | {best}",
                f"average probability of the true next character: {math.exp(-self.best_loss):.4f}",
                f"score it on the whole split: python -m tinygpt_pl test --ckpt_path {best}",
            )
        say(trainer, self.data.offline_notice)


def say(trainer: pl.Trainer, *lines: str) -> None:
    """Print the lines that are not empty on the first process alone, above any progress bar."""
    if trainer.is_global_zero:
        for line in filter(None, lines):
            tqdm.write(line)
        sys.stdout.flush()  # a table that is piped or kept in a file is read while the run goes on


class LongRunNotice(Callback):
    """Says early if a run will take hours: a few batches of the evaluation at iteration 0 tell."""

    BATCHES = 4
    HOURS = 1.0

    def __init__(self, eval_interval: int, alternative: str) -> None:
        self.eval_interval, self.alternative = eval_interval, alternative

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
        if trainer.state.fn is not TrainerFn.FITTING or trainer.global_step > 0 or dataloader_idx > 0:
            return
        if batch_idx == 0:
            self.start = time.perf_counter()
        elif batch_idx == self.BATCHES:
            forward = (time.perf_counter() - self.start) / self.BATCHES
            evaluations = 1 + math.ceil(trainer.max_steps / self.eval_interval)
            steps = trainer.max_steps * trainer.accumulate_grad_batches
            passes = steps / FORWARD_SHARE + evaluations * sum(trainer.num_val_batches)
            hours = forward * passes / 3600
            if hours >= self.HOURS:
                say(trainer, f"NOTE: on this machine the run takes about {hours:.1f} hours; {self.alternative}")


class StepProgressBar(ProgressBar):
    """One bar over the optimizer steps: how many are done, the time left, evaluations included, and the loss."""

    TERMINAL_SECONDS, FILE_SECONDS = 0.25, 30.0  # between refreshes; a log file needs few

    def __init__(self, eval_interval: int = 250) -> None:
        super().__init__()
        self.eval_interval = eval_interval
        self.interval = self.TERMINAL_SECONDS if sys.stderr.isatty() else self.FILE_SECONDS
        self.bar: tqdm[Any] | None = None
        self.enabled = True
        self.loss: Tensor | None = None
        self.refreshed = self.mark = self.training = self.evaluating = 0.0
        self.first_step = self.evaluations = 0

    def disable(self) -> None:
        """Show nothing; Lightning calls it on all processes but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self.enabled = True

    def _open(self, total: int, initial: int = 0) -> None:
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        self.bar = tqdm(total=total, initial=initial, disable=not self.enabled, bar_format=form, miniters=math.inf)
        self.refreshed = self.mark = time.monotonic()

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self.mark = now - self.mark, now
        return seconds

    def _show(self, trainer: pl.Trainer, doing: str, now: bool = False) -> None:
        """Redraw, at most a few times a second: reading the loss waits for the device."""
        if self.bar is None or not (now or time.monotonic() - self.refreshed >= self.interval):
            return
        self.bar.n = trainer.global_step
        self.bar.set_description_str(doing, refresh=False)
        if self.loss is not None:
            loss = self.loss.item() * trainer.accumulate_grad_batches
            self.bar.set_postfix_str(f"{self._left(trainer)} left, loss {loss:.4f}", refresh=False)
        self.bar.refresh()
        self.refreshed = time.monotonic()

    def _left(self, trainer: pl.Trainer) -> str:
        step, last = trainer.global_step, trainer.max_steps
        training = self.training + time.monotonic() - self.mark
        seconds = (last - step) * training / max(step - self.first_step, 1)
        if self.evaluations:
            to_come = math.ceil(last / self.eval_interval) - step // self.eval_interval
            seconds += to_come * self.evaluating / self.evaluations
        return str(tqdm.format_interval(seconds))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar where the run starts or goes on."""
        self.first_step = trainer.global_step
        self._open(trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move on."""
        self.loss = outputs["loss"]
        self._show(trainer, "training")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the time of an evaluation apart."""
        if trainer.state.fn is TrainerFn.FITTING:
            self.training += self._lap()
        else:
            self._open(int(sum(trainer.num_val_batches)))

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
        if trainer.state.fn is TrainerFn.FITTING:
            sizes = [int(size) for size in trainer.num_val_batches]
            done = sum(sizes[:dataloader_idx]) + batch_idx + 1
            self._show(trainer, f"evaluating {done}/{sum(sizes)}")
        elif self.bar is not None:
            self.bar.update()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go back to the steps."""
        if trainer.state.fn is TrainerFn.FITTING:
            self.evaluating += self._lap()
            self.evaluations += 1

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar over the batches of the whole split."""
        self._open(int(sum(trainer.num_test_batches)))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move on."""
        if self.bar is not None:
            self.bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar at its last step."""
        self._show(trainer, "training", now=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
