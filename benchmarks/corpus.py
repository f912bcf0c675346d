"""What a corpus costs: to prepare it, with how much memory, and to cut windows from a file larger than the cache.

    python -m benchmarks.corpus --gigabytes 3
    python -m benchmarks.corpus --gigabytes 0.3 --tokenizers bpe

One core prepares (BPE, whose library takes all cores, is held to one, too), in a process of its own, whose largest size
is told. Windows are those of a step of base.yaml, 64 of 257 tokens: from a file that is in the system's cache, and with
every page of it dropped before each step, so that each window is read from the disk.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.text.corpus import load_corpus
from tinygpt_pl.text.tokens import prepare
from tinygpt_pl.windows import gather, window_starts

WINDOWS, LENGTH = 64, 256  # of base.yaml

PREPARE = """if True:
    import os, re, resource, sys, time
    from pathlib import Path
    from tinygpt_pl.text.corpus import load_corpus
    from tinygpt_pl.text.tokens import prepare
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    path, cache, kind = sys.argv[1:]
    corpus = load_corpus(path, Path(cache))
    start = time.perf_counter()
    prepare(corpus, Path(cache), 0.1, kind, 4096)
    seconds = time.perf_counter() - start
    own = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    learner = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of byte pairs
    print(corpus.size / 1e6 / seconds, max(int(own), learner) / 1e3)"""


def write_text(path: Path, gigabytes: float) -> None:
    """Write words of 26 letters, a megabyte of them again and again."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlucmfwypvbgkjqxz", k=2 + i % 8)) for i in range(5000)]
    block = (" ".join(draw.choices(words, k=160_000)) + "\n").encode()
    with path.open("wb") as file:
        for _ in range(int(gigabytes * 1e9 / len(block))):
            file.write(block)


def preparing(path: Path, cache: Path, kind: str) -> tuple[float, float]:
    """Megabytes of text a second on one core, and the megabytes of memory that the process had at most."""
    command = [sys.executable, "-c", PREPARE, str(path), str(cache), kind]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    speed, memory = map(float, done.stdout.split())
    return speed, memory


def window_seconds(path: Path, cache: Path, kind: str, *, cold: bool, steps: int = 50) -> float:
    """Median time to cut the windows of a step."""
    before = set(cache.glob("tokens/*.safetensors"))
    ids = prepare(load_corpus(str(path), cache), cache, 0.1, kind, 4096).splits["train"].ids
    assert set(cache.glob("tokens/*.safetensors")) == before, "it was not prepared yet"
    seconds = []
    for step in range(steps):
        if cold:
            for file in before:
                with file.open("rb") as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        gather(ids, window_starts(1, "train", step, WINDOWS, len(ids) - LENGTH), LENGTH)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def step_seconds(steps: int = 3) -> float:
    """Median time of the forward and backward passes of a step of base.yaml, on this machine's processor."""
    network = GPT(GPTConfig(dropout=0.0))
    ids = np.random.default_rng(0).integers(65, size=10_000)
    seconds = []
    for step in range(steps):
        idx, targets = gather(ids, window_starts(1, "train", step, WINDOWS, len(ids) - LENGTH), LENGTH)
        start = time.perf_counter()
        _, loss = network(idx, targets)
        assert isinstance(loss, torch.Tensor)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own has no types
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def main() -> None:
    """Measure, and print a row for each tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--tokenizers", nargs="+", default=["char", "byte"], choices=["char", "byte", "bpe"])
    parser.add_argument("--folder", type=Path, help="where the text and its token files are put for the while")
    args = parser.parse_args()
    step = step_seconds()
    print(f"a step of base.yaml here: {step:.2f} s\n")
    print("| tokenizer | MB/s | memory, MB | windows of a step, µs | of a step | from the disk, µs | of a step |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, cache = Path(folder) / "text.txt", Path(folder) / "cache"
        write_text(path, args.gigabytes)
        for kind in args.tokenizers:
            speed, memory = preparing(path, cache, kind)
            warm, cold = (window_seconds(path, cache, kind, cold=cold) for cold in (False, True))
            shares = f"{warm * 1e6:.0f} | {warm / step:.4%} | {cold * 1e6:.0f} | {cold / step:.3%}"
            print(f"| {kind} | {speed:.0f} | {memory:.0f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
