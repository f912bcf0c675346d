"""A command with everything it needs: the one place where settings, text, network and trainer meet."""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.profilers import PassThroughProfiler

from tinygpt_pl.commands.settings import build_parser, check_values
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import GPTConfig, parameter_count
from tinygpt_pl.insight.history import History
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.optim import decay_groups
from tinygpt_pl.runs.checkpoint import (
    check_average,
    check_same_network,
    check_training_state,
    check_weights,
    is_untrained,
    iteration_of,
    read_or_point,
    stored_settings,
)
from tinygpt_pl.runs.folder import MARK, RunFolder, checkpoint_path, find_checkpoint, new_run_dir, rewind_events, run_of
from tinygpt_pl.system.machine import check_memory, device_type, keep_freed_memory, multiplies_bf16
from tinygpt_pl.training.averaging import Averaging
from tinygpt_pl.training.cluster import check_processes, is_first_process
from tinygpt_pl.training.console import LongRunNotice, StepProgressBar, Table, say
from tinygpt_pl.training.curve import Curve, EventLogger
from tinygpt_pl.training.evaluation import Compilation, Evaluation, RunRecord, Samples, StepSeed, Watch
from tinygpt_pl.training.resume import (
    changes,
    check_iteration,
    check_lasting,
    check_text,
    check_tokens,
    check_windows,
    plain_settings,
    taken_settings,
)
from tinygpt_pl.training.saving import BestCheckpoint, CheckpointFiles, LastCheckpoint, StopSignals
from tinygpt_pl.training.sharding import check_sharding


