"""The charts of a run: the curves of each, and its drawing as one SVG for desktop and phone, light and dark."""

import html
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tinygpt_pl.insight.evidence import Finding
from tinygpt_pl.insight.history import History
from tinygpt_pl.optim import scheduled_lr

Points = Sequence[tuple[float, float]]

MAX_LOSS = 1.5
"""Largest loss that a chart shows, in units of ln(vocab_size); larger ones would flatten the rest of the curve."""

COLOURS = {
    name: f"#0a0b0{i}" for i, name in enumerate(("text", "grid", "fault", "batch", "c0", "c1", "c2", "c3", "c4", "c5"))
}
"""CSS variable of the page to the placeholder that matplotlib draws with."""

MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "*": "★"}
"""Matplotlib's marker to its character in a legend; each of c0 to c5 has its own, for readers who confuse colours."""

DASHES = {"-": "none", "--": "6 3", "-.": "7 3 2 3", ":": "2 3"}
"""Matplotlib's line style to its `stroke-dasharray` in a legend."""


class Line(NamedTuple):
    """A curve and its entry in the legend."""

    label: str
    points: Points
    colour: str = "c0"
    marker: str = ""
    dash: str = "-"


@dataclass(frozen=True)
class Chart:
    """Curves over iterations."""

    title: str
    unit: str
    lines: Sequence[Line]
    marks: Sequence[Line] = ()
    """Vertical lines at the iterations of their points, whose values mean nothing."""
    levels: Sequence[tuple[float, str]] = ()
    """Heights of horizontal lines, and the words above each."""
    cap: float = math.inf
    """Limit of the y axis, at which larger absolute values are drawn."""
    log: bool = False


def charts(history: History, findings: Sequence[Finding]) -> Iterator[Chart]:
    """The charts of one run, its loss first; the faults among its numbered findings are marked."""
    faults = [(finding.it, i) for i, finding in enumerate(findings, 1) if finding.fault]
    numbered = ", ".join(f"{i} at {it:,}" for it, i in faults)
    resumes = [(setup.start, 0.0) for setup in history.setups if setup.start]
    marks = [Line(f"fault {numbered}", faults, "fault", dash=":"), Line("resumed", resumes, "text", dash="--")]
    losses = loss(history, marks)
    yield losses
    rates = history.curve("optim/lr")
    due = schedule(history) if rates else []
    lines = [Line("learning rate", rates), Line("as the settings ask for", due, "c1", dash="--")]
    yield Chart("Learning rate", "of each step", lines, marks)
    norms = history.curve("optim/grad_norm")
    clips = [(it, clip) for it, _ in norms if (clip := history.setup(it).clip)]
    lines = [Line("gradient norm", norms), Line("clipping threshold", clips, "c1", dash="--")]
    yield Chart("Gradient norm", "before clipping, on a logarithmic scale", lines, marks, log=True)
    gaps = [(it, val - train) for it, train, val in history.evaluations]
    yield Chart("Gap", "val - train, nats per token", [Line("gap", gaps, marker="o")], marks, [(0.0, "")], losses.cap)
    speeds = history.curve("perf/tokens_per_second")
    yield Chart("Throughput", "tokens per second of training", [Line("tokens/s", speeds)], marks, [(0.0, "")])


def schedule(history: History) -> list[tuple[float, float]]:
    """The learning rate that the settings ask for at every iteration."""
    steps = [(it, history.setup(it)) for it in range(history.setups[-1].max_steps + 1)]
    return [(it, scheduled_lr(it, setup.optim, setup.max_steps)) for it, setup in steps]


def loss(history: History, marks: Sequence[Line] = ()) -> Chart:
    """The losses of one run beside those of a uniform guess and of tables of tokens."""
    lines = [
        Line("train, each batch", history.curve("train/loss"), "batch"),
        Line("train, evaluated", history.curve("eval/train_loss"), marker="o"),
        Line("val", history.curve("eval/val_loss"), "c1", "s"),
    ]
    for best in sorted(history.evaluations, key=lambda row: row.val)[:1]:
        marks = [Line(f"best val {best.val:.4f} at {best.it:,}", [(best.it, 0.0)], "c1", dash="-."), *marks]
    levels, cap = _uniform_guess(history)
    for setup in history.setups[-1:]:
        levels += zip(setup.table_losses or (), ("single tokens", "pairs of tokens"), strict=False)
    return Chart("Loss", "nats per token", lines, marks, levels, cap)


def loss_of_all(runs: Mapping[str, History], title: str, split: str) -> Chart:
    """The loss of several runs on a split; no two of the first 24 have the same colour and dashes."""
    looks = itertools.cycle((f"c{i}", marker, dash) for dash in DASHES for i, marker in enumerate(MARKERS))
    curves = [history.curve(f"eval/{split}_loss") for history in runs.values()]
    lines = [Line(name, curve, *look) for name, curve, look in zip(runs, curves, looks, strict=False)]
    levels, cap = _uniform_guess(*runs.values())
    return Chart(title, "nats per token", lines, levels=levels, cap=cap)


