"""What is asked of the machine."""

import contextlib
import gc
import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.small_runs import FORKS, Fitted, Run, finish, limited, small, three_lines
from tinygpt_pl.system import machine
from tinygpt_pl.system.loading import loading
from tinygpt_pl.system.machine import device_type, matmul_flops, multiplies_bf16

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="needs Linux's list of flags")
def test_bfloat16_is_for_processors_that_have_it() -> None:
    """In software its products are a hundred times slower, so a guess by the precision's name alone ruins a run."""
    flags = CPUINFO.read_text().split()
    assert multiplies_bf16("cpu") is ("avx512_bf16" in flags or "amx_bf16" in flags)


@pytest.mark.parametrize("device", ["mps", "tpu"])
def test_bfloat16_is_not_taken_where_nobody_knows(device: str) -> None:
    assert multiplies_bf16(device) is False


def test_device_of_an_accelerator() -> None:
    found = torch.accelerator.current_accelerator(check_available=True)
    assert device_type("cpu") == "cpu"
    assert device_type("auto") == device_type("gpu") == (found.type if found else "cpu")
    assert device_type("mps") == "mps"


def test_the_ceiling_is_measured_once() -> None:
    cpu = torch.device("cpu")
    first = matmul_flops(cpu, "32-true")
    assert first == matmul_flops(cpu, "32-true"), "measured again, which no run could repeat"
    assert first > matmul_flops(cpu, "64-true") > 1e8


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_kept() -> None:
    """A tensor of 64 MB has 16,384 pages of 4 kB; without the setting each new one asks the kernel for all of them."""
    code = """
import resource, torch
from tinygpt_pl.system.machine import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

page_faults()
before = page_faults()
keep_freed_memory()
for _ in range(5):  # the heap grows a few times before it has room for what comes next
    page_faults()
print(before, page_faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    if before < 5 * 100:
        pytest.skip("the kernel gives huge pages, of which a tensor has a few")
    assert after < before / 20


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_fault_28_a_device_that_is_not_there(cli: Run, text_file: Path) -> None:
    if not torch.cuda.is_available():
        code, _, err = cli("fit", *small(text_file, trainer__accelerator="cuda"))
        assert code == 2
        assert "cuda" in three_lines(err).lower()
    if not torch.backends.mps.is_available():
        code, _, err = cli("fit", *small(text_file, trainer__accelerator="mps"))
        assert code == 2
        assert "MPS" in three_lines(err)
    assert not Path("lightning_logs").exists()


def short_of_memory(args: list[str]) -> None:
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + 600_000_000, here + 600_000_000))
    limited(resource.RLIM_INFINITY, args)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process its size")
def test_fault_28_out_of_memory(fitted: Fitted, text_file: Path, tmp_path: Path) -> None:
    """The advice keeps the windows of a step."""
    fitted("run", trainer__max_steps=4)
    before = Path("run/checkpoints/last.ckpt").read_bytes()
    big = small(text_file, data__batch_size=400_000, data__eval_iters=1)
    process = FORKS.Process(target=short_of_memory, args=(["fit", *big, "--run_dir=big"],))
    process.start()
    output = finish(process, tmp_path, code=1)
    assert "out of memory with 400000 windows at a time; halve --data.batch_size and double" in three_lines(output)
    assert Path("run/checkpoints/last.ckpt").read_bytes() == before


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group of processes and in those around it, of both versions."""
    limits = {"one/two/memory.max": "max", "one/memory.max": "3000", "memory/a/memory.limit_in_bytes": "5000"}
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(limit + "\n")
    own = tmp_path / "cgroup"
    monkeypatch.setattr(machine, "GROUP_FILES", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUPS", own)
    for text, room in (("0::/one/two\n", 3000), ("9:name=systemd:/\n4:memory:/a/b\n0::/\n", 5000)):
        own.write_text(text)
        machine.check_memory(room // 4)
        with pytest.raises(ValueError, match=r"lower --model\.gpt\.n_layer"):
            machine.check_memory(room // 4 + 1)


@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        ("TQDM_NCOLS=wide", "check the variables of the environment: TQDM_NCOLS"),
        ("mkdir gone; cd gone; rmdir ../gone;", "the working folder may be gone: change to one that exists"),
    ],
)
def test_a_program_that_cannot_be_loaded_costs_two_lines(tmp_path: Path, prepare: str, named: str) -> None:
    command = f"{prepare} {sys.executable} -m tinygpt_pl generate"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the program cannot be loaded: ")
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 2


def interrupted_while_loading() -> None:
    """Stands for a library that swallows the interrupt."""
    with loading():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        sys.exit(0)


def test_ctrl_c_ends_the_start_whatever_a_library_does_with_it() -> None:
    process = FORKS.Process(target=interrupted_while_loading)
    process.start()
    process.join(timeout=100)
    assert process.exitcode == 130


def test_loading_leaves_everything_as_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert signal.getsignal(signal.SIGINT) is before
