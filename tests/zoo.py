"""Runs with a bug planted in them, and healthy ones, for the diagnosis to tell apart."""

import contextlib
import io
import random
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tests.reference import english
from tests.small_runs import MODERN
from tinygpt_pl.commands import fit
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import CausalSelfAttention
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.optim import configure_optimizer
from tinygpt_pl.windows import Batch, FixedWindows

SMALL: Mapping[str, Any] = {
    "data.corpus": "pydoc",
    "data.batch_size": 16,
    "data.eval_coverage": "sampled",
    "data.eval_iters": 30,
    "eval_interval": 50,
    "sample_tokens": 0,
    "model.gpt.block_size": 32,
    "model.gpt.n_layer": 2,
    "model.gpt.n_head": 2,
    "model.gpt.n_embd": 64,
    "model.gpt.dropout": 0.0,
    "model.optim.max_lr": 4e-3,
    "model.optim.min_lr": 4e-4,
    "model.optim.warmup_iters": 30,
    "trainer.max_steps": 300,
    "trainer.accelerator": "cpu",
    "trainer.log_every_n_steps": 5,
    "trainer.enable_progress_bar": False,
}
"""A run of a few seconds that is well."""


class SummedLoss(TinyGPT):
    """Adds the losses of a window's tokens up instead of taking their mean."""

    def loss_of(self, batch: Batch) -> Tensor:
        return super().loss_of(batch) * batch[1].size(1)


class NoShift(TinyGPT):
    """Asks for the token that the network has just read."""

    def loss_of(self, batch: Batch) -> Tensor:
        return super().loss_of((batch[0], batch[0]))


class Unmasked(CausalSelfAttention):
    """Attention that sees what comes after, too."""

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=2))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return out


class SeesTheFuture(TinyGPT):
    """Has no causal mask."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in self.gpt.h:
            block.attn.__class__ = Unmasked


class NoGradients(TinyGPT):
    """Loses the gradients between the backward pass and the step."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)


class NeverZeroed(TinyGPT):
    """Adds each step's gradient to all before it."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        return


class EvaluatesWithDropout(TinyGPT):
    """Forgets `eval()` before an evaluation."""

    def on_validation_model_eval(self) -> None:
        return


class TrainsWithoutDropout(TinyGPT):
    """Forgets `train()` after an evaluation."""

    def on_validation_model_train(self) -> None:
        return


class StepsByEpoch(TinyGPT):
    """Leaves the scheduler at Lightning's default interval, of which a run here has one."""

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = configure_optimizer(self.gpt, self.optim, fused=True)
        scheduler = LambdaLR(optimizer, lambda it: self.lr_at(it))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


class OneGroupScheduled(TinyGPT):
    """Sets the learning rate of the first group alone."""

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = configure_optimizer(self.gpt, self.optim, fused=True)
        frozen = self.optim.max_lr / 10
        scheduler = LambdaLR(optimizer, [lambda it: self.lr_at(it), lambda it: frozen])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class WideStart(TinyGPT):
    """Begins with embeddings fifty times as large as they should be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            self.gpt.wte.weight.mul_(50.0)


class NoSplit(TextDataModule):
    """Trains and validates on the same text; where its windows fit it exactly, both evaluations have the same ones."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.splits = {name: np.concatenate(list(self.splits.values())) for name in self.splits}


class OneLoader(TextDataModule):
    """Evaluates the training split in the place of both."""

    def val_dataloader(self) -> list[FixedWindows]:
        _, train = super().val_dataloader()
        return [train, train]


class LosesOptimizerState(Callback):
    """Begins with an empty optimizer, as after a checkpoint that kept the weights alone."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.optimizers[0].state.clear()


@dataclass(frozen=True)
class Case:
    """A run, and what is to be found in it."""

    name: str
    finding: str | None
    changes: Mapping[str, Any] = field(default_factory=dict)
    module: type[TinyGPT] = TinyGPT
    data: type[TextDataModule] = TextDataModule
    resumed: Mapping[str, Any] | None = None
    """What is asked for besides when it is stopped at max_steps and goes on."""


def bug(name: str, finding: str, /, module: type[TinyGPT] = TinyGPT, **changes: Any) -> Case:
    """A case; dots in an option's name are double underscores."""
    return Case(name, finding, {key.replace("__", "."): value for key, value in changes.items()}, module)


