"""CSV, W&B and MLflow loggers, chosen by a short name; they log what the event file has."""

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
"""CSVLogger, WandbLogger or MLFlowLogger."""

PROJECT = "tinygpt_pl"
"""Project of W&B and experiment of MLflow that the runs belong to."""

FOLDER = "run_dir"
"""MLflow tag that holds the path of the run's folder."""


def named_logger(name: LoggerName, run_dir: Path, *, resumes: bool) -> Logger:
    """Build a logger for a run.

    MLflow writes where MLFLOW_TRACKING_URI says, else into a file `mlflow.db` beside the run's folder.

    Args:
        name: its short name.
        run_dir: the run's folder.
        resumes: whether the run resumes; W&B and MLflow then continue the run that they have.

    Raises:
        ValueError: if its package is missing.
    """
    folder = str(run_dir.resolve())
    try:
        if name == "csv":
            # On resume Lightning deletes the file, and `begin` writes its rows again.
            warnings.filterwarnings("ignore", f"Experiment logs directory {re.escape(str(run_dir))}", UserWarning)
            return CSVLogger(run_dir, name="csv", version="")
        if name == "wandb":
            known = wandb_run(run_dir) if resumes else None
            return WandbLogger(run_dir.name, run_dir, id=known, project=PROJECT, resume="allow")
        # MLflow 3.17 refuses file: URIs.
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.parent.resolve()}/mlflow.db"
        tags = {FOLDER: folder}
        return MLFlowLogger(PROJECT, run_dir.name, place, tags, run_id=mlflow_run(place, folder) if resumes else None)
    except ModuleNotFoundError:
        raise ValueError(f"trainer.logger {name} needs a package that is not installed: pip install {name}") from None


def wandb_run(run_dir: Path) -> str | None:
    """The W&B id of a run, from the names of W&B's folders in it; None if there is none."""
    folders = sorted(run_dir.glob("wandb/*run-*-*"), key=lambda folder: folder.name.partition("run-")[2])
    return folders[-1].name.rpartition("-")[2] if folders else None


def mlflow_run(place: str, folder: str) -> str | None:
    """The MLflow id of the run with this folder as its tag; None if there is none."""
    from mlflow import MlflowClient

    client = MlflowClient(place)
    experiment = client.get_experiment_by_name(PROJECT)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []  # the newest first
    return next((str(run.info.run_id) for run in runs if run.data.tags.get(FOLDER) == folder), None)


def begin(logger: Logger, settings: Mapping[str, Any], history: History) -> None:
    """Log the settings; on resume, write the earlier rows of a CSV file again, since Lightning deleted it.

    MLflow refuses to change the parameters of a run, so they stay those of its start.
    """
    if isinstance(logger, CSVLogger):
        rows = sorted((it, tag, value) for tag, values in history.rows.items() for it, value in values.items())
        for it, row in groupby(rows, key=lambda entry: entry[0]):
            logger.log_metrics({tag: value for _, tag, value in row}, it)
    has_settings = isinstance(logger, MLFlowLogger) and logger.experiment.get_run(logger.run_id).data.params
    if not has_settings:
        logger.log_hyperparams(dict(settings))
