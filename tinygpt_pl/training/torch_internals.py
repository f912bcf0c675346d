"""Every private interface of torch that the package leans on, with its reason; nothing else uses one.

Read in torch 2.13.0; tests/training/test_internals.py fails if a later version changes it.
"""

from torch import Tensor
from torch.optim import Optimizer


def skip_steps(optimizer: Optimizer, failed: Tensor) -> None:
    """Have a fused AdamW skip its steps while a scalar on its device is 1.0.

    The flag is what `torch.amp.GradScaler` sets for the kernel; there is no public way to skip a step without waiting
    for the device.
    """
    optimizer.found_inf = failed  # type: ignore[attr-defined]
