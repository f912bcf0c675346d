"""Small runs from the command line, and what they leave behind."""

import contextlib
import multiprocessing
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

Run = Callable[..., tuple[int, str, str]]
"""The fixture `cli`: words in; exit code, output and errors out."""

Fitted = Callable[..., str]
"""The fixture `fitted`: a folder and changes to `small` in; what `fit` printed out."""

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
BEST = RUN / "checkpoints" / "best.ckpt"
DROPOUT = {"model__gpt__dropout": 0.2, "data__batch_size": 2, "trainer__accumulate_grad_batches": 2}
LONGER = "--trainer.max_steps=12"

LINE = re.compile(
    r"iter (\d+) \| train (\d+\.\d{4}) \| val (\d+\.\d{4})(?: \| raw val \d+\.\d{4})?"
    r"(?: \| lr (\d\.\d\de-\d\d) \| \d+s)?"
)


def small(text_file: Path, **changes: Any) -> list[str]:
    """Options of a run of 10 iterations, evaluated every 4; dots in a changed option's name are double underscores."""
    options = {
        "data.corpus": text_file,
        "data.batch_size": 4,
        "data.eval_iters": 3,
        "eval_interval": 4,
        "sample_tokens": 10,
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


MODERN = {
    "model__gpt__position": "rotary",
    "model__gpt__norm": "rmsnorm",
    "model__gpt__qk_norm": "true",
    "model__gpt__activation": "swiglu",
    "model__gpt__bias": "false",
    "model__gpt__n_kv_head": 1,
    "model__gpt__bigrams": "true",
    "model__optim__optimizer": "muon",
    "model__optim__schedule": "wsd",
    "ema_decay": 0.8,
}
"""Every part that is not the recipe's, for `small`."""


def table(output: str) -> list[tuple[str, ...]]:
    """Iteration, train, val and learning rate of each line of the table."""
    return [match.groups() for match in map(LINE.match, output.splitlines()) if match]


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every row of every tag, as they lie on the disk: nothing is purged, nothing left out."""
    everything = {"scalars": 0}
    events = EventAccumulator(str(run_dir), size_guidance=everything, purge_orphaned_data=False).Reload()
    return {tag: [(row.step, row.value) for row in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(run_dir: Path) -> dict[str, list[tuple[int, str]]]:
    """Step and text of every page of every tag of TensorBoard's text."""
    everything = {"tensors": 0}
    events = EventAccumulator(str(run_dir), size_guidance=everything, purge_orphaned_data=False).Reload()
    return {
        tag: [(row.step, row.tensor_proto.string_val[0].decode()) for row in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, read by torch alone."""
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def shell(*args: str, cwd: Path, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "tinygpt_pl", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


def launch(words: Sequence[str], cwd: Path, output: str, **environment: str) -> "subprocess.Popen[bytes]":
    """Start a command by its words after `python -m`, with a file in the folder for all that it says."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with (cwd / output).open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", *words], cwd=cwd, env=env, stdout=file, stderr=file)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


FORKS = multiprocessing.get_context("forkserver")
# Importing Lightning takes seconds, for each of a hundred processes.
FORKS.set_forkserver_preload(["tinygpt_pl.commands.fit"])


def command(args: list[str], folder: Path) -> None:
    """Run a command in a process that was forked for it; its words go to a file."""
    os.chdir(folder)
    torch.set_num_threads(1)
    with Path("output").open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        from tinygpt_pl.commands.main import main

        code = main(args)
    sys.exit(code)


def start(args: list[str], folder: Path) -> ForkServerProcess:
    process = FORKS.Process(target=command, args=(args, folder))
    process.start()
    return process


def finish(process: ForkServerProcess, folder: Path, code: int = 0) -> str:
    """Wait for a process to end with this code; gives all that was said in the folder so far."""
    process.join(timeout=100)
    output = (folder / "output").read_text()
    assert process.exitcode == code, output
    return output


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that has to be the same: both checkpoints but for what tells the time, and the curve but for its speed."""
    found: dict[str, Any] = {}
    for name in ("best", "last"):
        checkpoint = load(run_dir / "checkpoints" / f"{name}.ckpt")
        best = next(state for key, state in checkpoint["callbacks"].items() if key.startswith("BestCheckpoint"))
        found[name] = {
            **{key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")},
            **{key: checkpoint[key] for key in ("current_model_state", "averaging_state") if key in checkpoint},
            **{key: checkpoint[key] for key in ("global_step", "evaluated", "val_loss", "corpus")},
            "best": best["best_model_score"],
            "curve": checkpoint["callbacks"]["Curve"],
        }
    found["curve"] = {tag: rows for tag, rows in scalars(run_dir).items() if not tag.startswith("perf/")}
    return found


def assert_same(a: Any, b: Any, where: str = "", within: float = 0.0) -> None:
    """Compare nested containers; tensors and numbers bit by bit, or within a share of them, or of 1 if that is more."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}", within)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}", within)
    elif isinstance(a, Tensor) and within:
        torch.testing.assert_close(a, b, rtol=0, atol=within, msg=where)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, float) and within:
        assert abs(a - b) <= within * max(abs(a), 1.0), f"{where}: {a} and {b}"
    else:
        assert a == b, where


def three_lines(err: str) -> str:
    """The error that a user sees, after the progress bar's line."""
    message = err[err.index("error: ") :].strip()
    assert len(message.splitlines()) <= 3, message
    assert "Traceback" not in err
    return message


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def run_forked(text_file: Path, tmp_path: Path, *more: str) -> Any:
    """Start a long run in a process of its own, and wait until it trains."""
    options = small(text_file, **DROPOUT, trainer__max_steps=100_000, eval_interval=100_000)
    process = start(["fit", *options, "--run_dir=run", "--trainer.enable_progress_bar=false", *more], tmp_path)
    wait_for((tmp_path / "run/checkpoints/last.ckpt").exists)
    return process


def signal_at(**where: Any) -> str:
    settings = ", ".join(f'"{name}": {str(value).lower()}' for name, value in where.items())
    return f'--trainer.callbacks=[{{"class_path": "tests.callbacks.SignalAt", "init_args": {{{settings}}}}}]'


def limited(limit: int, args: list[str]) -> None:
    """Run a command that may write files of `limit` bytes at most."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with open("output", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from tinygpt_pl.commands.main import main

    sys.exit(main(args))
