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


@pytest.mark.filterwarnings("ignore")  # those of the libraries that MLflow uses
def test_mlflow_has_every_metric_at_its_step_and_goes_on_with_its_own_run(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real MLflow, where one is installed: pip install mlflow."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli("fit", *small(text_file, trainer__logger="mlflow"))[0] == 0
    assert cli("fit", *small(text_file, trainer__logger="mlflow"))[0] == 0
    code, _, err = cli("fit", "--ckpt_path=last", LONGER)
    assert code == 0, err
    client = mlflow.MlflowClient(f"sqlite:///{Path('lightning_logs').resolve()}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'tinygpt_pl'")
    second, first = client.search_runs([experiment.experiment_id])
    assert (first.info.run_name, second.info.run_name) == ("version_0", "version_1")
    assert first.data.params["trainer/max_steps"] == "10"
    for run, folder in ((first, RUN), (second, Path("lightning_logs/version_1"))):
        for tag, rows in read_history(folder).rows.items():
            logged = {row.step: row.value for row in client.get_metric_history(run.info.run_id, tag)}
            assert logged == pytest.approx(rows), tag


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
