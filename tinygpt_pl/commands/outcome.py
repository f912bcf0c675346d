"""How a command ends: the one place where exceptions become messages and exit codes."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygpt_pl.guards import Interrupted, Misused, Unhealthy
from tinygpt_pl.runs.checkpoint import newest_sound
from tinygpt_pl.system.machine import out_of_memory
from tinygpt_pl.system.terminal import fail, program, quoted, refuse

if TYPE_CHECKING:
    import lightning.pytorch as pl


WRONG_PLACE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
}
"""Errors of a path that the user must change; any other error is a failure of the work itself."""


class Work:
    """The work of a command, once it has begun: from then on a failure is not a wrong setting or file any more."""

    def __init__(self) -> None:
        self.begun = False
        self.trainer: pl.Trainer | None = None
        self.run_dir: Path | None = None

    def begin(self, trainer: "pl.Trainer | None" = None, run_dir: Path | None = None) -> None:
        """Note that the settings are sound, which Trainer does the work, and in which folder."""
        self.begun, self.trainer, self.run_dir = True, trainer, run_dir

    @property
    def first(self) -> bool:
        """Whether this is rank 0 of the work, or its only process."""
        return self.trainer is None or self.trainer.is_global_zero

    def fail(self, message: str, *, hint: bool = True, change: str = "", shared: bool = False) -> int:
        """Print why the work failed; gives the exit code.

        If all ranks fail alike (`shared`), those above 0 print nothing and return 0: Lightning's launcher would kill
        rank 0 otherwise. The `hint` is the command that resumes, with options that `change` what would fail again.
        """
        if shared and not self.first:
            return 0
        rank = "" if self.first or self.trainer is None else f"process {self.trainer.global_rank}: "
        fail(f"{rank}{message}", self._sound_state(change) if hint else "")
        return 1

    def _sound_state(self, change: str) -> str:
        """Where a run that failed can resume."""
        sound = newest_sound(self.run_dir / "checkpoints") if self.run_dir else None
        if not sound:
            return ""
        return f"iteration {sound[0]} is safe: {program()} fit --ckpt_path {quoted(sound[1])}{change}"


def carry_out(command: Callable[[Work], int | None]) -> int:
    """Carry out a command; gives its exit code, and prints why it is not 0."""
    work = Work()
    try:
        code = command(work) or 0
        sys.stdout.flush()
    except BrokenPipeError as error:  # the reader of some text has seen enough; a run's table is dropped instead
        return work.fail(str(error)) if work.run_dir else 0
    except Interrupted as stop:
        return _interrupted(stop, work)
    except Unhealthy as error:
        return work.fail(str(error), change=_slower(work.trainer), shared=True)
    except Misused as error:
        failed = work.fail(str(error), hint=False, shared=True)
        return error.code if failed else 0
    except ValueError as error:
        if work.trainer:  # a fault of the program, or of a callback of the user's: its place is needed
            raise
        refuse(str(error))
        return 2
    except OSError as error:
        if work.begun and (work.trainer or error.errno not in WRONG_PLACE):
            return work.fail(str(error))
        refuse(str(error), "" if work.begun else _where_to_write(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit:
        if work.trainer is None:
            raise
        # Lightning's end of what a signal stopped; its own code says nothing of the kind.
        return 143 if work.trainer.received_sigterm else 130
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return work.fail(_too_large(work.trainer))
    return code


def _interrupted(stop: Interrupted, work: Work) -> int:
    """Print how to resume; the exit code is that of the signal, on rank 0."""
    if not work.first:
        return 0
    print(f"{stop}; resume with: {program()} fit --ckpt_path {quoted(stop.path)}", file=sys.stderr)
    return 128 + stop.signum


def _slower(trainer: Any) -> str:
    """Options that resume at a tenth of the learning rate: the steps that failed would fail again."""
    optim = trainer.lightning_module.optim
    max_lr = float(f"{optim.max_lr / 10:.2g}")
    least = f" --model.optim.min_lr {optim.min_lr / 10:.1g}" if optim.min_lr > max_lr else ""
    return f" --model.optim.max_lr {max_lr:g}{least}"


def _where_to_write(error: OSError) -> str:
    """What to set where a file or folder could not be made, as on a disk that is read-only or below a file."""
    refused = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
    missing = error.filename and not os.path.lexists(error.filename)
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EROFS) or (refused and missing):
        return "set --run_dir and TINYGPT_CACHE to folders that can be written to"
    return ""


def _too_large(trainer: Any) -> str:
    if trainer is None or trainer.datamodule is None:
        return "out of memory; ask for less, or raise the limit of this process (ulimit -v, ulimit -d, its container)"
    advice = "halve --data.batch_size and double --trainer.accumulate_grad_batches: the same windows in a step"
    return f"out of memory with {trainer.datamodule.batch_size} windows at a time; {advice}"
