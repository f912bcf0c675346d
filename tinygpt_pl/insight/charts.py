"""Charts as SVG: curves over iterations, drawn by matplotlib for a page that is light or dark.

Its colours stand for CSS variables, so that one drawing serves both; each chart is drawn for a desktop and for a phone.
"""

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]


class Size(NamedTuple):
    """Of a drawing."""

    width: float
    """In inches."""
    height: float
    ticks: int
    """On the x axis at most."""
    points: int = 1200
    """Of a curve at most; from more of them the lowest and highest of each stretch are drawn."""


SIZES = {"wide": Size(9.0, 3.6, 9), "narrow": Size(4.3, 3.2, 4)}
"""CSS class to the drawing that is shown under it."""

COLOURS = {name: f"#0a0b{i:02x}" for i, name in enumerate(["text", "grid", "fault", *(f"c{k}" for k in range(6))])}
"""CSS variable to the colour that stands for it while matplotlib draws."""

SHAPES = {
    "o": "M14 1.5a3.5 3.5 0 1 0 .01 0z",
    "s": "M10.7 1.7h6.6v6.6h-6.6z",
    "^": "M14 1l4 7.5h-8z",
    "D": "M14 .6l4.4 4.4-4.4 4.4-4.4-4.4z",
    "v": "M14 9l4-7.5h-8z",
    "P": "M12.5 1h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
}
"""Matplotlib's marker to the same in a legend, so that no run is told from another by its colour alone."""

DASHES = {"-": "none", "--": "6 3", "-.": "7 3 2 3", ":": "2 3"}
"""Matplotlib's line style to SVG's."""


@dataclass(frozen=True)
class Line:
    """A curve of a chart; with `spot` a ring around its point, with `upright` a vertical line at each of its points."""

    label: str
    points: Points
    colour: str
    marker: str = ""
    dash: str = "-"
    faint: bool = False
    spot: bool = False
    upright: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over iterations."""

    title: str
    unit: str
    lines: Sequence[Line]
    levels: Sequence[tuple[float, str]] = ()
    """Of horizontal lines, and what is written at each; all but the first are faint."""
    cap: float = math.inf
    """Values beyond it leave the chart."""
    log: bool = False

    @property
    def values(self) -> list[float]:
        """All that the curves have, numbers or not."""
        return [value for line in self.lines if not (line.upright or line.spot) for _, value in line.points]

    @property
    def finite(self) -> list[float]:
        """Those of them that can be drawn."""
        return [value for value in self.values if math.isfinite(value) and (value > 0 or not self.log)]


def clean(text: object) -> str:
    """Text as HTML shows it, with what no page may hold replaced."""
    # Controls, halves of surrogates and two that are no characters.
    allowed = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(text))
    return html.escape(allowed)


def number(value: float, form: str = ".4f") -> str:
    """A number, or `nan` or `inf` for what is none."""
    return format(value, form if math.isfinite(value) else "")


def figure(chart: Chart, ids: Iterator[int]) -> str:
    """A chart as a figure of a page, with no id that another has; nothing where it has no value that can be drawn."""
    values, finite = chart.values, chart.finite
    if not finite:
        return ""
    lines = [line for line in chart.lines if line.points]
    left_out = len(values) - len(finite), sum(abs(value) > chart.cap for value in finite)
    reasons = (
        "not a number, infinite or at most 0" if chart.log else "not a number or infinite",
        f"beyond {chart.cap:.3g}",
    )
    notes = [f" Left out, since {reason}: {n}." for n, reason in zip(left_out, reasons, strict=True) if n]
    last = [f"{line.label} {number(line.points[-1][1], '.4g')}" for line in lines if not (line.upright or line.spot)]
    label = clean(f"{chart.title}, {chart.unit}; at the end: {', '.join(last)}")
    parts = [f"<figure><figcaption><b>{chart.title}</b><span>{chart.unit}.{''.join(notes)}</span>{legend(lines)}"]
    parts.append("</figcaption>")
    for style, size in SIZES.items():
        drawing = svg(chart, size, f"s{next(ids)}-")
        parts.append(drawing.replace("<svg ", f'<svg class="chart {style}" role="img" aria-label="{label}" ', 1))
    return "\n".join(parts) + "</figure>"


def legend(lines: Sequence[Line]) -> str:
    """What each line is, in HTML, where names of any length and script find room."""
    items = []
    for line in {line.label: line for line in lines}.values():
        colour = f"var(--{line.colour})"
        key = f'<path stroke="{colour}" stroke-dasharray="{DASHES[line.dash]}" d="M0 5H28"/>' if not line.spot else ""
        key = key.replace("/>", ' opacity=".5"/>') if line.faint else key
        if line.spot:
            key = f'<circle cx="14" cy="5" r="4" stroke="{colour}"/>'
        elif line.marker:
            key += f'<path fill="{colour}" d="{SHAPES[line.marker]}"/>'
        swatch = f'<svg class="key" viewBox="0 0 28 10" aria-hidden="true">{key}</svg>'
        items.append(f"<li>{swatch}{clean(line.label)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def svg(chart: Chart, size: Size, prefix: str) -> str:
    """One drawing of a chart that has a finite value, for inside a page; all its ids begin with the prefix."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the taste of whoever draws it
        for kind in ("text.color", "xtick.color", "ytick.color"):
            matplotlib.rcParams[kind] = COLOURS["text"]
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 9.5})
        drawing = Figure((size.width, size.height), layout="constrained")
        _plot(drawing.add_subplot(), chart, size)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg ") :].strip()
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| xmlns(?::xlink)?="[^"]*"| version="[^"]*"', "", svg, count=5)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)  # would hold for the page
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    names = {name: f"{prefix}{i}" for i, name in enumerate(dict.fromkeys(re.findall(r"[\"(]#([\w-]+)", svg)))}
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{names[found[1]]}"' if found[1] in names else "", svg)
    svg = re.sub(r"(?<=[\"(]#)[\w-]+", lambda found: names[found[0]], svg).replace("xlink:href", "href")
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _plot(axes: "Axes", chart: Chart, size: Size) -> None:
    lines = [line for line in chart.lines if line.points]
    last = max(1, *(it for line in lines for it, _ in line.points))  # one row alone has a width, too
    _scale(axes, chart, last, size.ticks)
    axes.grid(color=COLOURS["grid"], linewidth=0.7)
    axes.tick_params(length=0, pad=5)
    axes.spines[:].set_visible(False)
    _levels(axes, chart)
    for line in lines:
        colour = COLOURS[line.colour]
        if line.upright:
            for it, _ in line.points:
                axes.axvline(it, color=colour, linestyle=line.dash, linewidth=1.2)
            for it, text in _numbered(line.points, last / (6 * size.ticks)):
                place = ("data", "axes fraction")
                axes.annotate(text, (it, 1), (0, 4), place, "offset points", color=colour, ha="center")
        else:
            points = fit(line.points, chart, size.points)
            look: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.5} if line.faint else {"linewidth": 1.7}
            look |= {"marker": line.marker, "markersize": 4.5, "markevery": math.ceil(len(points) / 40)}
            if line.spot:
                look = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "linewidth": 0}
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=line.dash, **look)


