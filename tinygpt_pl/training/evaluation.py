"""What happens around the steps: evaluation at both ends, samples, dropout's seed, and the record of the run."""

import math
import platform
import textwrap
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.generation.sampling import generate
from tinygpt_pl.gpt import INIT_STD
from tinygpt_pl.guards import Unhealthy, check_evaluation, check_start
from tinygpt_pl.insight.diagnosis import diagnose
from tinygpt_pl.insight.evidence import table_losses
from tinygpt_pl.insight.history import History, Setup, fenced, read_history
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.runs.checkpoint import FORMAT
from tinygpt_pl.runs.folder import event_sizes
from tinygpt_pl.system.files import replacing
from tinygpt_pl.text.tokenizer import Tokenizer
from tinygpt_pl.training.console import say
from tinygpt_pl.training.curve import CHARTS, RESULTS, EventLogger
from tinygpt_pl.training.sharding import undivided
from tinygpt_pl.windows import Batch


class Evaluation(Callback):
    """Evaluates before the first step and after the last, and first of all where a stopped run had not come to it.

    Between, `val_check_interval` does so. Each checkpoint gets the latest validation loss and its optimizer step.
    """

    def __init__(self, *, fresh: bool) -> None:
        """Evaluate nothing yet.

        Args:
            fresh: whether the run starts from weights that have learnt nothing, whose loss is known beforehand.
        """
        self.evaluated, self.val_loss = -1, math.nan
        self.fresh, self.reopened = fresh, False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the latest evaluation."""
        checkpoint["evaluated"], checkpoint["val_loss"] = self.evaluated, self.val_loss

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from there."""
        self.evaluated, self.val_loss = checkpoint["evaluated"], checkpoint["val_loss"]
        if self.evaluated < checkpoint["global_step"] == trainer.max_steps:
            # With all steps taken Lightning would not even start; one more is pretended until it has.
            trainer.fit_loop.epoch_loop.max_steps += 1
            self.reopened = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run the evaluation that is due, if one is."""
        step, loop = trainer.global_step, trainer.fit_loop.epoch_loop
        if self.reopened:
            loop.max_steps -= 1
            self.reopened = False
        assert isinstance(trainer.val_check_batch, int)
        interval = trainer.val_check_batch // trainer.accumulate_grad_batches
        if self.evaluated < step and (step % interval == 0 or step == trainer.max_steps):
            # A sanity check would run the same loop, but Lightning logs and saves nothing during one.
            trainer.validating = True
            loop.val_loop.run()
            trainer.training = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a run that is broken or lost, before anything of it is saved."""
        assert isinstance(pl_module, TinyGPT)
        step, config = trainer.global_step, pl_module.gpt.config
        train, val = (trainer.callback_metrics[f"eval/{split}_loss"].item() for split in ("train", "val"))
        if step == 0 and self.fresh:
            check_start(val, config.vocab_size, config.n_embd * INIT_STD**2)
        check_evaluation(step, train, val, config.vocab_size, pl_module.learning_rate(step))
        self.evaluated, self.val_loss = step, val

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Ask for the last evaluation, also where `max_steps` is no multiple of the interval."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True


class Samples(Callback):
    """Draws a short text after each evaluation, for TensorBoard's text page and, if asked, for the console.

    It begins with nothing and is drawn with the same numbers each time, so that two samples differ by what has been
    learnt between them. No random number of the training is used up.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int, tokens: int, *, show: bool) -> None:
        """Draw nothing yet.

        Args:
            tokenizer: of the network.
            seed: of the draws.
            tokens: to draw each time.
            show: whether the console is to have the text too.
        """
        self.tokenizer, self.seed, self.tokens, self.show = tokenizer, seed, tokens, show

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw one."""
        assert isinstance(pl_module, TinyGPT)
        gpt = undivided(pl_module.gpt)  # of which all processes have a part
        if not trainer.is_global_zero:
            return
        start = torch.tensor([[self.tokenizer.start]])
        ids = generate(gpt, start, self.tokens, seed=self.seed)[0, 1:]
        block = textwrap.indent(self.tokenizer.decode(ids), "    ", lambda line: True)  # preformatted, in Markdown
        for logger in trainer.loggers:
            if isinstance(logger, EventLogger):
                logger.log_text("sample", block, trainer.global_step)
        if self.show:
            say(trainer, block)


class Compilation(Callback):
    """Compiles the network for the training step; where that fails the run goes on without, and says so."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile now, and not in the middle of the first step, so that its time is seen and its failure caught."""
        assert isinstance(pl_module, TinyGPT)
        batch = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]  # Lightning sets it
        start = time.perf_counter()
        pl_module.gpt.compile(dynamic=False)  # in place: the names of its parameters stay
        try:
            with trainer.precision_plugin.forward_context():
                pl_module.gpt(*batch)
        except Exception as error:  # of dynamo, inductor or a C++ compiler
            pl_module.gpt._compiled_call_impl = None
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            say(trainer, f"NOTE: not compiled, since that failed: {reason[:200]}")
        else:
            say(trainer, f"compiled in {time.perf_counter() - start:.0f}s")


