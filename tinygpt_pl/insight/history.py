"""A run's curve and settings as plain numbers, read from its event files or collected while it trains.

An iteration is an optimizer step. A row at iteration x speaks of the network after x steps, as in `curve.py`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

SCALARS = {"size_guidance": {"scalars": 0, "tensors": 0}, "purge_orphaned_data": False}
"""How TensorBoard's reader is told to leave nothing out."""


class Evaluation(NamedTuple):
    """Losses of both splits in eval mode, in nats per token, after `it` optimizer steps."""

    it: int
    train: float
    val: float


@dataclass(frozen=True)
class Setup:
    """What a curve is to be measured by, from the iteration at which the program was started with it."""

    vocab_size: int
    max_steps: int
    max_lr: float
    min_lr: float
    warmup_iters: int
    start: int = 0
    """Iteration at which it was started; more than 0 for a run that went on."""
    fresh: bool = True
    """Whether it began with weights that had learnt nothing."""
    max_iters: int | None = None
    """Where the schedule ends; max_steps if None."""
    schedule: str = "cosine"
    decay_share: float = 0.2
    """Share of the schedule's steps in which wsd falls."""
    logit_variance: float = 0.0
    """Variance of a fresh network's logits at one position."""
    dropout: float = 0.0
    weight_decay: float = 0.1
    clip: float | None = None
    """Largest gradient norm; None for no clipping."""
    eval_batches: float = 1.0
    """Batches, each as large as a step's, that an evaluation of a split takes."""
    sampled: bool = False
    """Whether their windows are drawn at random; else they are all windows of the validation split."""
    table_losses: tuple[float, float] | None = None
    """Validation loss of a table of single tokens and of one of pairs, if they are known."""

    @property
    def singles(self) -> float:
        """Loss of knowing how frequent each token is."""
        return self.table_losses[0] if self.table_losses else 0.8 * math.log(self.vocab_size)

    @property
    def pairs(self) -> float:
        """Loss of knowing which token follows which."""
        return self.table_losses[1] if self.table_losses else 0.6 * math.log(self.vocab_size)

    @classmethod
    def of(cls, config: Mapping[str, Any], facts: Mapping[str, Any]) -> "Setup":
        """Take it from a run's settings and from what is known besides once it has started.

        Args:
            config: the settings, nested as in config.yaml.
            facts: those of the fields that they have, among others.
        """
        optim, trainer = config["model"]["optim"], config["trainer"]
        return cls(
            **{name: facts[name] for name in ("vocab_size", "logit_variance", "start", "fresh", "eval_batches")},
            **{name: optim[name] for name in ("max_lr", "min_lr", "warmup_iters", "max_iters")},
            **{name: optim[name] for name in ("schedule", "decay_share") if name in optim},  # younger than some runs
            max_steps=trainer["max_steps"],
            dropout=config["model"]["gpt"]["dropout"],
            weight_decay=optim["weight_decay"],
            clip=trainer["gradient_clip_val"] or None,
            sampled=config["data"]["eval_coverage"] == "sampled",
            table_losses=(facts["table_losses"]["singles"], facts["table_losses"]["pairs"]),
        )


@dataclass
class History:
    """All that is known of a run: one setup for each start of the program, and the rows of each tag."""

    setups: list[Setup] = field(default_factory=list)
    rows: dict[str, dict[int, float]] = field(default_factory=dict)
    """TensorBoard's tag to iteration to value."""
    texts: dict[str, dict[int, str]] = field(default_factory=dict)
    """The same for texts: `config`, `facts`, `sample`, and `stopped` of a run that was not worth going on with."""

    def add(self, row: Mapping[str, float], it: int) -> None:
        """Add the values of an iteration."""
        for tag, value in row.items():
            self.rows.setdefault(tag, {})[it] = value

    def curve(self, tag: str, start: int = 0) -> list[tuple[int, float]]:
        """Iterations and values of a tag in order, from `start` on; empty if there are none."""
        return sorted((it, value) for it, value in self.rows.get(tag, {}).items() if it >= start)

    def finite(self) -> "History":
        """The same without the values that are no numbers."""
        rows = {
            tag: {it: value for it, value in values.items() if math.isfinite(value)}
            for tag, values in self.rows.items()
        }
        return History(self.setups, rows, self.texts)

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations in order, but for those that are no numbers."""
        train = self.rows.get("eval/train_loss", {})
        rows = [Evaluation(it, train.get(it, math.nan), val) for it, val in self.curve("eval/val_loss")]
        return [row for row in rows if math.isfinite(row.train) and math.isfinite(row.val)]

    @property
    def last(self) -> int:
        """The latest iteration that is known of; 0 before the first."""
        return max((it for values in self.rows.values() for it in values), default=0)

    def setup(self, it: int) -> Setup:
        """What the step at an iteration was taken with."""
        return next((setup for setup in reversed(self.setups) if setup.start <= it), self.setups[0])

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken and evaluated."""
        evaluations = self.evaluations
        return bool(evaluations) and evaluations[-1].it >= self.setups[-1].max_steps


def read_history(run_dir: Path) -> History:
    """Read a run's event files, those of a run that still trains or was killed too.

    Raises:
        ValueError: if they hold no curve of this program.
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
    except (KeyError, TypeError, yaml.YAMLError) as error:
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
    """YAML as TensorBoard's text page shows it."""
    return f"```yaml\n{text}\n```"


def unfenced(page: str) -> str:
    """The YAML of such a page."""
    return re.sub(r"^```yaml\n|\n```$", "", page)
