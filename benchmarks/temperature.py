"""How overconfident checkpoints are: the loss of each over a validation split, its logits divided by temperatures.

    python benchmarks/temperature.py lightning_logs/version_*/checkpoints/best.ckpt

A temperature above 1 that scores better means that the model is too sure of itself. To train with what was found, set
--model.gpt.train_temperature to its inverse; but choose it on a text cut from the training split, given by --corpus,
and not on the split that scores the result. The split is the last tenth of the text.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.runs.checkpoint import load_network, read_checkpoint
from tinygpt_pl.windows import FixedWindows, full_pass

TEMPERATURES = (0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)


@torch.inference_mode()
def losses(path: Path, corpus: str) -> list[float]:
    """The loss of a checkpoint at each temperature, in nats per token of the whole split."""
    gpt, tokenizer = load_network(read_checkpoint(path))
    data = TextDataModule(corpus, block_size=gpt.config.block_size, tokenizer=tokenizer.kind, known=tokenizer)
    data.setup("test")
    ids, sums = data.splits["val"], [0.0] * len(TEMPERATURES)
    for idx, targets in FixedWindows(ids, full_pass(len(ids), gpt.config.block_size, 64)):
        logits = gpt(idx)[0].flatten(0, 1)  # (B·T, V)
        for i, temperature in enumerate(TEMPERATURES):
            sums[i] += F.cross_entropy(logits / temperature, targets.flatten(), reduction="sum").item()
    return [total / (len(ids) - 1) for total in sums]


def main() -> None:
    """Print a table with a column for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--corpus", default="tinyshakespeare", help="whose last tenth is scored")
    args = parser.parse_args()
    columns = [losses(path, args.corpus) for path in args.checkpoints]
    print(f"| temperature | {' | '.join(map(str, args.checkpoints))} |", "|---" * (1 + len(columns)) + "|", sep="\n")
    for temperature, *row in zip(TEMPERATURES, *columns, strict=True):
        print(f"| {temperature} | {' | '.join(f'{loss:.4f}' for loss in row)} |")


if __name__ == "__main__":
    main()
