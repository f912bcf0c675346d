"""A run, or several beside each other, as one HTML page that needs no network and no script."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import yaml

from tinygpt_pl.insight.charts import charts, clean, figure, loss_of_all
from tinygpt_pl.insight.diagnosis import Diagnosis, diagnose
from tinygpt_pl.insight.evidence import Finding
from tinygpt_pl.insight.history import History, unfenced

HEAD = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
)
"""What every page begins with, so that it is known again."""

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--card:#f5f6f8;--fg:#1c2127;--text:#56606b;--grid:#dfe3e8;--fault:#b3261e;
--batch:#94c5e3;--c0:#0072b2;--c1:#c65500;--c2:#00805d;--c3:#a64d82;--c4:#806400;--c5:#3f4750}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1e2329;--fg:#e6e9ed;--text:#a3adb8;--grid:#343b44;
--fault:#ff8f85;--batch:#315f7d;--c0:#56b4e9;--c1:#f28e4b;--c2:#2bc59a;--c3:#e29cc5;--c4:#e6c229;--c5:#cdd4dc}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 5rem;max-width:50rem;background:var(--bg);color:var(--fg);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.25;margin:0}h2{font-size:1.3rem;margin:3.5rem 0 1rem}h3{font-size:1rem;margin:0}
p{margin:.6rem 0}a{color:var(--c0)}.fault{color:var(--fault)}
small,figcaption span,dt{color:var(--text)}small{font-size:.85rem;font-weight:400}dd small,td small{display:block}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(8rem,1fr));gap:1.1rem 1.5rem;margin:1.75rem 0}
dt{font-size:.85rem}dd{margin:0;font-size:1.15rem}
article{background:var(--card);border-left:4px solid;border-radius:4px;padding:1rem 1.25rem;margin:1rem 0}
article>:not(h3){color:var(--fg)}
code,pre{font:.875em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--card);border-radius:4px;padding:1rem;white-space:pre-wrap;unicode-bidi:plaintext}
summary{cursor:pointer;margin:.4rem 0}
figure{margin:2.25rem 0}figcaption b{margin-right:.4rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;list-style:none;margin:.25rem 0 .5rem;padding:0;font-size:.85rem}
.key{width:28px;height:10px;margin-right:.4rem;fill:none;stroke-width:2}.key text{font-size:11px;text-anchor:middle}
.chart svg{display:block;width:100%;height:auto}.chart path{vector-effect:non-scaling-stroke}
.chart text{font:9px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important;paint-order:stroke;
stroke:var(--bg);stroke-width:3px}
@media(max-width:40rem){.chart text{font-size:12px!important}}
.scroll{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.4rem 1rem .4rem 0;border-bottom:1px solid var(--grid)}
th>div,td>div{width:max-content;max-width:12rem;unicode-bidi:isolate}
"""
"""A chart is drawn with text for a phone, and the text made smaller on wider pages, where the drawing is larger."""


