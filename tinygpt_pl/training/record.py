"""What a run writes down of itself: its settings, its corpus, its machine, and what a run that resumes has to match."""

import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import INIT_STD
from tinygpt_pl.insight.evidence import table_losses
from tinygpt_pl.insight.history import History, Setup, fenced, read_history
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.runs.checkpoint import FORMAT
from tinygpt_pl.runs.folder import event_sizes
from tinygpt_pl.runs.start import Start
from tinygpt_pl.system.files import replacing
from tinygpt_pl.system.terminal import say
from tinygpt_pl.training.events import CHARTS, EventLogger, log_text
from tinygpt_pl.training.lightning_internals import set_counters
from tinygpt_pl.training.loggers import begin
from tinygpt_pl.training.settings import written_down


class RunRecord(Callback):
    """Keeps the run's settings in its folder and its curve, and adds to each checkpoint what a resume has to match."""

    def __init__(self, run_dir: Path, config: str | Mapping[str, Any], data: TextDataModule, start: Start) -> None:
        """Prepare the record; it is written when training starts.

        Args:
            run_dir: the folder of the run.
            config: all settings as YAML; or the fields of RunConfig, to which `setup` adds the settings of model, data
                and Trainer.
            data: the text, set up.
            start: what the run starts from.
        """
        self.run_dir, self.data = run_dir, data
        self.config, self.run = (config, {}) if isinstance(config, str) else ("", config)
        self.trainer_options: Mapping[str, Any] = {}
        """The arguments of `make_trainer`, which sets them."""
        self.fresh, resumed = start.kind == "scratch", start.resumed
        self.before = resumed.content["config"] if resumed and start.in_place(run_dir) else ""
        """The settings that the curve in this folder has already."""
        self.purge_step = start.iteration + 1 if resumed else None
        """The optimizer step from which on a TensorBoard that is open is to forget what it has read."""
        self.history = History()
        """What the run's folder holds when training starts, and the present setup; from there `Curve` adds its rows."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Collect the settings of a run started from Python."""
        assert isinstance(pl_module, TinyGPT)
        self.config = self.config or written_down(self.run, pl_module, self.data, self.trainer_options)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters to the boundary between steps that the checkpoint is of."""
        set_counters(checkpoint, checkpoint["global_step"] * trainer.accumulate_grad_batches)
        if trainer.is_global_zero:
            say(other_bits(checkpoint.get("machine", {}), rounding(trainer.strategy.root_device)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write config.yaml, and log it with what is known of model, text and machine."""
        assert isinstance(pl_module, TinyGPT)
        facts, settings = self._facts(trainer, pl_module), yaml.safe_load(self.config)
        if trainer.global_step:
            with suppress(ValueError, OSError):  # a run that resumes in another folder has no history there
                self.history = read_history(self.run_dir)
        self.history.setups.append(Setup.of(settings, facts))
        if not trainer.is_global_zero:
            return
        with replacing(self.run_dir / "config.yaml") as file:
            file.write(self.config.encode())
        log_text(trainer, "facts", fenced(yaml.safe_dump(facts, sort_keys=False)))
        if self.config != self.before:
            log_text(trainer, "config", fenced(self.config))
            for logger in trainer.loggers:
                if isinstance(logger, EventLogger):
                    logger.lay_out(CHARTS)
                    logger.log_hparams(settings)
        for logger in trainer.loggers:
            if not isinstance(logger, EventLogger):
                begin(logger, settings, self.history)

    def _facts(self, trainer: pl.Trainer, module: TinyGPT) -> dict[str, Any]:
        config, splits, device = module.gpt.config, self.data.splits, module.device
        singles, pairs = table_losses(splits["train"], splits["val"], config.vocab_size)
        return {
            "start": trainer.global_step,
            "fresh": self.fresh,
            **({"custom_schedule": True} if module.custom_schedule else {}),
            "corpus": self.data.corpus_name,
            "tokens": {name: len(ids) for name, ids in splits.items()},
            "vocab_size": config.vocab_size,
            "parameters": sum(p.numel() for p in module.gpt.parameters()),
            "logit_variance": config.n_embd * INIT_STD**2,
            "table_losses": {"singles": singles, "pairs": pairs},
            "windows_per_step": self.data.windows_per_step(trainer),
            "eval_batches": self.data.eval_batches(trainer),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "lightning", "tinygpt_pl")},
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings, the corpus and the lengths of the event files."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
        checkpoint |= {
            "format": FORMAT,
            "config": self.config,
            "corpus": {"name": self.data.corpus_name, "sha256": self.data.corpus_sha256},
            "windows_per_step": self.data.windows_per_step(trainer),
            "events": event_sizes(self.run_dir),
            "machine": rounding(trainer.strategy.root_device),
        }
        if type(self.data) is not TextDataModule:
            checkpoint["data"] = type(self.data).__qualname__


def rounding(device: torch.device) -> dict[str, Any]:
    """What the rounding of a step depends on, besides the settings."""
    if device.type == "cpu":
        kind = {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    else:
        kind = {"name": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"device": device.type, **kind, "torch": str(torch.__version__)}


def other_bits(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What there is to say if a run goes on where steps round in another way; nothing if they do not.

    Args:
        before: `rounding` of the run so far.
        now: that from here on.
    """
    changed = {name: before[name] for name in before if name in now and before[name] != now[name]}
    if not changed:
        return ""
    listed = ", ".join(f"{name} {old} -> {now[name]}" for name, old in changed.items())
    way_out = f"; OMP_NUM_THREADS={changed['threads']} keeps them" if list(changed) == ["threads"] else ""
    return f"NOTE: from here on the bits are not those of a run left alone: {listed}{way_out}"