def well(name: str, /, **changes: Any) -> Case:
    """A run that nothing is wrong with."""
    return Case(name, None, {key.replace("__", "."): value for key, value in changes.items()})


def write_texts(folder: Path) -> dict[str, str]:
    """Texts that every Python carries, by the names that cases call them."""
    reference = "\n".join(topics.values())
    library = Path(textwrap.__file__).parent
    modules = ("argparse", "ast", "typing", "turtle")
    code = "".join((library / f"{name}.py").read_text(encoding="utf-8") for name in modules)
    draw = random.Random(0)
    letters = "".join(draw.choices("abcdefghij", weights=range(1, 11), k=50000))
    bits = "".join(draw.choices("01", k=50000))
    texts = {
        "LETTERS": letters,
        "BITS": bits,
        "SHORT": reference[:6000],
        "MEDIUM": reference[: 32 * 1000 + 1],
        "CODE": code,
        "WORDS": english(100000),
    }
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return {name: str(folder / f"{name}.txt") for name in texts}


def run(case: Case, folder: Path, common: Mapping[str, Any] = SMALL) -> tuple[Path, int, str]:
    """Train a case in this process; gives the run's folder, its exit code, and what was said."""
    from tinygpt_pl.commands.main import main

    texts = write_texts(folder)
    run_dir = folder / re.sub(r"\W+", "-", case.name)
    options = {**common, **case.changes, "run_dir": run_dir}
    options |= {name: texts[value] for name, value in options.items() if value in texts}
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "TinyGPT", case.module)
        patch.setattr(fit, "TextDataModule", case.data)
        code = main(["fit", *(f"--{name}={value}" for name, value in options.items())])
        if case.resumed is not None:
            last = run_dir / "checkpoints" / "last.ckpt"
            code = main(["fit", f"--ckpt_path={last}", *(f"--{name}={value}" for name, value in case.resumed.items())])
    return run_dir, code, said.getvalue()


FINE: Mapping[str, Any] = {"data.batch_size": 96, "trainer.log_every_n_steps": 1}
"""A batch loss with less noise, and all of it."""

CLEAR: Mapping[str, Any] = {
    "model__gpt__dropout": 0.5,
    "data__batch_size": 48,
    "trainer__log_every_n_steps": 1,
    "data__eval_iters": 60,
}
"""Where the effect of dropout stands out from the noise."""

BUGS = [
    bug("sum over the window", "wrong-start", SummedLoss),
    bug("embeddings too large", "wrong-start", WideStart),
    bug("learning rate 1", "learning-rate-too-high", model__optim__max_lr=1.0, model__optim__warmup_iters=0),
    bug("learning rate 0.3", "learning-rate-too-high", model__optim__max_lr=0.3),
    bug("learning rate 1e-7", "flat", model__optim__max_lr=1e-7, model__optim__min_lr=1e-8),
    bug("gradients lost", "flat", NoGradients),
    bug("a short text by heart", "overfitting", data__corpus="SHORT", trainer__max_steps=600),
    Case("one loader for both", "identical-splits", data=OneLoader),
    Case("no split", "identical-splits", {"data.eval_coverage": "full", "data.corpus": "MEDIUM"}, data=NoSplit),
    bug("clip at 0.01", "always-clipped", trainer__gradient_clip_val=0.01),
    bug("zero_grad forgotten", "never-good", NeverZeroed),
    bug("zero_grad forgotten, no clipping", "never-good", NeverZeroed, trainer__gradient_clip_val="null"),
    bug("eval() forgotten", "dropout-not-switched", EvaluatesWithDropout, **CLEAR),
    bug("train() forgotten", "dropout-not-switched", TrainsWithoutDropout, **CLEAR),
    bug("scheduler by the epoch", "off-schedule", StepsByEpoch),
    bug("one group scheduled", "groups-differ", OneGroupScheduled),
    Case(
        "optimizer state lost",
        "resume-bump",
        {**FINE, "trainer.max_steps": 200, "model.optim.max_iters": 400, "model.optim.max_lr": 1e-2},
        resumed={"trainer.max_steps": 240, "trainer.callbacks": "tests.zoo.LosesOptimizerState"},
    ),
    bug("one batch to evaluate", "noisy-evaluation", data__eval_iters=1, data__batch_size=8),
    bug("targets not shifted", "too-good", NoShift),
    bug("no causal mask", "too-good", SeesTheFuture, model__optim__max_lr=8e-3, trainer__max_steps=450),
    bug("ten times the steps it takes", "best-early", data__corpus="WORDS", trainer__max_steps=1200),
    bug("60 steps", "still-falling", trainer__max_steps=60, eval_interval=10),
]


