"""Loggers beside the event file by a short name, with their files in the run's folder or beside it."""

import os
import re
import warnings
from itertools import groupby
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from tinygpt_pl.insight.history import History

LoggerName = Literal["csv", "wandb", "mlflow"]
"""A file metrics.csv, Weights & Biases, or MLflow."""

PROJECT = "tinygpt_pl"
"""What runs are gathered under."""


def named_logger(name: LoggerName, run_dir: Path) -> Logger:
    """The logger of a name, for the run in a folder.

    MLflow writes where MLFLOW_TRACKING_URI says, else into a folder `mlruns` beside the run's.

    Raises:
        ValueError: if its package is missing.
    """
    try:
        if name == "csv":
            # Lightning deletes the file of a run that resumes, whose rows are written again.
            warnings.filterwarnings("ignore", f"Experiment logs directory {re.escape(str(run_dir))}", UserWarning)
            return CSVLogger(run_dir, name="csv", version="")
        if name == "wandb":
            return WandbLogger(run_dir.name, save_dir=run_dir, project=PROJECT)
        place = os.environ.get("MLFLOW_TRACKING_URI") or (run_dir.parent / "mlruns").resolve().as_uri()
        return MLFlowLogger(PROJECT, run_dir.name, place)
    except ModuleNotFoundError:
        raise ValueError(f"trainer.logger {name} needs a package that is not installed: pip install {name}") from None


def write_again(logger: CSVLogger, history: History) -> None:
    """Have the file of a CSV logger, which Lightning starts anew, begin with the rows of the run so far."""
    rows = sorted((it, tag, value) for tag, values in history.rows.items() for it, value in values.items())
    for it, row in groupby(rows, key=lambda entry: entry[0]):
        logger.log_metrics({tag: value for _, tag, value in row}, it)
