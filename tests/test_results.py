"""docs/results.md reports what the reference runs in lightning_logs hold, each a run of a shipped configuration."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.small_runs import scalars, table
from tinygpt_pl.commands.settings import build_parser

ROOT = Path(__file__).parent.parent
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
RUNS = {"reference-modern": ("modern", "fast"), "reference-half-hour": ("half-hour",)}
"""Folder of a reference run, and the configurations that it was started with."""


@pytest.mark.parametrize("name", RUNS)
def test_the_page_has_the_loss_of_the_run(name: str) -> None:
    """The same figures in the event file, the printed table and the page."""
    run = ROOT / "lightning_logs" / name
    curve = scalars(run)["eval/val_loss"]
    printed = [(int(row[0]), row[2]) for row in table((run / "table.txt").read_text(encoding="utf-8"))]
    assert printed == [(step, f"{loss:.4f}") for step, loss in curve]
    seconds = int(re.findall(r"^iter .*\| (\d+)s$", (run / "table.txt").read_text(encoding="utf-8"), re.MULTILINE)[-1])
    (row,) = re.findall(rf"^\| `{RUNS[name][0]}.yaml` \|.*", RESULTS, re.MULTILINE)
    _, _, _, steps, loss, _, minutes, *_ = (cell.strip() for cell in row.split("|"))
    assert (int(steps), loss) == printed[-1]
    assert int(minutes) == round(seconds / 60)


@pytest.mark.parametrize("name", RUNS)
def test_the_run_is_small_and_has_the_settings_of_its_configuration(name: str) -> None:
    """No weights, less than a megabyte; and whoever runs the configuration today runs the same."""
    run = ROOT / "lightning_logs" / name
    files = {path.name: path.stat().st_size for path in run.iterdir() if path.is_file() and path.name[0] != "."}
    assert sum(files.values()) < 1e6
    assert {"config.yaml", "table.txt", "machine.txt"} < files.keys()
    had = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    words = [word for config in RUNS[name] for word in ("--config", str(ROOT / "configs" / f"{config}.yaml"))]
    asked = build_parser("fit").parse_args(words)
    settled = {*had["auto"], "data.cache_dir"}
    for path, value in _leaves(had):
        if path.partition(".")[0] in ("model", "data", "trainer", "eval_interval") and path not in settled:
            same = [*asked[path]] == value if isinstance(value, list) else asked[path] == value
            assert same, path


def _leaves(tree: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in tree.items():
        found += _leaves(value, f"{above}{name}.") if isinstance(value, dict) else [(above + name, value)]
    return found
