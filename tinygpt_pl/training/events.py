"""TensorBoard's event file of a run: its rows, texts, pages and hyper-parameters."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from tinygpt_pl.system.terminal import readable, warn

CHARTS = {
    # The tags of a Multiline chart share a run's colour: here val is the line, and train the other edge of the band.
    "loss": {"val, and the gap to train": ["Margin", ["eval/val_loss", "eval/train_loss", "eval/val_loss"]]},
    "optimizer": {
        "learning rate": ["Multiline", ["optim/lr", "optim/lr_no_decay"]],
        "gradient norm before clipping": ["Multiline", ["optim/grad_norm"]],
        "share of clipped steps": ["Multiline", ["optim/clipped_share"]],
    },
}
"""The custom-scalar page of TensorBoard."""

RESULTS = ("result/best_val_loss", "result/best_iter", "result/val_loss", "result/train_loss")
"""What TensorBoard's page of hyper-parameters shows of a run that has come to its end."""

LEADING = {"batch_size", "max_lr", "max_steps", "n_embd", "n_layer"}
"""Settings whose columns come first on that page: it shows five of them, and then the results."""

UNSORTED = ("cache_dir", "offline_corpus")
"""Settings of the text that tell no run from another."""


def log_text(trainer: pl.Trainer, tag: str, text: str) -> None:
    """Write a page of text to the event file, if the run has one, at the present optimizer step."""
    for logger in trainer.loggers:
        if isinstance(logger, EventLogger):
            logger.log_text(tag, text, trainer.global_step)


class EventLogger(TensorBoardLogger):
    """TensorBoard's events alone, straight in the run folder; the settings are in its config.yaml.

    Where the curve cannot be written any more, it ends with a warning; the run goes on.
    """

    def __init__(self, run_dir: Path, purge_step: int | None = None) -> None:
        """Prepare the file; it is opened with the first row.

        Args:
            run_dir: the folder of the run.
            purge_step: the optimizer step from which on a TensorBoard that is open is to forget what it has read.
        """
        super().__init__(run_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)
        self.run_dir, self.broken = run_dir, False

    @property
    def root_dir(self) -> str:
        """The folder of the run; Lightning's own would be another one where its name has a $."""
        return str(self.run_dir)

    @property
    def log_dir(self) -> str:
        """The folder of the run, which holds no versions."""
        return str(self.run_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a row."""
        self._attempt(lambda: super(EventLogger, self).log_metrics(metrics, step))

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Write a page of text."""
        self._attempt(lambda: self.experiment.add_text(tag, text, step))

    def lay_out(self, charts: Mapping[str, Any]) -> None:
        """Write the custom-scalar page."""
        self._attempt(lambda: self.experiment.add_custom_scalars(charts))

    def log_hparams(self, settings: Mapping[str, Any]) -> None:
        """Write what runs are sorted by on the page of hyper-parameters; RESULTS are what they come to.

        Args:
            settings: nested, as in config.yaml.
        """
        model, data, trainer = settings["model"], settings["data"], settings["trainer"]
        chosen = {name: settings[name] for name in ("seed_everything", "ema_decay")} | model["gpt"] | model["optim"]
        chosen |= {name: value for name, value in model.items() if name not in ("gpt", "optim")}
        chosen |= {name: value for name, value in data.items() if name not in UNSORTED}
        names = ("max_steps", "gradient_clip_val", "accumulate_grad_batches", "precision")
        chosen |= {name: trainer[name] for name in names}
        plain = {
            name: value if isinstance(value, int | float) else readable(str(value)) for name, value in chosen.items()
        }
        page, *session = hparams(plain, dict.fromkeys(RESULTS))  # type: ignore[no-untyped-call]  # torch's
        for summary in (_leading_first(page), *session):
            self._attempt(partial(self.experiment.file_writer.add_summary, summary))

    def save(self) -> None:
        """Write what is buffered, and no second file of settings."""
        self._attempt(lambda: self.experiment.flush())

    def finalize(self, status: str) -> None:
        """Close the file."""
        self._attempt(lambda: super(EventLogger, self).finalize(status))

    @rank_zero_only
    def _attempt(self, write: Callable[[], object]) -> None:
        if self.broken:
            return
        try:
            write()
        except (OSError, ValueError) as error:
            # Lightning takes any failure to write a row for a wrong value.
            failure = error.__cause__ if isinstance(error, ValueError) else error
            if not isinstance(failure, OSError):
                raise
            self.broken = True
            warn(f"the curve ends here, since it cannot be written: {failure}")


def _leading_first(page: Summary) -> Summary:
    """Have TensorBoard order the settings on its page of hyper-parameters: those that differ first, then by name."""
    content = page.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(content.content)
    for setting in data.experiment.hparam_infos:
        setting.differs = setting.name in LEADING
    content.content = data.SerializeToString()
    return page
