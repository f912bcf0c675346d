"""The page on a run: what is on it, that nothing of a run can break it, and how a browser shows it."""

import html
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the report needs matplotlib")

from tests.conftest import ROOT
from tests.small_runs import Run, small
from tinygpt_pl.insight import charts, report
from tinygpt_pl.insight.diagnosis import Diagnosis
from tinygpt_pl.insight.evidence import Finding
from tinygpt_pl.insight.history import History, Setup, fenced, read_history
from tinygpt_pl.insight.report import page
from tinygpt_pl.optim import OptimConfig, warmup_cosine

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
VOID = {"meta", "br", "path", "circle"}
FINDINGS = (
    Finding(
        "spike",
        310,
        "the loss rose from 1.35 to 24.1 <within> 10 iterations",
        ("the learning rate is too high", "nothing clips the gradient"),
        "lower it: --model.optim.max_lr 3e-3, or clip by --trainer.gradient_clip_val=1.0.",
    ),
    Finding("overfitting", 314, "val rises from iteration 200 on", (), "--model.gpt.dropout 0.2 to begin with"),
    Finding("slow", 350, "tokens/s fell by half", ("another program",), "look what else runs", fault=False),
)
OPTIM = OptimConfig(max_lr=4e-3, min_lr=4e-4, warmup_iters=20)
HOSTILE = (
    "</pre><script>alert(1)</script><img src=http://127.0.0.1:9/x onerror=alert(1)>&\x00\x1b[31m\ud800\x85$x_1$ 字"
)


def healthy(steps: int = 400, vocab_size: int = 65, **setup: Any) -> History:
    """A run that went well, with all that a run leaves."""
    chance, history = random.Random(0), History([Setup(vocab_size, steps, OPTIM, clip=1.0, **setup)])
    for it in range(0, steps, 5):
        speed = 20000 + chance.gauss(0, 500)
        rate = warmup_cosine(it, 4e-3, 4e-4, 20, steps)
        row = {"optim/lr": rate, "optim/grad_norm": chance.lognormvariate(0, 0.4), "perf/tokens_per_second": speed}
        loss = 1.5 + 2.67 * math.exp(-it / 80) + chance.gauss(0, 0.05)
        history.add(row | {"train/loss": loss, "progress/tokens_seen": 768 * (it + 1)}, it)
    history.texts = {
        "config": {0: fenced("model:\n  optim:\n    max_lr: 0.004\n  gpt:\n    dropout: 0.0\nseed_everything: 1337")},
        "facts": {0: fenced("vocab_size: 65\nparameters: 809856\ndevice: cpu")},
        "sample": {},
    }
    for it in range(0, steps + 1, 50):
        train = 1.5 + 2.67 * math.exp(-it / 80)
        history.add({"eval/train_loss": train, "eval/val_loss": train + it / 2000}, it)
        history.texts["sample"][it] = f"    sample of {it}\n    \n    next line"
    return history


def ill() -> History:
    """A run that went on once, jumped and ended in numbers that are none."""
    history = healthy(table_losses=(3.33, 2.48))
    halved = replace(OPTIM, max_lr=2e-3, min_lr=2e-4)
    history.setups.append(Setup(65, 500, halved, clip=0.5, start=200, fresh=False, table_losses=(3.33, 2.48)))
    history.add({"train/loss": 1e30, "optim/grad_norm": math.inf}, 310)
    history.add({"train/loss": math.nan, "optim/grad_norm": 0.0}, 395)
    history.add({"eval/train_loss": math.inf, "eval/val_loss": math.nan}, 400)
    history.texts["stopped"] = {400: "val is no number: lower --model.optim.max_lr"}
    return history


def hostile() -> History:
    history = healthy()
    history.texts["sample"][0] = "    " + HOSTILE + "x" * 3000
    history.texts["config"] = {0: fenced(f"{{broken: [{HOSTILE}"), 200: fenced("path: " + "deep/" * 200)}
    history.texts["facts"] = {0: fenced(f"- a list, {HOSTILE}")}
    history.texts["stopped"] = {0: HOSTILE}
    return history


class Page(HTMLParser):
    """A page's tags, which have to close in order, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def names(self) -> Counter[str]:
        return Counter(tag for tag, _ in self.tags)

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three findings in any run that has been resumed, and none in others."""

    def diagnose(history: History) -> Diagnosis:
        found = FINDINGS if len(history.setups) > 1 else ()
        return Diagnosis(
            found, "ill (spike, overfitting)" if found else "healthy", "Val fell from 4.17 to 1.70 & rose again."
        )

    monkeypatch.setattr(report, "diagnose", diagnose)


