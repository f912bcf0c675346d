"""A run, or several beside each other, as one HTML page that needs no network and no script."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import yaml

from tinygpt_pl.insight.charts import clean, figure, number
from tinygpt_pl.insight.diagnosis import Diagnosis, diagnose
from tinygpt_pl.insight.evidence import Finding
from tinygpt_pl.insight.history import History, unfenced
from tinygpt_pl.insight.panels import charts, loss_of_all

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--card:#f5f6f8;--fg:#1c2127;--text:#56606b;--grid:#dfe3e8;--fault:#b3261e;
--good:#0b6b3a;--c0:#0072b2;--c1:#c65500;--c2:#00805d;--c3:#a64d82;--c4:#806400;--c5:#3f4750}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1e2329;--fg:#e6e9ed;--text:#a3adb8;--grid:#343b44;
--fault:#ff8f85;--good:#6fd49a;--c0:#56b4e9;--c1:#f28e4b;--c2:#2bc59a;--c3:#e29cc5;--c4:#e6c229;--c5:#cdd4dc}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem 1.25rem 5rem;max-width:60rem;background:var(--bg);color:var(--fg);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 .5rem}h2{font-size:1.3rem;line-height:1.3;margin:3.5rem 0 1rem}
h3{font-size:1rem;margin:0}p{margin:.6rem 0;max-width:44rem}a{color:var(--c0)}
.verdict{font-weight:600}.good{color:var(--good)}.bad{color:var(--fault)}.quiet,dt,figcaption span,th{color:var(--text)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:1.1rem 1.5rem;margin:1.75rem 0}
dt{font-size:.85rem}dd{margin:0;font-size:1.15rem;font-variant-numeric:tabular-nums}
dd small{display:block;font-size:.8rem;color:var(--text)}
article{background:var(--card);border-left:4px solid var(--text);border-radius:4px;padding:1rem 1.25rem;margin:1rem 0}
article.bad{border-color:var(--fault);color:inherit}article ol{margin:.4rem 0;padding-left:1.4rem}
article h3 small{font-weight:400;color:var(--text);margin-left:.4rem}.bad>h3>b{color:var(--fault)}
code,pre{font:.875em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{background:var(--bg);border-radius:3px;padding:.1em .3em;display:inline-block;max-width:100%}
pre{background:var(--card);border-radius:4px;padding:1rem;margin:.5rem 0 1.25rem;white-space:pre-wrap;
unicode-bidi:plaintext}
figure{margin:2.25rem 0}figcaption{margin-bottom:.5rem}figcaption b{margin-right:.4rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;list-style:none;margin:.25rem 0 0;padding:0;font-size:.85rem}
.key{width:28px;height:10px;margin-right:.4rem;fill:none;stroke-width:2}
.chart{display:block;width:100%;height:auto}.chart *{stroke-linejoin:round}
.chart text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;paint-order:stroke;
stroke:var(--bg);stroke-width:3px}
.narrow{display:none}
@media(max-width:40rem){.wide{display:none}.narrow{display:block;max-width:34rem;margin:auto}
body{padding-top:1.5rem}dl{grid-template-columns:repeat(auto-fill,minmax(8rem,1fr))}}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.4rem 1rem .4rem 0;border-bottom:1px solid var(--grid)}
th{font-weight:500;vertical-align:bottom}td>div,th>div{width:max-content;max-width:12rem;unicode-bidi:isolate}
td code{padding:0;background:none}
summary{cursor:pointer;margin:.4rem 0}
"""