class Watch(Callback):
    """Reads the curve after each evaluation, and says in a line what it finds, once that is certain."""

    def __init__(self, history: History) -> None:
        """Say nothing yet.

        Args:
            history: of the run, filled by others.
        """
        self.history = history
        self.told: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take it that a run that goes on has told what it had found."""
        self.told = {finding.name for finding in diagnose(self.history).findings}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell what is new."""
        new = [finding for finding in diagnose(self.history).findings if finding.name not in self.told]
        self.told |= {finding.name for finding in new}
        say(trainer, *(finding.line for finding in new))
        if new:
            self._log(trainer, "findings", "\n".join(f"- {finding.line}" for finding in new))
        if trainer.global_step == trainer.max_steps:  # before the last save, after which the run counts as finished
            self._sum_up(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sum a run up that a callback has ended early."""
        if trainer.global_step < trainer.max_steps:
            self._sum_up(trainer)

    def _sum_up(self, trainer: pl.Trainer) -> None:
        """Keep what the curve shows with it, and what the run has come to, which TensorBoard has beside its setup."""
        self._log(trainer, "summary", diagnose(self.history).line)
        evaluations = self.history.evaluations
        best, last = min(evaluations, key=lambda evaluation: evaluation.val), evaluations[-1]
        values = (best.val, best.it, last.val, last.train)
        for logger in trainer.loggers:
            logger.log_metrics(dict(zip(RESULTS, map(float, values), strict=True)), step=trainer.global_step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave word of why a run was stopped as not worth going on with."""
        if isinstance(exception, Unhealthy):
            self._log(trainer, "stopped", str(exception))

    @staticmethod
    def _log(trainer: pl.Trainer, tag: str, text: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, EventLogger):
                logger.log_text(tag, text, trainer.global_step)


class StepSeed(Callback):
    """Makes dropout a pure function of (seed, optimizer step, micro-batch, rank), so that a resumed run repeats it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Seed the device's generator for a micro-batch."""
        micro, device = batch_idx % trainer.accumulate_grad_batches, pl_module.device
        seed = dropout_seed(self.seed, trainer.global_step, micro, trainer.global_rank)
        # torch.manual_seed looks for all devices there might be, which takes a hundred times as long.
        if device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.get_device_module(device).manual_seed(seed)


def dropout_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """A 64-bit seed that differs for every micro-batch of a run."""
    return int(np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)[0])


class RunRecord(Callback):
    """Keeps the run's configuration in its folder and its curve, and what a run that goes on has to match."""

    def __init__(
        self, run_dir: Path, config: str, data: TextDataModule, history: History, *, fresh: bool, before: str = ""
    ) -> None:
        """Write nothing yet.

        Args:
            run_dir: the folder of the run.
            config: its settings, as YAML.
            data: the text, set up.
            history: of the run; filled with what its folder holds already, and with the present setup.
            fresh: whether the run starts from weights that have learnt nothing.
            before: the settings that the curve in this folder has noted already.
        """
        self.run_dir, self.config, self.data, self.before = run_dir, config, data, before
        self.history, self.fresh = history, fresh

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters to a boundary between steps.

        A checkpoint is always of such a boundary, wherever in Lightning's loops it was saved; and it may be divided
        into other micro-batches from here on.
        """
        micro_batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        done = dict.fromkeys(("ready", "started", "processed", "completed"), micro_batches)
        none = dict.fromkeys(done, 0)
        checkpoint["loops"]["fit_loop"] |= {
            "epoch_loop.batch_progress": {"total": done, "current": dict(done), "is_last_batch": False},
            "epoch_loop.val_loop.batch_progress": {"total": none, "current": dict(none), "is_last_batch": False},
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write config.yaml, and to TensorBoard the same and what is known of network, text and machine."""
        assert isinstance(pl_module, TinyGPT)
        facts, settings = self._facts(trainer, pl_module), yaml.safe_load(self.config)
        if trainer.global_step:
            with suppress(ValueError, OSError):  # a run that goes on in another folder has no history there
                vars(self.history).update(vars(read_history(self.run_dir)))
        self.history.setups.append(Setup.of(settings, facts))
        if not trainer.is_global_zero:
            return
        with replacing(self.run_dir / "config.yaml") as file:
            file.write(self.config.encode())
        for logger in trainer.loggers:
            if isinstance(logger, EventLogger):
                logger.log_text("facts", fenced(yaml.safe_dump(facts, sort_keys=False)), trainer.global_step)
                if self.config != self.before:
                    logger.log_text("config", fenced(self.config), trainer.global_step)
                    logger.lay_out(CHARTS)
                    logger.log_hparams(settings)

    def _facts(self, trainer: pl.Trainer, module: TinyGPT) -> dict[str, Any]:
        config, splits, device = module.gpt.config, self.data.splits, module.device
        singles, pairs = table_losses(splits["train"], splits["val"], config.vocab_size)
        return {
            "start": trainer.global_step,
            "fresh": self.fresh,
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
        """Add it to a checkpoint, with how far the curve is."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
        checkpoint |= {
            "format": FORMAT,
            "config": self.config,
            "corpus": {"name": self.data.corpus_name, "sha256": self.data.corpus_sha256},
            "windows_per_step": self.data.windows_per_step(trainer),
            "events": event_sizes(self.run_dir),
        }
