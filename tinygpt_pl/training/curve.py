"""The loss curve: its rows at the true optimizer step, and TensorBoard's file of them."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.tensorboard.summary import hparams

from tinygpt_pl.insight.history import History
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.system.machine import matmul_flops
from tinygpt_pl.training.console import warn
from tinygpt_pl.windows import Batch

CHARTS = {
    "loss": {"train and val": ["Multiline", ["eval/train_loss", "eval/val_loss"]]},
    "optimizer": {
        "learning rate": ["Multiline", ["optim/lr", "optim/lr_no_decay"]],
        "gradient norm before clipping": ["Multiline", ["optim/grad_norm"]],
        "share of clipped steps": ["Multiline", ["optim/clipped_share"]],
    },
}
"""The custom-scalar page of TensorBoard."""

RESULTS = ("result/best_val_loss", "result/best_iter", "result/val_loss", "result/train_loss")
"""What TensorBoard's page of hyper-parameters shows of a run that has come to its end."""

UNSORTED = ("cache_dir", "offline_corpus")
"""Settings of the text that tell no run from another."""


class EventLogger(TensorBoardLogger):
    """TensorBoard's events alone, straight in the run folder; the settings are in its config.yaml.

    Where the curve cannot be written any more, it ends with a warning; the run goes on.
    """

    def __init__(self, run_dir: Path, purge_step: int | None = None) -> None:
        """Write nothing yet.

        Args:
            run_dir: the folder of the run.
            purge_step: the optimizer step from which on a TensorBoard that is open is to forget what it has read.
        """
        super().__init__(run_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)
        self.run_dir, self.broken = run_dir, False

    @property
    def root_dir(self) -> str:
        """The folder itself; Lightning's own would be another one where its name has a $."""
        return str(self.run_dir)

    @property
    def log_dir(self) -> str:
        """The same."""
        return str(self.run_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a row."""
        self._attempt(lambda: super(EventLogger, self).log_metrics(metrics, step))

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Write a page of text."""
        self._attempt(lambda: self.experiment.add_text(tag, text, step))

    def lay_out(self, charts: Mapping[str, Any]) -> None:
        """Write the custom-scalar page."""
        self._attempt(lambda: self.experiment.add_custom_scalars(charts))

    def log_hparams(self, settings: Mapping[str, Any]) -> None:
        """Write what runs are sorted by on the page of hyper-parameters; RESULTS are what they come to.

        Args:
            settings: nested, as in config.yaml.
        """
        model, data, trainer = settings["model"], settings["data"], settings["trainer"]
        chosen = {name: settings[name] for name in ("seed_everything", "ema_decay")} | model["gpt"] | model["optim"]
        chosen |= {name: value for name, value in data.items() if name not in UNSORTED}
        names = ("max_steps", "gradient_clip_val", "accumulate_grad_batches", "precision")
        chosen |= {name: trainer[name] for name in names}
        plain = {name: value if isinstance(value, int | float) else str(value) for name, value in chosen.items()}
        summaries = hparams(plain, dict.fromkeys(RESULTS))  # type: ignore[no-untyped-call]  # torch's
        self._attempt(lambda: [self.experiment.file_writer.add_summary(summary) for summary in summaries])

    def save(self) -> None:
        """Write what is buffered, and no second file of settings."""
        self._attempt(lambda: self.experiment.flush())

    def finalize(self, status: str) -> None:
        """Close the file."""
        self._attempt(lambda: super(EventLogger, self).finalize(status))

    @rank_zero_only
    def _attempt(self, write: Callable[[], object]) -> None:
        if self.broken:
            return
        try:
            write()
        except OSError as error:
            self.broken = True
            warn(f"the curve ends here, since it cannot be written: {error}")


class Curve(Callback):
    """Writes the loss curve at the true optimizer step.

    A row at x speaks of the network after x steps: its evaluation, the loss of its next batch, the gradient norm and
    learning rate of its next step. Nothing more is read from the device between rows.
    """

    def __init__(
        self, log_every_n_steps: int = 10, peak_flops: float | None = None, history: History | None = None
    ) -> None:
        """Write nothing yet.

        Args:
            log_every_n_steps: optimizer steps from row to row.
            peak_flops: floating-point operations a second of a device, which `perf/mfu` is a share of; measured if
                left out.
            history: which the rows are added to, besides.
        """
        self.log_every_n_steps, self.peak_flops = log_every_n_steps, peak_flops
        self.history = History() if history is None else history
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
        """Go on counting."""
        self.clipped, self.steps = state_dict["clipped"], state_dict["steps"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the machine, if nobody has told."""
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
