"""Loggers beside the event file by a short name, with their files in the run's folder or beside it."""

import os
import re
import warnings
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from tinygpt_pl.insight.history import History

LoggerName = Literal["csv", "wandb", "mlflow"]
"""A file metrics.csv, Weights & Biases, or MLflow."""

PROJECT = "tinygpt_pl"
"""What runs are gathered under."""

FOLDER = "run_dir"
"""MLflow's tag for the folder of a run."""


def named_logger(name: LoggerName, run_dir: Path, *, resumes: bool) -> Logger:
    """The logger of a name, for the run in a folder.

    MLflow writes where MLFLOW_TRACKING_URI says, else into a file `mlflow.db` beside the run's folder.

    Args:
        name: which it is.
        run_dir: the folder.
        resumes: whether the run has logged before, and goes on in the same place.

    Raises:
        ValueError: if its package is missing.
    """
    folder = str(run_dir.resolve())
    try:
        if name == "csv":
            # Lightning deletes the file of a run that resumes, whose rows are written again.
            warnings.filterwarnings("ignore", f"Experiment logs directory {re.escape(str(run_dir))}", UserWarning)
            return CSVLogger(run_dir, name="csv", version="")
        if name == "wandb":
            known = wandb_run(run_dir) if resumes else None
            return WandbLogger(run_dir.name, run_dir, id=known, project=PROJECT, resume="allow")
        # MLflow 3.17 refuses its former folders of text files.
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.parent.resolve()}/mlflow.db"
        tags = {FOLDER: folder}
        return MLFlowLogger(PROJECT, run_dir.name, place, tags, run_id=mlflow_run(place, folder) if resumes else None)
    except ModuleNotFoundError:
        raise ValueError(f"trainer.logger {name} needs a package that is not installed: pip install {name}") from None


def wandb_run(run_dir: Path) -> str | None:
    """The id that W&B has given to the run in a folder, as its own folders are named; None if it knows no such run."""
    folders = sorted(run_dir.glob("wandb/*run-*-*"), key=lambda folder: folder.name.partition("run-")[2])
    return folders[-1].name.rpartition("-")[2] if folders else None


def mlflow_run(place: str, folder: str) -> str | None:
    """The id that MLflow has given to the run in a folder; None if it knows no such run."""
    from mlflow import MlflowClient

    client = MlflowClient(place)
    experiment = client.get_experiment_by_name(PROJECT)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []  # the newest first
    return next((str(run.info.run_id) for run in runs if run.data.tags.get(FOLDER) == folder), None)


def begin(logger: Logger, settings: Mapping[str, Any], history: History) -> None:
    """Log the settings of a run, and into a CSV file, which Lightning starts anew, the rows so far.

    MLflow lets nothing change in a run's parameters: it keeps those of its start.
    """
    if isinstance(logger, CSVLogger):
        rows = sorted((it, tag, value) for tag, values in history.rows.items() for it, value in values.items())
        for it, row in groupby(rows, key=lambda entry: entry[0]):
            logger.log_metrics({tag: value for _, tag, value in row}, it)
    begun = isinstance(logger, MLFlowLogger) and logger.experiment.get_run(logger.run_id).data.params
    if not begun:
        logger.log_hyperparams(dict(settings))
