"""A run's curve and settings as plain numbers, read from its event files or collected while it trains.

An iteration is an optimizer step. A row at iteration x describes the model after x steps.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tinygpt_pl.optim import OptimConfig

SCALARS = {"size_guidance": {"scalars": 0, "tensors": 0}, "purge_orphaned_data": False}
"""Options that make TensorBoard's reader keep every row."""


class Evaluation(NamedTuple):
    """Losses of both splits in eval mode, in nats per token, after `it` optimizer steps."""

    it: int
    train: float
    val: float


@dataclass(frozen=True)
class Setup:
    """What a curve is judged by: the settings and facts from one start of the program to the next."""

    vocab_size: int
    max_steps: int
    optim: OptimConfig
    start: int = 0
    """Iteration at which the program started; above 0 for a run that resumed."""
    fresh: bool = True
    """Whether the run began with untrained weights."""
    logit_variance: float = 0.0
    """Variance of an untrained model's logits at one position."""
    dropout: float = 0.0
    clip: float | None = None
    """Largest gradient norm; None for no clipping."""
    eval_batches: float = 1.0
    """Batches that an evaluation of a split takes, in units of one step's batch."""
    sampled: bool = False
    """Whether an evaluation draws its windows at random; if not, it takes all windows of the validation split."""
    custom_schedule: bool = False
    """Whether a subclass overrides the schedule of `optim`."""
    table_losses: tuple[float, float] | None = None
    """Validation loss of a unigram and of a bigram table, if known."""

    @property
    def unigram_loss(self) -> float:
        """Loss of a model that knows only how frequent each token is."""
        return self.table_losses[0] if self.table_losses else 0.8 * math.log(self.vocab_size)

    @property
    def bigram_loss(self) -> float:
        """Loss of a model that knows only which token follows which."""
        return self.table_losses[1] if self.table_losses else 0.6 * math.log(self.vocab_size)

    @classmethod
    def of(cls, config: Mapping[str, Any], facts: Mapping[str, Any]) -> "Setup":
        """Read it from a run's stored settings and facts.

        Args:
            config: the settings, nested as in config.yaml. Older runs lack some settings of the optimizer, whose
                defaults are what those runs had.
            facts: what a run records once it has started.

        Raises:
            KeyError: for a setting or fact that is missing.
            TypeError: for a setting of the optimizer that this version does not know.
            ValueError: for a setting of the optimizer outside its range.
        """
        trainer = config["trainer"]
        return cls(
            **{name: facts[name] for name in ("vocab_size", "logit_variance", "start", "fresh", "eval_batches")},
            max_steps=trainer["max_steps"],
            optim=OptimConfig(**config["model"]["optim"]),
            dropout=config["model"]["gpt"]["dropout"],
            clip=trainer["gradient_clip_val"] or None,
            sampled=config["data"]["eval_coverage"] == "sampled",
            custom_schedule=facts.get("custom_schedule", False),  # which older files lack
            table_losses=(facts["table_losses"]["singles"], facts["table_losses"]["pairs"]),
        )


@dataclass
class History:
    """All that is known of a run: a setup for each start of the program, and the rows of each tag."""

    setups: list[Setup] = field(default_factory=list)
    rows: dict[str, dict[int, float]] = field(default_factory=dict)
    """TensorBoard's tag to iteration to value."""
    texts: dict[str, dict[int, str]] = field(default_factory=dict)
    """Tag to iteration to text: `config`, `facts`, `sample`, and `stopped` of a run that stopped itself."""

    def add(self, row: Mapping[str, float], it: int) -> None:
        """Add the values of an iteration."""
        for tag, value in row.items():
            self.rows.setdefault(tag, {})[it] = value

    def curve(self, tag: str, start: int = 0) -> list[tuple[int, float]]:
        """Iterations and values of a tag in order, from iteration `start` on; empty if there are none."""
        return sorted((it, value) for it, value in self.rows.get(tag, {}).items() if it >= start)

    def finite(self) -> "History":
        """A copy without NaN and infinite values."""
        rows = {
            tag: {it: value for it, value in values.items() if math.isfinite(value)}
            for tag, values in self.rows.items()
        }
        return History(self.setups, rows, self.texts)

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations in order, without those that are NaN or infinite."""
        train = self.rows.get("eval/train_loss", {})
        rows = [Evaluation(it, train.get(it, math.nan), val) for it, val in self.curve("eval/val_loss")]
        return [row for row in rows if math.isfinite(row.train) and math.isfinite(row.val)]

    @property
    def last(self) -> int:
        """The latest iteration with a row; 0 without any row."""
        return max((it for values in self.rows.values() for it in values), default=0)

    def setup(self, it: int) -> Setup:
        """The setup that the step at an iteration was taken with."""
        return next((setup for setup in reversed(self.setups) if setup.start <= it), self.setups[0])

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken and evaluated."""
        evaluations = self.evaluations
        return bool(evaluations) and evaluations[-1].it >= self.setups[-1].max_steps


def read_history(run_dir: Path) -> History:
    """Read a run's event files, also while the run still trains or after it was killed.

    Raises:
        ValueError: if they hold no curve of a run, or settings that this version cannot read.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events, history = EventAccumulator(str(run_dir), **SCALARS).Reload(), History()
    for tag in events.Tags()["scalars"]:
        history.rows[tag] = {row.step: row.value for row in events.Scalars(tag)}
    for tag in events.Tags()["tensors"]:
        name = tag.removesuffix("/text_summary")
        if name != tag:
            pages = {row.step: row.tensor_proto.string_val[0].decode() for row in events.Tensors(tag)}
            history.texts[name] = pages
    try:
        history.setups += _setups(history.texts)
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the settings in {run_dir} are not those of this version of the program: {error!r}") from None
    if not history.setups:
        raise ValueError(f"{run_dir} holds no curve of a run, or its event file is damaged: give a folder of fit")
    return history


def _setups(texts: Mapping[str, Mapping[int, str]]) -> Iterator[Setup]:
    configs = {it: yaml.safe_load(unfenced(page)) for it, page in texts.get("config", {}).items()}
    for start, page in sorted(texts.get("facts", {}).items()):
        known = [config for it, config in sorted(configs.items()) if it <= start]
        if known:
            yield Setup.of(known[-1], yaml.safe_load(unfenced(page)))


def fenced(text: str) -> str:
    """YAML as a code block of TensorBoard's text page."""
    return f"```yaml\n{text}\n```"


def unfenced(page: str) -> str:
    """The YAML inside a code block."""
    return re.sub(r"^```yaml\n|\n```$", "", page)
