"""What each part of the speed brings on a processor, on its own: with it and without.

    python benchmarks/parts.py

The sizes are those of configs/base.yaml. With and without take turns, and medians are printed; keeping freed memory
cannot be undone in a process, so its "without" comes first.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from lightning.pytorch.profilers import PassThroughProfiler
from torch import nn

from tinygpt_pl.gpt import GPT, CausalSelfAttention, Dropout, GPTConfig
from tinygpt_pl.optim import OptimConfig, configure_optimizer
from tinygpt_pl.system.machine import keep_freed_memory, multiplies_bf16
from tinygpt_pl.training.steps import compiled_forward, put_in_place
from tinygpt_pl.training.trainer import Unprofiled
from tinygpt_pl.windows import gather

Work = Callable[[], object]
ADAMW, MUON = OptimConfig(), OptimConfig(optimizer="muon")


def seconds(work: Work) -> float:
    """Of one go."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def training_step(network: GPT) -> Work:
    """Forward and backward of the 64 windows of a step."""
    idx = torch.randint(65, (64, 257))

    def step() -> None:
        network.zero_grad()
        _, loss = network(idx[:, :-1], idx[:, 1:])
        assert loss is not None
        loss.backward()

    return step


def optimizer_step(config: OptimConfig, *, fused: bool = True, products: torch.dtype | None = None) -> Work:
    """An optimizer step over all parameters."""
    network = GPT(GPTConfig())
    optimizer = configure_optimizer(network, config, fused=fused, products=products)
    gradients = [torch.randn_like(parameter) for parameter in network.parameters()]

    def step() -> None:
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient  # Muon uses it up
        optimizer.step()

    return step


def attention(training: bool) -> Work:
    """Forward and backward of a layer's attention without dropout; in training it is written out."""
    layer = CausalSelfAttention(GPTConfig(dropout=0.0)).train(training)
    x = torch.randn(64, 256, 384)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.sum().backward()

    return step


def modern_step(*, compiled: bool) -> Work:
    """Forward and backward of a step of configs/modern.yaml in bfloat16."""
    parts = {"position": "rotary", "norm": "rmsnorm", "qk_norm": True, "activation": "swiglu", "bias": False}
    network = GPT(GPTConfig(attn_dropout=0.0, **parts))  # type: ignore[arg-type]  # of several types
    if compiled:
        put_in_place({block: compiled_forward(block) for block in network.h})
    step = training_step(network)

    def half() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    return half


def stacked(ids: torch.Tensor, starts: list[int], length: int) -> None:
    """Windows as a list of slices makes them."""
    torch.stack([ids[i : i + length] for i in starts])
    torch.stack([ids[i + 1 : i + length + 1] for i in starts])


def hooks(profiler: PassThroughProfiler) -> None:
    """What a step asks of a profiler, roughly."""
    for _ in range(85):
        with profiler.profile("[Callback]hook"):
            pass


def parts() -> Iterator[tuple[str, Work, Work, int]]:
    """Name, without, with, and how often."""
    scores = torch.rand(64, 6, 256, 256)
    yield "dropout of a layer's attention", lambda: nn.Dropout(0.2)(scores), lambda: Dropout(0.2)(scores), 9
    yield "AdamW in one kernel", optimizer_step(ADAMW, fused=False), optimizer_step(ADAMW), 21
    if multiplies_bf16("cpu"):
        yield "attention in bfloat16 written out: a layer", attention(training=False), attention(training=True), 5
        half = optimizer_step(MUON, products=torch.bfloat16)
        yield "Muon's products in bfloat16", optimizer_step(MUON), half, 9
        yield "blocks compiled, in bfloat16: a step", modern_step(compiled=False), modern_step(compiled=True), 4
    ids, starts = torch.randint(65, (1_000_000,)), np.random.default_rng(0).integers(999_000, size=64)
    slices, bytes_ = starts.tolist(), ids.to(torch.uint8).numpy()
    yield "windows in one operation", lambda: stacked(ids, slices, 256), lambda: gather(bytes_, starts, 256), 201
    seeds = iter(range(10**9))
    generator = torch.default_generator
    yield "seeding one device", lambda: torch.manual_seed(next(seeds)), lambda: generator.manual_seed(next(seeds)), 201
    yield "no profiler at the hooks", lambda: hooks(PassThroughProfiler()), lambda: hooks(Unprofiled()), 201


def main() -> None:
    """Print a table."""
    torch.manual_seed(0)
    print("| part | without | with | ratio |\n|---|---|---|---|")
    step = training_step(GPT(GPTConfig()))
    without: list[float] = []
    kept: list[float] = []
    for times, count in ((without, 3), (kept, 5)):
        times += [seconds(step) for _ in range(count)]
        keep_freed_memory()
    rows = [("freed memory is kept: a step", without[1:], kept[2:])]  # the heap grows at first
    for name, slow, fast, count in parts():
        pairs = [(seconds(slow), seconds(fast)) for _ in range(count + 1)][1:]  # the first pays for warming up
        rows.append((name, [pair[0] for pair in pairs], [pair[1] for pair in pairs]))
    for name, before, after in rows:
        a, b = statistics.median(before), statistics.median(after)
        print(f"| {name} | {a * 1e3:,.3g} ms | {b * 1e3:,.3g} ms | {a / b:.1f} |")


if __name__ == "__main__":
    main()
