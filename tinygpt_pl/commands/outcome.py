"""The commands fit, validate and test, and how their end is told."""

import logging
import shlex
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress

from lightning.fabric.utilities.exceptions import MisconfigurationException

from tinygpt_pl.commands.job import Job
from tinygpt_pl.commands.parser import PROG, fail, refuse
from tinygpt_pl.guards import Unhealthy
from tinygpt_pl.runs.checkpoint import newest_sound
from tinygpt_pl.system.machine import out_of_memory
from tinygpt_pl.training.saving import Interrupted

UserError = (ValueError, OSError)
"""What a wrong setting or file raises before training starts; later, the same is a failure of the run."""


def quieten() -> None:
    """Keep the console for what the run itself has to say."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # devices, ranks, adverts, «max_steps reached»
    # The accelerator was the user's choice.
    warnings.filterwarnings("ignore", message="GPU available but not used", category=UserWarning)
    # A resumed run goes on in its own folder, on purpose.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty", category=UserWarning)
    # Lightning 2.6.6 asks torch 2.13 for a deprecated class at every batch.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    threading.excepthook = _tell_thread_failure


_tell_any_thread_failure = threading.excepthook


def _tell_thread_failure(failure: threading.ExceptHookArgs) -> None:
    """Leave a curve that cannot be written to its logger, which says so in one line."""
    if not type(failure.thread).__module__.startswith("tensorboard."):
        _tell_any_thread_failure(failure)


def run(verb: str, options: Sequence[str]) -> int:
    """Train or score a network; gives the exit code."""
    quieten()
    job: Job | None = None
    try:
        job = Job(verb, options)
        job.prepare()
    except UserError as error:
        refuse(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    else:
        return carry_out(job)
    finally:
        if job:
            job.close()


def carry_out(job: Job) -> int:
    """Carry out a command whose settings are sound, and tell how it ended; gives the exit code."""
    code, message = 0, ""
    try:
        getattr(job, job.verb)()
    except Interrupted as stop:
        message = f"{stop}; go on with: {PROG} fit --ckpt_path {shlex.quote(str(stop.path))}"
        code = 128 + stop.signum if job.trainer.is_global_zero else 0
    except Unhealthy as error:
        return tell(job, str(error), sound_state(job), shared=True)
    except OSError as error:
        return tell(job, str(error), sound_state(job))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        advice = "halve --data.batch_size and double --trainer.accumulate_grad_batches: the same windows in a step"
        return tell(job, f"out of memory with {job.data.batch_size} windows at a time; {advice}", sound_state(job))
    except MisconfigurationException as error:  # of a callback of the user's, most likely
        return tell(job, str(error), shared=True)
    except SystemExit:  # Lightning's end of what a signal stopped; its own code says nothing of the kind
        return 143 if job.trainer.received_sigterm else 130
    except KeyboardInterrupt:
        return 130
    if job.files.failures:
        unwritten = "; ".join(f"{path} ({reason})" for path, reason in job.files.failures.items())
        return tell(job, f"could not be written: {unwritten}", sound_state(job))
    if message and job.trainer.is_global_zero:
        with suppress(OSError):  # whoever read it may have gone by the same signal
            print(message, file=sys.stderr)
    return code


def tell(job: Job, message: str, hint: str = "", *, shared: bool = False) -> int:
    """Say why a run failed, what all processes share on the first alone; gives the exit code.

    The code of what they share is the first one's, too: Lightning's launcher kills the first where another has one.
    """
    if job.trainer.is_global_zero:
        fail(message, hint)
    elif shared:
        return 0
    else:
        fail(f"process {job.trainer.global_rank}: {message}", hint)
    return 1


def sound_state(job: Job) -> str:
    """Where a run that failed can be taken up again."""
    sound = newest_sound(job.run_dir / "checkpoints") if job.run_dir else None
    return f"iteration {sound[0]} is safe: {PROG} fit --ckpt_path {shlex.quote(str(sound[1]))}" if sound else ""