def test_a_healthy_run(faults: None) -> None:
    shown = Page(page({"runs/first": healthy()}))
    for words in ("runs/first", "healthy", "Val fell from 4.17 to 1.70 & rose again.", "809,856", "307,200"):
        assert words in shown.text
    assert shown.names["figure"] == 5
    for title in ("Loss", "Learning rate", "Gradient norm", "Gap", "Throughput", "ln(65) = 4.17", "clipping threshold"):
        assert title in shown.text
    assert "Findings" not in shown.text
    assert "fault 1" not in shown.text
    images = [attributes for _, attributes in shown.tags if attributes.get("role") == "img"]
    assert len({image["aria-label"] for image in images if image["aria-label"]}) == 5


def test_key_numbers() -> None:
    history = healthy()
    values = {name: number.partition("<small>")[0] for name, number in report._key_numbers(history).items()}
    best = min(history.evaluations, key=lambda row: row.val)
    last = history.evaluations[-1]
    assert values["best val"] == f"{best.val:.4f}"
    assert best.it < 400
    assert (values["last train"], values["last val"]) == (f"{last.train:.4f}", f"{last.val:.4f}")
    assert values["gap"] == "0.2000"
    assert values["perplexity"] == f"{math.exp(last.val):.2f}"
    assert values["tokens seen"] == f"{768 * 400:,}"
    assert float(values["tokens/s"].replace(",", "")) == pytest.approx(20000, rel=0.02)


def test_findings(faults: None) -> None:
    history = ill()
    text = page({"ill": history})
    shown = Page(text)
    assert "ill (spike, overfitting)" in shown.text
    assert shown.names["article"] == 3
    for finding in FINDINGS:
        assert finding.name in shown.text
        assert finding.evidence in shown.text
        assert all(cause in shown.text for cause in finding.causes)
    assert "remark, iteration 350" in shown.text
    for option in ("--model.optim.max_lr 3e-3", "--trainer.gradient_clip_val=1.0", "--model.gpt.dropout 0.2"):
        assert f"<code>{option}</code>" in text
    assert "Stopped at iteration 400:" in shown.text
    assert f"last val{history.evaluations[-1].val:.4f}at iteration 350" in shown.text  # the latest that is a number
    for chart in text.split("<figure>")[1:]:
        legend, _, drawing = chart.partition("</figcaption>")
        assert ">fault 1 at 310, 2 at 314</li>" in legend
        assert ">resumed</li>" in legend
        assert drawing.count("stroke: var(--fault)") == 2, "one line for each fault, and none for a remark"


@pytest.mark.parametrize(
    ("fix", "code"),
    [
        ("try --model.optim.max_lr 3e-4.", ["--model.optim.max_lr 3e-4"]),
        ("(--trainer.precision 32-true)", ["--trainer.precision 32-true"]),
        (
            "a lower --model.optim.max_lr, or --data.corpus=/a/b.txt.",
            ["--model.optim.max_lr", "--data.corpus=/a/b.txt"],
        ),
        ("--trainer.max_steps 5 would do; see `notes <1>`", ["--trainer.max_steps 5", "notes &lt;1&gt;"]),
        ("more --model.gpt.dropout helps - or not", ["--model.gpt.dropout"]),
    ],
)
def test_options_are_set_as_code(fix: str, code: list[str]) -> None:
    shown = report._with_code(fix)
    assert re.findall("<code>(.*?)</code>", shown) == code
    assert html.unescape(re.sub("</?code>", "", shown)) == fix.replace("`", "")


def test_the_schedule_and_the_threshold_are_what_the_settings_ask_for() -> None:
    history = ill()
    rates = charts.schedule(history)
    assert {it for it, _ in rates} >= {0, 20, 200, 500}
    assert all(rate == warmup_cosine(int(it), 4e-3, 4e-4, 20, 400) for it, rate in rates if it < 200)
    assert all(rate == warmup_cosine(int(it), 2e-3, 2e-4, 20, 500) for it, rate in rates if it >= 200)
    _, _, norm, *_ = charts.charts(history, [])
    thresholds = next(line for line in norm.lines if line.label == "clipping threshold")
    assert {clip for it, clip in thresholds.points if it < 200} == {1.0}
    assert {clip for it, clip in thresholds.points if it >= 200} == {0.5}


