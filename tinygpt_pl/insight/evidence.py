"""What symptoms are judged by: scatter of the batch loss, how far weights can move, spikes, standstills, tables."""

import itertools
import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from tinygpt_pl.guards import expected_start
from tinygpt_pl.insight.history import History, Setup
from tinygpt_pl.optim import OptimConfig, scheduled_lr


@dataclass(frozen=True)
class Finding:
    """Something that a curve shows."""

    name: str
    it: int
    """Iteration from which on it is certain."""
    evidence: str
    """What was seen, in numbers and iterations."""
    causes: tuple[str, ...]
    """What may have led to it, the likeliest first."""
    fix: str
    """What to change, as an option of the command line where there is one."""
    fault: bool = True
    """Whether the run is ill; a healthy one has remarks at most."""

    @property
    def line(self) -> str:
        """The finding as one line."""
        return f"{'FINDING' if self.fault else 'remark'}: {self.name} at iter {self.it}: {self.evidence}; {self.fix}"


def batch_noise(history: History) -> float | None:
    """Standard deviation of the loss from one step's windows to the next ones'; None if there are too few rows.

    How far a row lies from the middle of its neighbours knows no even trend, and has one and a half times the variance.
    The first third of the rows, where the trend is anything but even, is left out.
    """
    losses = [loss for _, loss in history.curve("train/loss")]
    losses = losses[len(losses) // 3 :]
    bends = [b - (a + c) / 2 for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    return math.sqrt(fmean(bend**2 for bend in bends) / 1.5) if len(bends) >= 10 else None


def due_lr(it: int, setup: Setup) -> float:
    """The learning rate that the settings ask for at an iteration."""
    names = ("schedule", "decay_share", "max_lr", "min_lr", "warmup_iters", "max_iters")
    return scheduled_lr(it, OptimConfig(**{name: getattr(setup, name) for name in names}), setup.max_steps)


def way(history: History) -> float:
    """How far Adam can have moved a weight: the sum of the learning rates of all steps, each a bound of its step.

    Steps of Muon have the same root mean square.
    """
    rows = history.curve("optim/lr")
    return sum(lr * (after - it) for (it, lr), (after, _) in itertools.pairwise(rows))


FAR = 0.1
"""A way that takes a network with weights of 0.02 to wherever it belongs."""


ENOUGH = 1000
"""Tokens, for each of the vocabulary, that a network has to have seen before it can know which follow which."""


def clipped_share(history: History) -> float:
    """Share of clipped steps from the end of the warm-up and of a tenth of the run on."""
    start = history.setups[-1].warmup_iters + history.last // 10
    return fmean([share for _, share in history.curve("optim/clipped_share", start)] or [0.0])


def spike(history: History) -> tuple[int, float, float] | None:
    """Where the loss first left its way: iteration, loss there, and the lowest before; None if it did not.

    The median of three rows is looked at, so that no single batch counts.
    """
    rows, noise = history.curve("train/loss"), batch_noise(history) or 0.0
    losses = [(rows[i][0], median(loss for _, loss in rows[i - 1 : i + 2])) for i in range(1, len(rows) - 1)]
    losses = rows[:1] + losses + [(e.it, e.train) for e in history.evaluations[1:]]
    rise, lowest = max(0.05 * expected_start(history.setups[0].vocab_size), 3.0 * noise), math.inf
    above = 0
    for it, loss in sorted(losses):
        above = above + 1 if loss > lowest + rise else 0
        if above == 2 or loss > lowest + 5.0 * rise:
            return it, loss, lowest
        lowest = min(lowest, loss)
    return None


def stuck(history: History) -> bool:
    """Whether a network that has come far still knows less than a table of pairs of tokens, and falls no more."""
    setup, evaluations = history.setups[0], history.evaluations
    last = evaluations[-1]
    halfway = next(e for e in evaluations if e.it >= last.it / 2)
    uniform = expected_start(setup.vocab_size)
    late = history.finished or last.it >= max(2 * setup.warmup_iters, setup.max_steps / 2)
    seen = max((tokens for _, tokens in history.curve("progress/tokens_seen")), default=0.0)
    certain = late and way(history) >= 5 * FAR and seen >= ENOUGH * setup.vocab_size
    known = min(last.train, min(e.val for e in evaluations))  # what is learnt by heart is learnt, too
    poor = known > min(setup.singles, setup.pairs) + max(0.33 * (setup.singles - setup.pairs), 0.03 * uniform)
    return bool(setup.fresh and certain and poor and halfway.train - last.train < 0.04 * uniform)


def table_losses(
    train: npt.NDArray[np.integer[Any]], val: npt.NDArray[np.integer[Any]], vocab_size: int
) -> tuple[float, float]:
    """What counting alone comes to: the validation loss of a table of single tokens, and of one of pairs.

    Singles are counted with one more of each token. Pairs that were never seen go back to singles with the weight of
    Witten and Bell (1991): as often as a token had a new successor. A million tokens are counted, a tenth as many
    scored.

    Args:
        train: ids, two or more.
        val: ids, two or more.
        vocab_size: V.

    Returns:
        Both in nats per token.
    """
    ids, (before, after) = train[: 10**6].astype(np.int64), (val[: 10**5][:-1].astype(np.int64), val[1 : 10**5])
    single = (np.bincount(ids, minlength=vocab_size) + 1) / (len(ids) + vocab_size)
    pairs, counts = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
    new = np.bincount(pairs // vocab_size, minlength=vocab_size) + 1  # one, so that no token is without
    seen = np.bincount(ids[:-1], minlength=vocab_size)
    at = np.searchsorted(pairs, before * vocab_size + after).clip(max=len(pairs) - 1)
    count = np.where(pairs[at] == before * vocab_size + after, counts[at], 0)
    pair = (count + new[before] * single[after]) / (seen[before] + new[before])
    return float(-np.log(single[after]).mean()), float(-np.log(pair).mean())