def page(runs: Mapping[str, History]) -> str:
    """The page on one run, or on a comparison of several; `runs` has the name of each.

    Raises:
        ValueError: if matplotlib is missing, or there is no run.
    """
    if not runs:
        raise ValueError("a report needs a run")
    found = {name: diagnose(history) for name, history in runs.items()}
    if len(runs) == 1:
        [(name, history)] = runs.items()
        title, parts = name, _single(name, history, found[name])
    else:
        title, parts = f"{len(runs)} runs compared", _comparison(runs, found)
    body = "\n".join(parts)
    return (
        f"{HEAD}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{clean(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _single(name: str, history: History, diagnosis: Diagnosis) -> Iterator[str]:
    yield f"<h1>{clean(name)}</h1>"
    yield from _verdict(history, diagnosis)
    numbers = _key_numbers(history).items()
    yield "<dl>" + "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in numbers) + "</dl>"
    yield from _findings(diagnosis.findings)
    yield "<h2>Curves</h2>"
    yield from (figure(chart, f"chart-{i}") for i, chart in enumerate(charts(history, diagnosis.findings)))
    yield from _samples(history.texts.get("sample", {}))
    for tag, title in (("config", "Settings"), ("facts", "Network, text and machine")):
        for it, text in sorted(history.texts.get(tag, {}).items()):
            yield _folded(f"{title} from iteration {it:,}" if it else title, unfenced(text))


def _comparison(runs: Mapping[str, History], found: Mapping[str, Diagnosis]) -> Iterator[str]:
    yield f"<h1>{len(runs)} runs compared</h1>"
    yield _overview(runs, found)
    for split, title in (("val", "Validation loss"), ("train", "Training loss")):
        yield figure(loss_of_all(runs, title, split), split)
    yield _differences(runs)
    for i, (name, history) in enumerate(runs.items()):
        yield f'<h2 id="run-{i}">{clean(name)}</h2>'
        yield from _verdict(history, found[name])
        yield from _findings(found[name].findings)
        yield figure(next(charts(history, found[name].findings)), f"loss-{i}")


def _judged(diagnosis: Diagnosis) -> str:
    return f'<b class="{"healthy" if diagnosis.healthy else "fault"}">{clean(diagnosis.verdict)}</b>'


def _verdict(history: History, diagnosis: Diagnosis) -> Iterator[str]:
    yield f"<p>{_judged(diagnosis)}</p>\n<p>{clean(diagnosis.summary)}</p>"
    for it, text in sorted(history.texts.get("stopped", {}).items()):
        yield f"<p><b>Stopped at iteration {it}:</b> {_with_code(text)}</p>"


def _key_numbers(history: History) -> dict[str, str]:
    """Name to number and note, as HTML."""
    numbers: dict[str, tuple[str, str]] = {}
    evaluations, finite = history.evaluations, history.finite()
    tokens, speeds = finite.curve("progress/tokens_seen"), finite.curve("perf/tokens_per_second")
    if evaluations:
        best = min(evaluations, key=lambda row: row.val)
        it, train, val = evaluations[-1]
        numbers["best val"] = f"{best.val:.4f}", f"at iteration {best.it:,}"
        numbers["last train"] = f"{train:.4f}", f"at iteration {it:,}"
        numbers["last val"] = f"{val:.4f}", f"at iteration {it:,}"
        numbers["gap"] = f"{val - train:.4f}", "val - train"
        perplexity = math.exp(min(val, 700))  # exp of more overflows
        numbers["perplexity"] = format(perplexity, ",.2f" if perplexity < 1e6 else ".2e"), "exp of the last val"
    if history.setups:
        numbers["iterations"] = f"{history.last:,}", f"of {history.setups[-1].max_steps:,}"
    if tokens:
        it, seen = tokens[-1]
        steps = max(it + 1, history.last)  # a row at `it` counts the tokens of step `it` too
        numbers["tokens seen"] = f"{seen / (it + 1) * steps:,.0f}", ""
    if speeds:
        numbers["tokens/s"] = f"{median(speed for _, speed in speeds):,.0f}", "median"
    parameters = _settings(history, "facts").get("parameters")
    if isinstance(parameters, int):
        numbers["parameters"] = f"{parameters:,}", ""
    return {name: f"{number}<small>{note}</small>" for name, (number, note) in numbers.items()}


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    for i, finding in enumerate(findings, 1):
        kind = "fault" if finding.fault else "remark"
        head = f"<h3>{i}. {clean(finding.name)} <small>{kind}, iteration {finding.it:,}</small></h3>"
        causes = "".join(f"<li>{_with_code(cause)}</li>" for cause in finding.causes)
        listed = f"<p>Likely causes:</p><ol>{causes}</ol>" if causes else ""
        fix = f"<p><b>Fix:</b> {_with_code(finding.fix)}</p>"
        yield f'<article class="{kind}">{head}<p>{clean(finding.evidence)}</p>{listed}{fix}</article>'


def _with_code(text: str) -> str:
    """Text as HTML, with options of the command line and their values set as code."""
    option = r"`[^`]+`|--[A-Za-z][\w.-]*\w(?:(?:=|[ ](?=-?\d|true\b|false\b|null\b))[^\s,;)]*[^\s,;.)])?"
    parts = re.split(f"({option})", text)
    return "".join(f"<code>{clean(part.strip('`'))}</code>" if i % 2 else clean(part) for i, part in enumerate(parts))


def _folded(title: str, text: str, *, opened: bool = False) -> str:
    start = "<details open>" if opened else "<details>"
    return f"{start}<summary>{title}</summary>\n<pre>\n{clean(text)}</pre></details>"


def _samples(pages: Mapping[int, str]) -> Iterator[str]:
    """The samples in order; the first, a middle and the last one are unfolded."""
    if pages:
        yield "<h2>Samples</h2>"
    for i, (it, text) in enumerate(sorted(pages.items())):
        # textwrap.indent indented it, which splits lines as splitlines does.
        sample = "".join(line.removeprefix("    ") for line in text.splitlines(keepends=True))
        yield _folded(f"After {it:,} iterations", sample, opened=i in (0, len(pages) // 2, len(pages) - 1))


def _table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """A table that scrolls by itself where it is wider than the page; its cells are HTML."""
    top = "".join(f"<th><div>{cell}</div></th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td><div>{cell}</div></td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _overview(runs: Mapping[str, History], found: Mapping[str, Diagnosis]) -> str:
    columns = ("best val", "last train", "last val", "gap", "tokens/s")
    rows = []
    for i, (name, history) in enumerate(runs.items()):
        numbers = _key_numbers(history)
        link = f'<a href="#run-{i}">{clean(name)}</a>'
        rows.append([link, _judged(found[name]), *(numbers.get(column, "-") for column in columns)])
    return _table(rows, ("run", "verdict", *columns))


def _settings(history: History, tag: str) -> dict[str, Any]:
    """The latest text of YAML with that tag, flat; empty if there is none or it cannot be read."""
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
    cells = {key: [clean(values.get(key, "-")) for values in settings] for key in keys}
    rows = [[f"<code>{clean(key)}</code>", *row] for key, row in cells.items() if len(set(row)) > 1]
    table = _table(rows, ("setting", *map(clean, runs))) if rows else "<p>The runs do not differ in their settings.</p>"
    return f"<h2>Settings that differ</h2>{table}"
