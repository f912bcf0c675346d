"""What a run that goes on may change, and what it may not."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml
from jsonargparse import Namespace

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.optim import OptimConfig, scheduled_lr
from tinygpt_pl.text.tokenizer import Tokenizer

LASTING = (
    *("seed_everything", "data.val_fraction", "data.eval_coverage", "data.eval_iters"),
    *("data.tokenizer", "data.vocab_size"),
    *("model.optim.optimizer", "ema_decay"),
)
"""Settings that make a run's windows and its state what they are, besides the text and the windows in a step."""

PLACES = {"config", "ckpt_path", "init_from", "run_dir", "data.corpus", "data.cache_dir", "data.offline_corpus"}
"""Options that say where things are, not how the run goes."""


def check_iteration(iteration: int, max_steps: int) -> None:
    """See that a checkpoint is not beyond the end of the run.

    Raises:
        ValueError: if it is.
    """
    if iteration > max_steps:
        raise ValueError(f"the checkpoint is of iteration {iteration}, beyond trainer.max_steps {max_steps}")


def check_lasting(before: Namespace, config: Namespace) -> None:
    """Refuse to go on with other windows or another state than those the run was made of.

    Args:
        before: the settings that the run was saved with.
        config: those that are asked for.

    Raises:
        ValueError: naming the setting with its old and its new value.
    """
    for name in LASTING:
        if before[name] != config[name]:
            raise _changed(name, before[name], config[name])


def check_text(text: Mapping[str, str], data: TextDataModule) -> None:
    """Refuse to go on with another text.

    Args:
        text: name and SHA-256 of that of the run.
        data: the text that is asked for, set up.

    Raises:
        ValueError: naming both.
    """
    if text["sha256"] != data.corpus_sha256:
        named = ((text["name"], text["sha256"]), (data.corpus_name, data.corpus_sha256))
        old, new = (f"{name} (SHA-256 {sha256[:12]}…)" for name, sha256 in named)
        raise _changed("data.corpus", old, new)


def check_windows(old: int, new: int) -> None:
    """Refuse to go on with more or fewer windows in a step; how they are divided is free.

    Raises:
        ValueError: with the old and the new number.
    """
    if old != new:
        raise _changed(
            "the number of windows in a step (batch_size, accumulate_grad_batches and devices multiplied)", old, new
        )


def taken_settings(gpt: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a new run takes over from the checkpoint that it starts from: the network's shape and its tokens."""
    shape = asdict(gpt)
    del shape["vocab_size"]  # no setting: it is that of the vocabulary
    size = {"vocab_size": tokenizer.vocab_size} if tokenizer.kind == "bpe" else {}
    return {"model": {"gpt": shape}, "data": {"tokenizer": tokenizer.kind, **size}}


def check_tokens(taken: Mapping[str, Any], config: Namespace) -> None:
    """Refuse other tokens than those that a checkpoint brings.

    Raises:
        ValueError: naming the setting.
    """
    for name, value in taken["data"].items():
        if config.data[name] != value:
            raise ValueError(
                f"data.{name} has to be {value}, that of the checkpoint's tokenizer, got {config.data[name]}"
            )


def _changed(name: str, old: object, new: object) -> ValueError:
    return ValueError(
        f"{name} has to stay {old} in a run that goes on, got {new}; give another --run_dir without --ckpt_path for a "
        "new run"
    )


PLAIN = re.compile(r"[\w-]*")
"""Text that names no class: without a dot."""


def plain_settings(config: str) -> tuple[dict[str, Any], list[str]]:
    """The settings in a checkpoint's YAML, but for those of the Trainer that would import code, and their names.

    Raises:
        ValueError: if it is no YAML of settings.
    """
    try:
        tree = yaml.safe_load(config)
        trainer = tree["trainer"]
        held = [name for name, value in trainer.items() if isinstance(value, str) and not PLAIN.fullmatch(value)]
        held += [name for name, value in trainer.items() if isinstance(value, dict | list) and name != "devices"]
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        raise ValueError("the checkpoint is damaged: its config is no mapping of settings") from None
    tree = {name: value for name, value in tree.items() if name not in ("config", "ckpt_path", "run_dir")}
    tree["trainer"] = {name: value for name, value in trainer.items() if name not in held}
    return tree, [f"trainer.{name}" for name in held]


def changes(it: int, before: Namespace, config: Namespace) -> list[str]:
    """A line for each setting that is another than before, and one if the learning rate goes on from another value.

    Args:
        it: optimizer steps taken.
        before: the settings until now.
        config: the settings from now on.
    """
    pairs = [(name, before.get(name), value) for name, value in config.items() if name not in PLACES]
    old_rate, new_rate = (f"{_rate(it, settings):.2e}" for settings in (before, config))
    pairs.append(("the learning rate of the next step", old_rate, new_rate))
    return [f"changed: {name} {old} -> {new}" for name, old, new in pairs if old != new]


def _rate(it: int, settings: Namespace) -> float:
    return scheduled_lr(it, OptimConfig(**settings.model.optim), settings.trainer.max_steps)
