"""An exponential moving average of the weights, evaluated and saved beside the weights themselves."""

import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.module import TinyGPT, TokenMean
from tinygpt_pl.training.lightning_internals import average_on, swap_average


class Averaging(WeightAveraging):
    """Keeps an exponential moving average of the weights, which is then the result of the run.

    Evaluations, samples and best.ckpt are of the average; `eval/raw_val_loss` is that of the weights themselves. A
    checkpoint holds the average as its `state_dict`, and the weights that training goes on from as its
    `current_model_state`.
    """

    def __init__(self, decay: float, data: TextDataModule) -> None:
        """Prepare the average.

        Args:
            decay: share of the average that a step keeps, at most: after n steps it is (1 + n) / (10 + n) if that is
                less, so that the first weights are soon forgotten (TensorFlow's ExponentialMovingAverage).
            data: the text, for the validation loss of the weights themselves.

        Raises:
            ValueError: for a decay outside [0, 1).
        """
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema_decay has to be in [0, 1), got {decay}")

        @torch.no_grad()
        def average(averages: list[Tensor], weights: list[Tensor], updates: Tensor | int) -> None:
            n = int(updates)
            for mean, weight in zip(averages, weights, strict=True):
                mean.lerp_(weight, 1.0 - min(decay, (1 + n) / (10 + n)))

        super().__init__(multi_avg_fn=average)
        self.data, self.swapped = data, False
        self.raw_val_loss = torch.zeros(())

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make room for the average where the weights are going to be; at this time they are not there yet."""
        average_on(self, trainer.strategy.root_device)
        with warnings.catch_warnings():
            # A module that can be divided is not one that is: the two are refused together.
            warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback", category=UserWarning)
            super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the weights themselves, and put the average in their place."""
        assert isinstance(pl_module, TinyGPT)
        loss = TokenMean().to(pl_module.device)
        for idx, targets in self.data.val_dataloader()[0]:
            with trainer.precision_plugin.val_step_context():
                _, batch_loss = pl_module.gpt.forward(idx, targets)
            assert batch_loss is not None
            loss.update(batch_loss, targets.numel())
        self.raw_val_loss = loss.compute()
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the loss of the weights themselves; the average stays, for what else there is to look at it."""
        pl_module.log("eval/raw_val_loss", self.raw_val_loss, logger=False, sync_dist=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the weights their place back."""
        self._swap(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the average; in the middle of an evaluation the two are in each other's place."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.swapped:
            average, weights = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint |= {"state_dict": average, "current_model_state": weights}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the weights in their place, where Lightning would put the average: a callback may yet save."""

    def _swap(self, pl_module: pl.LightningModule) -> None:
        swap_average(self, pl_module)
        self.swapped = not self.swapped
