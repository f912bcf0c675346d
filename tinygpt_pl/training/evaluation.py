"""What happens at an evaluation: when one is due, what ends the run there, and the sample that is drawn."""

import math
import textwrap
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from tinygpt_pl.generation.sampling import generate
from tinygpt_pl.gpt import INIT_STD
from tinygpt_pl.guards import check_evaluation, check_start
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.system.terminal import say
from tinygpt_pl.text.tokenizer import Tokenizer
from tinygpt_pl.training.events import log_text
from tinygpt_pl.training.lightning_internals import allow_steps, evaluate_now
from tinygpt_pl.training.sharding import full_model
from tinygpt_pl.windows import Batch


def split_losses(trainer: pl.Trainer) -> dict[str, float]:
    """The losses of the latest evaluation, in nats per token: `val`, and `train` if there is a loader for it."""
    metrics = {split: trainer.callback_metrics.get(f"eval/{split}_loss") for split in ("train", "val")}
    return {split: loss.item() for split, loss in metrics.items() if loss is not None}


class Evaluation(Callback):
    """Evaluates before the first step, after the last, and on resume if an evaluation was due.

    Between, `val_check_interval` does so. Each checkpoint gets the latest validation loss and its optimizer step.
    """

    def __init__(self, interval: int, *, fresh: bool) -> None:
        """Prepare the evaluations.

        Args:
            interval: optimizer steps between two of them.
            fresh: whether the run starts from weights that have learnt nothing, whose loss is known beforehand.
        """
        self.interval, self.fresh = interval, fresh
        self.evaluated, self.val_loss = -1, math.nan
        self.reopened = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the latest evaluation."""
        checkpoint["evaluated"], checkpoint["val_loss"] = self.evaluated, self.val_loss

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the latest evaluation, and see whether the last one is still due."""
        self.evaluated, self.val_loss = checkpoint["evaluated"], checkpoint["val_loss"]
        if self.evaluated < checkpoint["global_step"] == trainer.max_steps:
            allow_steps(trainer, 1)  # until Lightning has started: with all steps taken it would not
            self.reopened = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run the evaluation that is due, if one is."""
        step = trainer.global_step
        if self.reopened:
            allow_steps(trainer, -1)
            self.reopened = False
        if self.evaluated < step and (step % self.interval == 0 or step == trainer.max_steps):
            evaluate_now(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a run that is broken or lost, before anything of it is saved."""
        assert isinstance(pl_module, TinyGPT)
        step, config = trainer.global_step, pl_module.gpt.config
        losses = split_losses(trainer)
        val = losses["val"]
        if step == 0 and self.fresh:
            check_start(val, config.vocab_size, config.n_embd * INIT_STD**2)
        check_evaluation(step, losses.get("train", val), val, config.vocab_size, pl_module.lr_at(step))
        self.evaluated, self.val_loss = step, val

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Ask for the last evaluation, also where `max_steps` is no multiple of the interval."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True


class Samples(Callback):
    """Draws a short text after each evaluation, for TensorBoard's text page and, if asked, for the console.

    It begins with nothing and is drawn with the same numbers each time, so that two samples differ by what has been
    learnt between them. No random number of the training is used up.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int, tokens: int, *, show: bool) -> None:
        """Prepare the draws.

        Args:
            tokenizer: of the model.
            seed: of the draws.
            tokens: to draw each time.
            show: whether the console is to have the text too.
        """
        self.tokenizer, self.seed, self.tokens, self.show = tokenizer, seed, tokens, show

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw a sample."""
        assert isinstance(pl_module, TinyGPT)
        gpt = full_model(pl_module.gpt)  # every rank has to ask
        if not trainer.is_global_zero:
            return
        start = torch.tensor([[self.tokenizer.start]])
        ids = generate(gpt, start, self.tokens, seed=self.seed)[0, 1:]
        block = textwrap.indent(self.tokenizer.decode(ids), "    ", lambda line: True)  # preformatted, in Markdown
        log_text(trainer, "sample", block)
        if self.show:
            say(block)