HEALTHY = [
    *(well(f"seed {seed}", seed_everything=seed) for seed in range(5)),
    well("one layer of 32", model__gpt__n_layer=1, model__gpt__n_embd=32),
    well("three layers of 96", model__gpt__n_layer=3, model__gpt__n_head=4, model__gpt__n_embd=96),
    well("windows of 64", model__gpt__block_size=64, data__batch_size=8),
    well("windows of 8", model__gpt__block_size=8, data__batch_size=64),
    well("learning rate 1e-3", model__optim__max_lr=1e-3, model__optim__min_lr=1e-4),
    well("learning rate 2e-3, never lower", model__optim__max_lr=2e-3, model__optim__min_lr=2e-3),
    well("learning rate 8e-3", model__optim__max_lr=8e-3),
    well("no warm-up, learning rate 1e-3", model__optim__max_lr=1e-3, model__optim__warmup_iters=0),
    well("a long warm-up", model__optim__warmup_iters=150),
    well("batches of 4", data__batch_size=4, data__eval_iters=120),
    well("batches of 64", data__batch_size=64, data__eval_iters=10),
    well("4 micro-batches", data__batch_size=4, trainer__accumulate_grad_batches=4),
    well("every token evaluated", data__eval_coverage="full", data__corpus="MEDIUM"),
    well("evaluated every 10 iterations", eval_interval=10, data__eval_iters=10, trainer__max_steps=100),
    well("evaluated at both ends", eval_interval=300),
    well("dropout 0.1", model__gpt__dropout=0.1),
    well("dropout 0.5", **CLEAR),
    well("no clipping", trainer__gradient_clip_val="null"),
    well("weight decay 1", model__optim__weight_decay=1.0),
    well("Python code", data__corpus="CODE"),
    well("random words", data__corpus="WORDS"),
    well("independent letters", data__corpus="LETTERS"),
    well("independent bits", data__corpus="BITS"),
    Case("made longer after its end", None, {**FINE, "trainer.max_steps": 200}, resumed={"trainer.max_steps": 300}),
    well("three times as long", trainer__max_steps=900, eval_interval=100),
    well("a row each 50 iterations", trainer__log_every_n_steps=50),
    well("every modern part", **{**MODERN, "ema_decay": 0.98}),
    well("Muon at a learning rate of 1e-2", model__optim__optimizer="muon", model__optim__max_lr=1e-2),
    well("level, then a decay", model__optim__schedule="wsd", ema_decay=0.95),
    well("40 iterations", trainer__max_steps=40, eval_interval=10, model__optim__warmup_iters=5),
    Case("stopped and gone on", None, {"trainer.max_steps": 200}, resumed={"trainer.max_steps": 300}),
]
"""Runs that nothing is wrong with, over seeds, sizes, rates, texts and ways to evaluate."""
