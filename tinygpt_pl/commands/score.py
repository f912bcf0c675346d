"""The commands validate and test: the loss of a checkpoint, on the run's own windows or on the end or all of a text."""

import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

import lightning.pytorch as pl

from tinygpt_pl.commands.classes import Classes
from tinygpt_pl.commands.ensemble import read_ensemble
from tinygpt_pl.commands.fit import load_data, load_weights, make_module
from tinygpt_pl.commands.outcome import Work
from tinygpt_pl.commands.settings import read_settings
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.runs.checkpoint import Checkpoint
from tinygpt_pl.system.terminal import say, warn
from tinygpt_pl.training.console import quieten
from tinygpt_pl.training.evaluation import split_losses
from tinygpt_pl.training.trainer import check_split, lightning_running, make_trainer


def validate(args: Sequence[str], work: Work, classes: Classes) -> None:
    """Print the line of the table again."""
    checkpoint, module, data, trainer, name = _prepare("validate", args, classes)
    work.begin(trainer)
    with redirect_stdout(sys.stderr), lightning_running(trainer):  # Lightning prints its bar to the output
        trainer.validate(module, data, verbose=False)
    losses = " | ".join(f"{split} {loss:.4f}" for split, loss in split_losses(trainer).items())
    if trainer.is_global_zero:
        say(f"iter {checkpoint.iteration} | {losses} | {name}")


def test(args: Sequence[str], work: Work, classes: Classes) -> None:
    """Print the loss over the whole validation split in the units of the field, and what part of the text that is."""
    checkpoint, module, data, trainer, name = _prepare("test", args, classes)
    work.begin(trainer)
    with redirect_stdout(sys.stderr), lightning_running(trainer):
        trainer.test(module, data, verbose=False)
    nats, unit = trainer.callback_metrics["test/loss"].item(), data.tokenizer.unit
    tokens, bits = len(data.splits["val"]) - 1, nats / math.log(2)
    others = (f"{bits * n:.4f} per {name}" for name, n in data.tokens_per.items() if name != unit)
    scored, total = data.characters["val"], sum(data.characters.values())
    part = "all" if scored == total else f"the last {scored:,} of"
    other = scored < total and checkpoint.content["corpus"]["sha256"] not in ("", data.corpus_sha256)
    if trainer.is_global_zero:
        say(
            f"iter {checkpoint.iteration} | {tokens:,} tokens of {data.corpus_name}, {part} its {total:,} characters "
            f"({100 * scored / total:.3g}%) | {name}",
            f"{nats:.4f} nats and {bits:.4f} bits per {unit} | perplexity {math.exp(nats):.4f} "
            f"| average probability {math.exp(-nats):.4f} | bits: {', '.join(others)}",
            "to score all of this text: --data.val_fraction 1" if other else "",
        )


def _prepare(
    verb: str, args: Sequence[str], classes: Classes
) -> tuple[Checkpoint, TinyGPT, TextDataModule, pl.Trainer, str]:
    quieten()
    settings, start = read_settings(verb, args, classes)
    print(*settings.notes, sep="\n", end="\n" if settings.notes else "", file=sys.stderr)
    assert start.checkpoint
    data = load_data(settings, start, verb)
    module = make_module(settings, data, start)
    load_weights(start.checkpoint, module)
    module.gpt, name = read_ensemble(start.checkpoint, module.gpt, settings.config.get("ensemble", []), classes)
    known, before = start.checkpoint.content["corpus"]["sha256"], settings.before
    if before and before.data.corpus == settings.config.data.corpus and known != data.corpus_sha256:
        warn(f"{data.corpus_name} has changed since the run was trained on it: the losses do not compare")
    trainer = make_trainer(**settings.trainer)
    check_split(data, trainer, whole=verb == "test")
    return start.checkpoint, module, data, trainer, name
