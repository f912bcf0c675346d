"""What can be set when a network is trained or scored.

jsonargparse is used directly, not through LightningCLI: that one takes a network's settings from a checkpoint over
those that were asked for, without a word, and has no place for a vocabulary that is known once the text is read.
"""

import inspect
from typing import Literal

import lightning.pytorch as pl
from jsonargparse import Namespace, set_parsing_settings

from tinygpt_pl.commands.configs import find_config
from tinygpt_pl.commands.parser import PROG, VERBS, Parser
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.optim import OptimConfig

TRAINER_OPTIONS = {
    *("accelerator", "devices", "num_nodes", "strategy", "plugins"),
    *("max_steps", "accumulate_grad_batches", "gradient_clip_val"),
    *("logger", "log_every_n_steps", "enable_progress_bar", "callbacks", "profiler"),
    *("deterministic", "benchmark", "detect_anomaly"),
}
"""The Trainer's arguments that are the user's to set as they are; the recipe sets the others."""

LOWEST = {
    "seed_everything": 0,
    "eval_interval": 1,
    "save_minutes": 0,
    "sample_tokens": 0,
    "peak_tflops": 0,
    "trainer.max_steps": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.gradient_clip_val": 0,
}
"""Settings that no class of ours checks, with their least values."""

NULLABLE = {"data.offline_corpus", "trainer.gradient_clip_val", "trainer.precision"}
"""Settings that may be null though their default is not."""


def build_parser(verb: str) -> Parser:
    """The options of one command."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=f"{PROG} {verb}", description=VERBS[verb], allow_abbrev=False)
    _add_run_options(parser, verb)
    parameters = inspect.signature(pl.Trainer).parameters
    parser.add_class_arguments(GPTConfig, "model.gpt", skip={"vocab_size"})
    parser.add_class_arguments(OptimConfig, "model.optim")
    parser.add_class_arguments(TextDataModule, "data", skip={"block_size", "seed", "known"}, instantiate=False)
    parser.add_class_arguments(
        pl.Trainer,
        "trainer",
        skip=set(parameters) - TRAINER_OPTIONS,
        instantiate=False,
        sub_configs=True,
        fail_untyped=False,
    )
    parser.add_argument(
        "--trainer.precision",
        type=parameters["precision"].annotation | Literal["auto"],
        default="32-true",
        help="kind of numbers; auto for bf16-mixed where the device has instructions for it, else 32-true",
    )
    recipe = {"max_steps": 5000, "gradient_clip_val": 1.0, "devices": 1, "log_every_n_steps": 10}
    parser.set_defaults({f"trainer.{name}": value for name, value in recipe.items()})
    return parser


def _add_run_options(parser: Parser, verb: str) -> None:
    """What belongs to a run as a whole, not to its network, text or Trainer."""
    config_help = "YAML file, or the name of a shipped one, such as base; repeatable, later ones win"
    parser.add_argument("-c", "--config", action="config", type=find_config, help=config_help)
    parser.add_argument("--seed_everything", type=int, default=1337, help="seed of weights, windows and dropout")
    parser.add_argument("--eval_interval", type=int, default=250, help="optimizer steps from evaluation to evaluation")
    parser.add_argument(
        "--save_minutes", type=float, default=5.0, help="longest time between two saves of last.ckpt, in minutes"
    )
    parser.add_argument(
        "--sample_tokens", type=int, default=200, help="tokens of the text drawn after each evaluation; 0 for none"
    )
    parser.add_argument("--print_samples", type=bool, default=False, help="show that text on the console, too")
    parser.add_argument(
        "--compile",
        type=bool | Literal["auto"],
        default=False,
        help="run the training step through torch.compile; auto does so where it pays",
    )
    parser.add_argument(
        "--ema_decay",
        type=float | None,
        help="share that a step keeps of an average of the weights, 0.999 for instance; none is made if left out",
    )
    parser.add_argument(
        "--peak_tflops", type=float | None, help="what perf/mfu is a share of, for each device; measured if left out"
    )
    parser.add_argument(
        "--ckpt_path",
        type=str if verb != "fit" else str | None,
        default=None if verb == "fit" else "best",
        help="last or best (of --run_dir, else of the newest run), or a file",
    )
    parser.add_argument(
        "--init_from", type=str | None, help="a checkpoint whose weights and vocabulary a new run starts from"
    )
    parser.add_argument(
        "--run_dir",
        type=str | None,
        help="folder of the run; lightning_logs/version_N, or the checkpoint's, if left out",
    )


def check_values(parser: Parser, config: Namespace) -> None:
    """See that nothing is null that must not be, and nothing below its least value.

    Raises:
        ValueError: naming the setting and the rule.
    """
    for name, default in parser.get_defaults().items():
        if default is not None and config.get(name) is None and name not in NULLABLE:
            raise ValueError(f"{name} cannot be null")
    for name, least in LOWEST.items():
        if config[name] is not None and not config[name] >= least:
            raise ValueError(f"{name} has to be at least {least}, got {config[name]}")
    strategy = str(config.trainer.strategy)
    if any(word in strategy for word in ("spawn", "fork", "notebook")):
        raise ValueError(f"trainer.strategy {strategy} keeps a run's end from its beginner; use ddp")