def _scale(axes: "Axes", chart: Chart, last: float, ticks: int) -> None:
    """The reach of both axes, and what is written at them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    steps, finite, cap = [1, 2, 2.5, 5, 10], chart.finite, chart.cap
    levels = [level for level, _ in chart.levels]
    low, high = max(min(finite + levels), -cap), min(max(finite + levels), cap)
    if chart.log:
        axes.set_yscale("log")
        axes.set_ylim(low / 2, high * 2)
        few = high / low < 100
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=7))
        axes.yaxis.set_minor_locator(LogLocator(subs=()))
    else:
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - room, max([high + room, *(level + 2 * room for level in levels)]))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if 1e3 <= abs(y) < 1e7 else f"{y:.6g}"))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if abs(x) < 1e5 else f"{x / 1e3:,.6g}k"))
    axes.set_xlim(-0.02 * last - 0.1, 1.02 * last + 0.1)


def _levels(axes: "Axes", chart: Chart) -> None:
    """Horizontal lines, each with its words above; one without room for them under another is left out."""
    low, high = axes.get_ylim()
    drawn: list[float] = []
    for level, words in chart.levels:
        if any(abs(level - other) < 0.08 * (high - low) for other in drawn):
            continue
        look: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.6, "linestyle": (0, (2, 3))} if drawn else {"linewidth": 1}
        axes.axhline(level, color=COLOURS["text"], zorder=1.5, **look)
        drawn.append(level)
        if words:
            axes.annotate(words, (0.995, level), (0, 3), ("axes fraction", "data"), "offset points", ha="right")


def fit(points: Points, chart: Chart, most: int) -> Points:
    """Points that can be drawn: others become gaps, and of very many only the extremes of each stretch stay."""
    far = 10 * chart.cap  # beyond the chart, and yet no number that matplotlib cannot place
    clipped = [(it, min(max(value, -far), far) if math.isfinite(value) else math.nan) for it, value in points]
    if chart.log:
        clipped = [(it, value if value > 0 else math.nan) for it, value in clipped]
    if len(clipped) <= most:
        return clipped
    stretch = math.ceil(2 * len(clipped) / most)
    kept: list[tuple[float, float]] = []
    for i in range(0, len(clipped), stretch):
        part = clipped[i : i + stretch]
        real = [point for point in part if math.isfinite(point[1])]
        ends = {min(real, key=lambda p: p[1]), max(real, key=lambda p: p[1])} if real else {part[0]}
        kept += sorted(ends)
    return kept


def _numbered(points: Points, apart: float) -> list[tuple[float, str]]:
    """Where to write the numbers of upright lines; those that are less than that apart are written at one place."""
    groups: list[tuple[float, str]] = []
    for it, value in sorted(point for point in points if math.isfinite(point[1])):
        if groups and it - groups[-1][0] < apart:
            groups[-1] = (groups[-1][0], f"{groups[-1][1]}, {value:.0f}")
        else:
            groups.append((it, f"{value:.0f}"))
    return groups