def _uniform_guess(*histories: History) -> tuple[list[tuple[float, str]], float]:
    """Level and cap of a loss chart; no level and an infinite cap if the vocabularies differ in size."""
    sizes = {setup.vocab_size for history in histories for setup in history.setups}
    if len(sizes) != 1:
        return [], math.inf
    (size,) = sizes
    return [(math.log(size), f"ln({size}) = {math.log(size):.2f}")], MAX_LOSS * math.log(max(size, 2))


def clean(text: object) -> str:
    """Escape text for HTML and replace the characters that HTML forbids."""
    # Control characters, halves of surrogate pairs and two noncharacters.
    allowed = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(text))
    return html.escape(allowed)


def figure(chart: Chart, prefix: str) -> str:
    """A chart as a figure of a page; empty if no value can be drawn. The prefix sets its ids apart from others."""
    values = [value for line in chart.lines for _, value in line.points]
    shown = [value for value in values if abs(value) < chart.cap and (value > 0 or not chart.log)]  # false for NaN
    if not shown:
        return ""
    missing = len(values) - len(shown)
    note = f" NaN, infinite or off the scale: {missing} of {len(values)} values." if missing else ""
    keys = "".join(_key(line) for line in (*chart.lines, *chart.marks) if line.points)
    return (
        f"<figure><figcaption><b>{chart.title}</b><span>{chart.unit}.{note}</span>\n"
        f'<ul class="legend">{keys}</ul></figcaption>\n'
        f'<div class="chart" role="img" aria-label="{chart.title}, {chart.unit}">{svg(chart, prefix)}</div></figure>'
    )


def _key(line: Line) -> str:
    """An entry of the legend, in HTML, which wraps names of any length."""
    colour = f"var(--{line.colour})"
    stroke = f'<path d="M0 5H28" stroke="{colour}" stroke-dasharray="{DASHES[line.dash]}"/>'
    marker = f'<text x="14" y="9" fill="{colour}">{MARKERS[line.marker]}</text>' if line.marker else ""
    return f'<li><svg class="key" viewBox="0 0 28 10" aria-hidden="true">{stroke}{marker}</svg>{clean(line.label)}</li>'


def svg(chart: Chart, prefix: str, size: tuple[float, float] = (6.6, 4.0)) -> str:
    """Draw a chart that has a value to draw; its colours are CSS variables, and all its ids begin with the prefix.

    The size is in inches of 72 units. Text is 12 units high, which a phone shows at 8 to 9 pixels.

    Raises:
        ValueError: if matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a report needs a library: pip install matplotlib") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # rather than the user's own settings
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": 12})
        matplotlib.rcParams["path.simplify_threshold"] = 0.5  # merges vertices closer than half a unit
        drawing, file = Figure(size, layout="constrained"), io.StringIO()
        _draw(drawing.add_subplot(), chart)
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    _, tag, text = file.getvalue().partition("<svg ")  # HTML does not allow the prolog
    for place in (' id="', '="#', "url(#"):
        text = text.replace(place, f"{place}{prefix}-")
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return tag + text.strip()


def _draw(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import LogLocator

    axes.margins(0.02, 0.1)  # leaves room for the words above the highest level
    axes.tick_params(length=0, pad=5, labelcolor=COLOURS["text"])
    axes.grid(color=COLOURS["grid"])
    axes.spines[:].set_visible(False)
    if chart.log:
        axes.set_yscale("log", nonpositive="mask")
    for line in filter(lambda line: line.points, chart.lines):
        its, values = np.array(line.points).T
        look = {"color": COLOURS[line.colour], "marker": line.marker, "markersize": 4}
        axes.plot(its, values.clip(-chart.cap, chart.cap), line.dash, markevery=math.ceil(len(its) / 40), **look)
    for level, _ in chart.levels:
        axes.axhline(level, color=COLOURS["text"], linewidth=0.8)
    for mark in chart.marks:
        for it, _ in mark.points:
            axes.axvline(it, color=COLOURS[mark.colour], linestyle=mark.dash, linewidth=1.2)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -chart.cap), min(high, chart.cap))
    if chart.log:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
        axes.minorticks_off()
    axes.locator_params(axis="x", nbins=6, integer=True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:z,.6g}")
    written: list[float] = []
    for level, words in chart.levels:
        if all(abs(level - other) > 0.08 * (high - low) for other in written):  # no overlap
            look = {"color": COLOURS["text"], "ha": "right"}
            axes.annotate(words, (1, level), (-2, 3), ("axes fraction", "data"), "offset points", **look)
            written.append(level)
