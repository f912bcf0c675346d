"""The Trainer: its options are the arguments of `make_trainer`, and what the recipe fixes is set there."""

import atexit
import math
import signal
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ProgressBar,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_only

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.guards import Misused
from tinygpt_pl.system.machine import device_type, keep_freed_memory, multiplies_bf16, out_of_memory
from tinygpt_pl.training.evaluation import Evaluation
from tinygpt_pl.training.events import EventLogger
from tinygpt_pl.training.loggers import LoggerName, named_logger
from tinygpt_pl.training.processes import check_processes, leave_process_group
from tinygpt_pl.training.record import RunRecord
from tinygpt_pl.training.saving import LastCheckpoint

Plugin = Precision | ClusterEnvironment | CheckpointIO | LayerSync
HalfPrecision = Literal["bf16-mixed", "16-mixed", "bf16-true", "16-true", "bf16", "16", 16]
OtherPrecision = Literal["32-true", "32", 32, "64-true", "64", 64, "transformer-engine", "transformer-engine-float16"]
PrecisionName = Literal["auto"] | HalfPrecision | OtherPrecision


CHANGING = {
    BatchSizeFinder: "set data.batch_size, and trainer.accumulate_grad_batches for the same windows in a step",
    GradientAccumulationScheduler: "set trainer.accumulate_grad_batches, which is the same for all steps",
    LearningRateFinder: "set model.optim.max_lr; in Python, Tuner(pl.Trainer()).lr_find(module, data) proposes one",
    StochasticWeightAveraging: "set ema_decay for an average of the weights",
}
"""Callbacks that change settings without recording them, so that the run could not resume; and what to use."""


def make_trainer(
    recipe: Sequence[Callback] = (),
    accelerator: str | Accelerator = "auto",
    strategy: str | Strategy = "auto",
    devices: list[int] | str | int = 1,
    num_nodes: int = 1,
    logger: Logger | LoggerName | Iterable[Logger | LoggerName] | bool | None = None,
    callbacks: list[Callback] | Callback | None = None,
    max_steps: int = 5000,
    log_every_n_steps: int = 10,
    enable_progress_bar: bool | None = None,
    accumulate_grad_batches: int = 1,
    gradient_clip_val: int | float | None = 1.0,
    deterministic: bool | Literal["warn"] | None = None,
    benchmark: bool | None = None,
    profiler: Profiler | str | None = None,
    detect_anomaly: bool = False,
    plugins: Plugin | list[Plugin] | None = None,
    precision: PrecisionName | None = "32-true",
) -> pl.Trainer:
    """Build the Trainer of a run, or, without the callbacks of the recipe, one that evaluates checkpoints.

    Args:
        recipe: the callbacks of `recipe_callbacks`.
        accelerator: cpu, gpu, cuda, mps or auto, or a class of your own.
        strategy: how several devices share a run, such as ddp or fsdp2.
        devices: number of devices of a machine, or a list of their indices.
        num_nodes: number of machines.
        logger: loggers beside the event files for TensorBoard, as objects or as csv, wandb or mlflow; false for no
            curve at all.
        callbacks: of your own, after those of the recipe.
        max_steps: optimizer steps of the whole run.
        log_every_n_steps: optimizer steps from row to row of the curve.
        enable_progress_bar: whether to show a progress bar; yes if left out.
        accumulate_grad_batches: micro-batches of an optimizer step.
        gradient_clip_val: largest global norm of the gradient; null for no clipping.
        deterministic: whether to use deterministic algorithms alone; warn to be told where there are none.
        benchmark: whether cuDNN tries its algorithms for the fastest one.
        profiler: measures hooks and steps, such as simple or advanced.
        detect_anomaly: whether autograd looks for NaN in each operation; slow.
        plugins: of precision, cluster environment, checkpoints or layer synchronisation.
        precision: number format; auto for bf16-mixed where the device has instructions for it, 16-mixed on an older
            CUDA device, else 32-true.

    Raises:
        ValueError: if Lightning cannot do what is asked for, or the processes of a run are not as many as its devices.
    """
    options = {**locals()}
    del options["recipe"]
    if recipe and max_steps < 1:
        raise ValueError(f"trainer.max_steps has to be at least 1, got {max_steps}")
    for callback in _listed(callbacks):
        for kind, advice in CHANGING.items():
            if isinstance(callback, kind):
                raise ValueError(f"{kind.__name__} changes settings without recording them: {advice}")
    if isinstance(accelerator, CPUAccelerator | MPSAccelerator):
        # Mixed precision is CUDA's for Lightning wherever it is given an object.
        options["accelerator"] = accelerator = accelerator.name()
    options["precision"] = choose_precision(precision, accelerator)
    for callback in recipe:
        if isinstance(callback, RunRecord):
            callback.trainer_options = options.copy()
    options["callbacks"] = _with_one_bar(recipe or _bar(enable_progress_bar), _listed(callbacks))
    options["profiler"] = profiler or Unprofiled()
    options |= _from_recipe(recipe, accumulate_grad_batches, logger, _listed(plugins))
    try:
        trainer = pl.Trainer(**options, enable_model_summary=False)
    except Exception as error:  # Lightning raises all sorts of them for a setting that it cannot use
        raise ValueError(f"trainer: {error}") from error
    # Variables of another program's, such as RANK, would keep a lone process from printing and saving.
    rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]  # set by Lightning at import
    check_processes(trainer)
    atexit.register(leave_process_group)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def _from_recipe(recipe: Sequence[Callback], accumulate: int, logger: Any, plugins: list[Any]) -> dict[str, Any]:
    """What the callbacks of the recipe ask of the Trainer; without them, nothing is logged or saved."""
    if not recipe:
        return {"logger": False, "enable_checkpointing": False, "plugins": plugins}
    # Lightning counts micro-batches; and across epochs, of which there is one.
    asked: dict[str, Any] = {"check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    for callback in recipe:
        if isinstance(callback, Evaluation):
            asked["val_check_interval"] = callback.interval * accumulate
        elif isinstance(callback, RunRecord) and logger is not False:
            given: list[Any] = (
                [] if logger in (None, True) else [logger] if isinstance(logger, Logger | str) else [*logger]
            )
            run, resumes = callback.run_dir, callback.purge_step is not None
            others = [one if isinstance(one, Logger) else named_logger(one, run, resumes=resumes) for one in given]
            logger = [EventLogger(run, purge_step=callback.purge_step), *others]
        elif isinstance(callback, LastCheckpoint):
            plugins = [callback.files, *plugins]
    return {**asked, "logger": logger, "plugins": plugins}


def _bar(wanted: bool | None) -> list[Callback]:
    """The progress bar of an evaluation: Lightning's own choice would depend on whether rich is installed."""
    return [] if wanted is False else [TQDMProgressBar()]


def _with_one_bar(ours: Sequence[Callback], theirs: Sequence[Callback]) -> list[Callback]:
    """Join the callbacks, and leave out our progress bar if the user gives another."""
    other = any(isinstance(callback, ProgressBar) for callback in theirs)
    return [*(callback for callback in ours if not (other and isinstance(callback, ProgressBar))), *theirs]


def _listed(given: Any) -> list[Any]:
    """A list of one item, of several, or empty for None."""
    return given if isinstance(given, list) else [given] if given else []


PRECISIONS = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true", "64": "64-true"}
"""Lightning's short names for precisions, and the long ones that it turns them into."""


def choose_precision(precision: Any, accelerator: str | Accelerator) -> Any:
    """The one name of a precision, or of what `auto` stands for on an accelerator; None stays.

    Raises:
        ValueError: for float64 on an Apple GPU.
    """
    kind = device_kind(accelerator)
    if precision == "auto":
        # Tensor cores before Ampere multiply float16, and bfloat16 in software.
        return "bf16-mixed" if multiplies_bf16(kind) else "16-mixed" if kind == "cuda" else "32-true"
    name = None if precision is None else PRECISIONS.get(str(precision), str(precision))
    if name == "64-true" and kind == "mps":
        raise ValueError("precision 64-true cannot be used: Apple GPUs have no float64; give 32-true")
    return name


def device_kind(accelerator: str | Accelerator) -> str:
    """The type of device that an accelerator computes on."""
    if isinstance(accelerator, Accelerator):
        (device,) = accelerator.get_parallel_devices(accelerator.parse_devices(1))
        return str(device.type)
    return device_type(accelerator)


class Unprofiled(PassThroughProfiler):
    """Measures nothing, at a fifth of the price: Lightning asks its profiler at each hook of each callback."""

    NOTHING = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]  # which wants a generator's
        """A context that does nothing; the same one each time."""
        return self.NOTHING


