"""A step of Muon over the blocks of a network: torch's own beside ours, in float32 and in bfloat16.

    python benchmarks/muon.py
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/muon.py     # as on a processor without instructions for bfloat16

They take turns; the medians are printed. Ours has the embeddings and norms to do besides, by AdamW.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch

from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.optim import OptimConfig, configure_optimizer

SIZES = {"cpu.yaml": (3, 4, 128), "modern.yaml": (6, 6, 384)}  # layers, heads, channels


def stepper(network: GPT, optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """Seconds of a step."""

    def step() -> float:
        for p in network.parameters():
            p.grad = torch.randn_like(p)
        start = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - start

    return step


def main() -> None:
    """Print a table."""
    print("| size | torch.optim.Muon | ours, float32 | ours, bfloat16 |\n|---|---|---|---|")
    for name, (n_layer, n_head, n_embd) in SIZES.items():
        parts = {"position": "rotary", "norm": "rmsnorm", "qk_norm": True, "activation": "swiglu", "bias": False}
        ours = GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, **parts))  # type: ignore[arg-type]  # of several types
        theirs, half = copy.deepcopy(ours), copy.deepcopy(ours)
        matrices = [p for p in theirs.h.parameters() if p.dim() == 2]
        config = OptimConfig(optimizer="muon")
        steps = (
            stepper(theirs, torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw")),
            stepper(ours, configure_optimizer(ours, config, fused=True)),
            stepper(half, configure_optimizer(half, config, fused=True, products=torch.bfloat16)),
        )
        rounds = [[step() for step in steps] for _ in range(8)][1:]  # the first pays for warming up
        medians = [f"{statistics.median(times) * 1e3:,.1f} ms" for times in zip(*rounds, strict=True)]
        print(f"| {name} | {' | '.join(medians)} |")


if __name__ == "__main__":
    main()
