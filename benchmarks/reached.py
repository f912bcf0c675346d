"""What finished runs have come to: the best validation loss of each, and when it first was as low as asked for.

    python benchmarks/reached.py lightning_logs/modern-* --loss 1.4863

A line is a run; the last has the mean and its standard error.
"""

import argparse
import math
import statistics
from pathlib import Path

from tinygpt_pl.insight.history import read_history


def main() -> None:
    """Read the runs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="their folders")
    parser.add_argument("--loss", type=float, default=1.4863, help="nats per token; that of the recipe if left out")
    args = parser.parse_args()
    print(
        f"| run | best | at iteration | last | at most {args.loss} from iteration |", "|---|---|---|---|---|", sep="\n"
    )
    bests, firsts = [], []
    for run in args.runs:
        rows = read_history(run).evaluations
        best = min(rows, key=lambda row: row.val)
        first = next((row.it for row in rows if row.val <= args.loss), math.inf)
        bests.append(best.val)
        firsts.append(first)
        print(f"| {run} | {best.val:.4f} | {best.it} | {rows[-1].val:.4f} | {first} |")
    error = f" ± {statistics.stdev(bests) / math.sqrt(len(bests)):.4f}" if len(bests) > 1 else ""
    print(f"| mean of {len(bests)} | {statistics.fmean(bests):.4f}{error} | | | {statistics.fmean(firsts):.0f} |")


if __name__ == "__main__":
    main()
