"""Runs of an earlier version resume, score, generate and export as they did."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.small_runs import Run, load, scalars, table

OLD = Path(__file__).parent / "data" / "old_run"


@pytest.fixture(params=["plain", "modern"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a run, which lies with its text in the working folder."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.delenv("TINYGPT_CACHE", raising=False)
    return str(request.param)


def expected(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "expected.json").read_text())
    return found


def test_it_resumes_to_the_same_weights(cli: Run, run: str) -> None:
    """Within rounding: another CPU may add in another order."""
    code, out, err = cli("fit", f"--ckpt_path={run}/checkpoints/last.ckpt", "--trainer.max_steps=12")
    assert code == 0, err
    assert [row[0] for row in table(out)] == ["8", "12"]
    checkpoint = load(Path(run, "checkpoints/last.ckpt"))
    current = checkpoint.get("current_model_state", {})
    weights = checkpoint["state_dict"] | {f"current.{name}": tensor for name, tensor in current.items()}
    torch.testing.assert_close(weights, load_file(f"{run}/final.safetensors"), rtol=0, atol=1e-5)
    assert checkpoint["val_loss"] == pytest.approx(expected(run)["final_val_loss"], abs=1e-5)
    assert [step for step, _ in scalars(Path(run))["eval/val_loss"]] == [0, 4, 6, 8, 12]


def test_it_scores_as_it_did(cli: Run, run: str) -> None:
    code, out, err = cli("validate", f"--run_dir={run}")
    assert code == 0, err
    assert [float(loss) for loss in table(out)[0][1:3]] == pytest.approx(expected(run)["validate"], abs=1.5e-4)
    code, out, err = cli("test", f"--run_dir={run}")
    assert code == 0, err
    (nats,) = re.findall(r"^(\d+\.\d+) nats", out, re.MULTILINE)
    assert float(nats) == pytest.approx(expected(run)["test"], abs=1.5e-4)


def test_it_generates_the_same_text(cli: Run, run: str) -> None:
    code, out, err = cli("generate", f"--run_dir={run}", "--ckpt_path=last", "--seed=1", "--max_new_tokens=60")
    assert code == 0, err
    assert out == expected(run)["generated"]


def test_it_is_exported(cli: Run, run: str) -> None:
    code, _, err = cli("export", f"--run_dir={run}", "--output_dir=exported")
    assert code == 0, err
    embedding = {"plain": "transformer.wte.weight", "modern": "model.embed_tokens.weight"}[run]
    stored = load(Path(run, "checkpoints/best.ckpt"))["state_dict"]["gpt.wte.weight"]
    assert torch.equal(load_file("exported/model.safetensors")[embedding], stored)


def test_its_curve_is_read(cli: Run, run: str) -> None:
    code, out, err = cli("diagnose", run)
    assert (code, err) == (0, "")
    assert out.startswith(f"{run}: healthy: ")
