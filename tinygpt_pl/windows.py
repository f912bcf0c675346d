"""Random windows of a text, as a pure function of the seed and the step.

Window i of optimizer step t depends on (seed, stream, t, i) alone: not on the number of devices or micro-batches a step
is divided into, nor on how often the run was stopped. There are no epochs.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) of int64; the targets are the inputs shifted by one token."""

Ids = npt.NDArray[np.integer[Any]]
"""Tokens, which may be a file that is larger than memory."""

CPU = torch.device("cpu")

STREAMS = {"train": 0, "eval_train": 1, "eval_val": 2}
"""What windows are drawn for; each has random numbers of its own."""


def window_starts(seed: int, stream: str, step: int, count: int, high: int) -> npt.NDArray[np.int64]:
    """Where the first `count` windows of a step begin, each in [0, high).

    Philox is a counter-based generator (Salmon et al. 2011): the i-th number of a (key, counter) needs no state, and
    the first n of them are the same whatever `count` is. The remainder favours no start by more than high / 2**64.
    """
    key = np.array([seed, STREAMS[stream]], np.uint64)  # a list with a number from 2**63 on would be rounded
    raw = np.random.Philox(key=key, counter=[0, step, 0, 0]).random_raw(count)
    return (raw % np.uint64(high)).astype(np.int64)


def shares(starts: npt.NDArray[np.int64], batch_size: int, rank: int, world_size: int) -> list[npt.NDArray[np.int64]]:
    """The micro-batches of one device, out of windows that all devices take in turn."""
    return [starts[i : i + batch_size] for i in range(rank * batch_size, len(starts), world_size * batch_size)]


def gather(ids: Ids, starts: npt.NDArray[np.int64], length: int, device: torch.device = CPU) -> Batch:
    """Cut windows of `length` tokens, and the same windows one token later."""
    windows = sliding_window_view(ids, length + 1)[starts].astype(np.int64)  # (B, T + 1)
    # CUDA copies pageable memory to a buffer of its own before it returns. Elsewhere, as on Apple GPUs
    # (https://github.com/pytorch/pytorch/issues/83015), the copy may still read memory that has been reused by then.
    idx = torch.from_numpy(windows).to(device, non_blocking=device.type == "cuda")
    return idx[:, :-1], idx[:, 1:]


class TrainingWindows:
    """Micro-batches of one device from `first_step` on, without end (and so without a length)."""

    def __init__(
        self,
        ids: Ids,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        device: torch.device = CPU,
        accumulate: int = 1,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.ids, self.block_size, self.batch_size = ids, block_size, batch_size
        self.seed, self.device = seed, device
        self.accumulate, self.first_step, self.rank, self.world_size = accumulate, first_step, rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        count = self.batch_size * self.accumulate * self.world_size
        high = len(self.ids) - self.block_size
        for step in itertools.count(self.first_step):
            starts = window_starts(self.seed, "train", step, count, high)
            for share in shares(starts, self.batch_size, self.rank, self.world_size):
                yield gather(self.ids, share, self.block_size, self.device)


class FixedWindows:
    """The same batches at every pass: a sequence of window starts with the windows' length."""

    def __init__(
        self, ids: Ids, batches: Sequence[tuple[npt.NDArray[np.int64], int]], device: torch.device = CPU
    ) -> None:
        self.ids, self.batches, self.device = ids, batches, device

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for starts, length in self.batches:
            yield gather(self.ids, starts, length, self.device)


def full_pass(
    tokens: int, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[tuple[npt.NDArray[np.int64], int]]:
    """A device's batches of a pass in which every token but the first is a target exactly once.

    The windows do not overlap, and go to the devices in turn. The last may be shorter, and is then a batch of its own.
    """
    targets = tokens - 1
    whole = np.arange(0, targets - block_size + 1, block_size)
    batches = [(share, block_size) for share in shares(whole[rank::world_size], batch_size, rank=0, world_size=1)]
    rest = targets % block_size
    if rest and rank == len(whole) % world_size:
        batches.append((np.array([targets - rest]), rest))
    return batches


def even_pass(
    tokens: int, count: int, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[tuple[npt.NDArray[np.int64], int]]:
    """A device's batches of `count` windows, or as many as there are, evenly spaced and without an overlap."""
    count = min(count, (tokens - 1) // block_size)
    starts = np.arange(count) * (tokens - 1) // count
    return [(share, block_size) for share in shares(starts[rank::world_size], batch_size, rank=0, world_size=1)]
