"""The curve read while it grows: findings reported once they are certain, and the run summed up at its end."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tinygpt_pl.guards import Unhealthy
from tinygpt_pl.insight.diagnosis import diagnose
from tinygpt_pl.system.terminal import say
from tinygpt_pl.training.curve import Curve
from tinygpt_pl.training.events import RESULTS, log_text


class LiveDiagnosis(Callback):
    """Reads the curve after each evaluation, and reports in a line what it finds, once that is certain."""

    def __init__(self, curve: Curve) -> None:
        """Watch a curve.

        Args:
            curve: the callback that collects it; it has the rows of an evaluation before this one reads them.
        """
        self.curve = curve
        self.told: set[str] | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """On resume, do not repeat earlier findings."""
        if self.told is None:
            self.told = {finding.name for finding in diagnose(self.curve.history).findings}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what is new."""
        assert self.told is not None
        new = [finding for finding in diagnose(self.curve.history).findings if finding.name not in self.told]
        self.told |= {finding.name for finding in new}
        if new:
            if trainer.is_global_zero:
                say(*(finding.line for finding in new))
            log_text(trainer, "findings", "\n".join(f"- {finding.line}" for finding in new))
        if trainer.global_step == trainer.max_steps:  # before the last save, after which the run counts as finished
            self._sum_up(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sum a run up that a callback has ended early."""
        if trainer.global_step < trainer.max_steps:
            self._sum_up(trainer)

    def _sum_up(self, trainer: pl.Trainer) -> None:
        """Log what the curve shows, and the results that TensorBoard lists beside the settings."""
        log_text(trainer, "summary", diagnose(self.curve.history).line)
        history = self.curve.history.finite()
        val, train = history.curve("eval/val_loss"), history.curve("eval/train_loss")
        best, at = min((loss, it) for it, loss in val)
        values = (best, float(at), val[-1][1], *(loss for _, loss in train[-1:]))
        results = dict(zip(RESULTS, values, strict=False))  # the last is not there without a training loader
        for logger in trainer.loggers:
            logger.log_metrics(results, step=trainer.global_step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Log why a run was stopped as not worth going on with."""
        if isinstance(exception, Unhealthy):
            log_text(trainer, "stopped", str(exception))
