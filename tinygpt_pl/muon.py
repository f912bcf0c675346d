"""Muon for the matrices inside the network, in one optimizer with AdamW for the rest. It knows no trainer and no text.

torch.optim.Muon does the same a matrix at a time and always in bfloat16, which a processor without instructions for it
does in software: some thirty times slower at the size of cpu.yaml (docs/modern.md). Matrices of one shape go together
here, in bfloat16 where the network's own products are, too.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of a polynomial of degree five that brings singular values near 1 when it is applied STEPS times; as STEPS and the
settings' default of momentum from K. Jordan et al., Muon (2024), kellerjordan.github.io/posts/muon."""
STEPS = 5
LEAST_NORM = 1e-7  # torch.optim.Muon
RMS = 0.2  # Moonlight (arXiv 2502.16982), section 2.2: what a step of AdamW comes to, so that one rate suits both


def orthogonalized(matrices: Tensor, products: torch.dtype | None = None) -> Tensor:
    """Matrices (number, rows, columns) with their singular vectors kept and their singular values brought near 1.

    Newton and Schulz's iteration, which takes products alone, and so goes in bfloat16, too (its source does); the
    values end between 0.7 and 1.2.
    """
    wide = matrices.size(-2) <= matrices.size(-1)
    x: Tensor = matrices if wide else matrices.mT
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=LEAST_NORM)).to(products or x.dtype)
    a, b, c = QUINTIC
    for _ in range(STEPS):
        gram = x @ x.mT  # (number, smaller side, smaller side)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, factor, x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


class MuonAdamW(AdamW):
    """AdamW, but that parameter groups with `rows` and `momentum` take Muon's steps: matrices alone, of two dimensions.

    Those that are several in one, one below the other, are divided for it; `rows` has the rows of each, or nothing. A
    step of Muon has the root mean square of one of AdamW, so that one learning rate and one weight decay suit both.
    """

    def __init__(self, params: Any, products: torch.dtype | None = None, **adamw: Any) -> None:
        """Take AdamW's arguments and the precision of Muon's products: that of the weights, unless another is given."""
        super().__init__(params, **adamw)
        self.products = products

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; Muon's gradients are used up by it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "rows" in group:
                for matrices in _by_shape(p for p in group["params"] if p.grad is not None):
                    self._orthogonal_step(matrices, group)
        super().step()  # passes over parameters without a gradient
        return loss

    def _orthogonal_step(self, matrices: list[Tensor], group: Mapping[str, Any]) -> None:
        """Step along the orthogonalised momentum, as Nesterov looks ahead with it; decay as AdamW does."""
        for p in matrices:
            if "momentum_buffer" not in self.state[p]:
                # Adam's own code wants a count of steps beside any state.
                self.state[p].update(step=torch.tensor(0.0), momentum_buffer=torch.zeros_like(p))
            self.state[p]["step"] += 1
        gradients = torch.stack([p.grad for p in matrices])  # type: ignore[misc]  # none is None; (n, rows, columns)
        momenta = [self.state[p]["momentum_buffer"] for p in matrices]
        for momentum, gradient in zip(momenta, gradients, strict=True):
            momentum.lerp_(gradient, 1 - group["momentum"])
        directions = gradients.lerp(torch.stack(momenta), group["momentum"])
        parts = torch.split(directions, list(group["rows"]) or [directions.size(1)], 1)
        scaled = [orthogonalized(part, self.products) * RMS * math.sqrt(max(part.shape[1:])) for part in parts]
        updates = torch.cat(scaled, 1)
        for p, update in zip(matrices, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-group["lr"])
            p.grad = None


def _by_shape(matrices: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        groups.setdefault(matrix.shape, []).append(matrix)
    return groups.values()
