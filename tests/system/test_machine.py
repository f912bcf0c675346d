"""What is asked of the machine."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
