"""Small runs from the command line, and what they leave behind."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Run = Callable[..., tuple[int, str, str]]
"""The fixture `cli`: words in; exit code, output and errors out."""

LINE = re.compile(r"iter (\d+) \| train (\d+\.\d{4}) \| val (\d+\.\d{4})(?: \| lr (\d\.\d\de-\d\d) \| \d+s)?")


def small(text_file: Path, **changes: Any) -> list[str]:
    """Options of a run of 10 iterations, evaluated every 4; dots in a changed option's name are double underscores."""
    options = {
        "data.corpus": text_file,
        "data.batch_size": 4,
        "data.eval_iters": 3,
        "eval_interval": 4,
        "model.gpt.block_size": 8,
        "model.gpt.n_layer": 1,
        "model.gpt.n_head": 2,
        "model.gpt.n_embd": 16,
        "model.gpt.dropout": 0.0,
        "model.optim.max_lr": 1e-2,
        "model.optim.min_lr": 1e-3,
        "model.optim.warmup_iters": 2,
        "trainer.max_steps": 10,
        "trainer.accelerator": "cpu",
        "trainer.log_every_n_steps": 2,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in options.items()]


def table(output: str) -> list[tuple[str, ...]]:
    """Iteration, train, val and learning rate of each line of the table."""
    return [match.groups() for match in map(LINE.match, output.splitlines()) if match]


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every row of every tag."""
    events = EventAccumulator(str(run_dir)).Reload()
    return {tag: [(row.step, row.value) for row in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, read by torch alone."""
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def shell(*args: str, cwd: Path, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "tinygpt_pl", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
