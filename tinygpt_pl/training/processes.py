"""The processes of a run: who started them, which is the first, and how they part."""

import os
import socket
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from tinygpt_pl.training.lightning_internals import cluster_environment

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
    listed = plugins if isinstance(plugins, list) else [plugins]
    given = next((plugin for plugin in listed if isinstance(plugin, ClusterEnvironment)), None)
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
