"""Weights, gradients and optimizer state divided among the devices: torch's FSDP2, by Lightning's strategy for it."""

from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from tinygpt_pl.gpt import GPT

NAME = "fsdp2"
"""Of the strategy, for `trainer.strategy`: a plain word, which a checkpoint's settings may hold."""


class FSDP2(ModelParallelStrategy):
    """All devices hold a part of every tensor each, and checkpoints are those of a single device.

    Lightning's own way with one file takes the optimizer's state to be in the order of the network's parameters, which
    that of parameter groups is not, and goes past the plugin that reads and writes files.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Divide among all devices, where Lightning would among machines."""
        self._data_parallel_size = self.world_size
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizer's state over, like that of any strategy."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights as a single device has them; every process has to ask."""
        state: dict[str, Any] = super(ModelParallelStrategy, self).lightning_module_state_dict()
        for name, tensor in state.items():
            state[name] = self._for_the_file(tensor)
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The same of what the optimizer keeps of each parameter."""
        state: dict[str, Any] = super(ModelParallelStrategy, self).optimizer_state(optimizer)
        whole = {
            i: {name: self._for_the_file(value) for name, value in kept.items()} for i, kept in state["state"].items()
        }
        return {**state, "state": whole}

    def _for_the_file(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor in main memory for the first process, which writes the file; nothing for the others."""
        whole = joined(tensor)
        return whole.cpu() if self.is_global_zero else torch.empty(0)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file in every process."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of the weights."""
        assert self.lightning_module is not None
        parts = self.lightning_module.state_dict()
        weights = {name: divided(tensor, parts[name]) for name, tensor in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of what the optimizer keeps of each parameter; a count is whole everywhere."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                i: {name: divided(value, parameters[i]) if value.dim() else value for name, value in kept.items()}
                for i, kept in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


StrategyRegistry.register(NAME, FSDP2)


def divide(gpt: GPT, mesh: DeviceMesh) -> None:
    """Leave each device its part of the weights; a block has them whole while it computes. Once is enough."""
    if not isinstance(gpt, FSDPModule):
        for part in (*gpt.h, gpt):
            fully_shard(part, mesh=mesh["data_parallel"])


def hold_whole(gpt: GPT, whole: bool) -> None:
    """Have each device hold all weights of a network that is divided, or its part again; every process has to ask.

    A device that has them all waits for no other, which may have fewer batches to evaluate.
    """
    if isinstance(gpt, FSDPModule):
        for part in (*gpt.h, gpt):
            assert isinstance(part, FSDPModule)
            if part is not gpt:  # which FSDP2 leaves whole until the backward pass anyway
                part.set_reshard_after_forward(not whole, recurse=False)
            part.unshard() if whole else part.reshard()


def joined(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is divided, for which every process has to ask; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process has, if `like` is divided, else the tensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def undivided(gpt: GPT) -> GPT:
    """The network, or a whole copy of one that is divided, for which every process has to ask."""
    if not isinstance(gpt, FSDPModule):
        return gpt
    weights = {name: joined(tensor) for name, tensor in gpt.state_dict().items()}
    with torch.device("meta"):  # no memory, and no random number
        copy = GPT(gpt.config)
    copy.load_state_dict(weights, assign=True)
    return copy


def check_sharding(config: Namespace) -> None:
    """Refuse what needs weights that are whole, where they are divided, and other ways to divide them.

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
