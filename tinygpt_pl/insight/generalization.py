"""Symptoms of training loss beside validation loss: functions that take a history and return a finding, or None.

The thresholds were set as in `symptoms.py`; losses are in nats per token.
"""

import math

from tinygpt_pl.guards import expected_start
from tinygpt_pl.insight.evidence import Finding, batch_noise
from tinygpt_pl.insight.history import History


def too_good(history: History) -> Finding | None:
    """The validation loss is lower than any text allows."""
    setup = history.setups[0]
    for it, _, val in history.evaluations:
        if val < min(0.05 * expected_start(setup.vocab_size), 0.2 * setup.bigram_loss):
            return Finding(
                "too-good",
                it,
                f"the validation loss is {val:.4f} after {it} iterations: each token had a probability of "
                f"{math.exp(-max(val, 0.0)):.1%}",
                (
                    "the targets are the inputs, not shifted by one",
                    "the attention sees what comes after (the causal mask is missing)",
                    "the text repeats itself, and the validation split with it",
                ),
                "compare a window with its targets, and the logits of a prefix with those of the whole",
            )
    return None


def identical_splits(history: History) -> Finding | None:
    """Training and validation loss are measured on the same windows."""
    setup, (first, *learnt) = history.setups[0], history.evaluations
    fallen = [e for e in learnt if first.train - e.train > 0.1 * first.train]
    context = 0.02 * expected_start(setup.vocab_size)
    if setup.table_losses and fallen and fallen[-1].val > setup.unigram_loss - context:
        return None  # token frequencies alone are the same in every part of a text
    if len(fallen) < 3 or any(abs(e.val - e.train) >= 0.001 for e in fallen):
        return None
    return Finding(
        "identical-splits",
        fallen[2].it,
        f"training and validation loss agree to three decimals in all of {len(fallen)} evaluations, down to "
        f"{fallen[-1].train:.4f} and {fallen[-1].val:.4f}",
        ("both evaluations read the same loader", "the validation split is part of the training split"),
        "cut the text in two before any window is drawn, and evaluate each part",
    )


def overfitting(history: History) -> Finding | None:
    """Training loss falls while validation loss rises."""
    evaluations = history.evaluations
    best = min(evaluations, key=lambda e: e.val)
    after = [e for e in evaluations if e.it > best.it]
    if len(after) < 2 or min(e.val - best.val for e in after[-2:]) <= 0.01 * best.val:
        return None
    last = after[-1]
    if best.train - last.train <= 0.01 * best.train:
        return None
    setup = history.setups[-1]
    less = f"--model.gpt.dropout {setup.dropout + 0.2:.1f}, " if setup.dropout < 0.5 else ""
    stop = f"--trainer.max_steps {best.it}" if best.it else "a tenth of --model.optim.max_lr"
    return Finding(
        "overfitting",
        last.it,
        f"since iteration {best.it} training has fallen from {best.train:.4f} to {last.train:.4f}, while validation "
        f"has risen from {best.val:.4f} to {last.val:.4f}",
        ("the network learns its text by heart: it is too small a text for so many steps or parameters",),
        f"best.ckpt is of iteration {best.it}, so nothing is lost; try {less}"
        f"--model.optim.weight_decay {3 * setup.optim.weight_decay or 0.1:.1g} or {stop}",
    )


def noisy_evaluation(history: History) -> Finding | None:
    """The evaluations draw too few windows to tell validation loss from training loss.

    Two evaluations of one split draw the same windows, so their difference is precise; the gap compares different ones.
    """
    setup, noise, evaluations = history.setups[-1], batch_noise(history), history.evaluations
    if not setup.sampled or noise is None or len(evaluations) < 4:
        return None
    last, error = evaluations[-1], noise / math.sqrt(setup.eval_batches)
    scatter = 2.0 * math.sqrt(2.0) * error  # 95% interval of a difference of two
    gap = last.val - last.train
    useless = error >= 0.1 or (error >= 0.08 and scatter >= abs(gap))
    if not useless or last.it < setup.max_steps / 2:
        return None
    enough = math.ceil(setup.eval_batches * (error / 0.01) ** 2)  # for an interval of ±0.02
    batches = f"{setup.eval_batches:.0f} batch{'es' if setup.eval_batches > 1 else ''}"
    return Finding(
        "noisy-evaluation",
        last.it,
        f"with {batches} an evaluation is good to ±{2 * error:.2f}, and the gap of {gap:.2f} "
        f"between validation and training to ±{scatter:.2f}",
        ("too few windows are drawn for an evaluation",),
        f"try --data.eval_iters {enough} or --data.eval_coverage full",
    )


def mild_overfitting(history: History) -> Finding | None:
    """The gap between validation and training loss is wide and grows."""
    _, *learnt = history.evaluations
    if len(learnt) < 2:
        return None
    first, last = learnt[0], learnt[-1]
    gap = last.val - last.train
    if gap < 0.15 * last.val or gap < 1.5 * (first.val - first.train):
        return None
    return Finding(
        "mild-overfitting",
        last.it,
        f"the gap between validation and training has grown from {first.val - first.train:.2f} to {gap:.2f}, with "
        f"validation at {last.val:.4f}",
        ("the network begins to learn its text by heart",),
        "watch it; more --model.gpt.dropout helps once validation rises",
        fault=False,
    )


def best_early(history: History) -> Finding | None:
    """Validation loss came within 1% of its best much earlier than the last iteration."""
    if not history.finished:
        return None
    evaluations = history.evaluations
    best, last = min(evaluations, key=lambda e: e.val), evaluations[-1]
    reached = next(e for e in evaluations if e.val <= best.val + 0.01 * abs(best.val))
    if not 0 < reached.it <= 0.6 * last.it:
        return None
    return Finding(
        "best-early",
        last.it,
        f"validation was {reached.val:.4f} at iteration {reached.it} already; {last.it - reached.it} more iterations "
        f"came to {best.val:.4f} at best",
        ("the network has learnt what it can of this text",),
        f"--trainer.max_steps {reached.it} would have been enough, with a cosine that ends there",
        fault=False,
    )


def still_falling(history: History) -> Finding | None:
    """The run ended while validation loss was still falling."""
    evaluations = history.evaluations
    if not history.finished or len(evaluations) < 3:
        return None
    last = evaluations[-1]
    earlier = [e for e in evaluations if e.it <= 0.8 * last.it]
    if not earlier:
        return None
    before = earlier[-1]
    end = f" --model.optim.max_iters {2 * last.it}" if history.setups[-1].optim.max_iters else ""
    fall = (before.val - last.val) * 0.2 * last.it / (last.it - before.it)
    if fall < 0.01 * last.val or min(evaluations, key=lambda e: e.val) is not last:
        return None
    return Finding(
        "still-falling",
        last.it,
        f"validation was still falling at the end, from {before.val:.4f} at iteration {before.it} to {last.val:.4f}",
        ("the run is short for this network and text",),
        f"more steps help: --trainer.max_steps {2 * last.it}{end}",
        fault=False,
    )