def check_split(data: TextDataModule, trainer: pl.Trainer, *, whole: bool = False) -> None:
    """See that each device has a window in a pass over the validation split.

    Args:
        data: set up.
        trainer: of the run.
        whole: whether there is such a pass, whatever `eval_coverage` is.

    Raises:
        ValueError: if there are more devices than windows.
    """
    windows = math.ceil((len(data.splits["val"]) - 1) / data.block_size)
    if (whole or data.eval_coverage == "full") and windows < trainer.world_size:
        raise ValueError(f"the val split has {windows} windows, too few for {trainer.world_size} devices")


@contextmanager
def lightning_running(trainer: pl.Trainer, start: int = 0) -> Iterator[None]:
    """Raise `Misused` for what Lightning or one of its callbacks refuses, and for processes that cannot connect.

    With it, `commands/outcome.py` need not import Lightning.

    Args:
        trainer: of the run.
        start: the optimizer step that it starts from.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise Misused(str(error), _misuse_code(trainer, start)) from error
    except dist.DistNetworkError as error:
        first = str(error).splitlines()[0]
        if trainer.strategy.launcher:  # the processes that it started would try for half an hour
            trainer.strategy.launcher.kill(signal.SIGTERM)
        raise Misused(
            f"the processes of the run cannot meet: {first}\n"
            "set MASTER_PORT to a port that is free, and MASTER_ADDR to the first machine's address"
        ) from error
    except Exception as error:
        modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
        *_, last = [module for module in modules if not module.startswith("torch.")]
        if last.startswith("lightning.pytorch.callbacks.") and not out_of_memory(error):
            raise Misused(str(error), _misuse_code(trainer, start)) from error
        raise


def _misuse_code(trainer: pl.Trainer, start: int) -> int:
    """The exit code for a callback that cannot work: that of a wrong setting if no step has been taken."""
    return 1 if trainer.global_step > start else 2
