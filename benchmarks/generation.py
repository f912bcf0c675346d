"""Tokens a second, with the cache and without, beside what reading the weights once for each token allows.

    python benchmarks/generation.py

The window is written from its first token to its last: with the cache in full, without it at every sixteenth length,
the network reading the whole text so far for each token. Cases take turns, and medians are printed. There are two
limits, since where the weights come from depends on the machine: an array as large as they are may stay in its cache,
one of a gigabyte does not. A second table shows where the time of a token goes.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch

from tinygpt_pl.generation.decoding import Decoder
from tinygpt_pl.generation.sampling import SamplingConfig, choose, stream, uniforms
from tinygpt_pl.gpt import GPT, GPTConfig

CONFIG = SamplingConfig()
SIZES = {"base": GPTConfig(), "cpu": GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=128)}


def bandwidth(size: int, seconds: float = 0.5) -> float:
    """Bytes a second of adding up an array of `size` bytes, the median of as many goes as fit into that time."""
    array, goes = torch.ones(size // 4), list[float]()
    while sum(goes) < seconds:
        start = time.perf_counter()
        array.sum()
        goes.append(time.perf_counter() - start)
    return size / statistics.median(goes)


def cached(gpt: GPT, batch_size: int) -> float:
    """Seconds for each token of a window."""
    tokens = stream(gpt, torch.zeros(batch_size, 1, dtype=torch.long), CONFIG, seed=1)
    count = gpt.config.block_size - 1
    start = time.perf_counter()
    for _ in itertools.islice(tokens, count):
        pass
    return (time.perf_counter() - start) / count


@torch.inference_mode()
def uncached(gpt: GPT, batch_size: int, every: int = 16) -> float:
    """The same, of a network that reads the text so far for each token."""
    draws, seconds = uniforms(1, batch_size), []
    for length in range(every // 2, gpt.config.block_size, every):
        idx = torch.zeros(batch_size, length, dtype=torch.long)
        start = time.perf_counter()
        logits, _ = gpt(idx)
        choose(logits[:, -1], next(draws), CONFIG)
        seconds.append(time.perf_counter() - start)
    return statistics.mean(seconds)


def beyond(gpt: GPT, exact_window: bool) -> float:
    """Seconds for each token once the window is full."""
    prompt = torch.zeros(1, gpt.config.block_size, dtype=torch.long)
    tokens = stream(gpt, prompt, CONFIG, seed=1, exact_window=exact_window)
    count = 32 if exact_window else gpt.config.block_size  # two turns of reading half of it again
    next(tokens)
    start = time.perf_counter()
    for _ in itertools.islice(tokens, count):
        pass
    return (time.perf_counter() - start) / count


def weights_of(gpt: GPT) -> int:
    """Bytes of the weights that a token needs: all, but of the positions its own alone."""
    spared = (gpt.config.block_size - 1) * gpt.config.n_embd if gpt.wpe is not None else 0
    return 4 * (sum(p.numel() for p in gpt.parameters()) - spared)


def parts(gpt: GPT) -> str:
    """Where the time of a token goes, as Markdown."""
    config, decoder = gpt.config, Decoder(gpt, 1)
    blocks = [[p.detach().t() for p in block.parameters() if p.dim() > 1] for block in gpt.h]
    x, wide, other = torch.randn(1, config.n_embd), torch.randn(1, 4 * config.n_embd), torch.ones(6 * 2**20 // 4)
    norm, token = gpt.ln_f, torch.zeros(1, 1, dtype=torch.long)
    logits, uniform = torch.randn(1, config.vocab_size), torch.full((1,), 0.5, dtype=torch.float64)

    def products() -> None:
        for qkv, out, fc, proj in blocks:
            for weight in (qkv, out, fc):
                torch.mm(x, weight)
            torch.mm(wide, proj)
        torch.mm(x, gpt.wte.weight.t())

    def read() -> None:
        decoder.length %= config.block_size
        decoder.read(token)

    works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "the products with the weights, one after another": (products, lambda: None),
        "the whole step, between them everything else": (read, lambda: None),
        "drawing a token from the logits, after a step": (lambda: choose(logits, uniform, CONFIG), read),
        "a LayerNorm, again and again": (lambda: norm(x), lambda: None),
        "a LayerNorm, after 6 MB of other data": (lambda: norm(x), other.sum),
    }
    lines = ["\n| part | µs |", "|---|---|"]
    with torch.inference_mode():
        for name, (work, before) in works.items():
            goes = []
            for _ in range(2 * config.block_size):
                before()
                start = time.perf_counter()
                work()
                goes.append(time.perf_counter() - start)
            lines.append(f"| {name} | {1e6 * statistics.median(goes):.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    torch.manual_seed(0)
    gpt = GPT(SIZES[args.size]).eval()
    size = weights_of(gpt)
    cases: dict[str, Callable[[], float]] = {
        "batch 1, cached": lambda: cached(gpt, 1),
        "batch 1, uncached": lambda: uncached(gpt, 1),
        "batch 16, cached": lambda: cached(gpt, 16),
        "batch 16, uncached": lambda: uncached(gpt, 16),
        "batch 1, past the window, by halves": lambda: beyond(gpt, False),
        "batch 1, past the window, exact": lambda: beyond(gpt, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    limits: dict[str, list[float]] = {"memory": [], "cache": []}
    for go in range(args.rounds + 1):  # the first warms up
        rates = {"memory": bandwidth(2**30), "cache": bandwidth(size)}
        times = {name: case() for name, case in cases.items()}
        if go:
            for name in rates:
                limits[name].append(rates[name])
            for name in times:
                seconds[name].append(times[name])
    print(table(size, seconds, limits))
    print(parts(gpt))


def table(size: int, seconds: dict[str, list[float]], limits: dict[str, list[float]]) -> str:
    """The figures as Markdown."""
    best = {name: statistics.median(rates) for name, rates in limits.items()}
    lines = [
        f"{torch.get_num_threads()} threads; {size / 1e6:.1f} MB of weights in float32; reading an array of a gigabyte "
        f"at {best['memory'] / 1e9:.1f} GB/s, one as large as the weights at {best['cache'] / 1e9:.1f} GB/s.\n",
        "| | tokens a second (spread) | ms a step | of the memory's limit | of the cache's |",
        "|---|---|---|---|---|",
    ]
    for name, rate in (("limit of the memory", best["memory"]), ("limit of the cache", best["cache"])):
        shares = " | ".join(f"{rate / best[kind]:.0%}" for kind in ("memory", "cache"))
        lines.append(f"| {name} | {rate / size:,.0f} | {1e3 * size / rate:.2f} | {shares} |")
    for name, goes in seconds.items():
        batch = 16 if "16" in name else 1
        median, fastest, slowest = statistics.median(goes), min(goes), max(goes)
        spread = f"{batch / median:,.0f} ({batch / slowest:,.0f} to {batch / fastest:,.0f})"
        shares = " | ".join(f"{size / best[kind] / median:.0%}" for kind in ("memory", "cache"))
        lines.append(f"| {name} | {spread} | {1e3 * median:.2f} | {shares} |")
    for batch in (1, 16):
        with_cache, without = (statistics.median(seconds[f"batch {batch}, {kind}cached"]) for kind in ("", "un"))
        lines.append(f"\nBatch {batch}: {without / with_cache:.1f} times as fast with the cache.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
