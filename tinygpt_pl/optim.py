"""The optimizer and its schedule: plain functions over plain numbers, no trainer and no text.

An iteration is an optimizer step, counted from 0, however many micro-batches it takes.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from tinygpt_pl.gpt import GPT
from tinygpt_pl.muon import MuonAdamW

Algorithm = Literal["adamw", "muon"]
"""AdamW (arXiv 1711.05101) for everything, or Muon for the matrices of the blocks and AdamW for the rest."""

Schedule = Literal["cosine", "wsd"]
"""After the warm-up half a cosine, or a level rate that falls at the end (warm-up, stable, decay; arXiv 2404.06395)."""

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # those that torch.optim.AdamW 2.13 accepts `fused=True` for


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate; the defaults are the base recipe.

    Raises:
        ValueError: for a rate, decay or beta outside its range.
    """

    optimizer: Algorithm = "adamw"
    """What takes the steps: adamw; or muon for the matrices of the blocks, and AdamW for the rest."""
    schedule: Schedule = "cosine"
    """How the rate falls after the warm-up: cosine; or wsd, level until the last decay_share of the steps."""
    max_lr: float = 3e-4
    """Learning rate at the end of the warm-up."""
    min_lr: float = 3e-5
    """Learning rate at the end of the schedule and after it."""
    warmup_iters: int = 100
    """Optimizer steps of linear warm-up."""
    max_iters: int | None = None
    """Optimizer step at which the schedule reaches min_lr; trainer.max_steps if left out."""
    decay_share: float = 0.2
    """Share of max_iters in which the rate of wsd falls, in a straight line; one that begins before the warm-up ends is
    joined where it is by then."""
    weight_decay: float = 0.1
    """Decay of every parameter with two or more dimensions; the others have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of Adam's two running means; GPT-3 (arXiv 2005.14165, appendix B)."""

    momentum: float = 0.95
    """Decay rate of Muon's running mean (0.95 in its source, too); a run of some hundred steps wants less."""

    def __post_init__(self) -> None:
        for name, kind in (("optimizer", Algorithm), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} has to be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if not (0.0 < self.decay_share <= 1.0):
            raise ValueError(f"decay_share has to be above 0 and at most 1, got {self.decay_share}")
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
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum has to be in [0, 1), got {self.momentum}")
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


def warmup_stable_decay(
    it: int, max_lr: float, min_lr: float, warmup_iters: int, max_iters: int, decay_share: float
) -> float:
    """Learning rate of iteration `it`: a straight line up to max_lr, level, a straight line down to min_lr, level."""
    if it < warmup_iters:
        return max_lr * (it + 1) / warmup_iters
    decay_iters = decay_share * max_iters
    left = max(max_iters - it, 0)
    return max_lr if left >= decay_iters else min_lr + (max_lr - min_lr) * left / decay_iters


def scheduled_lr(it: int, config: OptimConfig, max_steps: int) -> float:
    """Learning rate of iteration `it` in a run of `max_steps` optimizer steps."""
    max_iters = max_steps if config.max_iters is None else config.max_iters
    bounds = (config.max_lr, config.min_lr, config.warmup_iters, max_iters)
    if config.schedule == "wsd":
        return warmup_stable_decay(it, *bounds, config.decay_share)
    return warmup_cosine(it, *bounds)


def decay_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters: two or more dimensions decay, biases and norms do not.

    With Muon, the matrices of the blocks are groups of their own, which come first: a group for all that are one
    matrix, and one for each kind that is several in one. All else is AdamW's, such as the embeddings.

    Args:
        model: a GPT, or a module that holds one and maybe more.
        config: says which optimizer trains them.
    """
    rows = _block_matrices(model) if config.optimizer == "muon" else {}
    muon: dict[tuple[int, ...], list[nn.Parameter]] = {}
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for p in model.parameters():
        if not p.requires_grad:
            continue
        if p in rows:
            muon.setdefault(rows[p], []).append(p)
        else:
            (decay if p.dim() >= 2 else no_decay).append(p)
    shared = {"weight_decay": config.weight_decay}
    muon_groups = [
        {"name": _muon_name(rows), "params": matrices, "momentum": config.momentum, "rows": rows, **shared}
        for rows, matrices in sorted(muon.items())
    ]
    no_decay_group = {"name": "no_decay", "params": no_decay, "weight_decay": 0.0}
    return [*muon_groups, {"name": "decay", "params": decay, **shared}, no_decay_group]


def _muon_name(rows: tuple[int, ...]) -> str:
    """A name that no other group has: LearningRateMonitor, for one, goes by names."""
    return "_".join(["muon", *map(str, rows)])


def schedule_flaw(config: OptimConfig, max_steps: int) -> str:
    """What a schedule does in a run of `max_steps` that nobody can want, and what helps; empty if nothing."""
    warmup, end = config.warmup_iters, max_steps if config.max_iters is None else config.max_iters
    shorter = f"try --model.optim.warmup_iters {min(max_steps, end) // 10}"
    if warmup >= max_steps:
        return f"the warm-up takes {warmup} steps and the run has {max_steps}: the learning rate never falls; {shorter}"
    if warmup >= end:
        rates = f"{config.max_lr:.1e} to {config.min_lr:.1e}"
        return f"max_iters {end} is within the warm-up of {warmup} steps: the rate then drops from {rates}; {shorter}"
    return ""


def _block_matrices(model: nn.Module) -> dict[nn.Parameter, tuple[int, ...]]:
    """The matrices inside the blocks of a model's GPT, each with the rows of its parts, or nothing if it is one."""
    networks = [part for part in model.modules() if isinstance(part, GPT)]
    return {
        p: network.config.joined.get(".".join(name.split(".")[1:-1]), ())
        for network in networks
        for name, p in network.h.named_parameters()
        if p.dim() == 2
    }


def configure_optimizer(
    model: nn.Module, config: OptimConfig, *, fused: bool, products: torch.dtype | None = None
) -> AdamW:
    """AdamW, or with Muon beside it, over the decay groups, at a learning rate of 1 for a LambdaLR to multiply.

    Args:
        model: whose trainable parameters are taken, each in exactly one group.
        config: which it is, betas and weight decay.
        fused: whether one kernel updates all of AdamW's parameters.
        products: what Muon multiplies in; the precision of the weights if left out.
    """

    def keep_fused(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Let the present choice of kernel win over that of a checkpoint; it also decides where Adam counts steps."""
        return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}

    # 1.0 · f(it) is f(it) to the last bit, and leaves no second copy of max_lr in the optimizer's state.
    groups = decay_groups(model, config)
    if config.optimizer == "muon":
        optimizer: AdamW = MuonAdamW(groups, lr=1.0, betas=config.betas, fused=fused, products=products)
    else:
        optimizer = AdamW(groups, lr=1.0, betas=config.betas, fused=fused)
    optimizer.register_load_state_dict_pre_hook(keep_fused)
    return optimizer
