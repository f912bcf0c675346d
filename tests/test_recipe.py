"""The project takes the same steps as the plain loop, and a run with a known trap built in does not."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tests.reference import (
    CLIP,
    GPT_CONFIG,
    OPTIM,
    STEPS,
    Record,
    assert_same_run,
    english,
    lightning_fit,
    plain_loop,
    with_dropout,
)
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.windows import Batch


def fresh(kind: type[TinyGPT] = TinyGPT, gpt: GPTConfig = GPT_CONFIG) -> TinyGPT:
    torch.manual_seed(0)
    return kind(gpt, OPTIM)


def weights(module: TinyGPT) -> dict[str, Tensor]:
    return copy.deepcopy(module.gpt.state_dict())


@cache
def plain(gpt: GPTConfig) -> Record:
    """The plain loop, from the weights of `fresh`, which are those of every trap too."""
    return plain_loop(english(), weights(fresh(gpt=gpt)), gpt)


@cache
def whole_batch() -> Record:
    """The plain loop with a whole batch a step, in double precision."""
    state = {name: p.double() for name, p in weights(fresh()).items()}
    return plain_loop(english(), state, batch_size=16, dtype=torch.float64)


@pytest.mark.parametrize("gpt", [GPT_CONFIG, with_dropout()], ids=["no dropout", "dropout"])
def test_thirty_steps_equal_the_plain_loop(text_file: Path, gpt: GPTConfig) -> None:
    expected = plain(gpt)
    found = lightning_fit(text_file, fresh(gpt=gpt))
    assert_same_run(found, expected, rtol=1e-6)
    assert len(expected.train_losses) == STEPS
    clipped = [norm > CLIP for norm in expected.grad_norms]
    assert any(clipped), "no step was clipped"
    assert not all(clipped), "every step was clipped"
    assert expected.train_losses[-1] < expected.train_losses[0] - 0.5, "nothing was learned, so nothing was compared"


def accumulated(text_file: Path, module: TinyGPT, callbacks: tuple[Callback, ...] = ()) -> Record:
    return lightning_fit(text_file, module, 4, 4, callbacks=callbacks, precision="64-true")


def test_four_micro_batches_of_four_equal_one_batch_of_sixteen(text_file: Path) -> None:
    assert_same_run(accumulated(text_file, fresh()), whole_batch(), rtol=1e-6)


class OneGroupScheduled(TinyGPT):
    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = self.optim.max_lr
        schedule = lambda it: self.lr_at(it) / self.optim.max_lr  # noqa: E731
        scheduler = LambdaLR(optimizer, [schedule, lambda it: 1.0])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TargetsNotShifted(TinyGPT):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step((batch[0], batch[0]), batch_idx)


class TiedMatrixDecayedTwice(TinyGPT):
    """Once as the embedding, by AdamW, and once more as the head."""

    @torch.no_grad()
    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        group = optimizer.param_groups[0]
        self.gpt.wte.weight.mul_(1 - group["lr"] * group["weight_decay"])


class DropoutOnInEvaluation(TinyGPT):
    def on_validation_model_eval(self) -> None:
        """Leave the network in training mode."""


class DropoutOffAfterEvaluation(TinyGPT):
    def on_validation_model_train(self) -> None:
        """Leave the network in evaluation mode."""


@pytest.mark.parametrize(
    ("trap", "gpt", "difference"),
    [
        (OneGroupScheduled, GPT_CONFIG, "learning_rates differ"),
        (TargetsNotShifted, GPT_CONFIG, "train_losses differ"),
        (TiedMatrixDecayedTwice, GPT_CONFIG, "train_losses differ"),
        (DropoutOnInEvaluation, with_dropout(), "evaluations differ"),
        (DropoutOffAfterEvaluation, with_dropout(), "train_losses differ"),
    ],
)
def test_a_trap_is_seen(text_file: Path, trap: type[TinyGPT], gpt: GPTConfig, difference: str) -> None:
    found = lightning_fit(text_file, fresh(trap, gpt))
    with pytest.raises(AssertionError, match=difference):
        assert_same_run(found, plain(gpt), rtol=1e-6)


class ScheduledByMicroBatch(TinyGPT):
    def lr_at(self, it: int) -> float:
        return super().lr_at(it * self.trainer.accumulate_grad_batches)


class ClippedInsideAccumulation(TinyGPT):
    def on_after_backward(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), CLIP)


class GradientsNotScaled(TinyGPT):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.trainer.accumulate_grad_batches


@pytest.mark.parametrize(
    ("trap", "difference"),
    [
        (ScheduledByMicroBatch, "learning_rates differ"),
        (ClippedInsideAccumulation, "train_losses differ"),
        (GradientsNotScaled, "train_losses differ"),
    ],
)
def test_an_accumulation_trap_is_seen(text_file: Path, trap: type[TinyGPT], difference: str) -> None:
    found = accumulated(text_file, fresh(trap))
    with pytest.raises(AssertionError, match=difference):
        assert_same_run(found, whole_batch(), rtol=1e-6)


class GraphWatch(Callback):
    """Notes whether anything in an evaluation could be differentiated."""

    def __init__(self) -> None:
        self.built = False
        self.batches = 0

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, TinyGPT)
        pl_module.gpt.ln_f.register_forward_hook(self.look)

    def look(self, module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        if not module.training:
            self.batches += 1
            self.built = self.built or output.requires_grad


class EvaluationBuildsGraphs(TinyGPT):
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with torch.inference_mode(mode=False), torch.enable_grad():
            idx, targets = batch
            super().validation_step((idx.clone(), targets.clone()), batch_idx, dataloader_idx)


@pytest.mark.parametrize(("kind", "built"), [(TinyGPT, False), (EvaluationBuildsGraphs, True)])
def test_evaluation_builds_no_graph(text_file: Path, kind: type[TinyGPT], built: bool) -> None:
    watch = GraphWatch()
    lightning_fit(text_file, fresh(kind), callbacks=(watch,), max_steps=EVALUATED, val_check_interval=EVALUATED)
    assert watch.batches > 0
    assert watch.built is built


EVALUATED = 2
