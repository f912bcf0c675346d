"""The command line: the one place where data, network and trainer meet."""

import dataclasses
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from tinygpt_pl.callbacks import Curve, Evaluation, EventLogger, RunRecord, StepSeed, checkpoints
from tinygpt_pl.checkpoint import check_same_network, find_checkpoint, new_run_dir, read_checkpoint, run_of
from tinygpt_pl.console import LongRunNotice, StepProgressBar, Table, say
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.diagnosis import WrongStart
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.options import PROG, VERBS, build_parser, check_values, fail

LASTING = (
    *("seed_everything", "data.corpus", "data.val_fraction", "data.batch_size", "data.eval_iters"),
    "trainer.accumulate_grad_batches",
)
"""Settings that make a run's windows what they are."""

UserError = (ValueError, OSError)
"""What a wrong setting or file raises before training starts; later, the same is a failure of the run."""


class Job:
    """A command with everything it needs: settings, text, network and trainer, checked before anything is written."""

    def __init__(self, verb: str, args: Sequence[str]) -> None:
        self.parser = build_parser(verb)
        checkpoint = self._take_options(args)
        self.iteration = checkpoint["global_step"] if checkpoint else 0
        settings = self.parser.instantiate(self.config)
        gpt: GPTConfig = settings.model.gpt
        self.data = TextDataModule(**settings.data, block_size=gpt.block_size, seed=self.config.seed_everything)
        self.data.setup()
        gpt = dataclasses.replace(gpt, vocab_size=self.data.tokenizer.vocab_size)
        if checkpoint:
            check_same_network(checkpoint, dataclasses.asdict(gpt), self.data.tokenizer.characters)
        if verb == "fit":
            self._check_run(checkpoint)
            pl.seed_everything(self.config.seed_everything, verbose=False)
            self.model = TinyGPT(gpt, settings.model.optim, self.data.tokenizer)
            self.trainer = self._fit_trainer(settings)
            if self.trainer.is_global_zero and self.iteration < self.trainer.max_steps:
                (self.run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        else:
            assert self.ckpt_path
            self.model = TinyGPT.load_from_checkpoint(self.ckpt_path, map_location="cpu", weights_only=True)
            self.trainer = self._score_trainer(settings)
            windows = math.ceil((len(self.data.splits["val"]) - 1) / gpt.block_size)
            if windows < self.trainer.world_size:
                raise ValueError(f"the val split has {windows} windows, too few for {self.trainer.world_size} devices")

    def _take_options(self, args: Sequence[str]) -> dict[str, Any] | None:
        """Parse the words; with a checkpoint, its own configuration is what they and their files stand on."""
        config, checkpoint = self.parser.parse_args(args), None
        run_dir = Path(config.run_dir).expanduser() if config.run_dir else None
        self.ckpt_path: Path | None = None
        if config.ckpt_path is not None:
            self.ckpt_path = find_checkpoint(config.ckpt_path, run_dir)
            checkpoint = read_checkpoint(self.ckpt_path)
            run_dir = run_dir or run_of(self.ckpt_path)
            config = self.parser.parse_args(args, namespace=self.parser.parse_string(checkpoint["config"]))
        check_values(self.parser, config)
        self.config, self.run_dir = config, run_dir or new_run_dir()
        return checkpoint

    def _check_run(self, checkpoint: dict[str, Any] | None) -> None:
        """See that a run neither writes over another nor goes on in a way that would not be its own."""
        own = self.ckpt_path and run_of(self.ckpt_path)
        if (self.run_dir / "config.yaml").exists() and not (own and own.resolve() == self.run_dir.resolve()):
            last = self.run_dir / "checkpoints" / "last.ckpt"
            way_out = f"go on with --ckpt_path {last}" if last.exists() else "it has no checkpoint yet: delete it"
            raise ValueError(f"{self.run_dir} holds a run already; {way_out}, or give another --run_dir")
        if not checkpoint:
            return
        max_steps = self.config.trainer.max_steps
        if self.iteration > max_steps:
            raise ValueError(f"the checkpoint is of iteration {self.iteration}, beyond trainer.max_steps {max_steps}")
        before = self.parser.parse_string(checkpoint["config"])
        for name in LASTING:
            if self.config[name] != before[name]:
                raise ValueError(
                    f"{name} has to stay {before[name]} in a run that goes on, got {self.config[name]}; give another "
                    "--run_dir without --ckpt_path for a new run"
                )

    def _fit_trainer(self, settings: Namespace) -> pl.Trainer:
        run_dir = self.run_dir
        options = dict(settings.trainer)
        if options["logger"] in (None, True):
            options["logger"] = EventLogger(run_dir)
        interval = self.config.eval_interval
        callbacks: list[Callback] = [
            RunRecord(run_dir, self._record()),
            Table(run_dir, self.data),
            LongRunNotice(interval, "--config configs/cpu.yaml takes minutes"),
            *([StepProgressBar(interval)] if options["enable_progress_bar"] is not False else []),
            StepSeed(self.config.seed_everything),
            Curve(options["log_every_n_steps"]),
            Evaluation(),
            *checkpoints(run_dir),
        ]
        return self._trainer(
            options,
            callbacks,
            # in micro-batches, and across epochs, of which there is one
            val_check_interval=interval * options["accumulate_grad_batches"],
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
        )

    def _score_trainer(self, settings: Namespace) -> pl.Trainer:
        options = {**settings.trainer, "logger": False}
        callbacks: list[Callback] = [TQDMProgressBar()] if options["enable_progress_bar"] is not False else []
        return self._trainer(options, callbacks, enable_checkpointing=False)

    @staticmethod
    def _trainer(options: dict[str, Any], callbacks: list[Callback], **fixed: Any) -> pl.Trainer:
        own = options.pop("callbacks") or []
        callbacks = [*callbacks, *(own if isinstance(own, list) else [own])]
        try:
            return pl.Trainer(**options, **fixed, callbacks=callbacks, enable_model_summary=False)
        except Exception as error:  # Lightning raises all sorts of them for a setting that it cannot use
            raise ValueError(f"trainer: {error}") from error

    def _record(self) -> str:
        """The configuration as it is to be run again: with the corpus that was had, into a folder of its own."""
        record = self.config.clone()
        record.data.corpus = self.data.corpus_name
        for name in ("config", "ckpt_path", "run_dir"):
            record.pop(name, None)
        versions = "".join(f", {name} {version(name)}" for name in ("torch", "lightning"))
        note = f"# {self.data.offline_notice}\n" if self.data.offline_notice else ""
        return f"# tinygpt_pl {version('tinygpt_pl')}{versions}\n{note}{self.parser.dump(record, skip_unset=False)}"

    def fit(self) -> None:
        """Train."""
        if self.iteration == self.trainer.max_steps:
            say(
                self.trainer,
                f"nothing to do: iteration {self.iteration} is reached; a larger --trainer.max_steps goes on",
            )
            return
        self.trainer.fit(self.model, self.data, ckpt_path=self.ckpt_path, weights_only=True)

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
        nats = self.trainer.callback_metrics["test/loss"].item()
        tokens = len(self.data.splits["val"]) - 1
        say(
            self.trainer,
            f"iter {self.iteration} | {tokens:,} tokens of {self.data.corpus_name} | {self.ckpt_path}",
            f"{nats:.4f} nats and {nats / math.log(2):.4f} bits per character | perplexity {math.exp(nats):.4f} "
            f"| average probability {math.exp(-nats):.4f}",
        )


def quieten() -> None:
    """Keep the console for what the run itself has to say."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # devices, ranks, adverts, «max_steps reached»
    # The accelerator was the user's choice.
    warnings.filterwarnings("ignore", message="GPU available but not used", category=UserWarning)
    # A resumed run goes on in its own folder, on purpose.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty", category=UserWarning)
    # Lightning 2.6.6 asks torch 2.13 for a deprecated class at every batch.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: its words; those of the shell if left out.

    Returns:
        The exit code: 0, 1 for a run that failed, 2 for a wrong setting or file, 130 or 143 if a signal stopped it.

    Raises:
        SystemExit: from the parser, with code 0 after a help text and 2 at a word that it does not understand.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: {PROG} COMMAND --help", *(f"  {verb:10}{text}" for verb, text in VERBS.items()), sep="\n")
        return 0 if args else 2
    verb, *options = args
    if verb not in VERBS:
        fail(f"no command {verb!r}: it has to be one of {', '.join(VERBS)}")
        return 2
    quieten()
    try:
        job = Job(verb, options)
    except UserError as error:
        fail(str(error))
        return 2
    try:
        getattr(job, verb)()
    except WrongStart as error:
        if job.trainer.is_global_zero:
            fail(str(error))
        return 1
    except SystemExit:  # Lightning's end of a run that a signal stopped; its own code says nothing of the kind
        last = job.run_dir / "checkpoints" / "last.ckpt"
        if verb == "fit" and job.trainer.is_global_zero and last.is_file():
            print(f"stopped; from its last evaluation on: {PROG} fit --ckpt_path {last}", file=sys.stderr)
        return 143 if job.trainer.received_sigterm else 130
    return 0
