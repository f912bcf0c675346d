"""What the package takes from inside Lightning and torch is still there, and still does what it is taken for."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from tinygpt_pl.training import lightning_internals as internals
from tinygpt_pl.training.torch_internals import skip_steps

OPTIONS: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Steps(Callback):
    """Counts micro-batches, and does something when training starts."""

    def __init__(self, begin: Any = lambda trainer: None) -> None:
        self.begin, self.batches = begin, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin(trainer)

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1


def train(callback: Callback, max_steps: int, ckpt_path: Any = None, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        callbacks=[callback, *options.pop("callbacks", [])],
        max_steps=max_steps,
        num_sanity_val_steps=0,
        enable_checkpointing=bool(options.pop("enable_checkpointing", False)),
        **OPTIONS,
        **options,
    )
    trainer.fit(BoringModel(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def saved(folder: Path, steps: int) -> dict[str, Any]:
    """A checkpoint of Lightning's own after so many steps."""
    path = folder / "saved.ckpt"
    train(Steps(), steps).save_checkpoint(path)
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def test_the_cluster_environment_knows_the_number_of_processes() -> None:
    assert internals.cluster_environment(pl.Trainer(**OPTIONS)).world_size() == 1


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_an_evaluation_can_be_run_before_the_first_step() -> None:
    """Training goes on after it, and Lightning does not take it for its sanity check, which logs nothing."""
    checked: list[bool] = []

    class Notes(Steps):
        def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
            checked.append(trainer.sanity_checking)

    counts = Notes(internals.evaluate_now)
    train(counts, 3)
    assert (checked, counts.batches) == ([False], 3)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*max_steps.*", "ignore:.*resuming")
def test_a_run_with_all_its_steps_starts_if_there_is_one_more(tmp_path: Path) -> None:
    saved(tmp_path, 3)

    class OneMore(Steps):
        def on_load_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
            internals.allow_steps(trainer, 1)

    begun: list[str] = []
    train(Steps(lambda trainer: begun.append("as it is")), 3, ckpt_path=tmp_path / "saved.ckpt")
    train(OneMore(lambda trainer: begun.append("one more")), 3, ckpt_path=tmp_path / "saved.ckpt")
    assert begun == ["one more"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*resuming")
def test_counters_that_are_set_are_those_that_a_run_resumes_from(tmp_path: Path) -> None:
    """In two micro-batches a step instead of one."""
    assert internals.steps_taken(saved(tmp_path, 3)) == 3

    class Indices(Steps):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
            internals.set_counters(checkpoint, 6)

        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            self.seen.append(batch_idx)

    indices = Indices()
    train(indices, 5, ckpt_path=tmp_path / "saved.ckpt", accumulate_grad_batches=2)
    assert indices.seen == [6, 7, 8, 9]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_an_average_changes_places_with_the_weights() -> None:
    averaging = WeightAveraging()
    assert "_device" in vars(averaging)
    internals.average_on(averaging, torch.device("cpu"))
    swapped: list[tuple[Tensor, Tensor]] = []

    class Swap(Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            weights = [p.detach().clone() for p in pl_module.parameters()]
            internals.swap_average(averaging, pl_module)
            swapped.extend(zip(weights, [p.detach().clone() for p in pl_module.parameters()], strict=True))

    train(Swap(), 3, callbacks=[averaging])
    assert not all(torch.equal(before, after) for before, after in swapped)


def test_sharding_is_over_all_devices() -> None:
    """Lightning's "auto" would be 1, the number of machines."""
    strategy: Any = ModelParallelStrategy()
    strategy.cluster_environment = internals.cluster_environment(pl.Trainer(**OPTIONS))
    strategy.parallel_devices = [torch.device("cpu")] * 4
    assert vars(strategy)["_data_parallel_size"] == "auto"
    internals.shard_over_all(strategy)
    assert strategy._data_parallel_size == strategy.world_size


def test_a_fused_optimizer_skips_steps_while_the_flag_is_set() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    failed = torch.zeros(())
    skip_steps(optimizer, failed)
    for flag, moves in ((1.0, False), (0.0, True), (1.0, False)):
        failed.fill_(flag)
        before = parameter.detach().clone()
        parameter.grad = torch.ones(3)
        optimizer.step()
        assert torch.equal(before, parameter) is not moves


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*resuming")
def test_lightning_asks_its_plugin_once_for_the_state_to_resume(tmp_path: Path) -> None:
    """The checkpoint that a run resumes from is handed over there, without a second reading."""
    from tinygpt_pl.training.saving import CheckpointFiles

    saved(tmp_path, 1)
    asked: list[Any] = []

    class Files(CheckpointFiles):
        def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
            asked.append(path)
            content: dict[str, Any] = torch.load(path, weights_only=True)
            return content

    train(Steps(), 2, ckpt_path=tmp_path / "saved.ckpt", plugins=[Files()])
    assert len(asked) == 1


def test_saving_is_the_last_of_what_lightning_calls() -> None:
    """Checkpoints are moved behind a user's callbacks, so that they hold what those have done."""
    trainer = pl.Trainer(callbacks=[ModelCheckpoint(), Steps()], **OPTIONS)
    assert isinstance(trainer.callbacks[-1], ModelCheckpoint)  # type: ignore[attr-defined]  # set by a connector
