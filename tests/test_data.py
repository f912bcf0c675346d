"""Windows: a pure function of (seed, stream, step, index), shifted by one, and never over an edge."""

import itertools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from tinygpt_pl.data import Coverage, TextDataModule
from tinygpt_pl.windows import STREAMS, FixedWindows, TrainingWindows, even_pass, full_pass, gather, window_starts


def test_starts_are_pinned() -> None:
    """A change of these numbers would change every run that was ever recorded."""
    assert window_starts(1337, "train", 0, 4, 1_003_598).tolist() == [720011, 940031, 187240, 776619]
    largest, before = (window_starts(2**64 - i, "eval_val", 0, 4, 1_003_598).tolist() for i in (1, 2))
    assert largest != before, "they were rounded"


def test_starts_depend_on_seed_stream_and_step_alone() -> None:
    base = window_starts(1, "train", 5, 64, 1000)
    assert np.array_equal(base, window_starts(1, "train", 5, 64, 1000))
    assert np.array_equal(base[:7], window_starts(1, "train", 5, 7, 1000)), "a window depends on how many are drawn"
    others = [window_starts(2, "train", 5, 64, 1000), window_starts(1, "train", 6, 64, 1000)]
    others += [window_starts(1, stream, 5, 64, 1000) for stream in STREAMS if stream != "train"]
    for other in others:
        assert np.mean(base == other) < 0.2  # 0.001 by chance


def test_every_start_is_as_likely_as_any_other() -> None:
    counts = np.bincount(np.concatenate([window_starts(3, "train", s, 1000, 10) for s in range(100)]), minlength=10)
    # Each is 10,000 ± 95; five deviations away once in some 200,000 runs, and the seed is fixed.
    assert counts.sum() == 100_000
    assert np.all(np.abs(counts - 10_000) < 475)


def micro_batches(steps: int, **division: Any) -> list[torch.Tensor]:
    """The inputs that one device sees in the first steps."""
    windows = TrainingWindows(np.arange(5000), block_size=8, seed=1, **division)
    return [x for x, _ in itertools.islice(windows, steps * division.get("accumulate", 1))]


def test_however_a_step_is_divided_it_sees_the_same_windows() -> None:
    whole = torch.cat(micro_batches(3, batch_size=64))
    accumulated = torch.cat(micro_batches(3, batch_size=16, accumulate=4))
    assert torch.equal(whole, accumulated)
    ranks = [micro_batches(3, batch_size=16, accumulate=2, rank=rank, world_size=2) for rank in range(2)]
    in_turn = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert torch.equal(whole, torch.cat(in_turn))


def test_accumulation_changes_no_evaluation_window(text_file: Path) -> None:
    seen = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        data = TextDataModule(str(text_file), block_size=8, batch_size=batch_size, eval_iters=3)
        data.trainer = pl.Trainer(
            accelerator="cpu", accumulate_grad_batches=accumulate, logger=False, enable_checkpointing=False
        )
        data.setup()
        loaders = data.val_dataloader()
        seen.append([torch.cat([x for x, _ in windows]) for windows in (*loaders, loaders[0])])
    (val, train, again), accumulated = seen
    assert val.shape == (48, 8)
    assert torch.equal(val, again), "two evaluations look at different windows"
    assert not torch.equal(val, train)
    assert torch.equal(val, accumulated[0])
    assert torch.equal(train, accumulated[1])


@pytest.mark.parametrize("coverage", ["sampled", "full"])
def test_without_a_trainer_the_loaders_give_what_a_run_reads(text_file: Path, coverage: Coverage) -> None:
    """Guards against loaders that only a Trainer can ask: one looks at a batch before one trains."""
    alone, held = (
        TextDataModule(str(text_file), block_size=8, batch_size=4, eval_coverage=coverage, eval_iters=3)
        for _ in range(2)
    )
    held.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    first, same = next(iter(alone.train_dataloader())), next(iter(held.train_dataloader()))
    assert torch.equal(torch.stack(first), torch.stack(same))
    mine, theirs = ([*data.val_dataloader(), data.test_dataloader()] for data in (alone, held))
    for windows, others in zip(mine, theirs, strict=True):
        assert len(windows) == len(others)
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(windows, others, strict=True))


