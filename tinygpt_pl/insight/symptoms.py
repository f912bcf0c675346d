"""Symptoms of the training steps: functions that take a history and return a finding, or None.

The thresholds are this project's own. They were set on runs with a planted bug and on healthy runs, which
`benchmarks/diagnosis.py` tabulates. V is the size of the vocabulary; losses are in nats per token.
"""

import itertools
import math
from statistics import fmean, median

from tinygpt_pl.guards import expected_start, wrong_start
from tinygpt_pl.insight.evidence import (
    MIN_LEARNING_RATE_SUM,
    Finding,
    batch_noise,
    clipped_share,
    learning_rate_sum,
    on_plateau,
    spike,
)
from tinygpt_pl.insight.history import History
from tinygpt_pl.optim import scheduled_lr


def broken_start(history: History) -> Finding | None:
    """The loss at iteration 0 is not that of a uniform guess."""
    setup = history.setups[0]
    first = history.evaluations[0]
    if not setup.fresh or first.it > 0 or not wrong_start(first.val, setup.vocab_size, setup.logit_variance):
        return None
    expected = expected_start(setup.vocab_size)
    return Finding(
        "wrong-start",
        0,
        f"the loss starts at {first.val:.4f}, where an untrained network has ln({setup.vocab_size}) = {expected:.4f}",
        (
            "the loss is a sum where it should be a mean",
            "the size of the vocabulary is not that of the text",
            "the targets are not the inputs shifted by one",
            "the weights begin too large",
        ),
        "mend the loss, the vocabulary or the initialisation before anything else",
    )


def off_schedule(history: History) -> Finding | None:
    """The learning rate does not follow the schedule."""
    for it, lr in history.curve("optim/lr"):
        setup = history.setup(it)
        if setup.custom_schedule:
            continue
        schedule, due = setup.optim.schedule, scheduled_lr(it, setup.optim, setup.max_steps)
        if not math.isclose(lr, due, rel_tol=0.006):  # a rate printed with three digits is off by up to 0.5%
            return Finding(
                "off-schedule",
                it,
                f"the learning rate is {lr:.2e} at iteration {it}, where the {schedule} schedule has {due:.2e}",
                (
                    "the scheduler is not stepped once per optimizer step (by the epoch, or by the micro-batch)",
                    "something else sets the learning rate",
                    "the figures are those of other settings",
                ),
                'give Lightning "interval": "step" with the scheduler, and nothing else that sets the rate',
            )
    return None


def groups_differ(history: History) -> Finding | None:
    """The parameters with weight decay train at another learning rate than those without."""
    others = history.rows.get("optim/lr_no_decay", {})
    for it, lr in history.curve("optim/lr"):
        if it in others and not math.isclose(lr, others[it], rel_tol=1e-5):
            return Finding(
                "groups-differ",
                it,
                f"at iteration {it} the decayed parameters train at {lr:.2e}, the others at {others[it]:.2e}",
                ("the schedule is set on the first parameter group alone",),
                "set the learning rate on every group of the optimizer",
            )
    return None


