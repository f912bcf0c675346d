"""Which charts a run gives: loss, learning rate, gradient norm, gap and throughput; and one that compares runs."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from tinygpt_pl.insight.charts import DASHES, SHAPES, Chart, Line, Points
from tinygpt_pl.insight.history import History, Setup
from tinygpt_pl.optim import scheduled_lr

FAR = 1.5
"""Losses above this many times ln(vocab_size) leave the chart, where they would flatten all others."""


def charts(history: History, faults: Points) -> Iterator[Chart]:
    """The charts of one run, its loss first; those without a row have no line to draw.

    Args:
        history: of the run.
        faults: iteration and number of each.
    """
    marks = _marks(history, faults)
    yield loss(history, marks)
    yield _rate(history, marks)
    yield _norm(history, marks)
    gaps = [(it, val - train) for it, train, val in history.evaluations]
    cap = FAR * _guess(history.setups[-1].vocab_size)[0] if history.setups else math.inf
    yield Chart("Gap", "val - train, nats per token", [Line("gap", gaps, "c0", "o"), *marks], [(0.0, "")], cap)
    speeds = Line("tokens/s", history.curve("perf/tokens_per_second"), "c0")
    yield Chart("Throughput", "tokens per second of training", [speeds, *marks], [(0.0, "")])


def loss(history: History, marks: Sequence[Line] = ()) -> Chart:
    """The losses, and what a uniform guess and counting alone would have."""
    train, val = history.curve("eval/train_loss"), history.curve("eval/val_loss")
    levels, cap = [], math.inf
    if history.setups:
        setup = history.setups[-1]
        levels = [_guess(setup.vocab_size)]
        cap = FAR * levels[0][0]
        levels += zip(setup.table_losses or (), ("single tokens", "pairs of tokens"), strict=False)
    best = min((point for point in val if math.isfinite(point[1])), key=lambda point: point[1], default=None)
    spots = [Line(f"best val {best[1]:.4f} at {best[0]:,}", [best], "c1", spot=True)] if best else []
    batches = Line("train, each batch", history.curve("train/loss"), "c0", faint=True)
    curves = [batches, Line("train, evaluated", train, "c0", "o"), Line("val", val, "c1", "s")]
    return Chart("Loss", "nats per token", [*curves, *spots, *marks], levels, cap)


def loss_of_all(runs: Mapping[str, History], title: str, part: str) -> Chart:
    """One curve for each run, no two with the same colour and dashes."""
    looks = itertools.cycle((dash, f"c{i}", shape) for dash in DASHES for i, shape in enumerate(SHAPES))
    lines = [
        Line(name, history.curve(f"eval/{part}_loss"), colour, shape, dash)
        for (name, history), (dash, colour, shape) in zip(runs.items(), looks, strict=False)
    ]
    sizes = {setup.vocab_size for history in runs.values() for setup in history.setups}
    levels = [_guess(sizes.pop())] if len(sizes) == 1 else []
    return Chart(title, "nats per token", lines, levels, FAR * levels[0][0] if levels else math.inf)


def _marks(history: History, faults: Points) -> list[Line]:
    """Upright lines, where a fault is certain and where the run went on."""
    resumes = [(setup.start, math.nan) for setup in history.setups if setup.start]
    marks = [Line("fault, by number", faults, "fault", dash=":", upright=True)] if faults else []
    return marks + ([Line("resumed", resumes, "text", dash="--", upright=True)] if resumes else [])


def _rate(history: History, marks: Sequence[Line]) -> Chart:
    rates = [Line("learning rate", history.curve("optim/lr"), "c0")]
    if history.setups and rates[0].points:
        rates.append(Line("as the settings ask for", [*schedule(history)], "c1", dash="--"))
    return Chart("Learning rate", "of each step", [*rates, *marks])


def _norm(history: History, marks: Sequence[Line]) -> Chart:
    norms = [Line("gradient norm", history.curve("optim/grad_norm"), "c0")]
    for setup, start, end in _segments(history, history.last):
        if setup.clip and norms[0].points:
            label = f"clipped above {setup.clip:g}"
            norms.append(Line(label, [(start, setup.clip), (end, setup.clip)], "c1", dash="--"))
    return Chart("Gradient norm", "before clipping, on a logarithmic scale", [*norms, *marks], log=True)


def schedule(history: History) -> Iterator[tuple[float, float]]:
    """The learning rate that the settings ask for, bends included."""
    for setup, start, end in _segments(history, history.setups[-1].max_steps):
        its = {start, end, *range(start, end, max((end - start) // 200, 1)), setup.optim.warmup_iters}
        for it in sorted(it for it in its if start <= it <= end):
            yield it, scheduled_lr(it, setup.optim, setup.max_steps)


def _segments(history: History, end: int) -> Iterator[tuple[Setup, int, int]]:
    """Each setup, with the iterations from which and up to which it held."""
    for setup, after in itertools.pairwise([*history.setups, None]):
        assert setup is not None
        yield setup, setup.start, max(after.start if after else end, setup.start)


def _guess(vocab_size: int) -> tuple[float, str]:
    """The loss of a uniform guess, and what it is called."""
    return math.log(vocab_size), f"ln({vocab_size}) = {math.log(vocab_size):.2f}"
