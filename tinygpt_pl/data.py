"""Random windows of a text, as a pure function of the seed and the step, and the LightningDataModule around them.

Window i of optimizer step t depends on (seed, stream, t, i) alone: not on the number of devices or micro-batches a step
is divided into, nor on how often the run was stopped. There are no epochs.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinygpt_pl.corpus import default_cache_dir, load_corpus
from tinygpt_pl.tokenizer import CharTokenizer, Tokenizer

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) of int64; the targets are the inputs shifted by one token."""

Coverage = Literal["sampled", "full"]
"""What an evaluation looks at: random windows, or every token of the validation split and as many of the other."""

STREAMS = {"train": 0, "eval_train": 1, "eval_val": 2}
"""What windows are drawn for; each has random numbers of its own."""


def window_starts(seed: int, stream: str, step: int, count: int, high: int) -> npt.NDArray[np.int64]:
    """Where the first `count` windows of a step begin, each in [0, high).

    Philox is a counter-based generator (Salmon et al. 2011): the i-th number of a (key, counter) needs no state, and
    the first n of them are the same whatever `count` is. The remainder favours no start by more than high / 2**64.
    """
    raw = np.random.Philox(key=[seed, STREAMS[stream]], counter=[0, step, 0, 0]).random_raw(count)
    return (raw % np.uint64(high)).astype(np.int64)


def shares(starts: npt.NDArray[np.int64], batch_size: int, rank: int, world_size: int) -> list[npt.NDArray[np.int64]]:
    """The micro-batches of one device, out of windows that all devices take in turn."""
    return [starts[i : i + batch_size] for i in range(rank * batch_size, len(starts), world_size * batch_size)]


def gather(ids: Tensor, starts: npt.NDArray[np.int64], length: int) -> Batch:
    """Cut windows of `length` tokens, and the same windows one token later."""
    first = torch.from_numpy(starts).to(ids.device, non_blocking=True)
    at = first[:, None] + torch.arange(length + 1, device=ids.device)  # (B, T + 1)
    window = ids[at].long()
    return window[:, :-1], window[:, 1:]