def learning_rate_too_high(history: History) -> Finding | None:
    """The loss jumps and stays high, or the model never learns more than token frequencies."""
    setup, evaluations = history.setups[0], history.evaluations
    last, jump = evaluations[-1], spike(history)
    lost = last.train > expected_start(setup.vocab_size) * 1.05
    wild = clipped_share(history) < 0.5  # if more is clipped, the gradients are at fault, not the rate
    unigram, bigram = setup.unigram_loss, setup.bigram_loss
    context = max((unigram + bigram) / 2, bigram + 0.03 * expected_start(setup.vocab_size))
    frequencies = min(last.train, last.val) > context
    if not (jump and lost) and not (on_plateau(history) and wild and (jump or frequencies)):
        return None
    lr = max((lr for _, lr in history.curve("optim/lr")), default=setup.optim.max_lr)
    warmup = min(max(2 * setup.optim.warmup_iters, 100), setup.max_steps // 4)
    longer = f" --model.optim.warmup_iters {warmup}" if warmup > setup.optim.warmup_iters else ""
    seen = f"it rose to {jump[1]:.2f} at iteration {jump[0]}, from {jump[2]:.2f}, and is" if jump else "it stays"
    return Finding(
        "learning-rate-too-high",
        jump[0] if jump else last.it,
        f"{seen} at {last.train:.2f} at iteration {last.it}; frequencies of single tokens alone give "
        f"{unigram:.2f}; the rate went up to {lr:.1e}",
        ("the learning rate is too high for this network", "the warm-up is missing or too short"),
        f"try --model.optim.max_lr {lr / 10:.0e}{longer}",
    )


def diverged(history: History) -> Finding | None:
    """The run stopped itself, or a loss is NaN or infinite."""
    broken = [
        it for tag in ("train/loss", "eval/val_loss") for it, loss in history.curve(tag) if not math.isfinite(loss)
    ]
    stops = history.texts.get("stopped", {})
    if not stops and not broken:
        return None
    it = min([*stops, *broken])
    return Finding(
        "diverged",
        it,
        stops[it].split("\n")[0].rstrip(".") if it in stops else f"at iteration {it} the loss is no number",
        (
            "the learning rate is too high",
            "the warm-up is too short",
            "the numbers have too few digits or too small a range",
        ),
        "try a lower --model.optim.max_lr, a longer --model.optim.warmup_iters, or --trainer.precision 32-true",
    )


def flat(history: History) -> Finding | None:
    """The loss does not move."""
    setup, (first, *_, last) = history.setups[0], (history.evaluations[0], *history.evaluations)
    fall = first.train - last.train
    certain = last.it >= max(50, min(setup.max_steps, max(100, 2 * setup.optim.warmup_iters)))
    uniform = expected_start(setup.vocab_size)
    if not (setup.fresh and first.it == 0 and certain and abs(fall) < 0.05 * uniform):
        return None
    losses = sorted(loss for _, loss in history.curve("train/loss"))
    if losses and losses[len(losses) // 10] < first.train - 0.1 * uniform:
        return None  # the loss fell and rose again
    if setup.table_losses and last.val <= setup.bigram_loss + 0.02 * uniform:
        return None  # the text holds little to learn, and the model has learnt it
    norm = median([norm for _, norm in history.curve("optim/grad_norm")] or [math.nan])
    lr = max((lr for _, lr in history.curve("optim/lr")), default=math.nan)
    slow, cut = (
        "the learning rate is too low, or the warm-up too long",
        "the gradients do not reach the parameters (detached, frozen, or zeroed before the step)",
    )
    dead, better = norm < 1e-6, 3e-4 if setup.optim.max_lr < 3e-4 else 10 * setup.optim.max_lr
    return Finding(
        "flat",
        last.it,
        f"the training loss has gone from {first.train:.4f} to {last.train:.4f} in {last.it} iterations, at a learning "
        f"rate of {lr:.1e} at most and a gradient norm of {norm:.2g} in the median",
        (*((cut, slow) if dead else (slow, cut)), "there is nothing to learn in the text"),
        "see that loss.backward() reaches every parameter" if dead else f"try --model.optim.max_lr {better:.0e}",
    )


def never_good(history: History) -> Finding | None:
    """The loss falls at first, does not diverge, and never becomes good."""
    setup, last, share = history.setups[0], history.evaluations[-1], clipped_share(history)
    norms = [norm for _, norm in history.curve("optim/grad_norm")]
    accumulated = (  # gradients, across steps
        setup.fresh
        and norms
        and learning_rate_sum(history) >= MIN_LEARNING_RATE_SUM
        and median(norms) > 4.0 * norms[0]
        and min(last.train, last.val) > setup.bigram_loss
    )
    if not norms or not (on_plateau(history) or accumulated):
        return None
    summed = "gradients are summed over steps: zero_grad is missing"
    others = ("the network does not see its context (mask or positions)", "the learning rate is far from a good one")
    return Finding(
        "never-good",
        last.it,
        f"the validation loss is {last.val:.4f} at iteration {last.it}, where a table of pairs of tokens would have "
        f"{setup.bigram_loss:.4f}; {share:.0%} of the steps are clipped, and the gradient norm went from "
        f"{norms[0]:.2g} to {median(norms[-10:]):.2g}",
        (summed, *others) if accumulated or share >= 0.5 else (*others, summed),
        "see that the gradients are zeroed before each step"
        if accumulated or share >= 0.5
        else "look at the attention's mask",
    )


def always_clipped(history: History) -> Finding | None:
    """Nearly every step is clipped, so that the threshold sets the size of the steps."""
    setup, share = history.setups[-1], clipped_share(history)
    warmup_iters = setup.optim.warmup_iters
    certain = (
        history.last >= warmup_iters + min(500, 0.8 * (setup.max_steps - warmup_iters))
        and learning_rate_sum(history) >= MIN_LEARNING_RATE_SUM
    )
    if setup.clip is None or not certain or share < 0.95:
        return None
    norm = median([norm for _, norm in history.curve("optim/grad_norm", warmup_iters)] or [math.nan])
    low = setup.clip < 0.5
    causes = (
        "the learning rate is too high",
        "there are few windows in a batch",
        "gradients are summed over micro-batches instead of averaged",
    )
    threshold = "the threshold is below what gradients of this network are like"
    return Finding(
        "always-clipped",
        history.last,
        f"{share:.0%} of the steps are clipped; the gradient norm is {norm:.2g} in the median, the threshold "
        f"{setup.clip:g}",
        (threshold, *causes) if low else (*causes, threshold),
        "try --trainer.gradient_clip_val 1.0" if low else f"try --model.optim.max_lr {setup.optim.max_lr / 3:.0e}",
        fault=norm > 10.0 * setup.clip,  # Adam ignores a common factor, and small batches have large gradients
    )


def dropout_not_switched(history: History) -> Finding | None:
    """The batch loss is not above the evaluated one, though dropout in training should raise it."""
    setup, noise, half = history.setups[-1], batch_noise(history), history.last / 2
    evaluations = [e for e in history.evaluations if e.it >= max(half, setup.start)]
    if not setup.dropout or noise is None or len(evaluations) < 2:
        return None
    if learning_rate_sum(history) < MIN_LEARNING_RATE_SUM or history.last < setup.max_steps / 2:
        return None  # dropout costs more, the more the model has learnt
    near = (evaluations[-1].it - evaluations[0].it) / (len(evaluations) - 1) / 4
    rows = history.curve("train/loss", setup.start)
    excess = [loss - e.train for e in evaluations for it, loss in rows if abs(it - e.it) <= near]
    if not excess:
        return None
    error = noise * math.sqrt(1 / len(excess) + 1 / setup.eval_batches)
    if fmean(excess) + 2.0 * error > 0.1 * setup.dropout:
        return None
    return Finding(
        "dropout-not-switched",
        history.last,
        f"the batch loss is {fmean(excess):+.4f} ± {2 * error:.4f} above the clean training loss around the same "
        f"iterations, where a dropout of {setup.dropout:g} in training alone should raise it",
        (
            "dropout stays off in training: train() is missing after an evaluation",
            "dropout stays on in evaluation: eval() is missing before it",
        ),
        "see that the network is in eval mode in evaluations, and in training mode outside of them",
    )


def resume_bump(history: History) -> Finding | None:
    """The loss is higher after a resume than before, though neither dropout nor a higher learning rate explains it."""
    noise, rates = batch_noise(history), history.curve("optim/lr")
    for former, setup in itertools.pairwise(history.setups):
        before = [loss for it, loss in history.curve("train/loss") if it < setup.start][-10:]
        # A row at setup.start would hold the loss before the first resumed step.
        after = [loss for _, loss in history.curve("train/loss", setup.start + 1)][:5]
        old, new = [lr for it, lr in rates if it < setup.start], [lr for it, lr in rates if it >= setup.start]
        raised = bool(old and new) and new[0] > 1.2 * old[-1]
        if noise is None or min(len(before), len(after)) < 5 or setup.dropout != former.dropout or raised:
            continue
        rise = fmean(after) - fmean(before)
        if rise > max(0.02, 3.5 * noise * math.sqrt(1 / len(before) + 1 / len(after))):
            return Finding(
                "resume-bump",
                setup.start,
                f"the batch loss is {fmean(after):.4f} after the run went on at iteration {setup.start}, and was "
                f"{fmean(before):.4f} before",
                ("the state of the optimizer was lost, and Adam's means began anew", "the text is another"),
                "save and load the optimizer with the weights",
            )
    return None
