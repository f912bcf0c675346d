"""All that is to be measured on a GPU, in stages; each is written down when it is done, and none is run twice.

    python benchmarks/gpu.py                      # on a CUDA device; give it again until it says that all is measured
    python benchmarks/gpu.py --minutes 8          # stop in time, and go on with the next call
    python benchmarks/gpu.py --device cpu --options --config configs/small.yaml --trainer.max_steps 20   # to try it

The stages: the recipe to its end with configs/fast.yaml; configs/modern.yaml with it, with several seeds; a step of the
recipe as `fit` takes it beside the same compiled step in a bare loop; and sampling. A run that is stopped goes on from
its last checkpoint. Everything is in one folder, results.json among it.
"""

import argparse
import itertools
import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tinygpt_pl.generation.sampling import stream
from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.insight.history import read_history
from tinygpt_pl.optim import OptimConfig, configure_optimizer
from tinygpt_pl.runs.checkpoint import read_checkpoint
from tinygpt_pl.system.machine import keep_freed_memory
from tinygpt_pl.training.steps import compiled_forward, put_in_place

ROOT = Path(__file__).parent.parent
LAST = Path("checkpoints/last.ckpt")
TERMINATED = 143
LEAST = 30
"""Seconds below which no stage is begun."""

Result = dict[str, Any]


class OutOfTime(Exception):
    """The next call goes on."""


class Measurements:
    """The results so far, in a file."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.file, self.end = folder / "results.json", time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Result] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def stage(self, name: str, measure: Callable[[Result], Result]) -> None:
        """Measure, unless it has been; `measure` gets what an earlier call has left unfinished.

        Raises:
            OutOfTime: if there is too little left.
        """
        known = self.results.get(name, {})
        if not known.get("done"):
            if self.left() < LEAST:
                raise OutOfTime
            print(f"{name} ...", file=sys.stderr, flush=True)
            self.write(name, measure(known) | {"done": True})

    def write(self, name: str, result: Result) -> None:
        """Keep a result."""
        self.results[name] = result
        self.file.write_text(json.dumps(self.results, indent=1))

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


def train(name: str, words: list[str], run: Path, measurements: Measurements, known: Result) -> Result:
    """Run `fit` to its end, from where an earlier call has stopped it.

    Raises:
        OutOfTime: if the time is over before that; the run is saved.
    """
    start = time.monotonic()
    going_on = (run / LAST).exists()
    if not going_on:
        shutil.rmtree(run, ignore_errors=True)  # it was stopped before it began
    where = ["--ckpt_path", str(run / LAST)] if going_on else [*words, "--run_dir", str(run)]
    process = subprocess.Popen([sys.executable, "-m", "tinygpt_pl", "fit", *where], cwd=ROOT)
    try:
        code = process.wait(max(measurements.left(), 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it finishes its step and saves
        code = process.wait()
    seconds = known.get("seconds", 0.0) + time.monotonic() - start
    if code == TERMINATED:
        measurements.write(name, {"seconds": seconds})
        raise OutOfTime
    if code:
        raise RuntimeError(f"{name}: fit ended with {code}")
    return {"seconds": seconds, "calls": known.get("calls", 0) + 1, **read_run(run)}


def read_run(run: Path) -> Result:
    """What a finished run's curve says."""
    history = read_history(run)
    best = min(history.evaluations, key=lambda row: row.val)
    seen, it = history.curve("progress/tokens_seen")[-1][::-1]
    step_seconds = seen / it / statistics.median(value for _, value in history.curve("perf/tokens_per_second"))
    return {
        "last": history.evaluations[-1].val,
        "best": best.val,
        "at": best.it,
        "steps": history.last,
        "step_seconds": step_seconds,
        "between_seconds": seconds_between(run, step_seconds),
        "machine": read_checkpoint(run / LAST).content["machine"],
    }


def seconds_between(run: Path, step_seconds: float) -> float:
    """What evaluations, samples and saving take after the first step: time between rows that no step explains."""
    curve = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    evaluated = [event.step for event in curve.Scalars("eval/val_loss")]
    gaps = [
        later.wall_time - row.wall_time - (later.step - row.step) * step_seconds
        for row, later in itertools.pairwise(curve.Scalars("train/loss"))
        if any(row.step <= it < later.step for it in evaluated)
    ]
    return float(sum(gaps))


