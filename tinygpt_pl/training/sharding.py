"""Weights, gradients and optimizer state sharded over the ranks: torch's FSDP2, by Lightning's strategy for it."""

from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from tinygpt_pl.gpt import GPT, Block
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.training.lightning_internals import shard_over_all

NAME = "fsdp2"
"""Of the strategy, for `trainer.strategy`: a plain word, which a checkpoint's settings may hold."""


class FSDP2(ModelParallelStrategy):
    """Every rank holds a shard of every tensor, and checkpoints are those of a single device.

    Lightning's single-file path expects the optimizer's state in the order of the model's parameters, which is not that
    of parameter groups, and bypasses the CheckpointIO plugin. Hence the methods here call the base strategy by
    `super(ModelParallelStrategy, self)`.

    While weights are gathered for an evaluation, callbacks may still save: torch shards them again before it gives a
    state dict.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Shard over all devices, where Lightning would over machines."""
        shard_over_all(self)
        super().setup_environment()

    def on_validation_start(self) -> None:
        """Gather the weights, so that no rank waits for another, which may have fewer batches to evaluate."""
        self._hold_full(True)

    def on_validation_end(self) -> None:
        """Shard the weights again."""
        self._hold_full(False)

    def on_test_start(self) -> None:
        """Gather the weights, as for validation."""
        self._hold_full(True)

    def _hold_full(self, full: bool) -> None:
        """Have each rank hold all weights, or its shard again; every rank has to ask."""
        assert isinstance(self.lightning_module, TinyGPT)
        gpt = self.lightning_module.gpt
        for part in (*gpt.h, gpt):
            assert isinstance(part, FSDPModule)
            if isinstance(part, Block):  # FSDP2 leaves the rest full until the backward pass anyway
                part.set_reshard_after_forward(not full, recurse=False)
            part.unshard() if full else part.reshard()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizer's state over, like that of any strategy."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The full weights, as a single device has them; every rank has to ask."""
        state: dict[str, Any] = super(ModelParallelStrategy, self).lightning_module_state_dict()
        for name, tensor in state.items():
            state[name] = self._for_the_file(tensor)
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state as a single device has it; every rank has to ask."""
        state: dict[str, Any] = super(ModelParallelStrategy, self).optimizer_state(optimizer)
        full = {
            i: {name: self._for_the_file(value) for name, value in kept.items()} for i, kept in state["state"].items()
        }
        return {**state, "state": full}

    def _for_the_file(self, tensor: Tensor) -> Tensor:
        """The full tensor in main memory for rank 0, which writes the file; nothing for the others."""
        full = gathered(tensor)
        return full.cpu() if self.is_global_zero else torch.empty(0)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file in every rank."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's shard of the weights."""
        assert self.lightning_module is not None
        parts = self.lightning_module.state_dict()
        weights = {name: sharded(tensor, parts[name]) for name, tensor in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's shard of the optimizer's state; a count is full everywhere."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                i: {name: sharded(value, parameters[i]) if value.dim() else value for name, value in kept.items()}
                for i, kept in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


StrategyRegistry.register(NAME, FSDP2)


def gathered(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, for which every rank has to ask; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a tensor that every rank has in full, if `like` is sharded, else the tensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def full_model(gpt: GPT) -> GPT:
    """The model, or a full copy of a sharded one, for which every rank has to ask."""
    if not isinstance(gpt, FSDPModule):
        return gpt
    weights = {name: gathered(tensor) for name, tensor in gpt.state_dict().items()}
    with torch.device("meta"):  # no memory, and no random number
        copy = GPT(gpt.config)
    copy.load_state_dict(weights, assign=True)
    return copy


def check_sharding(config: Namespace) -> None:
    """Refuse what needs full weights where they are sharded, and other ways to shard them.

    Raises:
        ValueError: naming the setting.
    """
    strategy = str(getattr(config.trainer.strategy, "class_path", config.trainer.strategy))
    if strategy.lower() != NAME:
        if any(word in strategy.lower() for word in ("fsdp", "modelparallel")):
            raise ValueError(f"trainer.strategy {strategy} is not supported; {NAME} divides weights among devices")
        return
    needs = {
        "model.optim.optimizer muon orthogonalises whole matrices": config.model.optim.optimizer == "muon",
        "ema_decay averages whole weights": config.ema_decay is not None,
        "trainer.precision 16-mixed scales a loss by whole gradients": config.trainer.precision == "16-mixed",
    }
    for need, asked in needs.items():
        if asked:
            raise ValueError(f"{need}, but trainer.strategy {NAME} divides them; use ddp")
