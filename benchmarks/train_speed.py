"""Training speed, side by side: a plain PyTorch loop, `fit`, `fit` with configs/fast.yaml, and nanoGPT.

    python benchmarks/train_speed.py                                  # both sizes, on a processor
    python benchmarks/train_speed.py --device cuda --steps 200
    python benchmarks/train_speed.py --sizes cpu --nanogpt ../nanoGPT  # a checkout, its shakespeare_char data prepared

Each program is a process of its own, and they take turns, so that a machine's moods meet all alike. A step's time is
that between two lines (or rows of the curve) of the program itself, the first of which comes after warming up, when
compilers and allocators have done their work; start-up and evaluations are outside.
"""

import argparse
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.system.machine import matmul_flops, multiplies_bf16
from tinygpt_pl.text.corpus import default_cache_dir, load_corpus

ROOT = Path(__file__).parent.parent
SIZES = {
    "base": {"batch_size": 64, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384, "dropout": 0.2},
    "cpu": {"batch_size": 12, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0},
}


@dataclass
class Program:
    """A command and what was measured of it."""

    name: str
    command: list[str]
    events: Path | None = None  # where its curve is; lines of its output count otherwise
    cwd: Path = ROOT
    seconds: list[float] = field(default_factory=list)  # of a step, one median a run
    peaks: list[float] = field(default_factory=list)  # bytes
    evaluations: list[float] = field(default_factory=list)  # seconds of a batch
    eval_batches: int = 0  # in an evaluation of the recipe

    def run(self, device: str, warm: int) -> None:
        """Run it once."""
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(self.command, cwd=self.cwd, stdout=subprocess.PIPE, stderr=log, text=True)
            memory = DeviceMemory(device)
            assert process.stdout is not None
            with process.stdout as output:
                lines = [(line, time.time()) for line in output]
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                log.seek(0)
                raise RuntimeError(f"{' '.join(self.command)} ended with {process.returncode}:\n{log.read()}")
        marks = [(int(m[1]), seconds) for line, seconds in lines if (m := re.match(r"iter (\d+)", line))]
        batches = [float(m[1]) for line, _ in lines if (m := re.match(r"evaluation: (\S+) s", line))]
        if self.events:
            curve = EventAccumulator(str(self.events), size_guidance={"scalars": 0}).Reload()
            marks = [(event.step, event.wall_time) for event in curve.Scalars("train/loss")]
            end = curve.Scalars("eval/val_loss")[-1].wall_time  # of an evaluation of a batch of each split
            batches = [(end - marks[-1][1]) / 2]
            shutil.rmtree(self.events)  # the next run takes the same place
        pairs = itertools.pairwise(mark for mark in marks if mark[0] >= warm)
        self.seconds.append(statistics.median((t1 - t0) / (step1 - step0) for (step0, t0), (step1, t1) in pairs))
        self.evaluations += batches[-1:]  # the first pays for warming up
        unit = 1 if sys.platform == "darwin" else 1024
        self.peaks.append(memory.stop() if device == "cuda" else usage.ru_maxrss * unit)


class DeviceMemory:
    """Watches how much memory of a GPU is taken, beyond what was taken before."""

    def __init__(self, device: str) -> None:
        self.peak, self.running = 0.0, device == "cuda"
        if self.running:
            self.before = self._taken()
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()

    @staticmethod
    def _taken() -> float:
        free, total = torch.cuda.mem_get_info()
        return float(total - free)

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self._taken() - self.before)
            time.sleep(0.1)

    def stop(self) -> float:
        """End; gives the highest number of bytes."""
        self.running = False
        self.thread.join()
        return self.peak


