"""The settings of `fit`, `validate` and `test`: the command line, over files, over what a checkpoint brings.

jsonargparse is used directly, not through LightningCLI: that takes a model's settings from a checkpoint over those that
were asked for, without a word, and has no place for a vocabulary that is known once the text is read.
"""

import os
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException

from tinygpt_pl.commands import strict_yaml
from tinygpt_pl.commands.classes import DEFAULT, Classes
from tinygpt_pl.commands.configs import StackedFiles, find_config
from tinygpt_pl.commands.parser import Parser, plain
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.optim import OptimConfig
from tinygpt_pl.runs.checkpoint import Checkpoint
from tinygpt_pl.runs.start import Start
from tinygpt_pl.training.auto import NAMES, settle
from tinygpt_pl.training.recipe import RunConfig
from tinygpt_pl.training.resume import check_settings
from tinygpt_pl.training.settings import heading
from tinygpt_pl.training.sharding import check_sharding
from tinygpt_pl.training.trainer import choose_precision, device_kind, make_trainer

LOWEST = {
    "trainer.max_steps": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.gradient_clip_val": 0,
}
"""Settings that no class of ours checks, with their least values."""

NULLABLE = {"data.offline_corpus", "trainer.gradient_clip_val", "trainer.precision"}
"""Settings that may be null though their default is not."""


@dataclass(frozen=True)
class Settings:
    """All settings of a command, checked."""

    parser: Parser
    classes: Classes
    config: Namespace
    """Plain values, as they are written down."""
    before: Namespace | None
    """Those that the run had so far, if it resumes."""
    run: RunConfig
    gpt: GPTConfig
    optim: OptimConfig
    module: dict[str, Any]
    """Arguments that a subclass of TinyGPT adds."""
    data: dict[str, Any]
    """Arguments of TextDataModule or its subclass."""
    trainer: dict[str, Any]
    """Arguments of `make_trainer`, classes of the user's own as objects."""
    notes: tuple[str, ...]
    """What this machine cannot do."""

    @property
    def run_dir(self) -> Path | None:
        """The folder that was asked for."""
        return _folder(self.config)

    def text(self, data: TextDataModule) -> str:
        """The settings as YAML, to be run again: with the corpus that was had, into a folder of its own."""
        record = self.config.clone()
        record.data.corpus = data.corpus_place
        for name in ("config", "ckpt_path", "run_dir", *(() if record.auto else ("auto",))):
            record.pop(name, None)
        return heading(data.offline_notice) + str(self.parser.dump(record, skip_unset=False))


def offline_notice(config: str) -> str:
    """The notice that `Settings.text` wrote down for a run whose corpus is not the one that was asked for."""
    return next((line.removeprefix("# ") for line in config.splitlines() if line.startswith("# NOTE: ")), "")


