"""How often the diagnosis names a planted bug, and how often it blames a healthy run.

    python -m benchmarks.diagnosis

trains every run of tests/zoo.py, some fifty small ones, and prints both rates as a table with the runs.
"""

import argparse
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from tests.zoo import BUGS, HEALTHY, SMALL, Case, run
from tinygpt_pl.insight.diagnosis import Diagnosis, diagnose
from tinygpt_pl.insight.history import read_history

Row = tuple[Case, Diagnosis, set[str], float]
"""A case, its diagnosis from the event files alone, the faults that were told while it trained, and its seconds."""


def measure(cases: Sequence[Case], seed: int) -> list[Row]:
    """Train each case, as many at a time as there are CPUs, and read their curves."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(case, Path(folder) / str(i), seed) for i, case in enumerate(cases)]
        with multiprocessing.get_context("forkserver").Pool() as pool:
            rows = pool.imap(measure_one, tasks)
            return list(tqdm(rows, total=len(tasks), unit="run", disable=not sys.stderr.isatty()))


def measure_one(task: tuple[Case, Path, int]) -> Row:
    """Train a case in a folder of its own, with a seed, and read its curve."""
    case, folder, seed = task
    torch.set_num_threads(1)  # models this small are faster so
    folder.mkdir()
    start = time.perf_counter()
    run_dir, _, said = run(case, folder, {**SMALL, "seed_everything": seed})
    live = set(re.findall(r"^FINDING: (\S+) at", said, re.MULTILINE))
    return case, diagnose(read_history(run_dir)), live, time.perf_counter() - start


def named(row: Row) -> bool:
    """Whether the finding that was to be made is there."""
    case, verdict, _, _ = row
    return any(finding.name == case.finding for finding in verdict.findings)


def blamed(row: Row) -> list[str]:
    """Faults that are not there and were told, while the run trained or afterwards."""
    case, verdict, live, _ = row
    return sorted((live | {finding.name for finding in verdict.findings if finding.fault}) - {case.finding})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1337, help="of the runs that have none of their own")
    options = parser.parse_args()
    rows = measure([*BUGS, *HEALTHY], options.seed)
    print("| run | planted | findings | remarks | seconds |\n|---|---|---|---|---|")
    for row in rows:
        case, verdict, live, seconds = row
        faults = ", ".join(sorted({f.name for f in verdict.findings if f.fault} | live)) or "none"
        remarks = ", ".join(f.name for f in verdict.findings if not f.fault) or "none"
        print(f"| {case.name} | {case.finding or 'nothing'} | {faults} | {remarks} | {seconds:.1f} |")
    bugs, healthy = [row for row in rows if row[0].finding], [row for row in rows if not row[0].finding]
    print(f"\nbugs named: {sum(map(named, bugs))} of {len(bugs)}")
    print(f"runs with a bug blamed for something else: {sum(map(bool, map(blamed, bugs)))} of {len(bugs)}")
    print(f"healthy runs blamed: {sum(map(bool, map(blamed, healthy)))} of {len(healthy)}")


if __name__ == "__main__":
    main()