def programs(size: dict[str, Any], args: argparse.Namespace, corpus: Path, folder: Path) -> Iterator[Program]:
    """What is to be compared; the plain loop first."""
    python, every = sys.executable, max(1, args.steps // 10)
    flags = [word for name, value in size.items() for word in (f"--{name}", str(value))]
    lines = ["--max_steps", str(args.warm + args.steps + 1), "--log_interval", str(every)]
    plain = [python, "benchmarks/plain_loop.py", "--corpus", str(corpus), "--device", args.device]
    yield Program("plain loop", [*plain, *lines, *flags, "--eval_iters", "3"], eval_batches=400)
    ours = {f"model.gpt.{name}" if name != "batch_size" else "data.batch_size": value for name, value in size.items()}
    ours |= {
        "trainer.accelerator": args.device,
        "trainer.max_steps": args.warm + args.steps + 1,
        "eval_interval": args.warm + args.steps + 1,
        "data.eval_coverage": "sampled",
        "data.eval_iters": 1,
        "trainer.log_every_n_steps": every,
        "data.cache_dir": corpus.parent,
    }
    options = [word for name, value in ours.items() for word in (f"--{name}", str(value))]
    for name, overlay in (("fit", []), ("fit, fast", ["--config", "configs/fast.yaml"])):
        run_dir = folder / name.replace(", ", "-")
        command = [python, "-m", "tinygpt_pl", "fit", "--config", "configs/base.yaml", *overlay, *options]
        # Of the base size, where full coverage takes 7 batches of each split.
        yield Program(name, [*command, "--run_dir", str(run_dir)], run_dir, eval_batches=14 if overlay else 400)
    if args.nanogpt:
        peer = [f"--{name}={value}" for name, value in size.items()]
        peer += [
            f"--device={args.device}",
            f"--compile={args.device == 'cuda'}",
            "--eval_iters=1",
            "--eval_interval=1000000",
        ]
        peer += [f"--max_iters={args.warm + args.steps}", f"--log_interval={every}", f"--out_dir={folder}/nanogpt"]
        command = [python, "-u", "train.py", "config/train_shakespeare_char.py", *peer]
        yield Program("nanoGPT train.py", command, cwd=args.nanogpt)


def table(size: dict[str, Any], field: list[Program], ceilings: dict[str, float]) -> None:
    """Print what was measured."""
    shape = {name: value for name, value in size.items() if name != "batch_size"}
    tokens = size["batch_size"] * size["block_size"]
    flops = GPT(GPTConfig(**shape)).flops_per_token() * tokens
    print("| program | step | tokens/s | against the plain loop (spread) | share of the ceiling | peak memory |")
    print("|---|---|---|---|---|---|")
    for program in field:
        seconds = statistics.median(program.seconds)
        ratios = [plain / own for plain, own in zip(field[0].seconds, program.seconds, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        ceiling = ceilings["bf16-mixed" if program.name == "fit, fast" and "bf16-mixed" in ceilings else "32-true"]
        memory = f"{max(program.peaks) / 1e6:,.0f} MB"
        share = f"{flops / seconds / ceiling:.0%}"
        print(f"| {program.name} | {seconds * 1e3:,.1f} ms | {tokens / seconds:,.0f} | {spread} | {share} | {memory} |")


def whole_run(field: list[Program]) -> None:
    """Print what 5000 steps and 21 evaluations come to, from their measured parts."""
    hours = {}
    for program in (program for program in field if program.evaluations):
        batch = statistics.median(program.evaluations)
        training, evaluation = 5000 * statistics.median(program.seconds), 21 * program.eval_batches * batch
        hours[program.name] = (training + evaluation) / 3600
        ratio = hours["plain loop"] / hours[program.name]
        print(
            f"the whole run by {program.name}: {hours[program.name]:.2f} h, {ratio:.2f} times as fast as by the plain "
            f"loop; {evaluation / (training + evaluation):.1%} of it in evaluation"
        )


def main() -> None:
    """Measure and print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=1, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed in a run")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, to be measured too")
    args = parser.parse_args()

    device = torch.device(args.device)
    precisions = ["32-true", *(["bf16-mixed"] if multiplies_bf16(args.device) else [])]
    ceilings = {precision: matmul_flops(device, precision) for precision in precisions}
    for precision, flops in ceilings.items():
        print(f"a large matrix product in {precision}: {flops / 1e9:,.0f} GFLOP/s")
    load_corpus("tinyshakespeare", default_cache_dir())
    corpus = (default_cache_dir() / "tinyshakespeare.txt").resolve()
    for name in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            field = list(programs(SIZES[name], args, corpus, Path(folder)))
            for _ in range(args.rounds):
                for program in field:
                    program.run(args.device, args.warm)
        print(f"\n{name} size, {args.rounds} rounds of {args.steps} steps on {args.device}:")
        table(SIZES[name], field, ceilings)
        if name == "base":
            whole_run(field)


if __name__ == "__main__":
    main()
