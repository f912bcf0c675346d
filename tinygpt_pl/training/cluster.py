"""The processes of a run on several devices: which is the first, and whether there are as many as there have to be."""

import os

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only


def is_first_process() -> bool:
    """Whether this is the one of a job's processes that owns its folder; asked before there is a Trainer to know."""
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"  # as Lightning's LightningEnvironment
    return node == "0" and getattr(rank_zero_only, "rank", 0) == 0


def check_processes(trainer: pl.Trainer) -> None:
    """See that torchrun or srun has started a process for each device; Lightning would wait for the others, or worse.

    Raises:
        ValueError: if not, or if nothing can have started those of other machines.
    """
    environment = trainer._accelerator_connector.cluster_environment
    asked, started = trainer.num_devices * trainer.num_nodes, environment.world_size()
    if asked != started:
        raise ValueError(
            f"trainer.devices {trainer.num_devices} on each of trainer.num_nodes {trainer.num_nodes} is {asked}, but "
            f"{started} processes were started by torchrun or srun; the two have to agree"
        )
    environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"trainer.num_nodes is {trainer.num_nodes}, but this command knows of no other machine; start it on each "
            "by torchrun or srun"
        )
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False  # which saves in mid-step; StopSignals does so between two steps
