"""When checkpoints are saved, and how a run is stopped without losing a step."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.plugins import CheckpointIO

from tinygpt_pl.guards import Interrupted
from tinygpt_pl.runs.checkpoint import Checkpoint, iteration_of, read_checkpoint, write_checkpoint
from tinygpt_pl.runs.folder import checkpoint_path
from tinygpt_pl.system.files import short
from tinygpt_pl.system.terminal import warn
from tinygpt_pl.windows import Batch


class CheckpointFiles(CheckpointIO):
    """Has Lightning write each checkpoint whole or not at all, and read it as data.

    `failures` has the reason for each file whose newest state could not be written.
    """

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        """Hold the checkpoint that a run resumes from until Lightning asks for it, so that it is read once."""
        self.checkpoint = checkpoint
        self.failures: dict[Path, str] = {}

    def check(self) -> None:
        """See that the newest state of each file is on the disk.

        Raises:
            OSError: if a save has failed and none has succeeded since.
        """
        if self.failures:
            unwritten = "; ".join(f"{path} ({reason})" for path, reason in self.failures.items())
            raise OSError(f"could not be written: {unwritten}")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a file; where that fails, the old one stays, and the run goes on with a warning."""
        path = short(path)
        try:
            write_checkpoint(checkpoint, path)
        except OSError as error:
            if path not in self.failures:
                warn(f"{path} could not be written ({error.strerror or error}); the next save tries again")
            self.failures[path] = error.strerror or str(error)
        else:
            self.failures.pop(path, None)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Give what a file holds, in main memory."""
        checkpoint, self.checkpoint = self.checkpoint, None
        if checkpoint is None or checkpoint.path != Path(path):
            checkpoint = read_checkpoint(Path(path))
        return checkpoint.hand_over()

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a file."""
        Path(path).unlink(missing_ok=True)


class BestCheckpoint(ModelCheckpoint):
    """The checkpoint with the lowest validation loss."""

    def __init__(self, run_dir: Path, files: CheckpointFiles) -> None:
        super().__init__(
            dirpath=run_dir / "checkpoints",
            filename="best",
            monitor="eval/val_loss",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        self.files = files

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save an improvement; one that could not be saved does not count."""
        before = self.state_dict()
        before["best_k_models"] = dict(before["best_k_models"])
        super().on_validation_end(trainer, pl_module)
        improved = self.best_model_score is not before["best_model_score"]
        if improved and trainer.strategy.broadcast(short(self.best_model_path) in self.files.failures):
            super().load_state_dict(before)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the best score, which Lightning forgets where the folder has another name than before."""
        here = Path(str(self.dirpath))
        best = here / Path(state_dict["best_model_path"]).name
        if iteration_of(best) >= 0:  # not so in a new folder, whose best is yet to come
            scores = {str(best): score for score in state_dict["best_k_models"].values()}
            paths = {"dirpath": str(here), "best_model_path": str(best), "kth_best_model_path": str(best)}
            super().load_state_dict({**state_dict, **paths, "best_k_models": scores})


class StopSignals(Callback):
    """Notes the first Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 while the run trains; a second one ends the process at once.

    SIGUSR1 is what a cluster is commonly told to send before the time of a job is up. SIGHUP comes several times where
    a terminal is closed, from the shell and from the system, so it ends nothing at once.
    """

    SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none, nor SIGUSR1
    SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, SIGHUP, getattr(signal, "SIGUSR1", None))))

    def __init__(self) -> None:
        self.received = 0

    @property
    def wish(self) -> int:
        """0 for nothing, or 1 and the number of the signal that is to stop the run."""
        return 1 + self.received if self.received else 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over from Lightning, which would stop in mid-step; at the end it gives the signals back itself."""
        if threading.current_thread() is threading.main_thread():
            for signum in self.SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN:  # as for a job in the background of a script
                    signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            if signum == self.SIGHUP:
                return
            if self.received != self.SIGHUP:
                os._exit(128 + signum)
        self.received = signum
        with suppress(OSError):  # whoever read it may have gone by the same signal
            os.write(2, b"\nstopping after this step; a second signal stops at once\n")  # print may be busy printing


class LastCheckpoint(CheckpointCallback):
    """Keeps the newest state: saved after each evaluation, every few minutes between, and when a signal stops the run.

    Each rank states its wish as an integer: 0 for nothing, 1 to save, 1 and a signal's number to save and stop. All do
    the largest.
    """

    def __init__(self, run_dir: Path, minutes: float, signals: StopSignals, files: CheckpointFiles) -> None:
        """Prepare the saves.

        Args:
            run_dir: the folder of the run.
            minutes: the longest time between two saves, as far as steps are shorter than that.
            signals: what may stop the run.
            files: where it is saved, and which saves failed.
        """
        self.files = files
        self.path, self.seconds, self.signals = checkpoint_path(run_dir, "last"), 60.0 * minutes, signals
        self.due = 0.0
        self.common: list[int] = []  # batches of an evaluation that every process has, in each split

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.due = time.monotonic() + self.seconds

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after each evaluation."""
        self._save(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """At the end of an optimizer step, save if it is time to, and stop if a signal came."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._heed(trainer, self.signals.wish or int(time.monotonic() >= self.due))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find out how long all processes look for signals together: one may have fewer batches than another."""
        self.common = [self._agree(trainer, int(size), "min") for size in trainer.num_val_batches]

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop in the middle of an evaluation if a signal came; the run that goes on begins with it."""
        if batch_idx < self.common[dataloader_idx]:
            self._heed(trainer, self.signals.wish)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the run with an error if its newest state is not on the disk."""
        self.files.check()

    def _heed(self, trainer: pl.Trainer, wish: int) -> None:
        """Do the most that any process wishes: nothing (0), save (1), or save and stop (more)."""
        wish = self._agree(trainer, wish, "max")
        if wish:
            self._save(trainer)
        if wish > 1:
            self.files.check()
            raise Interrupted(wish - 1, trainer.global_step, self.path)

    @staticmethod
    def _agree(trainer: pl.Trainer, number: int, reduce_op: str) -> int:
        """The least or the largest of the numbers that the processes have."""
        if trainer.world_size == 1:
            return number
        tensor = torch.tensor(float(number), device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(tensor, reduce_op=reduce_op))

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.due = time.monotonic() + self.seconds