class TrainingWindows:
    """Micro-batches of one device from `first_step` on, without end (and so without a length)."""

    def __init__(
        self,
        ids: Tensor,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.ids, self.block_size, self.batch_size, self.seed = ids, block_size, batch_size, seed
        self.accumulate, self.first_step, self.rank, self.world_size = accumulate, first_step, rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        count = self.batch_size * self.accumulate * self.world_size
        high = len(self.ids) - self.block_size
        for step in itertools.count(self.first_step):
            starts = window_starts(self.seed, "train", step, count, high)
            for share in shares(starts, self.batch_size, self.rank, self.world_size):
                yield gather(self.ids, share, self.block_size)


class FixedWindows:
    """The same batches at every pass: a sequence of window starts with the windows' length."""

    def __init__(self, ids: Tensor, batches: Sequence[tuple[npt.NDArray[np.int64], int]]) -> None:
        self.ids, self.batches = ids, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for starts, length in self.batches:
            yield gather(self.ids, starts, length)


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


def table_losses(train: npt.NDArray[np.int32], val: npt.NDArray[np.int32], vocab_size: int) -> tuple[float, float]:
    """What counting alone comes to: the validation loss of a table of single tokens, and of one of pairs.

    Singles are counted with one more of each token. Pairs that were never seen go back to singles with the weight of
    Witten and Bell (1991): as often as a token had a new successor. A million tokens are counted, a tenth as many
    scored.

    Args:
        train: ids, two or more.
        val: ids, two or more.
        vocab_size: V.

    Returns:
        Both in nats per token.
    """
    ids, (before, after) = train[: 10**6].astype(np.int64), (val[: 10**5][:-1].astype(np.int64), val[1 : 10**5])
    single = (np.bincount(ids, minlength=vocab_size) + 1) / (len(ids) + vocab_size)
    pairs, counts = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
    new = np.bincount(pairs // vocab_size, minlength=vocab_size) + 1  # one, so that no token is without
    seen = np.bincount(ids[:-1], minlength=vocab_size)
    at = np.searchsorted(pairs, before * vocab_size + after).clip(max=len(pairs) - 1)
    count = np.where(pairs[at] == before * vocab_size + after, counts[at], 0)
    pair = (count + new[before] * single[after]) / (seen[before] + new[before])
    return float(-np.log(single[after]).mean()), float(-np.log(pair).mean())


class TextDataModule(pl.LightningDataModule):
    """A text, its vocabulary, its two contiguous splits, and windows of them.

    `setup` fills `tokenizer`, `splits`, `corpus_name` and `corpus_sha256`; it runs once and needs no Trainer. The
    loaders do.
    """

    def __init__(
        self,
        corpus: str = "tinyshakespeare",
        block_size: int = 256,
        batch_size: int = 64,
        eval_coverage: Coverage = "sampled",
        eval_iters: int = 200,
        val_fraction: float = 0.1,
        cache_dir: str | None = None,
        offline_corpus: str | None = "pydoc",
        seed: int = 1337,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Check the settings; no file is touched before `setup`.

        Args:
            corpus: tinyshakespeare, pydoc, or the path of a UTF-8 text file.
            block_size: tokens in a window.
            batch_size: windows per device and micro-batch.
            eval_coverage: sampled for random windows of both splits, the same at every evaluation; full for every token
                of the validation split once, and as many of the training split, evenly spaced.
            eval_iters: batches, each as large as that of an optimizer step, that a sampled evaluation averages in each
                split.
            val_fraction: share of the text, at its end, that is kept for validation.
            cache_dir: where downloads are kept; $TINYGPT_CACHE or else data if left out.
            offline_corpus: what to train on where a download fails; null stops instead.
            seed: of the windows.
            tokenizer: what turns the text into ids; made of the characters of the text if left out.

        Raises:
            ValueError: for a setting outside its range.
        """
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_iters", eval_iters)):
            if value < 1:
                raise ValueError(f"{name} has to be at least 1, got {value}")
        if eval_coverage not in get_args(Coverage):
            raise ValueError(f"eval_coverage has to be one of {', '.join(get_args(Coverage))}, got {eval_coverage!r}")
        if not 0.0 < val_fraction < 1.0:
            raise ValueError(f"val_fraction has to lie between 0 and 1, got {val_fraction}")
        self.corpus, self.offline_corpus = corpus, offline_corpus
        self.block_size, self.batch_size, self.eval_iters = block_size, batch_size, eval_iters
        self.eval_coverage, self.val_fraction, self.seed = eval_coverage, val_fraction, seed
        self.cache_dir = Path(os.path.expanduser(cache_dir)) if cache_dir else default_cache_dir()
        self.splits: dict[str, Tensor] = {}
        self._tokenizer = tokenizer

    def setup(self, stage: str | None = None) -> None:
        """Read and encode the text, and cut it in two.

        Raises:
            ValueError: if the text is unfit, has something in it that the tokenizer does not know, or if one of its
                splits is too short for a window.
            OSError: if it cannot be had.
        """
        if self.splits:
            return
        # Nothing stands in for the text of a checkpoint: its vocabulary is another.
        corpus = load_corpus(self.corpus, self.cache_dir, None if self._tokenizer else self.offline_corpus)
        self.corpus_name = corpus.name
        self.corpus_sha256 = hashlib.sha256(corpus.text.encode()).hexdigest()
        self.tokenizer = self._tokenizer or CharTokenizer.from_text(corpus.text)
        try:
            ids = torch.from_numpy(self.tokenizer.encode(corpus.text))
        except ValueError as error:
            raise ValueError(f"corpus {corpus.name!r}: {error}") from None
        boundary = int(len(ids) * (1 - self.val_fraction))
        splits = {"train": ids[:boundary], "val": ids[boundary:]}
        for name, split in splits.items():
            if len(split) <= self.block_size:
                raise ValueError(
                    f"the {name} split of {corpus.name!r} has {len(split)} of its {len(ids)} tokens, but a window "
                    f"needs at least {self.block_size + 1}: give a longer text, another val_fraction or a smaller "
                    "block_size"
                )
        self.splits = splits

    @property
    def offline_notice(self) -> str:
        """What has to be said if another corpus stands in for one that could not be downloaded, else nothing."""
        if self.corpus_name == self.corpus:
            return ""
        return f"NOTE: {self.corpus} could not be downloaded; {self.corpus_name} is used instead"

    @property
    def _context(self) -> pl.Trainer:
        assert self.trainer is not None, "a Trainer has to hold the data module before it gives loaders"
        return self.trainer

    def windows_per_step(self, trainer: pl.Trainer) -> int:
        """Windows of an optimizer step, over all devices and micro-batches."""
        return self.batch_size * trainer.accumulate_grad_batches * trainer.world_size

    def eval_batches(self, trainer: pl.Trainer) -> float:
        """Batches, each as large as an optimizer step's, that an evaluation takes from each split."""
        if self.eval_coverage == "sampled":
            return self.eval_iters
        return (len(self.splits["val"]) - 1) / self.block_size / self.windows_per_step(trainer)

    def train_dataloader(self) -> TrainingWindows:
        """The windows of this device from the trainer's next optimizer step on."""
        trainer = self._context
        return TrainingWindows(
            self._ids("train"),
            block_size=self.block_size,
            batch_size=self.batch_size,
            seed=self.seed,
            accumulate=trainer.accumulate_grad_batches,
            first_step=trainer.global_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

    def val_dataloader(self) -> list[FixedWindows]:
        """The validation windows, then as many of the training split: the same at every evaluation."""
        if self.eval_coverage == "sampled":
            return [self._sample("val"), self._sample("train")]
        trainer, ids = self._context, self._ids("train")
        count = math.ceil((len(self.splits["val"]) - 1) / self.block_size)
        part = even_pass(len(ids), count, self.block_size, self.batch_size, trainer.global_rank, trainer.world_size)
        return [self.test_dataloader(), FixedWindows(ids, part)]

    def _ids(self, split: str) -> Tensor:
        """A split on the device, where windows are then cut from it without a transfer."""
        return self.splits[split].to(self._context.strategy.root_device)

    def _sample(self, split: str) -> FixedWindows:
        trainer, ids = self._context, self._ids(split)
        # An evaluation batch is as large as an optimizer step's, so that accumulation changes no estimate.
        count = self.eval_iters * self.windows_per_step(trainer)
        starts = window_starts(self.seed, f"eval_{split}", 0, count, len(ids) - self.block_size)
        return FixedWindows(
            ids,
            [
                (share, self.block_size)
                for share in shares(starts, self.batch_size, trainer.global_rank, trainer.world_size)
            ],
        )

    def test_dataloader(self) -> FixedWindows:
        """The whole validation split, every token after its first a target exactly once."""
        trainer, ids = self._context, self._ids("val")
        return FixedWindows(
            ids, full_pass(len(ids), self.block_size, self.batch_size, trainer.global_rank, trainer.world_size)
        )
