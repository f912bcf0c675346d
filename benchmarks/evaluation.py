"""What an evaluation costs and how far it scatters: random windows against every token once.

    python benchmarks/evaluation.py lightning_logs/version_0/checkpoints/best.ckpt

The mean over every window that there is, each target of it, is what random windows estimate; on a long text that takes
minutes. Random windows are then drawn again and again, and the full pass is begun at several offsets, so that both show
their scatter around that mean.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tinygpt_pl import TinyGPT
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import GPT
from tinygpt_pl.runs.checkpoint import read_checkpoint
from tinygpt_pl.system.machine import keep_freed_memory
from tinygpt_pl.windows import Ids, gather


@torch.inference_mode()
def window_losses(network: GPT, ids: Ids, starts: npt.NDArray[np.int64], batch_size: int) -> npt.NDArray[np.float64]:
    """The mean loss of each window, in nats per token."""
    losses = []
    for i in range(0, len(starts), batch_size):
        idx, targets = gather(ids, starts[i : i + batch_size], network.config.block_size)
        logits, _ = network(idx)
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, T)
        losses.append(each.double().mean(1).numpy())
    return np.concatenate(losses)


def main() -> None:
    """Measure one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--draws", type=int, default=200, help="evaluations of each kind")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--eval_iters", type=int, nargs="+", default=[20, 200])
    args = parser.parse_args()

    keep_freed_memory()
    checkpoint = read_checkpoint(args.checkpoint)
    network = TinyGPT.load_from_checkpoint(args.checkpoint).eval().gpt
    data = TextDataModule(
        checkpoint.content["corpus"]["name"], block_size=network.config.block_size, offline_corpus=None
    )
    data.setup()
    ids, block_size = data.splits["val"], network.config.block_size
    high = len(ids) - block_size

    start = time.perf_counter()
    every = window_losses(network, ids, np.arange(high), args.batch_size)
    seconds = (time.perf_counter() - start) / high
    mean = every.mean()
    print(f"every window of the validation split, {high:,} of them: {mean:.4f} nats, {seconds * high:.0f} s")
    print("| evaluation | windows | mean of the draws | scatter | largest distance | seconds |")
    print("|---|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    kinds: dict[str, tuple[int, list[float]]] = {}
    for eval_iters in args.eval_iters:
        count = eval_iters * args.batch_size
        draws = [every[generator.integers(high, size=count)].mean() for _ in range(args.draws)]
        kinds[f"sampled, {eval_iters} batches of {args.batch_size}"] = (count, draws)
    offsets = np.linspace(0, block_size - 1, min(args.draws, block_size)).astype(int)
    kinds["full, begun at each offset"] = (high // block_size, [every[offset::block_size].mean() for offset in offsets])
    for name, (count, draws) in kinds.items():
        worst = max(abs(draw - mean) for draw in draws)
        figures = f"{statistics.mean(draws):.4f} | {statistics.stdev(draws):.4f} | {worst:.4f}"
        print(f"| {name} | {count:,} | {figures} | {count * seconds:.2f} |")


if __name__ == "__main__":
    main()
