"""What the machine can do: its fast kinds of numbers, the speed of its products, and the price of its memory."""

import ctypes
import functools
import math
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

MIXED = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
"""How Lightning's names for precisions begin, where they do not stand for float32."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc, malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep the memory of a tensor for the next one, where it is glibc.

    As it comes, it hands blocks above 32 MB back to the kernel at once, and the next tensor of that size pays for
    each of its pages again.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def device_type(accelerator: str) -> str:
    """The kind of device that Lightning takes for its name of an accelerator."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if accelerator in ("auto", "gpu"):
        return found.type if found else "cpu"
    return accelerator


def find_device(accelerator: str) -> torch.device:
    """The device that goes by a name of Lightning's for an accelerator.

    Raises:
        ValueError: if this machine has none.
    """
    kind = device_type(accelerator)
    if accelerator == "gpu" and kind == "cpu":
        raise ValueError("accelerator gpu cannot be used: this machine has none that torch knows")
    try:
        return torch.empty(0, device=kind).device
    except (RuntimeError, AssertionError) as error:  # torch raises one or the other for a device that it lacks
        raise ValueError(f"accelerator {accelerator} cannot be used: {str(error).splitlines()[0]}") from None


def multiplies_bf16(device: str) -> bool:
    """Whether a kind of device has instructions for products of bfloat16; in software they are many times slower."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # known of torch 2.13 alone
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


@functools.cache
def matmul_flops(device: torch.device, precision: str, seconds: float = 0.02) -> float:
    """Floating-point operations a second of a large matrix product, measured once in a process.

    Args:
        device: where.
        precision: a name of Lightning's, such as bf16-mixed.
        seconds: how long a product has to take to count as large.
    """
    dtype = next((dtype for name, dtype in MIXED.items() if precision.startswith(name)), torch.float32)
    n, best = 256, math.inf
    while True:
        a = torch.ones(n, n, device=device, dtype=dtype)
        (a @ a)[0, 0].item()  # the first pays for warming up
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            (a @ a)[0, 0].item()  # waits for the device
            best = min(best, time.perf_counter() - start)
        if best >= seconds or n == 16384:  # 1 GB of float32
            return 2 * n**3 / best
        n *= 2


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of any kind ran out; torch has a class of its own for that on GPUs alone."""
    words = ("out of memory", "can't allocate memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def check_memory(parameters: int) -> None:
    """See that the weights of a network alone are no larger than the memory that this process may use.

    Raises:
        ValueError: with both sizes.
    """
    weights = 4 * parameters
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    memory = min(memory, _group_limit())
    if weights > memory:
        raise ValueError(
            f"a network with {parameters:.2e} parameters takes {weights / 1e9:,.1f} GB, but this machine has "
            f"{memory / 1e9:,.1f} GB for it; lower --model.gpt.n_layer or --model.gpt.n_embd"
        )


OWN_GROUPS, GROUP_FILES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

GROUPS = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}
"""Of both versions of Linux's control groups: their name, where they are, and the file with the limit."""


def _group_limit() -> float:
    """Bytes that Linux lets the control groups of this process use, as in a container; infinite if it sets no limit."""
    limits = [math.inf]
    with suppress(OSError, ValueError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, kind, group = line.split(":", 2)
            base, name = GROUPS.get(kind, ("", ""))
            folder = GROUP_FILES / base / group.lstrip("/")
            for place in (folder, *folder.parents) if name else ():
                with suppress(OSError, ValueError):  # without a limit, the file has a word in it or is not there
                    limits.append(int((place / name).read_text()))
    return min(limits)
