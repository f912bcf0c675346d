"""The command fit: train a model, from scratch, from the weights of a checkpoint, or where a run stopped."""

import dataclasses
from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
from torch import Tensor

from tinygpt_pl.commands.classes import Classes
from tinygpt_pl.commands.outcome import Work
from tinygpt_pl.commands.settings import Settings, offline_notice, read_settings
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import parameter_count
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.runs.checkpoint import Checkpoint, check_same_network, check_weights
from tinygpt_pl.runs.start import Start, claim_run, place_run
from tinygpt_pl.system.machine import check_memory
from tinygpt_pl.system.signals import ended_by_signals
from tinygpt_pl.training.console import quieten
from tinygpt_pl.training.processes import is_first_process
from tinygpt_pl.training.recipe import recipe_callbacks
from tinygpt_pl.training.resume import changes, check_run, check_state
from tinygpt_pl.training.trainer import check_split, lightning_running, make_trainer


def fit(args: Sequence[str], work: Work, classes: Classes) -> None:
    """Train a model."""
    quieten()
    settings, start = read_settings("fit", args, classes)
    data = load_data(settings, start)
    run_dir, beyond = place_run(start, settings.run_dir)
    if start.resumed:
        check_run(start.resumed, data, settings.config.trainer.max_steps)
    notes = [*settings.notes, data.corpus_note, beyond, *describe(start, settings)]
    if start.finished(settings.config.trainer.max_steps):
        print(f"nothing to do: iteration {start.iteration} is reached; a larger --trainer.max_steps goes on")
        return
    with claim_run(run_dir, start, owner=is_first_process(settings.trainer["plugins"])) as run:
        module = make_module(settings, data, start)
        callbacks = recipe_callbacks(
            run,
            data,
            settings.run,
            start,
            settings=settings.text(data),
            notes=notes,
            log_every_n_steps=settings.trainer["log_every_n_steps"],
            progress_bar=settings.trainer["enable_progress_bar"] is not False,
        )
        trainer = make_trainer(callbacks, **settings.trainer)
        # Weights and optimizer are then loaded as they were saved, with no rounding on the way.
        trainer.precision_plugin.convert_module(module)
        resumed = start.resumed
        if resumed:
            check_state(resumed, module, data, trainer, averaged=settings.run.ema_decay is not None)
        elif start.checkpoint:
            load_weights(start.checkpoint, module)
        check_split(data, trainer)
        work.begin(trainer, run)
        if trainer.is_global_zero:
            start.rewind(run)
        with lightning_running(trainer, start.iteration):
            trainer.fit(module, data, ckpt_path=resumed.path if resumed else None, weights_only=True)


def load_data(settings: Settings, start: Start, stage: str = "fit") -> TextDataModule:
    """The text, encoded by the tokenizer of the checkpoint if there is one; `stage` is Lightning's."""
    known = start.checkpoint.tokenizer if start.checkpoint else None
    seed = settings.run.seed_everything
    build = settings.classes.data or TextDataModule
    data = build(**settings.data, block_size=settings.gpt.block_size, seed=seed, known=known)
    with ended_by_signals():
        data.setup(stage)
    if start.resumed and not data.offline_notice:
        data.offline_notice = offline_notice(start.resumed.content["config"])
    gpt = dataclasses.replace(settings.gpt, vocab_size=data.tokenizer.vocab_size)
    check_memory(parameter_count(gpt))
    if start.checkpoint:
        check_same_network(start.checkpoint, gpt)
    return data


def make_module(settings: Settings, data: TextDataModule, start: Start) -> TinyGPT:
    """Build the model with fresh weights, and check that those of the checkpoint, if there is one, fit its `gpt`."""
    pl.seed_everything(settings.run.seed_everything, verbose=False)
    gpt = dataclasses.replace(settings.gpt, vocab_size=data.tokenizer.vocab_size)
    module = (settings.classes.module or TinyGPT)(
        gpt=gpt, optim=settings.optim, tokenizer=data.tokenizer, **settings.module
    )
    if start.checkpoint:
        stored, fresh = start.checkpoint.content["state_dict"], module.state_dict()
        with settings.classes.building(start.checkpoint):
            check_weights(*({name: of[name] for name in of if _shared(name, stored, fresh)} for of in (stored, fresh)))
    return module


def _shared(name: str, stored: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> bool:
    """Whether a weight must be in both; a head added by a subclass may be in only one."""
    return name.startswith("gpt.") or (name in stored and name in fresh)


def load_weights(checkpoint: Checkpoint, module: TinyGPT) -> None:
    """Load the weights that checkpoint and module have in common."""
    module.load_state_dict(checkpoint.hand_over()["state_dict"], strict=False)


def describe(start: Start, settings: Settings) -> list[str]:
    """Lines that say how the run starts."""
    if start.resumed and settings.before:
        note = f"going on from iteration {start.iteration} of {start.resumed.path}"
        return [note, *changes(start.iteration, settings.before, settings.config)]
    return [f"a new run with the weights of {start.checkpoint.path}"] if start.checkpoint else []