def test_runs_that_differ_in_their_seed_are_evaluated_on_the_same_windows(text_file: Path) -> None:
    seen = []
    for seed, eval_seed in ((1, 0), (2, 0), (1, 2)):
        data = TextDataModule(str(text_file), block_size=8, batch_size=16, eval_iters=3, seed=seed, eval_seed=eval_seed)
        data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        data.setup()
        val, train = (torch.cat([x for x, _ in windows]) for windows in data.val_dataloader())
        seen.append((val, train, next(iter(data.train_dataloader()))[0]))
    one, two, other = seen
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[2], two[2]), "training has the same windows with another seed"
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[2], other[2])


class LateCopies(TorchFunctionMode):
    """Devices that, unless they block, copy once `to` has returned; by then, the memory is used for something else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.to:
            return func(*args, **(kwargs or {}))
        copy = args[0].clone()
        return copy.fill_(-1) if kwargs["non_blocking"] else copy


@pytest.mark.parametrize("device", ["mps", "xpu", "cpu"])
def test_windows_are_whole_on_devices_that_copy_late(device: str) -> None:
    """As Apple GPUs do; CUDA takes a copy of its own before it returns, and is not waited for."""
    with LateCopies():
        x, y = gather(np.arange(100), np.array([0, 50, 91]), 8, torch.device(device))
        late, _ = gather(np.arange(100), np.array([0]), 8, torch.device("cuda"))
    assert x.tolist() == [list(range(i, i + 8)) for i in (0, 50, 91)]
    assert torch.equal(y, x + 1)
    assert late.tolist() == [[-1] * 8]


def test_a_later_start_continues_the_same_sequence() -> None:
    windows = TrainingWindows(np.arange(5000), block_size=8, batch_size=4, seed=1, accumulate=2)
    later = TrainingWindows(np.arange(5000), block_size=8, batch_size=4, seed=1, accumulate=2, first_step=3)
    expected = list(itertools.islice(windows, 6, 10))
    for (x, y), (x2, y2) in zip(expected, later, strict=False):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    assert next(iter(later))[0].equal(next(iter(later))[0]), "asking for an iterator has a side effect"


def test_targets_are_the_inputs_shifted_by_one() -> None:
    x, y = gather(np.arange(100), np.array([0, 50, 91]), 8)
    assert x.tolist() == [list(range(i, i + 8)) for i in (0, 50, 91)]
    assert torch.equal(y, x + 1)
    assert x.dtype is y.dtype is torch.int64


def test_fault_21_windows_reach_both_ends_of_a_split_and_no_further(tmp_path: Path) -> None:
    """Splits as short as can be have a single window each, so it is known."""
    path = tmp_path / "text"
    path.write_text("abcdefghijklmnopqr")  # 9 + 9, which is block_size + 1
    data = TextDataModule(str(path), block_size=8, batch_size=4, eval_iters=2, val_fraction=0.5)
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup()
    x, y = next(iter(data.train_dataloader()))
    assert x.tolist() == [list(range(8))] * 4
    assert y.tolist() == [list(range(1, 9))] * 4
    val, train = data.val_dataloader()
    assert [len(val), len(train)] == [2, 2]
    assert all(x.tolist() == [list(range(9, 17))] * 4 for x, _ in val)
    assert all(x.tolist() == [list(range(8))] * 4 for x, _ in train)


def test_start_range_is_complete() -> None:
    """With i < len - T, the last window ends on the last token, and it is drawn."""
    windows = TrainingWindows(np.arange(20), block_size=8, batch_size=500, seed=1)
    x, y = next(iter(windows))
    assert set(x[:, 0].tolist()) == set(range(12))
    assert y.max().item() == 19


@pytest.mark.parametrize("tokens", [9, 10, 16, 17, 18, 100, 129])
def test_full_pass_has_every_token_but_the_first_as_a_target_once(tokens: int) -> None:
    windows = FixedWindows(np.arange(tokens), full_pass(tokens, block_size=8, batch_size=3))
    batches = list(windows)
    assert len(windows) == len(batches)
    assert torch.cat([y.flatten() for _, y in batches]).tolist() == list(range(1, tokens))
    assert all(torch.equal(y, x + 1) for x, y in batches)
    ranks = [full_pass(tokens, block_size=8, batch_size=3, rank=rank, world_size=2) for rank in range(2)]
    divided = [y.flatten() for part in ranks for _, y in FixedWindows(np.arange(tokens), part)]
    assert sorted(torch.cat(divided).tolist()) == list(range(1, tokens))


@pytest.mark.parametrize(("tokens", "count"), [(1000, 7), (1000, 124), (57, 7), (9, 1), (20, 50)])
def test_an_even_pass_is_spread_over_the_whole_split_without_an_overlap(tokens: int, count: int) -> None:
    batches = list(FixedWindows(np.arange(tokens), even_pass(tokens, count, block_size=8, batch_size=3)))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len(x) == min(count, (tokens - 1) // 8)
    assert torch.equal(y, x + 1)
    assert len(set(y.flatten().tolist())) == y.numel(), "a target counts twice"
    gaps = x[:, 0].diff(append=torch.tensor([tokens - 1]))
    assert gaps.max() - gaps.min() <= 1
    ranks = [even_pass(tokens, count, block_size=8, batch_size=3, rank=rank, world_size=2) for rank in range(2)]
    divided = [x[:, 0] for part in ranks for x, _ in FixedWindows(np.arange(tokens), part)]
    assert sorted(torch.cat(divided).tolist()) == x[:, 0].tolist()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_full_coverage_has_every_token_of_the_validation_split(text_file: Path, accumulate: int) -> None:
    data = TextDataModule(str(text_file), block_size=8, batch_size=16 // accumulate, eval_coverage="full")
    data.trainer = pl.Trainer(
        accelerator="cpu", accumulate_grad_batches=accumulate, logger=False, enable_checkpointing=False
    )
    data.setup()
    val, train = ([y for _, y in windows] for windows in data.val_dataloader())
    assert torch.equal(torch.cat([y.flatten() for y in val]), torch.from_numpy(data.splits["val"][1:].astype(np.int64)))
    assert 0 <= sum(y.numel() for y in train) - sum(y.numel() for y in val) < 8


def test_splits_of_tiny_shakespeare(shakespeare_cache: Path) -> None:
    data = TextDataModule(cache_dir=str(shakespeare_cache))
    data.setup()
    assert {name: len(ids) for name, ids in data.splits.items()} == {"train": 1_003_854, "val": 111_540}
    assert data.tokenizer.vocab_size == 65
    assert data.tokenizer.decode(data.splits["train"][:14]) == "First Citizen:"
    whole = np.concatenate([data.splits["train"], data.splits["val"]])
    assert data.tokenizer.decode(whole).endswith("Whiles thou art waking.\n")


@pytest.mark.parametrize(("split", "val_fraction"), [("train", 0.92), ("val", 0.08)])
def test_fault_21_a_split_without_room_for_a_window(tmp_path: Path, split: str, val_fraction: float) -> None:
    path = tmp_path / "text"
    path.write_text("ab" * 50)
    data = TextDataModule(str(path), block_size=8, val_fraction=val_fraction)
    with pytest.raises(ValueError, match=f"the {split} split of .* has [78] of its 100 tokens, .* at least 9"):
        data.setup()


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_size": 0},
        {"eval_iters": -1},
        {"val_fraction": 0.0},
        {"val_fraction": 1.1},
        {"eval_coverage": "half"},
        {"eval_seed": -1},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        TextDataModule(**setting)  # type: ignore[arg-type]  # settings of several types
