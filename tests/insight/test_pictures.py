"""docs/reading-the-curve.md has every finding, its commands are those of its pictures, and these stand alone."""

import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the pictures need matplotlib")

from benchmarks.pictures import RUNS, command, legend, picture
from tests.conftest import ROOT
from tests.insight.test_report import healthy
from tinygpt_pl.commands.settings import build_parser

PAGE = (ROOT / "docs" / "reading-the-curve.md").read_text(encoding="utf-8")
SYMPTOMS = "".join(
    (ROOT / "tinygpt_pl" / "insight" / f"{name}.py").read_text(encoding="utf-8")
    for name in ("symptoms", "generalization")
)
FINDINGS = re.findall(r'Finding\(\s*"([^"]+)"', SYMPTOMS)
COMMANDS = re.findall(r"^(python -m tinygpt_pl fit .*)$", PAGE.replace(" \\\n   ", ""), re.MULTILINE)
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
PICTURES = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", PAGE)
REFERENCES = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", RESULTS)


def test_every_finding_has_a_row() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (fault|remark) \|", PAGE, re.MULTILINE))
    assert len(FINDINGS) == len(set(FINDINGS)) > 10
    assert set(rows) == set(FINDINGS)
    remarks = [body for body in SYMPTOMS.split("\n\n\n") if "fault=False" in body]
    assert {name for name, kind in rows.items() if kind == "remark"} == {
        name for body in remarks for name in re.findall(r'Finding\(\s*"([^"]+)"', body)
    }


def test_the_commands_are_those_of_the_pictures() -> None:
    assert COMMANDS == [command(options) for _, _, options in RUNS]
    assert re.findall(r"^### (.*)$", PAGE, re.MULTILINE) == [title for _, title, _ in RUNS]


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, _, options in RUNS])
def test_a_command_parses(name: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command(options))
    assert words[:4] == ["python", "-m", "tinygpt_pl", "fit"]
    config = build_parser("fit").parse_args(words[4:])
    assert config.trainer.max_steps == (300 if name == "still-falling" else 1000)
    assert config.trainer.log_every_n_steps == 10


def test_what_is_found_is_what_is_shown() -> None:
    """Each run is named after its finding, which stands in the text below its command."""
    for name, title, _ in RUNS:
        text = PAGE.partition(f"### {title}\n")[2].partition("\n#")[0]
        found = re.findall(r"^  (?:FINDING|remark) ([\w-]+), at iteration \d+$", text, re.MULTILINE)
        assert set(found) <= set(FINDINGS)
        assert name in [*found, "healthy"]
        assert ("FINDING" in text) == ("\nill (" in text)


def alone(text: str) -> None:
    """Whether a picture needs nothing else."""
    root = ET.fromstring(text)
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"<(?:script|image|foreignObject)|@import", text)
    assert set(re.findall(r"""url\(['"]?([^)'"]*)""", text) + re.findall(r'href="([^"]*)"', text)) <= {
        f"#{i}" for i in ids
    }
    assert set(re.findall(r"var\((--\w+)\)", text)) <= set(re.findall(r"(--\w+):", text))
    assert len(text.encode()) < 40_000


def test_the_pictures_stand_alone() -> None:
    folder = ROOT / "docs"
    assert sorted(path for _, path in PICTURES) == sorted(f"curves/{name}.svg" for name, _, _ in RUNS)
    runs = {run.name for run in (ROOT / "lightning_logs").glob("reference-*")}
    assert {path for _, path in REFERENCES} == {f"curves/{run}.svg" for run in runs}
    assert {folder / path for _, path in PICTURES + REFERENCES} == set((folder / "curves").iterdir())
    for words, path in PICTURES + REFERENCES:
        assert len(words) > 20
        alone(Path(folder / path).read_text(encoding="utf-8"))


def test_a_picture() -> None:
    text = picture(healthy(table_losses=(3.33, 2.48)))
    alone(text)
    for words in ("ln(65) = 4.17", "single tokens", "pairs of tokens", "prefers-color-scheme:dark", legend()):
        assert words in text
