"""What a run that resumes may change, what it may not, and that its training state is sound."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from torch import Tensor

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.optim import OptimConfig, decay_groups, scheduled_lr
from tinygpt_pl.runs.checkpoint import Checkpoint, DamagedCheckpoint, check_weights
from tinygpt_pl.training.lightning_internals import steps_taken

LASTING = (
    "seed_everything",
    "data.val_fraction",
    "data.eval_coverage",
    "data.eval_iters",
    "data.eval_seed",
    "data.tokenizer",
    "data.vocab_size",
    "model.optim.optimizer",
    "ema_decay",
)
"""Settings that decide a run's windows and the shape of its state, besides the text and the windows in a step."""

PLACES = {"config", "ckpt_path", "init_from", "run_dir", "data.corpus", "data.cache_dir", "data.offline_corpus", "auto"}
"""Options that say where things are, not how the run trains; and which others are left to the machine."""


def check_settings(before: Namespace, config: Namespace) -> None:
    """Refuse to resume with other windows, or another shape of the state, than the run has had.

    Args:
        before: the settings that the run was saved with.
        config: those that are asked for.

    Raises:
        ValueError: naming the setting with its old and its new value.
    """
    for name in LASTING:
        if before[name] != config[name]:
            raise _changed(name, before[name], config[name])


def check_run(checkpoint: Checkpoint, data: TextDataModule, max_steps: int) -> None:
    """Refuse to resume beyond the end, or with another text.

    Args:
        checkpoint: of the run.
        data: the text that is asked for, set up.
        max_steps: optimizer steps of the whole run.

    Raises:
        ValueError: naming both.
    """
    if checkpoint.iteration > max_steps:
        it = checkpoint.iteration
        raise ValueError(
            f"the checkpoint is of iteration {it}, beyond trainer.max_steps {max_steps}; give that or more steps"
        )
    text = checkpoint.content["corpus"]
    if text["sha256"] != data.corpus_sha256:
        named = ((text["name"], text["sha256"]), (data.corpus_name, data.corpus_sha256))
        old, new = (f"{name} (SHA-256 {sha256[:12]}…)" for name, sha256 in named)
        raise _changed("data.corpus", old, new)


def check_state(
    checkpoint: Checkpoint, module: TinyGPT, data: TextDataModule, trainer: pl.Trainer, *, averaged: bool
) -> None:
    """See that training can resume from what a checkpoint holds; how the windows of a step are divided is free.

    Args:
        checkpoint: with its weights and optimizer state.
        module: built, in the precision that it trains in.
        data: set up.
        trainer: which is going to train it.
        averaged: whether the run keeps an average of its weights.

    Raises:
        DamagedCheckpoint: if its parts are not of one step or have other shapes than the model.
        ValueError: if a step would have another number of windows.
    """
    check_weights(checkpoint.content["state_dict"], module.state_dict())
    groups = [] if module.custom_optimizer else decay_groups(module, module.optim)
    check_training_state(checkpoint.content, groups)
    if averaged:
        check_average(checkpoint.content, module.state_dict())
    old, new = checkpoint.content["windows_per_step"], data.windows_per_step(trainer)
    if old != new:
        raise _changed(
            "the number of windows in a step (batch_size, accumulate_grad_batches and devices multiplied)", old, new
        )


def check_training_state(content: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """See that optimizer, schedule and counters are of one step, and the moments of the parameters' shapes.

    A fused optimizer would read beyond the end of a moment that is too small.

    Args:
        content: of a checkpoint.
        groups: the optimizer's parameter groups; empty for a custom optimizer, whose moments are not checked.

    Raises:
        DamagedCheckpoint: if they are not.
    """
    try:
        (optimizer,), (schedule,) = content["optimizer_states"], content["lr_schedulers"]
        sound = bool(steps_taken(dict(content)) == schedule["last_epoch"] == content["global_step"])
        parameters = [(p, group) for group in groups for p in group["params"]]
        for index, (parameter, group) in enumerate(parameters if sound and content["global_step"] else ()):
            # Muon keeps one moment of each parameter, and Adam two.
            for name in ("momentum_buffer",) if "rows" in group else ("exp_avg", "exp_avg_sq"):
                moment = optimizer["state"][index][name]
                fits = moment.shape == parameter.shape and moment.is_floating_point()
                sound = sound and fits and bool(moment.isfinite().all())
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise DamagedCheckpoint("the checkpoint is damaged: its optimizer, schedule and counters do not fit together")


def check_average(content: Mapping[str, Any], fresh: Mapping[str, Tensor]) -> None:
    """See that a checkpoint whose weights are an average also has those that training resumes from.

    Raises:
        DamagedCheckpoint: if it has not.
    """
    weights, state = content.get("current_model_state"), content.get("averaging_state")
    count = state.get("n_averaged") if isinstance(state, dict) and len(state) == 1 else None
    counted = isinstance(count, Tensor) and not count.shape and not count.is_floating_point() and count.item() >= 0
    if not counted or not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise DamagedCheckpoint("the checkpoint is damaged: it lacks the weights beside their average")
    check_weights(weights, fresh)


def _changed(name: str, old: object, new: object) -> ValueError:
    way_out = "give another --run_dir without --ckpt_path for a new run"
    return ValueError(f"{name} has to stay {_as_yaml(old)} in a run that goes on, got {_as_yaml(new)}; {way_out}")


def _as_yaml(value: object) -> object:
    """A value as it is given in settings."""
    return "null" if value is None else value


def changes(it: int, before: Namespace, config: Namespace) -> list[str]:
    """A line for each setting that is another than before, and one if the learning rate goes on from another value.

    Args:
        it: optimizer steps taken.
        before: the settings until now.
        config: the settings from now on.
    """
    told = PLACES | set(config.auto or ())  # a note says what becomes of those on this machine
    pairs = [(name, before.get(name), value) for name, value in config.items() if name not in told]
    old_rate, new_rate = (f"{_rate(it, settings):.2e}" for settings in (before, config))
    pairs.append(("the learning rate of the next step", old_rate, new_rate))
    return [f"changed: {name} {_as_yaml(old)} -> {_as_yaml(new)}" for name, old, new in pairs if old != new]


def _rate(it: int, settings: Namespace) -> float:
    return scheduled_lr(it, OptimConfig(**settings.model.optim), settings.trainer.max_steps)