@pytest.mark.parametrize(
    ("samples", "shown", "rest"), [(0, [], 0), (1, [0], 0), (2, [0, 1], 0), (3, [0, 1, 2], 0), (9, [0, 4, 8], 6)]
)
def test_samples(samples: int, shown: list[int], rest: int) -> None:
    history = healthy()
    history.texts["sample"] = {10 * i: f"    \n    text {i}\x0c    of it\n" for i in range(samples)}
    body = page({"run": history})
    text = (
        "><summary>After \\d+ iterations</summary>\n<pre>\n\ntext (\\d+)\ufffdof it\n</pre>"  # without the indentation
    )
    assert re.findall(f"<details open{text}", body) == [str(i) for i in shown]
    assert len(re.findall(f"<details{text}", body)) == rest
    assert ("<h2>Samples</h2>" in body) == bool(samples)


def test_a_run_that_has_just_begun() -> None:
    setup = Setup(65, 400, OPTIM)
    nothing = Page(page({"run": History([setup])}))
    assert "too early to say" in nothing.text
    assert nothing.names["figure"] == 0
    assert Page(page({"run": History()})).names["figure"] == 0
    one = History([setup])
    one.add({"eval/train_loss": 4.18, "eval/val_loss": 4.17}, 0)
    assert Page(page({"run": one})).names["figure"] == 2  # loss and gap
    assert ">-0<" not in page({"run": one})
    assert "2 runs compared" in Page(page({"a": one, "b": History([setup])})).text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 3e38, -3e38, 1e-45])
def test_any_number(value: float, faults: None) -> None:
    history = healthy()
    for rows in history.rows.values():
        rows.update(dict.fromkeys([*rows][3:], value))
    assert Page(page({"run": history})).names["figure"] == 5, "the first three rows are drawn still"
    for tag in history.rows:
        history.rows[tag] = dict.fromkeys(history.rows[tag], value)
    assert "2 runs compared" in Page(page({"run": history, "other": healthy()})).text


def test_far_values_do_not_flatten_the_chart(faults: None) -> None:
    text = page({"ill": ill()})
    loss = text.split("<figure>")[1]
    assert "NaN, infinite or off the scale: 4 of " in loss, "1e30, two NaN and one infinite"
    ticks = [float(tick.replace("\u2212", "-")) for tick in re.findall(r">(\u2212?[\d.]+)</text>", loss)]
    assert {2, 4, 6} <= set(ticks[-8:])
    assert min(ticks) >= 0


def test_what_counting_reaches(faults: None) -> None:
    def words(text: str) -> list[str]:
        return re.findall(r"<text [^>]*>(ln\(65\) = 4.17|[a-z ]+)</text>", text)

    uniform = "ln(65) = 4.17"
    assert words(page({"run": healthy()})) == [uniform]
    text = page({"run": healthy(table_losses=(3.33, 2.48))})
    assert words(text) == [uniform, "single tokens", "pairs of tokens"]
    assert words(page({"run": healthy(table_losses=(4.1, 2.48))})) == [uniform, "pairs of tokens"]  # no room


def batches(history: History) -> list[tuple[float, float]]:
    """The vertices of the drawn curve of batch losses."""
    drawing = charts.svg(charts.loss(history), "x")
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--batch\)', drawing)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]


def test_a_long_run_stays_small() -> None:
    history = healthy()
    chance = random.Random(0)
    history.rows["train/loss"] = {it: 2 + chance.random() for it in range(100_000)}
    history.rows["train/loss"][77_777] = 4.9
    history.rows["optim/grad_norm"] = {it: chance.random() for it in range(100_000)}
    assert len(page({"run": history})) < 500_000
    path = batches(history)
    assert len(path) < 5000
    highest = min(path, key=lambda point: point[1])
    del history.rows["train/loss"][77_777]
    assert (highest[1], highest[0]) < min((y, x) for x, y in batches(history)), "the outlier is drawn"
    first, last = min(path)[0], max(path)[0]
    assert (highest[0] - first) / (last - first) == pytest.approx(0.77777, abs=0.005)


def test_everything_is_escaped(faults: None) -> None:
    name = f'{HOSTILE}"><b>'
    for text in (page({name: hostile()}), page({name: hostile(), "other": ill()})):
        shown = Page(text)
        assert not {"script", "img", "b>"} & set(shown.names)
        assert not any(key.startswith("on") for _, attributes in shown.tags for key in attributes)
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", text)
        assert "alert(1)</script>" in shown.text
        text.encode()


def test_no_two_ids_and_no_broken_reference(faults: None) -> None:
    for text in (page({"run": ill()}), page({"a": ill(), "b": healthy(), "c": healthy()})):
        ids = Page(text).ids
        assert len(ids) == len(set(ids))
        references = set(re.findall(r'(?:url\(|href=")#([\w-]+)', text))
        assert len(references) >= 5, "a clip path for each drawing"
        assert references <= set(ids)


