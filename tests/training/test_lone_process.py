"""A process that is alone has curve and lock, whatever other programs have left in its environment."""

import re
import socket
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from tests.small_runs import RUN, Run, free_port, scalars, shell, small, three_lines

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.mark.parametrize(
    "variables", [{"WORLD_SIZE": "2"}, {"RANK": "1"}, {"SLURM_PROCID": "3"}, {"SLURM_NTASKS": "1"}]
)
def test_variables_that_tell_a_lone_process_nothing(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Lightning takes its rank from them while it is imported."""
    for name, value in ({"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", int(variables.get("RANK", variables.get("SLURM_PROCID", 0))))
    code, _, err = cli("fit", *small(text_file))
    assert code == 0, err
    assert [step for step, _ in scalars(RUN)["eval/val_loss"]] == [0, 4, 8, 10]
    assert (RUN / ".lock").exists()


@pytest.mark.parametrize(
    ("variables", "unset"),
    [
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK"),
        ({"NODE_RANK": "1"}, "NODE_RANK"),
        ({"GROUP_RANK": "2"}, "GROUP_RANK"),
        ({"RANK": "x"}, "it"),
        ({"WORLD_SIZE": "two"}, "it"),
        ({"LOCAL_RANK": ""}, "it"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"}, "TORCHELASTIC_RUN_ID WORLD_SIZE RANK"),
        ({"TORCHELASTIC_RUN_ID": "none"}, "TORCHELASTIC_RUN_ID"),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0"}, "SLURM_NTASKS SLURM_PROCID"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "SLURM_NTASKS SLURM_PROCID"),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "1"}, "SLURM_NTASKS SLURM_PROCID"),
        (
            {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "no", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "2"},
            "LSB_JOBID LSB_DJOB_RANKFILE JSM_NAMESPACE_SIZE",
        ),
    ],
    ids=str,
)
def test_variables_that_make_a_lone_process_one_of_several(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], unset: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = cli("fit", *small(text_file), "--run_dir=run")
    assert code == 2
    assert re.search(rf"unset {unset}$", three_lines(err))
    assert not Path("run").exists()


def test_a_lone_process_that_is_told_to_wait_for_others(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would start none, and wait for half an hour."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, _, err = cli("fit", *small(text_file, trainer__devices=2, trainer__strategy="ddp"))
    assert code == 2
    assert "unset LOCAL_RANK" in three_lines(err)
    assert not Path("lightning_logs").exists()


def test_processes_that_are_to_meet_nowhere(cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    code, _, err = cli("fit", *small(text_file, trainer__devices=2, trainer__strategy="ddp"))
    assert code == 2
    assert "set MASTER_ADDR to 127.0.0.1" in three_lines(err)


@pytest.mark.slow
def test_processes_that_are_to_meet_at_the_port_of_another_program(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that finds out ends the other, too."""
    with socket.socket() as taken:
        taken.bind(("", int(free_port())))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        done = shell("fit", *small(text_file, trainer__devices=2, trainer__strategy="ddp"), cwd=tmp_path)
    assert done.returncode == 1
    assert "set MASTER_PORT" in three_lines(done.stderr)
