"""The table that a run prints: what is trained, a line for each evaluation, and where the result is."""

import logging
import math
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.guards import expected_start
from tinygpt_pl.insight.diagnosis import diagnose
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.optim import decay_groups, schedule_flaw
from tinygpt_pl.runs.checkpoint import DamagedCheckpoint, peek
from tinygpt_pl.runs.folder import checkpoint_path
from tinygpt_pl.system.terminal import program, quoted, say
from tinygpt_pl.training.curve import Curve
from tinygpt_pl.training.evaluation import split_losses

_report_any_failure = threading.excepthook


def quieten() -> None:
    """Keep the console for what the run itself prints."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # devices, ranks, adverts, «max_steps reached»
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the report that was asked for
    # The accelerator was the user's choice.
    warnings.filterwarnings("ignore", message="GPU available but not used", category=UserWarning)
    # A resumed run trains in its own folder, on purpose.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty", category=UserWarning)
    # Lightning 2.6.6 asks torch 2.13 for a deprecated class at every batch.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    threading.excepthook = _report_failure


def _report_failure(failure: threading.ExceptHookArgs) -> None:
    """Leave a curve that cannot be written to its logger, which reports it in one line."""
    if not type(failure.thread).__module__.startswith("tensorboard."):
        _report_any_failure(failure)


def stopped_early(trainer: pl.Trainer) -> str:
    """Report that a callback stopped the run early, with the reason if it is EarlyStopping."""
    reasons = [callback.stopping_reason_message for callback in trainer.early_stopping_callbacks]
    by = "".join(f": {reason}" for reason in reasons if reason)
    return f"NOTE: a callback stopped the run at iteration {trainer.global_step} of {trainer.max_steps}{by}"


GROUPS = {"muon": "by Muon", "decay": "decayed", "no_decay": "non-decayed"}
"""What the table's head calls the parameter groups, by what their names begin with; Muon's are decayed, too."""


class Table(Callback):
    """Prints what is trained, a line per evaluation, and where the result is."""

    def __init__(self, run_dir: Path, data: TextDataModule, curve: Curve, notes: Sequence[str] = ()) -> None:
        self.run_dir, self.data, self.curve, self.notes = run_dir, data, curve, notes
        self.elapsed, self.since = 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far."""
        return {"elapsed": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from the time of the run so far."""
        self.elapsed = state_dict["elapsed"]

    def _seconds(self) -> float:
        return self.elapsed + time.perf_counter() - self.since

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the head."""
        assert isinstance(pl_module, TinyGPT)
        self.since = time.perf_counter()
        data, config = self.data, pl_module.gpt.config
        total = sum(p.numel() for p in pl_module.gpt.parameters())
        lines = [
            f"{data.corpus_name}: {len(data.splits['train']):,} tokens for training, {len(data.splits['val']):,} for "
            f"validation, {config.vocab_size} different ones",
            f"{total:,} parameters ({total / 1e6:.2f}M)",
        ]
        groups = decay_groups(pl_module, pl_module.optim)
        for kind, label in GROUPS.items():
            parameters = [p for group in groups if group["name"].startswith(kind) for p in group["params"]]
            if not parameters:
                continue
            lines.append(f"{label}: {len(parameters)} tensors, {sum(p.numel() for p in parameters):,} parameters")
        lines.append(f"ln({config.vocab_size}) = {expected_start(config.vocab_size):.4f}, the loss of a uniform guess")
        device = pl_module.device
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        lines.append(f"run: {self.run_dir} on {device.type}{name} in {trainer.precision}")
        lines.append(f"curves: tensorboard --logdir {quoted(self.run_dir.parent)}")
        flaw = "" if pl_module.custom_schedule else schedule_flaw(pl_module.optim, trainer.max_steps)
        lines += [f"NOTE: {flaw}"] if flaw else []
        if trainer.is_global_zero:
            say(data.offline_notice, *self.notes, *lines)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print an evaluation."""
        assert isinstance(pl_module, TinyGPT)
        it, metrics = trainer.global_step, trainer.callback_metrics
        losses = " | ".join(f"{split} {loss:.4f}" for split, loss in split_losses(trainer).items())
        lr, seconds = pl_module.lr_at(it), self._seconds()
        raw = f" | raw val {metrics['eval/raw_val_loss'].item():.4f}" if "eval/raw_val_loss" in metrics else ""
        if trainer.is_global_zero:
            say(f"iter {it} | {losses}{raw} | lr {lr:.2e} | {seconds:.0f}s")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sum the run up, and print where the best checkpoint is, and its loss as its file has it."""
        if not trainer.is_global_zero:
            return
        lines, path = [diagnose(self.curve.history).line], checkpoint_path(self.run_dir, "best")
        if trainer.global_step < trainer.max_steps:
            lines.insert(0, stopped_early(trainer))
        with suppress(DamagedCheckpoint):  # none was saved, or it is damaged
            iteration, loss = peek(path)
            lines += [
                f"best: iter {iteration} | val {loss:.4f} | {path}",
                f"average probability of the true next {self.data.tokenizer.unit}: {math.exp(-loss):.4f}",
                f"evaluate on the whole validation split: {program()} test --ckpt_path {quoted(path)}",
                f"generate text: {program()} generate --ckpt_path {quoted(path)}",
            ]
        say(*lines, self.data.offline_notice)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Print the notice where a run is stopped, too."""
        if trainer.is_global_zero:
            say(self.data.offline_notice)