def test_nothing_is_fetched(faults: None) -> None:
    text = page({"run": ill()})
    for namespace in ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"):
        text = text.replace(f'="{namespace}"', "")  # a name that nobody asks the network for
    assert "http:" not in text
    assert "https:" not in text
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(Page(text).names)
    policy = next(attributes for tag, attributes in Page(text).tags if attributes.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.slow
def test_the_same_run_gives_the_same_page() -> None:
    import matplotlib

    first = page({"a": ill(), "b": healthy()})
    with matplotlib.rc_context({"font.size": 30, "text.color": "red", "svg.fonttype": "path"}):
        assert page({"a": ill(), "b": healthy()}) == first
    code = (
        "from tests.insight.test_report import healthy; from tinygpt_pl.insight.report import page; "
        "import sys; sys.stdout.buffer.write(page({'a': healthy()}).encode())"
    )
    command = [sys.executable, "-c", code]
    other = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, capture_output=True, check=True, env=other)
    assert done.stdout == page({"a": healthy()}).encode()


def test_several_runs(faults: None) -> None:
    other = healthy()
    other.texts["config"] = {
        0: fenced("model:\n  optim:\n    max_lr: 0.001\n  gpt:\n    dropout: 0.0\nseed_everything: 1337\nnew: <1>")
    }
    text = page({"first": healthy(), "second": other, "third": ill()})
    shown = Page(text)
    assert [shown.names[tag] for tag in ("table", "figure", "article")] == [2, 2 + 3, 3]
    assert [i for i in shown.ids if i.startswith("run-")] == ["run-0", "run-1", "run-2"]
    overview, differences = re.findall(r"<table>.*?</table>", text, flags=re.DOTALL)
    assert re.findall(r'href="#run-\d">(\w+)<', overview) == ["first", "second", "third"]
    assert "spike, overfitting" in overview
    assert re.findall("<code>([^<]*)</code>", differences) == ["model.optim.max_lr", "new"]
    assert re.findall("<div>([^<]*)</div>", differences)[-3:] == ["-", "&lt;1&gt;", "-"]
    assert "do not differ" in page({"a": healthy(), "b": healthy()})


def test_many_runs_are_told_apart() -> None:
    names = [f"run {i}" for i in range(20)]
    chart = charts.loss_of_all({name: healthy() for name in names}, "Validation loss", "val")
    assert len({(line.colour, line.dash) for line in chart.lines}) == 20
    assert len({(line.marker, line.dash) for line in chart.lines}) == 20, "colour alone tells runs apart"
    assert [line.label for line in chart.lines] == names


def test_no_run() -> None:
    with pytest.raises(ValueError, match="needs a run"):
        page({})


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        page({"run": healthy()})


