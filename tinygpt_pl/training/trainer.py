"""The Trainer: its options are the arguments of `make_trainer`, and what the recipe fixes is set there."""

import atexit
import math
import os
import signal
import socket
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder, TQDMProgressBar
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
from tinygpt_pl.training.lightning_internals import cluster_environment
from tinygpt_pl.training.record import RunRecord
from tinygpt_pl.training.saving import LastCheckpoint

Plugin = Precision | ClusterEnvironment | CheckpointIO | LayerSync
HalfPrecision = Literal["bf16-mixed", "16-mixed", "bf16-true", "16-true", "bf16", "16", 16]
OtherPrecision = Literal["32-true", "32", 32, "64-true", "64", 64, "transformer-engine", "transformer-engine-float16"]
PrecisionName = Literal["auto"] | HalfPrecision | OtherPrecision


def make_trainer(
    recipe: Sequence[Callback] = (),
    accelerator: str | Accelerator = "auto",
    strategy: str | Strategy = "auto",
    devices: list[int] | str | int = 1,
    num_nodes: int = 1,
    logger: Logger | Iterable[Logger] | bool | None = None,
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
        logger: loggers instead of the event files for TensorBoard; false for none.
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
        precision: kind of numbers; auto for bf16-mixed where the device has instructions for it, 16-mixed on an older
            CUDA device, else 32-true.

    Raises:
        ValueError: if Lightning cannot do what is asked for, or the processes of a run are not as many as its devices.
    """
    if recipe and max_steps < 1:
        raise ValueError(f"trainer.max_steps has to be at least 1, got {max_steps}")
    for callback in _listed(callbacks):
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            raise ValueError(f"{type(callback).__name__} changes what the run's settings say; set it there instead")
    if isinstance(accelerator, CPUAccelerator | MPSAccelerator):
        accelerator = accelerator.name()  # mixed precision is CUDA's for Lightning wherever it is given an object
    try:
        trainer = pl.Trainer(
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            max_steps=max_steps,
            log_every_n_steps=log_every_n_steps,
            enable_progress_bar=enable_progress_bar,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            deterministic=deterministic,
            benchmark=benchmark,
            profiler=profiler or Unprofiled(),
            detect_anomaly=detect_anomaly,
            precision=choose_precision(precision, accelerator),
            enable_model_summary=False,
            callbacks=[*(recipe or _bar(enable_progress_bar)), *_listed(callbacks)],
            **_from_recipe(recipe, accumulate_grad_batches, logger, _listed(plugins)),
        )
    except Exception as error:  # Lightning raises all sorts of them for a setting that it cannot use
        raise ValueError(f"trainer: {error}") from error
    rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]  # a lone process leaves it as RANK, LOCAL_RANK or SLURM_PROCID say
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
        elif isinstance(callback, RunRecord) and logger in (None, True):
            logger = EventLogger(callback.run_dir, purge_step=callback.purge_step)
        elif isinstance(callback, LastCheckpoint):
            plugins = [callback.files, *plugins]
    return {**asked, "logger": logger, "plugins": plugins}


def _bar(wanted: bool | None) -> list[Callback]:
    """The progress bar of an evaluation: Lightning's own choice would depend on whether rich is installed."""
    return [] if wanted is False else [TQDMProgressBar()]


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


RANKS: dict[type[ClusterEnvironment], tuple[str, ...]] = {
    TorchElasticEnvironment: ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_RANK"),
    SLURMEnvironment: ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    LSFEnvironment: ("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    MPIEnvironment: ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    LightningEnvironment: ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"),
}
"""Who may have started a process, in Lightning's order, and the variables that tell it its place among the others."""


def is_first_process(plugins: Any = None) -> bool:
    """Whether this is the one of a job's processes that owns its folder; asked before there is a Trainer to know.

    Args:
        plugins: of the Trainer, one of which may tell.

    Raises:
        ValueError: if the variables that tell make no sense.
    """
    given = next((plugin for plugin in _listed(plugins) if isinstance(plugin, ClusterEnvironment)), None)
    kind = type(given) if given else next(kind for kind in RANKS if kind.detect())
    try:
        return _is_first(given or kind())
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"the rank of this process cannot be found: {error}\n{_alone(kind)}") from None


def _is_first(environment: ClusterEnvironment) -> bool:
    """Whether the variables of a process make it the first; those that Lightning sets tell machine and device apart."""
    if isinstance(environment, LightningEnvironment):
        return environment.node_rank() == environment.local_rank() == 0
    return environment.global_rank() == 0


def _alone(kind: type[ClusterEnvironment]) -> str:
    """What to type where a process is taken for one of several."""
    return f"for a process of its own: unset {' '.join(name for name in RANKS.get(kind, ()) if name in os.environ)}"


def check_processes(trainer: pl.Trainer) -> None:
    """See that torchrun or srun has started a process for each device; Lightning would wait for the others, or worse.

    Raises:
        ValueError: if not, or if nothing can have started those of other machines.
    """
    environment = cluster_environment(trainer)
    alone = _alone(type(environment))
    asked, started = trainer.num_devices * trainer.num_nodes, environment.world_size()
    if asked != started:
        raise ValueError(
            f"trainer.devices {trainer.num_devices} on each of trainer.num_nodes {trainer.num_nodes} is {asked}, but "
            f"{started} processes were started by torchrun or srun; the two have to agree\n{alone}"
        )
    if trainer.global_rank >= asked or trainer.is_global_zero != _is_first(environment):
        raise ValueError(f"the environment makes this process another than the first of a run of {asked}\n{alone}")
    own = isinstance(environment, LightningEnvironment)  # Lightning starts the others, unless LOCAL_RANK is set
    if own and asked > 1 and "LOCAL_RANK" in os.environ and "MASTER_PORT" not in os.environ:
        raise ValueError(f"LOCAL_RANK is that of one of several processes, but no MASTER_PORT tells where\n{alone}")
    if asked > 1 and trainer.num_nodes == 1:
        _check_address(environment.main_address)
    environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    if trainer.num_nodes > 1 and own and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"trainer.num_nodes is {trainer.num_nodes}, but this command knows of no other machine; start it on each "
            "by torchrun or srun"
        )
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False  # which saves in mid-step; StopSignals does so between two steps


def _check_address(name: str) -> None:
    """See that the name of this machine, where its processes are to meet, leads to an address; torch would try on."""
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ValueError(
            f"the processes of the run cannot meet at {name}: {error.strerror}\nset MASTER_ADDR to 127.0.0.1"
        ) from None


def leave_process_group() -> None:
    """End torch.distributed before Python shuts down, as Lightning does for NCCL alone.

    A thread of gloo's that frees a tensor while Python shuts down aborts a process whose work is done (exit code 134).
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


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
def lightning_running(trainer: pl.Trainer) -> Iterator[None]:
    """Raise `Misused` for what Lightning or one of its callbacks refuses, and for processes that cannot connect.

    With it, `commands/outcome.py` need not import Lightning.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise Misused(str(error)) from error
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
            raise Misused(str(error)) from error
        raise
