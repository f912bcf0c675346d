"""Small pictures of loss curves: healthy and ill runs, each made for docs/reading-the-curve.md, and the reference runs.

    python benchmarks/pictures.py

A run takes one to two minutes on two cores. For each a picture is drawn into docs/curves, and what `diagnose` says of
it is printed as Markdown. With --runs FOLDER the runs stay there, and those that are there already are drawn again. The
runs lightning_logs/reference-* are drawn for docs/results.md; `--only` without a name draws these alone.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

from tinygpt_pl.insight.charts import MARKERS, loss, svg
from tinygpt_pl.insight.history import History, read_history

ROOT = Path(__file__).parent.parent
CURVES = ROOT / "docs" / "curves"

COMMON = "--config configs/small.yaml --trainer.max_steps 1000 --eval_interval 100 --trainer.log_every_n_steps 10"

RUNS = [
    ("healthy", "Healthy", ""),
    ("still-falling", "Still falling", "--trainer.max_steps 300 --eval_interval 50"),
    ("noisy-evaluation", "Noisy evaluation", "--data.batch_size 3 --data.eval_coverage sampled --data.eval_iters 1"),
    ("overfitting", "Overfitting", "--data.val_fraction 0.99 --data.eval_coverage sampled --data.eval_iters 50"),
    ("always-clipped", "Always clipped", "--trainer.gradient_clip_val 0.01"),
    (
        "mild-overfitting",
        "Mild overfitting",
        "--data.val_fraction 0.92 --data.eval_coverage sampled --data.eval_iters 50",
    ),
    ("diverged", "Diverged", "--eval_interval 500 --model.optim.max_lr 10 --model.optim.warmup_iters 500"),
    ("flat", "Flat", "--model.optim.max_lr 1e-7 --model.optim.min_lr 1e-8"),
    ("learning-rate-too-high", "Learning rate too high", "--model.optim.max_lr 0.3 --model.optim.warmup_iters 0"),
]
"""Name, title, and what the run has besides COMMON, or in place of what is there."""

SIZE, WIDTH = (4.8, 3.6), 260
"""Inches of the drawing, and pixels at which it is shown, three side by side on a page."""

LIGHT = {"bg": "#ffffff", "text": "#56606b", "grid": "#dfe3e8", "batch": "#94c5e3", "c0": "#0072b2", "c1": "#c65500"}
DARK = {"bg": "#0d1117", "text": "#a3adb8", "grid": "#343b44", "batch": "#315f7d", "c0": "#56b4e9", "c1": "#f28e4b"}

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'


def command(options: str) -> str:
    """The command line of a run, but for the folder it writes to."""
    words = shlex.split(f"{COMMON} {options}")
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    return f"python -m tinygpt_pl fit {' '.join(f'{option} {value}' for option, value in pairs.items())}"


def typed(line: str) -> str:
    """A command line in pieces that fit a page, as a shell takes them."""
    return " \\\n".join(textwrap.wrap(line, 112, subsequent_indent="    ", break_on_hyphens=False))


def picture(history: History) -> str:
    """The loss chart as a file that stands alone: its colours follow the reader's theme, and nothing is fetched."""
    chart = replace(loss(history), marks=())
    drawing = svg(chart, "p", SIZE).replace("xlink:href", "href")  # without a second namespace
    drawing = re.sub(r"<[^>]*>", lambda tag: re.sub(r"-?\d+\.\d{2,}", lambda x: f"{float(x[0]):.1f}", tag[0]), drawing)
    drawing = re.sub(r"\s*\n\s*", "\n", drawing)
    light, dark = ("".join(f"--{name}:{colour};" for name, colour in theme.items()) for theme in (LIGHT, DARK))
    style = f"svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"
    style += f"text{{font-family:{FONT}!important;paint-order:stroke;stroke:var(--bg);stroke-width:2px}}"
    width, height, top = 72 * SIZE[0], 72 * SIZE[1], 24  # the legend's place is above the drawing
    view = f"0 {-top} {width:g} {height + top:g}"
    root = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" viewBox="{view}">'
    return f"{root}\n<style>{style}</style>\n{legend()}{drawing[drawing.index('>') + 1 :]}\n"


def legend() -> str:
    """What each line is, in one row; told apart by their marks, too."""
    keys = [("train", "c0", MARKERS["o"]), ("val", "c1", MARKERS["s"]), ("train, each batch", "batch", "")]
    parts, left = [], 34
    for words, colour, mark in keys:
        parts.append(
            f'<g transform="translate({left} -19)" font-size="12" fill="var(--text)">'
            f'<path d="M0 7H28" stroke="var(--{colour})" stroke-width="2"/>'
            f'<text x="14" y="11" fill="var(--{colour})" text-anchor="middle">{mark}</text>'
            f'<text x="36" y="11">{words}</text></g>\n'
        )
        left += 52 + 6 * len(words)
    return "".join(parts)


def make(name: str, options: str, folder: Path) -> Path:
    """Train a run, if it is not there, and give its folder.

    Raises:
        RuntimeError: if it could not be trained.
    """
    run_dir = folder / name
    if not run_dir.exists():
        words = [sys.executable, *shlex.split(command(options))[1:], "--run_dir", str(run_dir)]
        done = subprocess.run(words, stdout=subprocess.DEVNULL, cwd=ROOT)
        if done.returncode not in (0, 1):  # 1 is a run that stopped itself
            raise RuntimeError(f"{words} ended with {done.returncode}")
    return run_dir


def diagnosis(run_dir: Path) -> str:
    """What the command `diagnose` says of a run, without the name of its folder and in lines that fit a page.

    Raises:
        RuntimeError: if it fails.
    """
    words = [sys.executable, "-m", "tinygpt_pl", "diagnose", str(run_dir)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode not in (0, 3):  # neither healthy nor ill
        raise RuntimeError(f"diagnose ended with {done.returncode}")
    lines = done.stdout.strip().replace(f"{run_dir}: ", "", 1).splitlines()
    return "\n".join(
        textwrap.fill(line, 116, subsequent_indent=" " * (12 if line[0] == " " else 2), break_on_hyphens=False)
        for line in lines
    )


def draw(run_dir: Path) -> None:
    """Draw a run into the folder of pictures, under its own name."""
    (CURVES / f"{run_dir.name}.svg").write_text(picture(read_history(run_dir)), encoding="utf-8")


def main() -> None:
    """Make the runs and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder in which the runs stay")
    parser.add_argument("--only", nargs="*", choices=[name for name, _, _ in RUNS], help="leave the others out")
    args = parser.parse_args()
    CURVES.mkdir(exist_ok=True)
    for run_dir in ROOT.glob("lightning_logs/reference-*"):
        draw(run_dir)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.runs or Path(temporary)).absolute()
        for name, title, options in RUNS:
            if args.only is not None and name not in args.only:
                continue
            run_dir = make(name, options, folder)
            draw(run_dir)
            print(f"### {title}\n\n```\n{typed(command(options))}\n```\n", flush=True)
            print(f"```text\n{diagnosis(run_dir)}\n```\n", flush=True)


if __name__ == "__main__":
    main()
