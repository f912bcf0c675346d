"""Loggers by a short name, beside the event file."""

import csv
from pathlib import Path

import pytest
import yaml

from tests.small_runs import LAST, LONGER, RUN, Run, small, three_lines
from tinygpt_pl.insight.history import read_history

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def columns(run: Path) -> dict[str, dict[int, float]]:
    """Tag to step to value of a run's metrics.csv."""
    with (run / "csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {tag: {int(row["step"]): float(row[tag]) for row in rows if row[tag]} for tag in rows[0] if tag != "step"}


def test_a_csv_file_has_the_whole_curve_of_a_run_that_resumes(cli: Run, text_file: Path) -> None:
    """Guards against Lightning's deleting of the rows so far, and against rows beyond the checkpoint."""
    settings = {"model__optim__max_iters": 12, "trainer__logger": "csv"}
    assert cli("fit", *small(text_file, **settings, trainer__max_steps=12), "--run_dir=whole")[0] == 0
    assert cli("fit", *small(text_file, **settings))[0] == 0
    code, _, err = cli("fit", f"--ckpt_path={LAST}", LONGER)
    assert code == 0, err
    for run in (RUN, Path("whole")):
        assert columns(run) == {tag: pytest.approx(rows) for tag, rows in read_history(run).rows.items()}
    for tag in ("train/loss", "optim/lr", "optim/grad_norm", "progress/tokens_seen"):
        assert columns(RUN)[tag] == pytest.approx(columns(Path("whole"))[tag])
    settings = yaml.safe_load((RUN / "csv/hparams.yaml").read_text())
    assert settings["trainer"]["max_steps"] == 12


def test_several_are_a_list(cli: Run, text_file: Path) -> None:
    options = small(text_file, trainer__logger='[csv, {"class_path": "CSVLogger", "init_args": {"save_dir": "mine"}}]')
    code, _, err = cli("fit", *options)
    assert code == 0, err
    (other,) = Path("mine").rglob("metrics.csv")
    assert other.read_text() == (RUN / "csv/metrics.csv").read_text()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(
    cli: Run, text_file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = {"wandb": "wandb._WANDB_AVAILABLE", "mlflow": "mlflow._MLFLOW_AVAILABLE"}[name]
    monkeypatch.setattr(f"lightning.pytorch.loggers.{flag}", False)
    code, _, err = cli("fit", *small(text_file, trainer__logger=name))
    assert code == 2
    assert f"trainer.logger {name} needs a package that is not installed: pip install {name}" in three_lines(err)
    assert not RUN.exists()