def page(runs: Mapping[str, History]) -> str:
    """A page on one run, or one that compares several.

    Args:
        runs: name of each, its folder, to what is known of it.

    Raises:
        ValueError: if matplotlib is missing, or there is no run.
    """
    if not runs:
        raise ValueError("a report needs a run")
    try:
        import matplotlib  # noqa: F401  # drawing imports it late; here its lack is still a mistake in three lines
    except ImportError:
        raise ValueError("a report needs a library: pip install matplotlib") from None
    found = {name: diagnose(history) for name, history in runs.items()}
    if len(runs) == 1:
        [(name, history)] = runs.items()
        title, parts = name, _single(name, history, found[name])
    else:
        title, parts = f"{len(runs)} runs", _comparison(runs, found)
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{clean(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _single(name: str, history: History, diagnosis: Diagnosis) -> Iterator[str]:
    ids = itertools.count()
    yield f"<header>\n<h1>{clean(name)}</h1>\n{_verdict(history, diagnosis)}\n</header>"
    yield _figures(history)
    yield from _findings(diagnosis.findings, "h2")
    yield "<h2>Curves</h2>"
    yield from (figure(chart, ids) for chart in charts(history, _faults(diagnosis)))
    yield from _samples(history.texts.get("sample", {}))
    for tag, title in (("config", "Settings"), ("facts", "Network, text and machine")):
        for it, text in sorted(history.texts.get(tag, {}).items()):
            since = f" from iteration {it}" if it else ""
            shown = clean(unfenced(text))
            yield f"<details><summary>{title}{since}</summary>\n<pre>\n{shown}</pre></details>"


def _comparison(runs: Mapping[str, History], found: Mapping[str, Diagnosis]) -> Iterator[str]:
    ids = itertools.count()
    yield f"<header><h1>{len(runs)} runs compared</h1></header>"
    yield _overview(runs, found)
    for part, title in (("val", "Validation loss"), ("train", "Training loss")):
        yield figure(loss_of_all(runs, title, part), ids)
    yield _differences(runs)
    for i, (name, history) in enumerate(runs.items()):
        yield f'<section id="run-{i}">\n<h2>{clean(name)}</h2>\n{_verdict(history, found[name])}'
        yield from _findings(found[name].findings)
        yield figure(next(charts(history, _faults(found[name]))), ids)
        yield "</section>"


def _faults(diagnosis: Diagnosis) -> list[tuple[float, float]]:
    """Iteration and number of each, as they are listed."""
    return [(finding.it, i) for i, finding in enumerate(diagnosis.findings, 1) if finding.fault]


def _judged(history: History, diagnosis: Diagnosis) -> tuple[str, str]:
    """The verdict, and its CSS class."""
    faults = sum(finding.fault for finding in diagnosis.findings)
    if faults:
        return f"{faults} fault{'s' * (faults > 1)}", "bad"
    return ("healthy", "good") if history.evaluations else ("nothing to judge yet", "quiet")


def _verdict(history: History, diagnosis: Diagnosis) -> str:
    verdict, style = _judged(history, diagnosis)
    parts = [f'<p class="verdict {style}">{verdict}</p>', f"<p>{clean(diagnosis.summary)}</p>"]
    for it, text in sorted(history.texts.get("stopped", {}).items()):
        parts.append(f"<p><b>Stopped at iteration {it}:</b> {_with_code(text)}</p>")
    return "\n".join(parts)


def _key_numbers(history: History) -> dict[str, tuple[str, str]]:
    """Name of each to the number and a word on it."""
    evaluations = history.evaluations
    speeds = [speed for _, speed in history.curve("perf/tokens_per_second") if math.isfinite(speed)]
    tokens = history.curve("progress/tokens_seen")
    numbers: dict[str, tuple[str, str]] = {}
    if evaluations:
        best = min(evaluations, key=lambda row: row.val)
        numbers["best val"] = number(best.val), f"at iteration {best.it:,}"
        it, train, val = evaluations[-1]
        numbers["last train"] = number(train), f"at iteration {it:,}"
        numbers["last val"] = number(val), f"at iteration {it:,}"
        numbers["gap"] = number(val - train), "val - train"
        perplexity = math.exp(val) if val < 700 else math.inf
        numbers["perplexity"] = number(perplexity, ",.2f" if perplexity < 1e6 else ".2e"), "exp of the last val"
    if history.setups:
        numbers["iterations"] = f"{history.last:,}", f"of {history.setups[-1].max_steps:,}"
    if tokens and math.isfinite(tokens[-1][1]):
        it, seen = tokens[-1]
        steps = max(it + 1, history.last)  # the row is of the step after it
        numbers["tokens seen"] = f"{seen / (it + 1) * steps:,.0f}", ""
    if speeds:
        numbers["tokens/s"] = f"{median(speeds):,.0f}", "median"
    parameters = _settings(history, "facts").get("parameters")
    if parameters is not None:
        numbers["parameters"] = f"{parameters:,}" if isinstance(parameters, int) else str(parameters), ""
    return numbers


def _figures(history: History) -> str:
    items = (
        f"<div><dt>{name}</dt><dd>{clean(value)}<small>{clean(note)}</small></dd></div>"
        for name, (value, note) in _key_numbers(history).items()
    )
    return "<dl>\n" + "\n".join(items) + "\n</dl>"


def _findings(findings: Sequence[Finding], heading: str = "") -> Iterator[str]:
    if findings and heading:
        yield f"<{heading}>Findings</{heading}>"
    for i, finding in enumerate(findings, 1):
        kind, style = ("fault", "bad") if finding.fault else ("remark", "remark")
        causes = "".join(f"<li>{_with_code(cause)}</li>" for cause in finding.causes)
        listed = f"<p>Likely causes:</p><ol>{causes}</ol>" if causes else ""
        fix = _with_code(finding.fix)
        head = f"<h3><b>{i}. {clean(finding.name)}</b> <small>{kind}, iteration {finding.it:,}</small></h3>"
        text = f"<p>{clean(finding.evidence)}</p>\n{listed}\n<p><b>Fix:</b> {fix}</p>"
        yield f'<article class="{style}">{head}\n{text}</article>'


def _with_code(text: str) -> str:
    """Options of the command line, with their values, set as code."""
    option = r"`[^`]+`|--[A-Za-z][\w.-]*\w(?:(?:=|[ ](?=-?\d|true\b|false\b|null\b))[^\s,;)]*[^\s,;.)])?"
    parts = re.split(f"({option})", text)
    return "".join(f"<code>{clean(part.strip('`'))}</code>" if i % 2 else clean(part) for i, part in enumerate(parts))


def _samples(pages: Mapping[int, str]) -> Iterator[str]:
    """The first, a middle and the last sample, and the others folded away."""
    texts = {
        # Undoes textwrap.indent, which takes more for the end of a line than \n.
        it: clean("".join(line.removeprefix("    ") for line in text.splitlines(keepends=True)))
        for it, text in sorted(pages.items())
    }
    blocks = [f"<h3>After {it:,} iterations</h3>\n<pre>\n{text}</pre>" for it, text in texts.items()]
    shown = sorted({0, len(blocks) // 2, len(blocks) - 1} & set(range(len(blocks))))
    if blocks:
        yield "<h2>Samples</h2>"
        yield from (blocks[i] for i in shown)
    rest = [block for i, block in enumerate(blocks) if i not in shown]
    if rest:
        yield f"<details><summary>{len(rest)} more</summary>\n" + "\n".join(rest) + "</details>"


def _table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """Rows of cells that are HTML already."""
    top = "".join(f"<th><div>{cell}</div></th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td><div>{cell}</div></td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _overview(runs: Mapping[str, History], found: Mapping[str, Diagnosis]) -> str:
    columns = ("best val", "last train", "last val", "gap", "tokens/s")
    rows = []
    for i, (name, history) in enumerate(runs.items()):
        verdict, style = _judged(history, found[name])
        numbers = _key_numbers(history)
        cells = [numbers.get(column, ("-", "")) for column in columns]
        best = cells[0][0] + f'<br><span class="quiet">{cells[0][1]}</span>'
        faults = ", ".join(clean(finding.name) for finding in found[name].findings if finding.fault)
        link = f'<a href="#run-{i}">{clean(name)}</a>'
        judged = f'<span class="{style}">{verdict}</span>'
        rows.append([link, judged, faults or "-", best, *(value for value, _ in cells[1:])])
    return _table(rows, ("run", "verdict", "faults", *columns))


def _settings(history: History, tag: str) -> dict[str, Any]:
    """The latest page of YAML with that tag, flat; empty where there is none that can be read."""
    pages = history.texts.get(tag, {})
    try:
        tree = yaml.safe_load(unfenced(pages[max(pages)])) if pages else {}
    except yaml.YAMLError:
        return {}
    return dict(_flat(tree)) if isinstance(tree, dict) else {}


def _flat(tree: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _differences(runs: Mapping[str, History]) -> str:
    settings = [_settings(history, "config") for history in runs.values()]
    keys = dict.fromkeys(key for values in settings for key in values)
    shown = {key: [clean(values.get(key, "-")) for values in settings] for key in keys}
    rows = [[f"<code>{clean(key)}</code>", *cells] for key, cells in shown.items() if len(set(cells)) > 1]
    if not rows:
        return "<h2>Settings</h2><p>The runs do not differ in their settings.</p>"
    return "<h2>Settings that differ</h2>" + _table(rows, ("setting", *map(clean, runs)))
