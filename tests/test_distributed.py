"""Two processes on this machine take the step of one."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.runs import MODERN, Run, load, shell, small, table


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{}, {**MODERN, "trainer__precision": "64-true"}], ids=["recipe", "modern"])
def test_two_devices_share_the_windows_of_one(
    cli: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any]
) -> None:
    """Muon makes much of the rounding of a gradient that is nearly nothing, hence its double precision."""
    monkeypatch.chdir(tmp_path)
    code, one, _ = cli("fit", *small(text_file, **parts), "--run_dir=one")
    assert code == 0
    options = small(text_file, data__batch_size=2, trainer__devices=2, trainer__strategy="ddp", **parts)
    two = shell("fit", *options, "--run_dir=two", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert [row[0] for row in table(two.stdout)] == ["0", "4", "8", "10"], "only the first process prints"
    assert "sync_dist" not in two.stderr
    for a, b in zip(table(one), table(two.stdout), strict=True):
        assert [float(x) for x in a[1:]] == pytest.approx([float(x) for x in b[1:]], abs=2e-4)
    for verb in ("validate", "test"):
        done = shell(verb, "--run_dir=two", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        scores = [cli(verb, "--run_dir=one")[1], done.stdout]
        numbers = [[float(x) for x in re.findall(r"\d+\.\d{4}", score)] for score in scores]
        assert len(numbers[0]) >= 2
        assert numbers[0] == pytest.approx(numbers[1], abs=2e-4)
    a, b = (load(tmp_path / run / "checkpoints/last.ckpt")["state_dict"] for run in ("one", "two"))
    for name in a:
        if not name.endswith("c_attn.bias"):  # whose key part has no gradient but rounding
            assert (a[name] - b[name]).abs().max() < 1e-4 * a[name].abs().max(), name
