"""Every private interface of Lightning that the package leans on, with its reason; nothing else uses one.

Read in Lightning 2.6.6; tests/training/test_internals.py fails if a later version changes one of them.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy

STEPS_TAKEN = "epoch_loop.automatic_optimization.optim_progress"
"""Where a checkpoint's `loops["fit_loop"]` counts optimizer steps; there is no public reader of it."""


def cluster_environment(trainer: pl.Trainer) -> ClusterEnvironment:
    """Who started the processes of this run; a strategy for one device keeps no public reference to it."""
    return trainer._accelerator_connector.cluster_environment


def evaluate_now(trainer: pl.Trainer) -> None:
    """Run an evaluation in the middle of `fit`, logged and saved like any other.

    The sanity check runs the same loop, but Lightning logs and saves nothing during it (pytorch-lightning #20985).
    """
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def allow_steps(trainer: pl.Trainer, more: int) -> None:
    """Move the end of `fit` by some optimizer steps: with all of them taken, the loop would not start at all."""
    trainer.fit_loop.epoch_loop.max_steps += more


def set_counters(checkpoint: dict[str, Any], micro_batches: int) -> None:
    """Have a loaded checkpoint resume at a boundary between optimizer steps, after so many micro-batches.

    Wherever in its loops Lightning saved, our checkpoints are of such a boundary; and the micro-batches may be divided
    in another way from here on. Lightning offers no way to resume at a given step (pytorch-lightning #19764).
    """
    done = dict.fromkeys(("ready", "started", "processed", "completed"), micro_batches)
    none = dict.fromkeys(done, 0)
    checkpoint["loops"]["fit_loop"] |= {
        "epoch_loop.batch_progress": {"total": done, "current": dict(done), "is_last_batch": False},
        "epoch_loop.val_loop.batch_progress": {"total": none, "current": dict(none), "is_last_batch": False},
    }


def steps_taken(checkpoint: dict[str, Any]) -> int:
    """Optimizer steps that the loops of a checkpoint have counted.

    Raises:
        KeyError: if they have counted none.
        TypeError: if they are not Lightning's.
    """
    steps: int = checkpoint["loops"]["fit_loop"][STEPS_TAKEN]["optimizer"]["step"]["total"]["completed"]
    return steps


def average_on(averaging: WeightAveraging, device: torch.device) -> None:
    """Keep the average of the weights on a device; Lightning asks for it in the constructor, before there is one."""
    averaging._device = device


def swap_average(averaging: WeightAveraging, module: pl.LightningModule) -> None:
    """Exchange the weights of a module with their average; Lightning keeps that to itself (#20545)."""
    averaging._swap_models(module)


def shard_over_all(strategy: ModelParallelStrategy) -> None:
    """Have a strategy shard over all devices; its "auto" is the number of machines (#19878)."""
    strategy._data_parallel_size = strategy.world_size