class Job:
    """A command: its settings, checked against each other, the text and the checkpoint. No run is touched yet."""

    def __init__(self, verb: str, args: Sequence[str]) -> None:
        self.verb, self.parser = verb, build_parser(verb)
        self.checkpoint = self._take_options(args)
        self.iteration: int = self.checkpoint["global_step"] if self.checkpoint and self.resumes else 0
        self.notes = self._suit()
        if self.resumes and verb == "fit":
            check_lasting(self.before, self.config)
        self.settings = self.parser.instantiate(self.config)
        gpt: GPTConfig = self.settings.model.gpt
        self.data = TextDataModule(
            **self.settings.data,
            block_size=gpt.block_size,
            seed=self.config.seed_everything,
            known=stored_settings(self.checkpoint)[1] if self.checkpoint else None,
        )
        self.data.setup()
        self.gpt = dataclasses.replace(gpt, vocab_size=self.data.tokenizer.vocab_size)
        check_memory(parameter_count(self.gpt))
        if self.checkpoint:
            check_same_network(self.checkpoint, self.gpt)
        self.files = CheckpointFiles()
        self.folder: RunFolder | None = None
        self.run_dir = self._place() if verb == "fit" else None
        if self.checkpoint and verb == "fit" and not self.resumes:
            self.notes.append(f"a new run with the weights of {self.ckpt_path}")
        elif self.checkpoint and verb == "fit":
            check_iteration(self.iteration, self.config.trainer.max_steps)
            check_text(self.checkpoint["corpus"], self.data)
            self.notes.append(f"going on from iteration {self.iteration} of {self.ckpt_path}")
            self.notes += changes(self.iteration, self.before, self.config)

    def _take_options(self, args: Sequence[str]) -> dict[str, Any] | None:
        """Parse the words.

        What they and their files stand on is the configuration of the run that goes on or is scored, or the shape of
        the network that a new run starts from.
        """
        config, checkpoint = self.parser.parse_args(args), None
        self.given_dir = Path(os.path.expanduser(config.run_dir)) if config.run_dir else None
        self.ckpt_path: Path | None = None
        starts = self.verb == "fit" and config.ckpt_path is None
        source = config.init_from if starts else config.ckpt_path
        self.resumes = False
        if source is not None:
            self.ckpt_path = find_checkpoint(source, self.given_dir)
            self.written = self.ckpt_path.stat().st_mtime_ns
            checkpoint = read_or_point(self.ckpt_path)
            self.resumes = not (starts or (self.verb == "fit" and is_untrained(checkpoint)))
            if self.resumes:
                settings, held = plain_settings(checkpoint["config"])
            else:
                settings, held = taken_settings(*stored_settings(checkpoint)), []
            self.before = self.parser.parse_object(settings)
            config = self.parser.parse_args(args, namespace=self.before.clone())
            if not self.resumes:
                check_tokens(settings, config)
                config.init_from = str(self.ckpt_path)  # what the run writes down of it
            for name in held if self.verb == "fit" else ():
                if config[name] == self.before[name] and not any(word.startswith(f"--{name}") for word in args):
                    raise ValueError(f"the run had {name} with code of its own: give it again, or --{name}=null")
        check_values(self.parser, config)
        self.config = config
        return checkpoint

    def _suit(self) -> list[str]:
        """Settle what is left to the machine, and tell what it cannot do."""
        trainer, notes = self.config.trainer, []
        device = device_type(trainer.accelerator)
        if trainer.precision == "auto":
            trainer.precision = "bf16-mixed" if multiplies_bf16(device) else "32-true"
            if trainer.precision == "32-true":
                notes.append(f"NOTE: float32, since this {device} has no instructions for bfloat16")
        check_sharding(self.config)
        if self.config.ema_decay is not None and trainer.precision in ("bf16-true", "16-true"):
            raise ValueError(
                f"ema_decay needs weights of more digits than {trainer.precision}: an average would stand still"
            )
        if self.config.compile == "auto":
            self.config.compile = device == "cuda"
            if not self.config.compile:
                notes.append(f"NOTE: not compiled, since that does not pay on a {device}")
        return notes

    def _place(self) -> Path | None:
        """The folder of the run; None stands for a new one. No run is written over, and none loses what it has."""
        given, own = self.given_dir, self._own_dir()
        if self.ckpt_path and own and (given is None or given.resolve() == own.resolve()):
            last = checkpoint_path(own, "last")
            if self.ckpt_path.name == last.name or (reached := iteration_of(last)) <= self.iteration:
                return own
            beyond = f"{own} has gone on from {self.ckpt_path} (iteration {self.iteration}) to iteration {reached}"
            if given:
                raise ValueError(f"{beyond}; go on with --ckpt_path {last}, or give another --run_dir")
            self.notes.append(f"NOTE: {beyond}: this is a new run that starts there")
        elif given and ((given / "config.yaml").exists() or any(given.glob("checkpoints/*.ckpt"))):
            last = checkpoint_path(given, "last")
            way_out = f"go on with --ckpt_path {last}" if last.exists() else "it has no checkpoint yet: delete it"
            raise ValueError(f"{given} holds a run already; {way_out}, or give another --run_dir")
        return given

    def _own_dir(self) -> Path | None:
        """The folder of the run to go on with, if there is one."""
        return run_of(self.ckpt_path) if self.ckpt_path and self.resumes else None

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken and evaluated."""
        done = self.checkpoint["evaluated"] if self.checkpoint and self.resumes else -1
        return self.verb == "fit" and bool(done == self.config.trainer.max_steps)

    @property
    def goes_on(self) -> bool:
        """Whether the run goes on in the folder of its checkpoint."""
        own = self._own_dir()
        return own is not None and self.run_dir is not None and own.resolve() == self.run_dir.resolve()

    def prepare(self) -> None:
        """Take hold of the run's folder, and build the network and the Trainer.

        Raises:
            ValueError: if the folder is in use, the Trainer cannot do what is asked for, or the checkpoint is damaged.
            OSError: if the folder cannot be written to.
        """
        if self.finished:
            return
        if self.verb == "fit" and is_first_process():
            self.folder = RunFolder(self.run_dir)
            self.run_dir = self.folder.path
            if self.ckpt_path and self.ckpt_path.stat().st_mtime_ns != self.written:
                raise ValueError(f"{self.ckpt_path} has just been written anew; give the command again")
        pl.seed_everything(self.config.seed_everything, verbose=False)
        self.model = TinyGPT(self.gpt, self.settings.model.optim, self.data.tokenizer)
        if self.checkpoint:
            check_weights(self.checkpoint["state_dict"], self.model.state_dict())
        if self.verb == "fit":
            self.trainer = self._fit_trainer(self.run_dir or new_run_dir())
            # Weights and optimizer are then loaded as they were saved, with no rounding on the way.
            self.trainer.precision_plugin.convert_module(self.model)
            if self.checkpoint and not self.resumes:
                self.model.load_state_dict(self.checkpoint["state_dict"])
            elif self.checkpoint:
                groups = decay_groups(self.model.gpt, self.model.optim)
                check_training_state(self.checkpoint, groups)
                if self.config.ema_decay is not None:
                    check_average(self.checkpoint, self.model.state_dict())
                check_windows(self.checkpoint["windows_per_step"], self.data.windows_per_step(self.trainer))
        else:
            assert self.checkpoint
            self.model.load_state_dict(self.checkpoint["state_dict"])
            self.trainer = self._score_trainer()
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        if self.verb == "test" or self.data.eval_coverage == "full":
            windows = math.ceil((len(self.data.splits["val"]) - 1) / self.gpt.block_size)
            if windows < self.trainer.world_size:
                raise ValueError(f"the val split has {windows} windows, too few for {self.trainer.world_size} devices")
        for large in ("state_dict", "current_model_state", "optimizer_states"):
            (self.checkpoint or {}).pop(large, None)

    def close(self) -> None:
        """Let go of the run's folder."""
        if self.folder:
            self.folder.release()

    def _fit_trainer(self, run_dir: Path) -> pl.Trainer:
        options = dict(self.settings.trainer)
        before = self.checkpoint["config"] if self.checkpoint and self.goes_on else ""
        if options["logger"] in (None, True):
            options["logger"] = EventLogger(run_dir, purge_step=self.iteration + 1 if self.resumes else None)
        shorter = "fewer --trainer.max_steps help" if self.checkpoint else "--config configs/cpu.yaml takes minutes"
        interval, signals = self.config.eval_interval, StopSignals()
        seed, tokens = self.config.seed_everything, self.config.sample_tokens
        history, fresh = History(), self.checkpoint is None
        callbacks: list[Callback] = [
            signals,
            RunRecord(run_dir, self._record(), self.data, history, fresh=fresh, before=before),
            Table(run_dir, self.data, history, self.notes),
            LongRunNotice(interval, shorter),
            *([StepProgressBar(interval)] if options["enable_progress_bar"] is not False else []),
            *([Compilation()] if self.config.compile else []),
            StepSeed(seed),
            Curve(options["log_every_n_steps"], self.config.peak_tflops and self.config.peak_tflops * 1e12, history),
            Evaluation(fresh=fresh),
            Watch(history),
            *([Samples(self.data.tokenizer, seed, tokens, show=self.config.print_samples)] if tokens else []),
            *([] if self.config.ema_decay is None else [Averaging(self.config.ema_decay, self.data)]),
            BestCheckpoint(run_dir, self.files),
            LastCheckpoint(run_dir, self.config.save_minutes, signals),
        ]
        own = options["plugins"] or []
        options["plugins"] = [self.files, *(own if isinstance(own, list) else [own])]
        return self._trainer(
            options,
            callbacks,
            # in micro-batches, and across epochs, of which there is one
            val_check_interval=interval * options["accumulate_grad_batches"],
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
        )

    def _score_trainer(self) -> pl.Trainer:
        options = {**self.settings.trainer, "logger": False}
        callbacks: list[Callback] = [TQDMProgressBar()] if options["enable_progress_bar"] is not False else []
        return self._trainer(options, callbacks, enable_checkpointing=False)

    @staticmethod
    def _trainer(options: dict[str, Any], callbacks: list[Callback], **fixed: Any) -> pl.Trainer:
        options["profiler"] = options["profiler"] or Unprofiled()
        own = options.pop("callbacks") or []
        callbacks = [*callbacks, *(own if isinstance(own, list) else [own])]
        try:
            trainer = pl.Trainer(**options, **fixed, callbacks=callbacks, enable_model_summary=False)
        except Exception as error:  # Lightning raises all sorts of them for a setting that it cannot use
            raise ValueError(f"trainer: {error}") from error
        check_processes(trainer)
        return trainer

    def _record(self) -> str:
        """The configuration as it is to be run again: with the corpus that was had, into a folder of its own."""
        record = self.config.clone()
        record.data.corpus = self.data.corpus_name
        for name in ("config", "ckpt_path", "run_dir"):
            record.pop(name, None)
        versions = "".join(f", {name} {version(name)}" for name in ("torch", "lightning"))
        note = f"# {self.data.offline_notice}\n" if self.data.offline_notice else ""
        return f"{MARK}{version('tinygpt_pl')}{versions}\n{note}{self.parser.dump(record, skip_unset=False)}"

    def fit(self) -> None:
        """Train."""
        if self.finished:
            print(f"nothing to do: iteration {self.iteration} is reached; a larger --trainer.max_steps goes on")
            return
        if self.checkpoint and self.folder and self.goes_on:
            rewind_events(self.folder.path, self.checkpoint["events"])
        self.trainer.fit(self.model, self.data, ckpt_path=self.ckpt_path if self.resumes else None, weights_only=True)

    def validate(self) -> None:
        """Print the line of the table again."""
        with redirect_stdout(sys.stderr):  # where Lightning's bar belongs: the output is the score alone
            self.trainer.validate(self.model, self.data, verbose=False)
        train, val = (self.trainer.callback_metrics[f"eval/{split}_loss"].item() for split in ("train", "val"))
        say(self.trainer, f"iter {self.iteration} | train {train:.4f} | val {val:.4f} | {self.ckpt_path}")

    def test(self) -> None:
        """Print the loss over the whole validation split in the units of the field."""
        with redirect_stdout(sys.stderr):
            self.trainer.test(self.model, self.data, verbose=False)
        nats, unit = self.trainer.callback_metrics["test/loss"].item(), self.data.tokenizer.unit
        tokens, bits = len(self.data.splits["val"]) - 1, nats / math.log(2)
        others = (f"{bits * n:.4f} per {name}" for name, n in self.data.tokens_per.items() if name != unit)
        say(
            self.trainer,
            f"iter {self.iteration} | {tokens:,} tokens of {self.data.corpus_name} | {self.ckpt_path}",
            f"{nats:.4f} nats and {bits:.4f} bits per {unit} | perplexity {math.exp(nats):.4f} "
            f"| average probability {math.exp(-nats):.4f} | bits: {', '.join(others)}",
        )


class Unprofiled(PassThroughProfiler):
    """Measures nothing, at a fifth of the price: Lightning asks its profiler at each hook of each callback."""

    NOTHING = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]  # which wants a generator's
        """A context that does nothing; the same one each time."""
        return self.NOTHING
