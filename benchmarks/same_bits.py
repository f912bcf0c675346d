"""Whether two checkouts train, resume, generate and export to the same bits.

    python benchmarks/same_bits.py ../before .

A refactor must keep them. Each checkout runs the same commands with its own package and configurations and with the
libraries of this environment, in an empty folder. The table has a row for all that is compared, with the number of
tensors, rows, lines or files in it; the exit code is 1 if anything differs. The package itself is not imported here,
for there are two of it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

PARTS = {
    "weights": ("state_dict", "current_model_state", "averaging_state"),
    "optimizer": ("optimizer_states",),
    "schedule": ("lr_schedulers",),
    "iteration and loss": ("global_step", "val_loss"),
}
"""Entries of a checkpoint that are compared, by what they are called in the table."""


def main() -> int:
    """Run both checkouts, print the table; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs=2, metavar="CHECKOUT", help="folder with tinygpt_pl and configs")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run")
    parser.add_argument("--threads", type=int, default=1, help="of each process; more may round differently")
    parser.add_argument("--cache", type=Path, default=os.environ.get("TINYGPT_CACHE", "data"), help="for the corpus")
    args = parser.parse_args()
    environment = {"TINYGPT_CACHE": str(Path(args.cache).resolve()), "OMP_NUM_THREADS": str(args.threads)}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        work = [Path(folder) / name for name in ("a", "b")]
        list(pool.map(partial(run, steps=args.steps, environment=environment), args.checkouts, work))
        a, b = map(results, work)
    print("| compared | size | result |", "|---|---|---|", sep="\n")
    differences = {name: difference(a.get(name), b.get(name)) for name in a | b}
    for name, where in differences.items():
        print(f"| {name} | {size(a.get(name))} | {f'differs: {where}' if where else 'equal'} |")
    return int(any(differences.values()))


def run(checkout: Path, folder: Path, steps: int, environment: dict[str, str]) -> None:
    """Run the commands of one checkout, whose results are left in a folder of its own."""
    configs = checkout.resolve() / "configs"
    quiet = [f"--eval_interval={max(1, steps // 2)}", "--trainer.enable_progress_bar=false"]
    small = [f"--config={configs}/small.yaml", "--model.gpt.dropout=0.2", "--trainer.accumulate_grad_batches=4", *quiet]
    small += ["--data.eval_coverage=sampled", "--data.eval_iters=20"]  # cpu.yaml has the full coverage
    every_state = ["--model.optim.optimizer=muon", "--ema_decay=0.9", f"--model.optim.max_iters={steps}"]
    end = f"--trainer.max_steps={steps}"
    commands = {
        "cpu": ["fit", f"--config={configs}/cpu.yaml", *quiet, end, "--run_dir=cpu"],
        "small": ["fit", *small, end, "--run_dir=small"],
        "begun": ["fit", *small, *every_state, f"--trainer.max_steps={steps // 2}", "--run_dir=resumed"],
        "resumed": ["fit", "--ckpt_path=last", "--run_dir=resumed", end],
        "validated": ["validate", "--run_dir=resumed"],
        "generated": ["generate", "--run_dir=cpu", "--seed=1", "--max_new_tokens=200"],
        "exported-llama": ["export", "--run_dir=cpu", "--output_dir=exported-llama"],
        "exported-gpt2": ["export", "--run_dir=small", "--output_dir=exported-gpt2"],
    }
    folder.mkdir()
    for name, words in commands.items():
        print(f"{checkout}: {' '.join(words)}", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, "-m", "tinygpt_pl", *words],
            cwd=folder,
            env={**os.environ, **environment, "PYTHONPATH": str(checkout.resolve())},
            capture_output=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{checkout}: {words[0]} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
        (folder / f"{name}.out").write_bytes(done.stdout)


def results(folder: Path) -> dict[str, Any]:
    """All that has to be the same, by its name in the table."""
    found: dict[str, Any] = {}
    for name in ("cpu", "small", "resumed"):
        for kind in ("best", "last"):
            checkpoint = torch.load(folder / name / f"checkpoints/{kind}.ckpt", weights_only=True)
            for part, keys in PARTS.items():
                found[f"{name}: {kind}.ckpt, {part}"] = {key: checkpoint[key] for key in keys if key in checkpoint}
        found[f"{name}: curve"] = curve(folder / name)
        found[f"{name}: config.yaml"] = (folder / name / "config.yaml").read_text().splitlines()
    for name in ("cpu", "small", "begun", "resumed", "validated"):
        found[f"{name}: printed table"] = printed_table((folder / f"{name}.out").read_text())
    found["generated text"] = (folder / "generated.out").read_bytes()
    for name in ("exported-llama", "exported-gpt2"):
        found[name] = {path.name: exported(path) for path in sorted((folder / name).iterdir())}
    return found


def exported(path: Path) -> Any:
    """The bytes of a file; of safetensors, which write their metadata in random order, the header is parsed."""
    raw = path.read_bytes()
    if path.suffix != ".safetensors":
        return raw
    end = 8 + int.from_bytes(raw[:8], "little")
    return {"header": json.loads(raw[8:end]), "tensors": raw[end:]}


def curve(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every row of every tag but those of speed."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf/")]
    return {tag: [(row.step, row.value) for row in events.Scalars(tag)] for tag in tags}


def printed_table(output: str) -> list[str]:
    """The rows of the table without their seconds."""
    return [re.sub(r" \| \d+s$", "", line) for line in output.splitlines() if line.startswith("iter ")]


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two values differ first, and how; empty if they are the same to the bit."""
    if type(a) is not type(b):
        return f"{where} {type(a).__name__} and {type(b).__name__}".strip()
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where} only one has {sorted(map(str, a.keys() ^ b.keys()))}".strip()
        return next(filter(None, (difference(a[key], b[key], f"{where}/{key}") for key in a)), "")
    if isinstance(a, list | tuple):
        parts = (difference(x, y, f"{where}/{i}") for i, (x, y) in enumerate(zip(a, b, strict=False)))
        return next(filter(None, parts), "" if len(a) == len(b) else f"{where} {len(a)} and {len(b)} entries".strip())
    if isinstance(a, Tensor):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"{where} {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}".strip()
        return "" if torch.equal(a, b) else f"{where} by {(a.double() - b.double()).abs().max():.1e} at most".strip()
    if isinstance(a, bytes) and a != b:
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        return f"{where} at byte {at} of {len(a)} and {len(b)}".strip()
    return "" if a == b else f"{where} {a!r} and {b!r}".strip()


def size(value: Any) -> int:
    """Number of tensors, numbers, lines or files in a value."""
    if isinstance(value, dict):
        return sum(map(size, value.values()))
    return sum(map(size, value)) if isinstance(value, list) else 1


if __name__ == "__main__":
    sys.exit(main())
