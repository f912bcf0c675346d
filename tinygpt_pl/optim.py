"""The optimizer and its schedule: plain functions over plain numbers, no trainer and no text.

An iteration is an optimizer step, counted from 0, however many micro-batches it takes.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # torch.utils._foreach_utils, `_get_fused_kernels_supported_devices`


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate; the defaults are the base recipe.

    Raises:
        ValueError: for a rate, decay or beta outside its range.
    """

    max_lr: float = 3e-4
    """Learning rate at the end of the warm-up."""
    min_lr: float = 3e-5
    """Learning rate at the end of the cosine and after it."""
    warmup_iters: int = 100
    """Optimizer steps of linear warm-up."""
    max_iters: int | None = None
    """Optimizer step at which the cosine reaches min_lr; trainer.max_steps if left out."""
    weight_decay: float = 0.1
    """Decay of every parameter with two or more dimensions; the others have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of Adam's two running means; GPT-3 (arXiv 2005.14165, appendix B)."""

    def __post_init__(self) -> None:
        if not (0.0 < self.max_lr < math.inf):
            raise ValueError(f"max_lr has to be positive and finite, got {self.max_lr}")
        if not (0.0 <= self.min_lr <= self.max_lr):
            raise ValueError(f"min_lr has to lie between 0 and max_lr ({self.max_lr}), got {self.min_lr}")
        if self.warmup_iters < 0:
            raise ValueError(f"warmup_iters has to be at least 0, got {self.warmup_iters}")
        if self.max_iters is not None and self.max_iters < 1:
            raise ValueError(f"max_iters has to be at least 1, got {self.max_iters}")
        if not (0.0 <= self.weight_decay < math.inf):
            raise ValueError(f"weight_decay has to be at least 0 and finite, got {self.weight_decay}")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas have to lie in [0, 1), got {self.betas}")


def warmup_cosine(
    it: int, max_lr: float = 3e-4, min_lr: float = 3e-5, warmup_iters: int = 100, max_iters: int = 5000
) -> float:
    """Learning rate of iteration `it`: a straight line up to max_lr, half a cosine down to min_lr, then level."""
    if it < warmup_iters:
        return max_lr * (it + 1) / warmup_iters
    if it >= max_iters:
        return min_lr
    progress = (it - warmup_iters) / (max_iters - warmup_iters)  # in [0, 1)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (max_lr - min_lr)


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters for AdamW: two or more dimensions decay, biases and LayerNorms do not."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"name": "decay", "params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"name": "no_decay", "params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def configure_adamw(network: nn.Module, config: OptimConfig, *, fused: bool) -> AdamW:
    """AdamW over the two decay groups, at a learning rate of 1 for a LambdaLR to multiply.

    Args:
        network: whose trainable parameters are taken, each in exactly one group.
        config: betas and weight decay.
        fused: whether one kernel updates all parameters.
    """

    def keep_fused(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Let the present choice of kernel win over that of a checkpoint; it also decides where Adam counts steps."""
        return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}

    # 1.0 · f(it) is f(it) to the last bit, and leaves no second copy of max_lr in the optimizer's state.
    optimizer = AdamW(decay_groups(network, config.weight_decay), lr=1.0, betas=config.betas, fused=fused)
    optimizer.register_load_state_dict_pre_hook(keep_fused)
    return optimizer