def test_a_real_run(cli: Run, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, _, _ = cli("fit", *small(text_file), f"--run_dir={run}")
    assert code == 0
    shown = Page(page({"run": read_history(run)}))
    assert shown.names["figure"] == 5
    for words in ("ln(27) = 3.30", "3,872", "After 10 iterations", "block_size: 8", "vocab_size: 27"):
        assert words in shown.text


MEASURE = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const view = frame.contentWindow, page = frame.contentDocument, root = page.documentElement;
  const box = node => node.getBoundingClientRect(), all = words => [...page.querySelectorAll(words)];
  const drawn = node => box(node).width > 0 && node.checkVisibility();
  const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1
    && a.bottom <= b.bottom + 1;
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.5;
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => {
    const colour = node ? view.getComputedStyle(node).backgroundColor : "rgb(255, 255, 255)";
    return colour.endsWith(", 0)") ? ground(node.parentElement) : colour;
  };
  const contrast = (node, kind) => {
    const a = light(view.getComputedStyle(node)[kind]), b = light(ground(node));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const written = all("body *").filter(node => !node.closest("svg") && drawn(node)
    && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()));
  const charts = all(".chart svg").filter(drawn).map(svg => {
    const texts = [...svg.querySelectorAll("text")].filter(text => text.textContent.trim());
    return {
      width: box(svg).width, height: box(svg).height, texts: texts.length,
      small: texts.filter(text => box(text).height < 9).length,
      out: texts.filter(text => !inside(box(text), box(svg))).map(text => text.textContent),
      meet: texts.flatMap((a, i) => texts.slice(i + 1).filter(b => meet(box(a), box(b)))
        .map(b => a.textContent + " / " + b.textContent)),
      contrast: Math.min(...texts.map(text => contrast(text, "fill"))),
    };
  });
  const result = {
    width: view.innerWidth, scroll: root.scrollWidth, light: light(ground(page.body)), charts: charts,
    figures: all("figure").filter(drawn).length, articles: all("article").filter(drawn).length,
    out: all("body *").filter(node => !node.closest(".scroll > *") && drawn(node) && !node.closest("svg")
      && (box(node).right > view.innerWidth + 1 || box(node).left < -1)).map(node => node.outerHTML.slice(0, 200)),
    faint: written.filter(node => contrast(node, "color") < 4.5).map(node => node.outerHTML.slice(0, 200)),
  };
  const shown = document.createElement("pre");
  shown.id = "result";
  shown.textContent = JSON.stringify(result);
  document.body.append(shown);
};
frame.srcdoc = JSON.parse(document.querySelector("#page").textContent);
"""
"""Measures the page from outside, which may hold no script itself."""

QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    *("--disable-extensions", "--no-default-browser-check", "--virtual-time-budget=5000"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what it asks for on its own finds no machine
]


def look(text: str, folder: Path, width: int = 1280, *, dark: bool = False) -> tuple[dict[str, Any], list[str]]:
    """What a browser makes of a page at a width of that many pixels, and the addresses that it asks the network for."""
    if BROWSER is None:
        pytest.skip("no Chromium on PATH")
    data = json.dumps(text).replace("<", "\\u003c")
    # In a frame, since a window has a least width.
    frame = f'<iframe style="border:0;width:{width}px;height:900px"></iframe>'
    wrapper, log = folder / "wrapper.html", folder / "net.json"
    wrapper.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body>{frame}<script type="application/json" id="page">{data}</script>'
        f"<script>{MEASURE}</script></body>"
    )
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    own = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", f"--window-size={width + 50},1000"]
    command = [BROWSER, *QUIET, theme, *own, "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search('<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # The browser's own requests, for the time or for updates, have no origin.
    asked = [params for params in asked if params.get("initiator", "not an origin") != "not an origin"]
    return json.loads(html.unescape(found[1])), [params["url"] for params in asked if params["url"][:4] == "http"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["healthy", "ill", "hostile", "compared"])
def test_in_a_browser(kind: str, width: int, dark: bool, faults: None, tmp_path: Path) -> None:
    long = "a-run-with-a-long-name_" * 6
    pages: dict[str, tuple[dict[str, History], int, int]] = {
        "healthy": ({"run": healthy()}, 5, 0),
        "ill": ({"ill": ill()}, 5, 3),
        "hostile": ({HOSTILE + "x" * 300: hostile()}, 5, 0),
        "compared": ({"first": healthy(), long: hostile(), "third": ill()}, 5, 3),
    }
    runs, figures, articles = pages[kind]
    seen, urls = look(page(runs), tmp_path, width, dark=dark)
    assert seen["width"] == width
    assert seen["scroll"] <= width
    assert seen["out"] == []
    assert seen["faint"] == []
    assert (seen["light"] < 0.05) == dark
    assert seen["figures"] == len(seen["charts"]) == figures
    assert seen["articles"] == articles
    for chart in seen["charts"]:
        assert chart["width"] > min(0.8 * width, 700)
        assert chart["height"] > 200
        assert chart["texts"] > 5
        assert chart["contrast"] >= 4.5
        assert (chart["out"], chart["meet"], chart["small"]) == ([], [], 0)
    assert urls == []


def test_the_browser_sees_what_is_wrong(tmp_path: Path) -> None:
    """A page on which all is wrong that the test above looks for."""
    chart = '<div class="chart"><svg viewBox="0 0 100 100" width="100" height="100">{}</svg></div>'
    texts = ['<text x="10" y="50">one</text>', '<text x="15" y="50">two</text>', '<text x="90" y="90">out</text>']
    text = (
        '<!DOCTYPE html><body style="background:#fff"><img src="http://127.0.0.1:9/x"><p style="color:#aaa">faint</p>'
        f'<div style="width:600px">wide</div>{chart.format("".join(texts))}</body>'
    )
    seen, urls = look(text, tmp_path, 390)
    assert seen["scroll"] > 390
    assert [node.split(">")[0] for node in seen["out"]] == ['<div style="width:600px"']
    assert [node.split(">")[0] for node in seen["faint"]] == ['<p style="color:#aaa"']
    assert (seen["charts"][0]["out"], seen["charts"][0]["meet"]) == (["out"], ["one / two"])
    assert urls == ["http://127.0.0.1:9/x"]
