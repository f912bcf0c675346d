"""The commands validate and test: the loss of a checkpoint, on the run's own windows or on the whole split."""

import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

import lightning.pytorch as pl

from tinygpt_pl.commands.fit import load_data, make_module
from tinygpt_pl.commands.outcome import Work
from tinygpt_pl.commands.settings import read_settings
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.runs.checkpoint import Checkpoint
from tinygpt_pl.system.terminal import say
from tinygpt_pl.training.console import quieten
from tinygpt_pl.training.trainer import check_split, lightning_running, make_trainer


def validate(args: Sequence[str], work: Work) -> None:
    """Print the line of the table again."""
    checkpoint, module, data, trainer = _prepare("validate", args)
    work.begin(trainer)
    with (
        redirect_stdout(sys.stderr),
        lightning_running(trainer),
    ):  # the output is the score
        trainer.validate(module, data, verbose=False)
    train, val = (trainer.callback_metrics[f"eval/{split}_loss"].item() for split in ("train", "val"))
    if trainer.is_global_zero:
        say(f"iter {checkpoint.iteration} | train {train:.4f} | val {val:.4f} | {checkpoint.path}")


def test(args: Sequence[str], work: Work) -> None:
    """Print the loss over the whole validation split in the units of the field."""
    checkpoint, module, data, trainer = _prepare("test", args)
    work.begin(trainer)
    with redirect_stdout(sys.stderr), lightning_running(trainer):
        trainer.test(module, data, verbose=False)
    nats, unit = trainer.callback_metrics["test/loss"].item(), data.tokenizer.unit
    tokens, bits = len(data.splits["val"]) - 1, nats / math.log(2)
    others = (f"{bits * n:.4f} per {name}" for name, n in data.tokens_per.items() if name != unit)
    if trainer.is_global_zero:
        say(
            f"iter {checkpoint.iteration} | {tokens:,} tokens of {data.corpus_name} | {checkpoint.path}",
            f"{nats:.4f} nats and {bits:.4f} bits per {unit} | perplexity {math.exp(nats):.4f} "
            f"| average probability {math.exp(-nats):.4f} | bits: {', '.join(others)}",
        )


def _prepare(verb: str, args: Sequence[str]) -> tuple[Checkpoint, TinyGPT, TextDataModule, pl.Trainer]:
    quieten()
    settings, start = read_settings(verb, args)
    assert start.checkpoint
    data = load_data(settings, start)
    module = make_module(settings, data, start)
    module.load_state_dict(start.checkpoint.hand_over()["state_dict"])
    trainer = make_trainer(**settings.trainer)
    check_split(data, trainer, whole=verb == "test")
    return start.checkpoint, module, data, trainer
