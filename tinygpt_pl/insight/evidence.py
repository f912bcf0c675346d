"""The measurements that symptoms share: batch noise, learning-rate sum, clipping, spikes, plateaus, table losses."""

import itertools
import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from tinygpt_pl.guards import expected_start
from tinygpt_pl.insight.history import History

MIN_LEARNING_RATE_SUM = 0.1
"""Sum of learning rates beyond which weights initialised at 0.02 can have moved far enough to fit the text."""

MIN_TOKENS_PER_VOCABULARY_ENTRY = 1000
"""Tokens seen, for each entry of the vocabulary, beyond which a model can have learnt the bigram frequencies."""


@dataclass(frozen=True)
class Finding:
    """A fault or remark that a curve shows."""

    name: str
    it: int
    """First iteration at which the finding is certain."""
    evidence: str
    """The observation, in numbers and iterations."""
    causes: tuple[str, ...]
    """Possible causes, the likeliest first."""
    fix: str
    """What to change, as an option of the command line where there is one."""
    fault: bool = True
    """Whether the finding is a fault; a healthy run has only remarks."""

    @property
    def line(self) -> str:
        """The finding as one line."""
        return f"{'FINDING' if self.fault else 'remark'}: {self.name} at iter {self.it}: {self.evidence}; {self.fix}"


def batch_noise(history: History) -> float | None:
    """Standard deviation of the batch loss between steps; None if there are too few rows.

    The second difference b - (a + c)/2 cancels a linear trend; its variance is 1.5 times the noise's. The first third
    of the rows is left out, because the loss does not fall linearly there.
    """
    losses = [loss for _, loss in history.curve("train/loss")]
    losses = losses[len(losses) // 3 :]
    bends = [b - (a + c) / 2 for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    return math.sqrt(fmean(bend**2 for bend in bends) / 1.5) if len(bends) >= 10 else None


def learning_rate_sum(history: History) -> float:
    """Sum of the learning rates of all steps, which bounds how far Adam can have moved a weight.

    An update of Adam is at most about the learning rate. An update of Muon has the root mean square of one of Adam's.
    """
    rows = history.curve("optim/lr")
    return sum(lr * (after - it) for (it, lr), (after, _) in itertools.pairwise(rows))


def clipped_share(history: History) -> float:
    """Share of clipped steps after the warm-up and a further tenth of the steps taken."""
    start = history.setups[-1].optim.warmup_iters + history.last // 10
    return fmean([share for _, share in history.curve("optim/clipped_share", start)] or [0.0])


def spike(history: History) -> tuple[int, float, float] | None:
    """The first jump of the loss: its iteration, the loss there and the lowest loss before; None without a jump.

    The batch loss is smoothed by the median of three rows, so that a single batch is not a jump.
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


def on_plateau(history: History) -> bool:
    """Whether the loss has stopped falling above that of a bigram table, although the weights could move far enough."""
    setup, evaluations = history.setups[0], history.evaluations
    last = evaluations[-1]
    halfway = next(e for e in evaluations if e.it >= last.it / 2)
    uniform = expected_start(setup.vocab_size)
    late = history.finished or last.it >= max(2 * setup.optim.warmup_iters, setup.max_steps / 2)
    seen = max((tokens for _, tokens in history.curve("progress/tokens_seen")), default=0.0)
    moved = learning_rate_sum(history) >= 5 * MIN_LEARNING_RATE_SUM
    certain = late and moved and seen >= MIN_TOKENS_PER_VOCABULARY_ENTRY * setup.vocab_size
    best = min(last.train, min(e.val for e in evaluations))  # a model that memorised the text has learnt
    unigram, bigram = setup.unigram_loss, setup.bigram_loss
    poor = best > min(unigram, bigram) + max(0.33 * (unigram - bigram), 0.03 * uniform)
    return bool(setup.fresh and certain and poor and halfway.train - last.train < 0.04 * uniform)


def table_losses(
    train: npt.NDArray[np.integer[Any]], val: npt.NDArray[np.integer[Any]], vocab_size: int
) -> tuple[float, float]:
    """Validation loss of a unigram and of a bigram table, which count tokens and learn nothing else.

    The unigram counts are smoothed by adding one to each. The bigram table backs off to the unigram one with the weight
    of Witten and Bell (1991): the number of different tokens that follow a token. The first million tokens are counted,
    the first hundred thousand scored.

    Args:
        train: two or more ids.
        val: two or more ids.
        vocab_size: V.

    Returns:
        Loss of the unigram and of the bigram table, in nats per token.
    """
    ids, (before, after) = train[: 10**6].astype(np.int64), (val[: 10**5][:-1].astype(np.int64), val[1 : 10**5])
    unigram = (np.bincount(ids, minlength=vocab_size) + 1) / (len(ids) + vocab_size)
    bigrams, counts = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
    new = np.bincount(bigrams // vocab_size, minlength=vocab_size) + 1  # at least 1, so that every token can back off
    seen = np.bincount(ids[:-1], minlength=vocab_size)
    at = np.searchsorted(bigrams, before * vocab_size + after).clip(max=len(bigrams) - 1)
    count = np.where(bigrams[at] == before * vocab_size + after, counts[at], 0)
    bigram = (count + new[before] * unigram[after]) / (seen[before] + new[before])
    return float(-np.log(unigram[after]).mean()), float(-np.log(bigram).mean())
