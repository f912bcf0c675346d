"""What happens around the steps: evaluation at both ends, dropout's seed, the curve, the record and the checkpoints."""

import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from tinygpt_pl.data import Batch
from tinygpt_pl.diagnosis import check_start
from tinygpt_pl.gpt import INIT_STD
from tinygpt_pl.module import TinyGPT

CHARTS = {
    "loss": {"train and val": ["Multiline", ["eval/train_loss", "eval/val_loss"]]},
    "optimizer": {
        "learning rate": ["Multiline", ["optim/lr"]],
        "gradient norm before clipping": ["Multiline", ["optim/grad_norm"]],
    },
}
"""The custom-scalar page of TensorBoard."""


class EventLogger(TensorBoardLogger):
    """TensorBoard's events alone, straight in the run folder; the settings are in its config.yaml."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, name="", version="", default_hp_metric=False)

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered, and no second file of settings."""
        self.experiment.flush()


class Evaluation(Callback):
    """Evaluates before the first step and after the last; `val_check_interval` does so between."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the untrained network, and stop a run that is broken before it starts."""
        assert isinstance(pl_module, TinyGPT)
        if trainer.global_step > 0:
            return
        # A sanity check would run the same loop, but Lightning logs and saves nothing during one.
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        config = pl_module.gpt.config
        loss = trainer.callback_metrics["eval/val_loss"].item()
        check_start(loss, config.vocab_size, config.n_embd * INIT_STD**2)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Ask for the last evaluation, also where `max_steps` is no multiple of the interval."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True


class StepSeed(Callback):
    """Makes dropout a pure function of (seed, optimizer step, micro-batch, rank), so that a resumed run repeats it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Seed torch's generators for a micro-batch."""
        micro = batch_idx % trainer.accumulate_grad_batches
        torch.manual_seed(dropout_seed(self.seed, trainer.global_step, micro, trainer.global_rank))


def dropout_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """A 64-bit seed that differs for every micro-batch of a run."""
    return int(np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)[0])


class Curve(Callback):
    """Writes the loss curve at the true optimizer step.

    A row at x speaks of the network after x steps: its evaluation, the loss of its next batch, the gradient norm and
    learning rate of its next step. Nothing is read from the device between rows.
    """

    def __init__(self, log_every_n_steps: int = 10) -> None:
        self.log_every_n_steps = log_every_n_steps
        self.stepping = False
        self.loss: Tensor | float = 0.0
        self.clipped: Tensor | float = 0.0
        self.steps = 0  # since the last row
        self.lr = math.nan
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
        """Measure the machine and lay out the charts."""
        self.ceiling = matmul_flops(pl_module.device, trainer.precision) * trainer.world_size
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(CHARTS)

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
        self.lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Sum the micro-batches of a step; at its end count it, and write a row if one is due."""
        assert isinstance(pl_module, TinyGPT)
        self.loss = self.loss + outputs["loss"]  # already divided by accumulate_grad_batches
        if not self.stepping:
            return
        self.stepping = False
        self.steps += 1
        self.clipped = self.clipped + (pl_module.grad_norm > (trainer.gradient_clip_val or math.inf))
        tokens = batch[0].numel() * trainer.accumulate_grad_batches * trainer.world_size
        self.tokens += tokens
        it = trainer.global_step - 1
        if it % self.log_every_n_steps == 0:
            self._write(trainer, self._row(trainer, pl_module, tokens, it), it)
            self.clipped, self.steps = 0.0, 0
            self.tokens, self.seconds, self.since = 0, 0.0, time.perf_counter()
        self.loss = 0.0

    def _row(self, trainer: pl.Trainer, module: TinyGPT, tokens: int, it: int) -> dict[str, float]:
        loss = trainer.strategy.reduce(torch.as_tensor(self.loss), reduce_op="mean").item()  # waits for the device
        assert self.since is not None
        speed = self.tokens / (self.seconds + time.perf_counter() - self.since)
        return {
            "train/loss": loss,
            "optim/lr": self.lr,
            "optim/grad_norm": module.grad_norm.item(),
            "optim/clipped_share": float(self.clipped) / self.steps,
            "perf/tokens_per_second": speed,
            "perf/mfu": speed * module.gpt.flops_per_token() / self.ceiling,
            "progress/tokens_seen": tokens * (it + 1),
        }

    @staticmethod
    def _write(trainer: pl.Trainer, row: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step)


def matmul_flops(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large matrix product, measured: the ceiling that `perf/mfu` refers to."""
    dtypes = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    dtype = next((dtype for name, dtype in dtypes.items() if precision.startswith(name)), torch.float32)
    n = 1024 if device.type == "cpu" else 4096 if dtype.itemsize > 2 else 8192  # 0.2 GB or 0.4 GB on an accelerator
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


class RunRecord(Callback):
    """Keeps the run's configuration in its folder and, with the latest validation loss, in each of its checkpoints."""

    def __init__(self, run_dir: Path, config: str) -> None:
        self.run_dir, self.config = run_dir, config
        self.val_loss = math.nan

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the loss of the evaluation that a run goes on from."""
        self.val_loss = checkpoint["val_loss"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the loss for the checkpoints to come."""
        self.val_loss = trainer.callback_metrics["eval/val_loss"].item()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write config.yaml, and the same to TensorBoard's text page."""
        if trainer.is_global_zero:
            (self.run_dir / "config.yaml").write_text(self.config, encoding="utf-8")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("config", f"```yaml\n{self.config}\n```")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add both to a checkpoint."""
        checkpoint["config"] = self.config
        checkpoint["val_loss"] = self.val_loss


class RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that knows its best file again in a run folder that was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; Lightning forgets the best score where the folder has another name than before."""
        here = Path(str(self.dirpath))
        best = here / Path(state_dict["best_model_path"]).name
        if best.is_file():
            scores = {str(best): score for score in state_dict["best_k_models"].values()}
            paths = {"dirpath": str(here), "best_model_path": str(best), "kth_best_model_path": str(best)}
            state_dict = {**state_dict, **paths, "best_k_models": scores}
        super().load_state_dict(state_dict)


def checkpoints(run_dir: Path) -> list[Callback]:
    """The best checkpoint by validation loss and the last one, both saved at the end of an evaluation.

    Two callbacks, since one with `save_last` writes the last only when it is also the best.
    """
    shared: dict[str, Any] = {
        "dirpath": run_dir / "checkpoints",
        "save_top_k": 1,
        "enable_version_counter": False,
        "save_on_train_epoch_end": False,
    }
    return [
        RunCheckpoint(filename="best", monitor="eval/val_loss", **shared),
        RunCheckpoint(filename="last", monitor=None, **shared),
    ]
