"""What surrounds each optimizer step: the seed of its dropout, its compilation, and how it is guarded on a GPU."""

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.guards import StepGuard
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.system.terminal import say
from tinygpt_pl.training.torch_internals import skip_steps
from tinygpt_pl.windows import Batch

SKIPPING_DEVICES = {"cuda"}
"""Devices whose fused AdamW can skip a step by itself, so that the host need not wait for the device at each one."""


class StepSeed(Callback):
    """Makes dropout a pure function of (seed, optimizer step, micro-batch, rank), so that a resumed run repeats it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Seed the device's generator for a micro-batch."""
        micro, device = batch_idx % trainer.accumulate_grad_batches, pl_module.device
        seed = dropout_seed(self.seed, trainer.global_step, micro, trainer.global_rank)
        # torch.manual_seed looks for all devices there might be, which takes a hundred times as long.
        if device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.get_device_module(device).manual_seed(seed)


def dropout_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """A 64-bit seed that differs for every micro-batch of a run."""
    return int(np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)[0])


class DeferredGuard(Callback):
    """On CUDA, records a failed step on the device and has the optimizer skip all later ones.

    `check_steps` raises at the next row of the curve, evaluation or save, which read from the device anyway.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the optimizer the guard's flag."""
        assert isinstance(pl_module, TinyGPT)
        optimizer = pl_module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        if pl_module.fused and pl_module.device.type in SKIPPING_DEVICES:
            # Muon heeds no such flag; but what it spoils is never saved.
            skip_steps(optimizer, pl_module.step_guard.defer(pl_module.device))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the module as it was: the next optimizer has no flag."""
        assert isinstance(pl_module, TinyGPT)
        pl_module.step_guard = StepGuard()


class Compilation(Callback):
    """Compiles a block of the network for the training step; if that fails, the run trains uncompiled and says so.

    All blocks are alike, so that one is compiled for all of them. The compiled forward takes the place of a block's own
    while it trains: evaluations have batches of other shapes, and samples are written by a cache of keys and values.
    """

    def __init__(self, data: TextDataModule) -> None:
        self.data = data
        self.compiled: dict[nn.Module, Callable[..., Tensor]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile now, not in the middle of the first step, so that its time is seen and its failure caught."""
        assert isinstance(pl_module, TinyGPT)
        batch, start = next(iter(self.data.train_dataloader())), time.perf_counter()
        try:
            self.compiled = {block: compiled_forward(block) for block in pl_module.gpt.h}
            put_in_place(self.compiled)
            with trainer.precision_plugin.forward_context(), warnings.catch_warnings():
                # Of the compiler itself, which looks for the gradient of what the block before has put out.
                warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
                _, loss = pl_module.gpt(*batch)
            loss.backward()  # is compiled when it first runs
            message = f"compiled in {time.perf_counter() - start:.0f}s"
        except Exception as error:  # of dynamo, inductor or a C++ compiler
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            message = f"NOTE: not compiled, since that failed: {reason[:200]}"
            self.on_fit_end(trainer, pl_module)
        take_away(self.compiled)
        pl_module.zero_grad()  # the step was none
        if trainer.is_global_zero:
            say(message)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Put the compiled forwards in place."""
        put_in_place(self.compiled)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the module as it was, until the next step."""
        take_away(self.compiled)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the module as it was."""
        take_away(self.compiled)
        self.compiled = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the module as it was, after a run that failed or was stopped, too."""
        self.on_fit_end(trainer, pl_module)


def compiled_forward(module: nn.Module) -> Callable[..., Tensor]:
    """What torch's compiler makes of a module's forward, once it runs."""
    # On a processor the compiler would draw the keys of a dropout anew beside each element that they hash.
    options: dict[str, Any] = {"fallback_random": next(module.parameters()).device.type == "cpu"}
    return torch.compile(module.forward, dynamic=False, options=options)


def put_in_place(forwards: Mapping[nn.Module, Callable[..., Tensor]]) -> None:
    """Have modules compute something else; the names of their parameters and the hooks of their calls stay."""
    for module, forward in forwards.items():
        vars(module)["forward"] = forward


def take_away(forwards: Mapping[nn.Module, Callable[..., Tensor]]) -> None:
    """Have modules compute what their class does."""
    for module in forwards:
        vars(module).pop("forward", None)