def build_parser(verb: str, classes: Classes = DEFAULT) -> Parser:
    """The options of `fit`, `validate` or `test`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    strict_yaml.use()
    parser = Parser.of(verb)
    files = "a YAML file, or the name of a shipped one such as base or cpu; repeatable, later ones win"
    parser.add_argument("-c", "--config", action=StackedFiles, type=find_config, help=files)
    parser.add_class_arguments(RunConfig)
    parser.add_argument(
        "--ckpt_path",
        type=str if verb != "fit" else str | None,
        default=None if verb == "fit" else "best",
        help="last or best (of --run_dir, else of the newest run), or a file",
    )
    if verb == "test":
        parser.add_ensemble()
    parser.add_argument(
        "--init_from", type=str | None, help="a checkpoint whose weights and vocabulary a new run starts from"
    )
    parser.add_argument(
        "--run_dir",
        type=str | None,
        help="folder of the run; lightning_logs/version_N, or the checkpoint's, if left out",
    )
    parser.add_argument("--auto", type=list[str] | None, help="settings left to the machine; a run writes them down")
    if classes.module:
        parser.add_class_arguments(classes.module, "model", skip={"gpt", "optim", "tokenizer"}, instantiate=False)
    parser.add_class_arguments(GPTConfig, "model.gpt", skip={"vocab_size"})
    parser.add_class_arguments(OptimConfig, "model.optim")
    data, known = classes.data or TextDataModule, {"block_size", "seed", "known"}
    parser.add_class_arguments(data, "data", skip=known, instantiate=False)
    parser.add_function_arguments(make_trainer, "trainer", skip={"recipe"}, sub_configs=True)
    return parser


def read_settings(verb: str, args: Sequence[str], classes: Classes = DEFAULT) -> tuple[Settings, Start]:
    """Parse the words of a command, and read the checkpoint that they name.

    Args:
        verb: the command.
        args: its words.
        classes: the module and data classes.

    Raises:
        ValueError: for a setting, a file or a checkpoint that is wrong.
        OSError: if a file cannot be read.
    """
    parser = build_parser(verb, classes)
    config, before = parser.parse_args(args), None
    _check_order(parser, args, config)
    start = _find_start(verb, config)
    if start.checkpoint:
        classes.check(start.checkpoint, trains=verb == "fit" and start.kind == "resume")
        settings, held = _brought(start, start.checkpoint)
        if classes.missing(start.checkpoint):
            known = parser.get_defaults()
            for group in ("model", "data"):
                settings[group] = {name: of for name, of in settings[group].items() if f"{group}.{name}" in known}
        before = parser.parse_object(settings)
        config = parser.parse_args(args, namespace=before.clone())
        if start.kind == "resume":
            _check_ignored(verb, args, before, config)
            config.init_from = before.init_from  # what the run began with, whatever a file of settings says
        if start.kind == "weights":
            _check_tokens(settings, config)
            config.init_from = os.path.abspath(start.checkpoint.path)  # what the run writes down of it
        for name in held if verb == "fit" else ():
            if config[name] == before[name] and not any(word.startswith(f"--{name}") for word in args):
                raise ValueError(f"the run had {name} with code of its own: give it again, or --{name}=null")
    _check_values(parser, config)
    try:
        chosen = parser.instantiate(config)
        kind = device_kind(chosen.trainer.accelerator)
    except (MisconfigurationException, ImportError, ValueError) as error:  # of a callback, logger or accelerator, too
        raise ValueError(plain(str(error))) from error
    before = before if start.resumed else None
    device = start.resumed.content.get("machine", {}).get("device") if start.resumed else None
    names = NAMES if verb == "fit" else NAMES[:-1]
    notes = settle(config, chosen.model.gpt, names, args, before or config, device, kind)
    for settings in filter(None, (before, config)):
        settings.trainer.precision = choose_precision(settings.trainer.precision, kind)
    _check_together(config)
    if before and verb == "fit":
        check_settings(before, config)
    settled = {name: config.trainer[name] for name in ("devices", "precision")}
    if "trainer.accelerator" in (config.auto or ()):
        settled["accelerator"] = config.trainer.accelerator
    model, trainer = chosen.model, dict(chosen.trainer) | settled
    others = {name: value for name, value in config.model.as_dict().items() if name not in ("gpt", "optim")}
    made = Settings(
        parser=parser,
        classes=classes,
        config=config,
        before=before,
        run=_run_config(config),
        gpt=model.gpt,
        optim=model.optim,
        module=others,
        data=dict(config.data),
        trainer=trainer,
        notes=tuple(notes),
    )
    return made, start


def _check_order(parser: Parser, args: Sequence[str], config: Namespace) -> None:
    """Refuse an option that a file after it overrides: the two orders give the same settings, but for such a one."""
    files = ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("-c", "--config", action="append", default=[])
    given, others = files.parse_known_args(args)
    if given.config and others:
        files_first = parser.parse_args([*(f"--config={file}" for file in given.config), *others])
        for name, value in files_first.items():
            if name != "config" and value == value and config.get(name) != value:  # NaN is refused later
                raise ValueError(
                    f"--{name} {value} comes before a --config that sets {config.get(name)}: give --config first"
                )


def _check_ignored(verb: str, args: Sequence[str], before: Namespace, config: Namespace) -> None:
    """Refuse what a run that is scored or resumes would ignore: weights to begin with, and other tokens."""
    if any(word.partition("=")[0] == "--init_from" for word in args):
        raise ValueError("--init_from is for a new run; leave it out, or --ckpt_path")
    if verb != "fit":
        for name in ("tokenizer", "vocab_size"):
            if config.data[name] != before.data[name]:
                raise ValueError(f"data.{name} must stay {before.data[name]}, that of the run, got {config.data[name]}")


def _run_config(config: Namespace) -> RunConfig:
    return RunConfig(**{field.name: config[field.name] for field in fields(RunConfig)})


def _folder(config: Namespace) -> Path | None:
    return Path(os.path.expanduser(config.run_dir)) if config.run_dir else None


def _find_start(verb: str, config: Namespace) -> Start:
    """What a new run starts from, what a run resumes from, or what is scored."""
    if verb == "fit" and config.ckpt_path is None:
        return Start() if config.init_from is None else Start.of(config.init_from, None, "weights")
    start = Start.of(config.ckpt_path, _folder(config), "resume")
    checkpoint = start.checkpoint
    assert checkpoint
    if verb == "fit" and checkpoint.lacking:
        raise ValueError(
            f"{checkpoint.path} was saved without the callbacks of the recipe, and no run resumes from it: it lacks "
            f"{', '.join(checkpoint.lacking)}; --init_from starts a new run with its weights"
        )
    imported = verb == "fit" and checkpoint.untrained
    return Start("weights", checkpoint) if imported or checkpoint.lacking else start


def _brought(start: Start, checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """The settings that a checkpoint brings, which others go over, and the names of those that would import code."""
    if start.kind == "resume":
        return plain_settings(checkpoint.content["config"])
    shape = asdict(checkpoint.gpt)
    del shape["vocab_size"]  # no setting: it is that of the vocabulary
    tokenizer = checkpoint.tokenizer
    size = {"vocab_size": tokenizer.vocab_size} if tokenizer.kind == "bpe" else {}
    return {"model": {"gpt": shape}, "data": {"tokenizer": tokenizer.kind, **size}}, []


PLAIN = re.compile(r"[\w-]*")
"""Text that names no class: without a dot."""


def plain_settings(config: str) -> tuple[dict[str, Any], list[str]]:
    """The settings in a checkpoint's YAML, but for those of the Trainer that would import code, and their names.

    Raises:
        ValueError: if it is not YAML of settings.
    """
    try:
        tree = yaml.safe_load(config)
        trainer = tree["trainer"]
        held = [name for name, value in trainer.items() if isinstance(value, str) and not PLAIN.fullmatch(value)]
        held += [name for name, value in trainer.items() if isinstance(value, dict | list) and name != "devices"]
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        raise ValueError("the checkpoint is damaged: its config is no mapping of settings") from None
    tree = {name: value for name, value in tree.items() if name not in ("config", "ckpt_path", "run_dir")}
    if "seed_everything" in tree and isinstance(tree.get("data"), dict):  # earlier versions evaluated with that seed
        tree["data"].setdefault("eval_seed", tree["seed_everything"])
    tree["trainer"] = {name: value for name, value in trainer.items() if name not in held}
    return tree, [f"trainer.{name}" for name in held]


def _check_tokens(brought: dict[str, Any], config: Namespace) -> None:
    """Refuse other tokens than those that a checkpoint brings."""
    for name, value in brought["data"].items():
        if config.data[name] != value:
            raise ValueError(
                f"data.{name} has to be {value}, that of the checkpoint's tokenizer, got {config.data[name]}"
            )


def _check_values(parser: Parser, config: Namespace) -> None:
    """See that nothing is null that must not be, and nothing below its least value."""
    for name, default in parser.get_defaults().items():
        if default is not None and config.get(name) is None and name not in NULLABLE:
            raise ValueError(f"{name} cannot be null")
    for name, least in LOWEST.items():
        if config[name] is not None and not config[name] >= least:
            raise ValueError(f"{name} has to be at least {least}, got {config[name]}")
    for name in {*(config.auto or ())} - {*NAMES}:
        raise ValueError(f"auto is a list of settings out of {', '.join(NAMES)}, got {name}")
    _run_config(config)  # which checks its own
    strategy = str(config.trainer.strategy)
    if any(word in strategy for word in ("spawn", "fork", "notebook")):
        raise ValueError(f"trainer.strategy {strategy} keeps a run's end from its beginner; use ddp")


def _check_together(config: Namespace) -> None:
    """Refuse settings that do not go together."""
    check_sharding(config)
    if config.ema_decay is not None and config.trainer.precision in ("bf16-true", "16-true"):
        raise ValueError(
            f"ema_decay needs weights of more digits than {config.trainer.precision}: an average would stand still"
        )