def bare_step(run: Path, device: torch.device, steps: int) -> Result:
    """Seconds and peak memory of a step of a run's size in a loop with nothing around it: no Trainer, data or curve."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    shape = settings["model"]["gpt"] | {"vocab_size": 65}
    keep_freed_memory()
    network = GPT(GPTConfig(**shape)).to(device).train()
    if settings["compile"]:
        put_in_place({block: compiled_forward(block) for block in network.h})
    optimizer = configure_optimizer(network, OptimConfig(max_lr=1e-4, min_lr=0.0), fused=True)
    half = settings["trainer"]["precision"] == "bf16-mixed"
    windows = torch.randint(65, (8, settings["data"]["batch_size"], shape["block_size"] + 1), device=device)

    def step(batch: torch.Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            _, loss = network(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    batches = itertools.cycle(windows)
    for _ in range(max(3, steps // 10)):  # the first pay for compiling
        step(next(batches))
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step(next(batches))
    synchronize(device)
    seconds = (time.perf_counter() - start) / steps
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"step_seconds": seconds, "peak_bytes": memory}


def sampling(run: Path, device: torch.device) -> Result:
    """Tokens a second that a trained network writes, a text alone and 64 at a time."""
    checkpoint = read_checkpoint(run / LAST)
    gpt = GPT(GPTConfig(**checkpoint.content["hyper_parameters"]["gpt"])).to(device).eval()
    rates = {}
    for texts in (1, 64):
        tokens = stream(gpt, torch.zeros(texts, 1, dtype=torch.long, device=device), seed=1)
        count = max(gpt.config.block_size - 1, 16)
        for _ in itertools.islice(tokens, 8):
            pass
        synchronize(device)
        start = time.perf_counter()
        for _ in itertools.islice(tokens, count - 8):
            pass
        synchronize(device)
        rates[str(texts)] = texts * (count - 8) / (time.perf_counter() - start)
    return {"tokens_per_second": rates}


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def table(results: dict[str, Result]) -> str:
    """All that has been measured, as Markdown."""
    lines = [
        "| run | last | best | at iteration | seconds | a step | evaluating, saving |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        if "best" in row:
            share = row["between_seconds"] / row["seconds"]
            lines.append(
                f"| {name} | {row['last']:.4f} | {row['best']:.4f} | {row['at']} of {row['steps']} "
                f"| {row['seconds']:.1f} | {row['step_seconds'] * 1e3:.2f} ms | {share:.1%} |"
            )
    losses = [row["best"] for name, row in results.items() if name.startswith("modern") and "best" in row]
    if len(losses) > 1:
        error = statistics.stdev(losses) / math.sqrt(len(losses))
        lines += ["", f"modern: best {statistics.fmean(losses):.4f} ± {error:.4f}, {len(losses)} seeds"]
    if step := results.get("step"):
        fit = results["base"]["step_seconds"]
        memory = f"; {step['peak_bytes'] / 1e9:.2f} GB at its peak" if step.get("peak_bytes") else ""
        bare = step["step_seconds"]
        lines += ["", f"a step in a bare loop: {bare * 1e3:.2f} ms, of fit {fit / bare:.2f} times that{memory}"]
    if "sampling" in results:
        rates = results["sampling"]["tokens_per_second"]
        lines += [f"sampling, {texts} at a time: {rate:,.0f} tokens/s" for texts, rate in rates.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("lightning_logs/gpu"), help="of runs and results")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=8.0, help="time for this call; a run is stopped and saved")
    parser.add_argument("--seeds", type=int, default=5, help="of modern.yaml")
    parser.add_argument("--steps", type=int, default=200, help="of the bare loop")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of fit, for all runs")
    args = parser.parse_args()
    folder, device = args.folder.resolve(), torch.device(args.device)
    measurements = Measurements(folder, args.minutes)

    def run(name: str, config: str, seed: int) -> None:
        words = ["--config", f"configs/{config}.yaml", "--config", "configs/fast.yaml", *args.options]
        words += ["--trainer.accelerator", args.device, "--seed_everything", str(seed)]
        measurements.stage(name, lambda known: train(name, words, folder / name, measurements, known))

    try:
        run("base", "base", 1337)
        measurements.stage("step", lambda _: bare_step(folder / "base", device, args.steps))
        measurements.stage("sampling", lambda _: sampling(folder / "base", device))
        for seed in range(1, args.seeds + 1):
            run(f"modern-{seed}", "modern", seed)
    except OutOfTime:
        print(table(measurements.results), "\nnot done yet: give the same command again", sep="\n")
    else:
        print(table(measurements.results), "\nall is measured", sep="\n")


if __name__ == "__main__":
    main()
