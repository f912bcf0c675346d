"""benchmarks/gpu.py, on a processor and at a tiny size: it has to run at its first try on the day a GPU is at hand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import Measurements, OutOfTime, train
from tests.small_runs import small

pytestmark = pytest.mark.slow


def test_every_stage_is_measured_once_and_the_table_has_them_all(text_file: Path, tmp_path: Path) -> None:
    options = small(text_file, trainer__max_steps=12, trainer__precision="32-true", compile="false")
    words = ["--device=cpu", f"--folder={tmp_path}", "--steps=4", "--seeds=2", "--minutes=20"]
    command = [sys.executable, "benchmarks/gpu.py", *words]
    outputs = [
        subprocess.run([*command, "--options", *options], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    first, second = (done.stdout[done.stdout.index("| run |") :] for done in outputs)
    assert first == second
    assert outputs[1].stderr == "", "a stage was run twice"
    rows = re.findall(r"^\| (\S+) \| (\d\.\d{4}) \| (\d\.\d{4}) \| \d+ of 12 \| \d+\.\d \|", first, re.MULTILINE)
    assert [row[0] for row in rows] == ["base", "modern-1", "modern-2"]
    assert len({row[1] for row in rows}) == 3, "two seeds gave the same run"
    assert re.search(r"^modern: best \d\.\d{4} ± 0\.\d{4}, 2 seeds$", first, re.MULTILINE)
    assert re.search(r"^a step in a bare loop: \d+\.\d\d ms, of fit \d+\.\d\d times that$", first, re.MULTILINE)
    assert len(re.findall(r"^sampling, (1|64) at a time: [\d,]+ tokens/s$", first, re.MULTILINE)) == 2
    assert first.endswith("all is measured\n")


def test_a_run_that_is_stopped_in_time_goes_on_and_its_seconds_add_up(text_file: Path, tmp_path: Path) -> None:
    words = ["--config=configs/base.yaml", *small(text_file, trainer__max_steps=3000, eval_interval=3000)]
    first = Measurements(tmp_path, minutes=0.2)
    with pytest.raises(OutOfTime):
        train("base", words, tmp_path / "base", first, {})
    kept = json.loads((tmp_path / "results.json").read_text())["base"]
    assert 10 < kept["seconds"] < 60
    again = Measurements(tmp_path, minutes=10)
    result = train("base", words, tmp_path / "base", again, again.results["base"])
    assert result["steps"] == 3000
    assert result["seconds"] > kept["seconds"]
