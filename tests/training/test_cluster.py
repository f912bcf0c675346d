"""Processes that torchrun or SLURM's srun starts, on one machine and on two that are told apart by their ranks."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.small_runs import Run, assert_same, free_port, launch, load, outcome, small, table
from tests.training.test_distributed import EXACT, TWO, WITHIN, children, goes_on, gone, running, wait_for_line

TORCHRUN = ("torch.distributed.run", "--nproc_per_node")
Process = subprocess.Popen[bytes]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def srun(words: list[str], folder: Path, nodes: int = 1) -> list[Process]:
    """Start what srun does: two processes, told by SLURM's variables which is which; they write to rank0, …"""
    port = free_port()
    return [
        launch(
            ["tinygpt_pl", "fit", *words],
            folder,
            f"rank{rank}",
            SLURM_JOB_ID="4711",
            SLURM_JOB_NAME="gpt",
            SLURM_JOB_NODELIST="localhost",
            SLURM_NODELIST="localhost",
            SLURM_JOB_NUM_NODES=str(nodes),
            SLURM_NNODES=str(nodes),
            SLURM_NTASKS="2",
            SLURM_NTASKS_PER_NODE=str(2 // nodes),
            SLURM_PROCID=str(rank),
            SLURM_LOCALID=str(rank % (2 // nodes)),
            SLURM_NODEID=str(rank // (2 // nodes)),
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]


def assert_run_of_two(cli: Run, text_file: Path, *outputs: str) -> None:
    """The run in `two` is that of one device, and the first process alone has said so."""
    assert cli("fit", *small(text_file, **EXACT), "--run_dir=one")[0] == 0
    assert_same(outcome(Path("one")), outcome(Path("two")), within=WITHIN)
    rows = [[row[0] for row in table(Path(output).read_text())] for output in outputs]
    assert rows == [["0", "10", "20"], *[[]] * (len(outputs) - 1)]
    assert not Path("lightning_logs").exists()
    assert len(list(Path("two").glob("events.*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_torchrun(cli: Run, text_file: Path, tmp_path: Path, strategy: str) -> None:
    """A rank from the environment that is not heeded makes two first processes, which write over each other."""
    options = small(text_file, **EXACT | TWO, trainer__strategy=strategy)
    process = launch([*TORCHRUN, "2", "-m", "tinygpt_pl", "fit", *options, "--run_dir=two"], tmp_path, "output")
    assert process.wait(timeout=100) == 0, Path("output").read_text()
    assert_run_of_two(cli, text_file, "output")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2"])
def test_torchrun_on_two_machines(cli: Run, text_file: Path, tmp_path: Path, strategy: str) -> None:
    """Each machine has a process with the local rank 0; FSDP2 divides among machines, too."""
    options = small(text_file, **EXACT | TWO, trainer__strategy=strategy, trainer__num_nodes=2)
    options += ["--trainer.devices=1", "--run_dir=two"]
    place = ["--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    agents = [
        launch(
            [*TORCHRUN, "1", f"--node_rank={node}", *place, "-m", "tinygpt_pl", "fit", *options],
            tmp_path,
            f"node{node}",
        )
        for node in range(2)
    ]
    for node, agent in enumerate(agents):
        assert agent.wait(timeout=100) == 0, Path(f"node{node}").read_text()
    assert_run_of_two(cli, text_file, "node0", "node1")


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "nodes"), [("ddp", 1), ("fsdp2", 2)])
def test_slurm(cli: Run, text_file: Path, tmp_path: Path, strategy: str, nodes: int) -> None:
    """Nothing but SLURM's own variables tells a process its rank."""
    options = small(text_file, **EXACT | TWO, trainer__strategy=strategy, trainer__num_nodes=nodes)
    words = [*options, f"--trainer.devices={2 // nodes}", "--run_dir=two"]
    for rank, process in enumerate(srun(words, tmp_path, nodes=nodes)):
        assert process.wait(timeout=100) == 0, Path(f"rank{rank}").read_text()
    assert_run_of_two(cli, text_file, "rank0", "rank1")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGUSR1])
def test_slurm_signals_before_it_takes_the_machine_away(
    text_file: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    """Lightning would save in mid-step, where the processes do not wait for each other, and requeue the job itself."""
    processes = srun(running(text_file, "fsdp2"), tmp_path)
    wait_for_line(tmp_path / "rank0", "iter 50 ", processes[0])
    for process in processes:
        process.send_signal(signum)
    assert [process.wait(timeout=60) for process in processes] == [128 + signum, 0]
    first, other = (Path(f"rank{rank}").read_text() for rank in range(2))
    assert f"stopped by {signum.name} at iteration " in first
    assert "stopped by" not in other
    assert "scontrol" not in first
    assert not list(tmp_path.glob("hpc_ckpt*"))
    step = load(tmp_path / "run/checkpoints/last.ckpt")["global_step"]
    again = ["--run_dir=run", "--ckpt_path=last", f"--trainer.max_steps={step + 10}"]
    for process in srun(again, tmp_path):
        assert process.wait(timeout=100) == 0
    assert table(Path("rank0").read_text())[-1][0] == str(step + 10)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0])
def test_torchrun_ends_with_a_process_that_dies(text_file: Path, tmp_path: Path, victim: int) -> None:
    """The job ends soon and with an error, and leaves no process behind."""
    words = [*TORCHRUN, "2", "-m", "tinygpt_pl", "fit", *running(text_file, "fsdp2")]
    process = launch(words, tmp_path, "output")
    wait_for_line(tmp_path / "output", "iter 50 ", process)
    workers = children(process)
    assert len(workers) == 2
    os.kill(workers[victim], signal.SIGKILL)
    assert process.wait(timeout=60) not in (0, 2)
    assert all(gone(worker, 1) for worker in workers)
    goes_on(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM])
def test_a_signal_to_torchrun_stops_the_run_between_two_steps(
    text_file: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    """It hands the signal on, once: a second one would end the processes before they have saved."""
    words = [*TORCHRUN, "2", "-m", "tinygpt_pl", "fit", *running(text_file, "ddp"), "--save_minutes=60"]
    process = launch(words, tmp_path, "output")
    wait_for_line(tmp_path / "output", "iter 50 ", process)
    process.send_signal(signum)
    assert process.wait(timeout=60) == 1
    output = (tmp_path / "output").read_text()
    assert output.count(f"stopped by {signum.name} at iteration ") == 1
    stopped = int(output.split(" at iteration ")[1].split(";")[0])
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == stopped
    goes_on(tmp_path)


@pytest.mark.slow
def test_more_processes_than_devices(text_file: Path, tmp_path: Path) -> None:
    """Two runs of one device each wrote over each other in one folder; what is wrong is told once."""
    words = [*TORCHRUN, "2", "-m", "tinygpt_pl", "fit", *small(text_file), "--run_dir=run"]
    process = launch(words, tmp_path, "output")
    assert process.wait(timeout=60) == 1
    output = Path("output").read_text()
    assert output.count("error: ") == 1
    assert "trainer.devices 1 on each of trainer.num_nodes 1 is 1, but 2 processes were started" in output
    assert not Path("run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--trainer.devices=4", "is 4, but 2 processes were started by torchrun or srun; the two have to agree"),
        ("--trainer.num_nodes=2", "is 4, but 2 processes were started by torchrun or srun; the two have to agree"),
        ("--trainer.devcies=2", "unrecognized arguments"),
    ],
)
@pytest.mark.parametrize("strategy", ["fsdp2"])
def test_slurm_with_other_numbers(text_file: Path, tmp_path: Path, word: str, message: str, strategy: str) -> None:
    """FSDP2 waited for the others without end, DDP ended in a traceback."""
    options = small(text_file, **TWO, trainer__strategy=strategy)
    first, other = srun([*options, word], tmp_path)
    assert first.wait(timeout=60) == 2
    other.terminate()  # as `srun --kill-on-bad-exit` does
    assert other.wait(timeout=60) == -signal.SIGTERM
    assert message in Path("rank0").read_text()
    assert len(Path("rank0").read_text().splitlines()) <= 3
    assert Path("rank1").read_text() == ""
