"""A subclass of TinyGPT with more in it, and a Trainer and data that are not the recipe's."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.reference import GPT_CONFIG
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.optim import Algorithm, OptimConfig, decay_groups, scheduled_lr
from tinygpt_pl.training.processes import leave_process_group
from tinygpt_pl.windows import Batch

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

SMALL = GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=8, dropout=0.0)
OPTIONS: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class WithHead(TinyGPT):
    """Adds the mean of its head's outputs to the loss."""

    def __init__(self, gpt: Any, optim: Any = OptimConfig(), tokenizer: Any = None, classes: int = 2) -> None:
        super().__init__(gpt, optim, tokenizer)
        self.head = nn.Linear(self.gpt.config.n_embd, classes)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        outputs: Tensor = self.head(self.gpt.wte(batch[0]))
        return super().training_step(batch, batch_idx) + outputs.mean()


class Sized(TinyGPT):
    """Makes the shape of its network from one number, and is given something that no checkpoint can hold."""

    def __init__(self, size: int, scale: float = 1.0, activation: Any = None) -> None:
        super().__init__(GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=size))
        self.scale, self.activation = scale, activation


def loader(batches: int = 6) -> Any:
    windows = torch.arange(9 * batches * 2).view(-1, 9) % 5
    return DataLoader(TensorDataset(windows[:, :-1], windows[:, 1:]), batch_size=2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_all_parameters_of_a_subclass_are_trained_and_clipped(optimizer: Algorithm) -> None:
    torch.manual_seed(0)
    module = WithHead(SMALL, OptimConfig(optimizer=optimizer, warmup_iters=0))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    pl.Trainer(max_steps=2, gradient_clip_val=1e-3, **OPTIONS).fit(module, loader())
    assert [name for name, p in module.named_parameters() if torch.equal(p, before[name])] == []
    groups = decay_groups(module, module.optim)
    assert sum(len(group["params"]) for group in groups) == len(before)
    assert [group["name"] for group in groups if any(p is module.head.weight for p in group["params"])] == ["decay"]
    norm = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()
    assert optimizer == "muon" or norm <= 1.001e-3, "what was not clipped makes the norm larger"


class ByMomentum(TinyGPT):
    """Has an optimizer of its own: one group without a name, and no schedule."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def test_a_subclass_may_have_an_optimizer_of_its_own() -> None:
    """Guards against settings of the recipe's groups put over groups that are not theirs."""
    torch.manual_seed(0)
    module = ByMomentum(SMALL)
    before = module.gpt.wte.weight.detach().clone()
    trainer = pl.Trainer(max_steps=3, gradient_clip_val=0.1, **OPTIONS)
    trainer.fit(module, loader())
    (group,) = trainer.optimizers[0].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.9, 0)
    assert not torch.equal(module.gpt.wte.weight, before)


def test_the_recipes_own_parameters_are_grouped_as_before() -> None:
    module = TinyGPT(GPT_CONFIG, OptimConfig(optimizer="muon"))
    for group, alone in zip(decay_groups(module, module.optim), decay_groups(module.gpt, module.optim), strict=True):
        assert all(a is b for a, b in zip(group["params"], alone["params"], strict=True))


def test_a_part_that_would_not_be_sharded_is_refused() -> None:
    trainer = pl.Trainer(strategy=ModelParallelStrategy(), devices=1, max_steps=1, **OPTIONS)
    with pytest.raises(ValueError, match=r"only the parameters of gpt can be sharded, but this model has head\.weight"):
        trainer.fit(WithHead(SMALL), loader())
    leave_process_group()


def test_a_checkpoint_holds_the_arguments_of_a_subclass(tmp_path: Path) -> None:
    trainer = pl.Trainer(max_steps=1, **OPTIONS)
    trainer.fit(WithHead(SMALL, classes=3), loader())
    trainer.save_checkpoint(tmp_path / "head.ckpt")
    assert WithHead.load_from_checkpoint(tmp_path / "head.ckpt", weights_only=True).head.out_features == 3
    with pytest.warns(UserWarning, match="checkpoints hold plain data alone, and so not activation"):
        sized = Sized(16, scale=0.5, activation=torch.relu)
    trainer = pl.Trainer(max_steps=1, **OPTIONS)
    trainer.fit(sized, loader())
    trainer.save_checkpoint(tmp_path / "sized.ckpt")
    loaded = Sized.load_from_checkpoint(tmp_path / "sized.ckpt", weights_only=True)
    assert (loaded.gpt.config.n_embd, loaded.scale, loaded.activation) == (16, 0.5, None)


class Wrapper(pl.LightningModule):
    """Builds a TinyGPT inside its own constructor."""

    def __init__(self, teacher: Any) -> None:
        super().__init__()
        self.student = TinyGPT(SMALL)
        self.teacher = [teacher]


def test_what_another_module_is_given_is_not_taken() -> None:
    assert set(Wrapper(object()).student.hparams) == {"gpt", "optim", "tokenizer"}


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_schedule_ends_with_the_last_epoch(schedule: Any) -> None:
    optim = OptimConfig(schedule=schedule, max_lr=1e-3, min_lr=1e-5, warmup_iters=4)
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    trainer = pl.Trainer(max_epochs=3, max_steps=-1, accumulate_grad_batches=2, callbacks=[Rates()], **OPTIONS)
    trainer.fit(TinyGPT(SMALL, optim), loader(batches=8))
    assert trainer.global_step == 12
    assert rates == [scheduled_lr(it, optim, 12) for it in range(12)]
    assert rates[4] > rates[-1] > optim.min_lr or schedule == "wsd"


def test_a_run_that_ends_early_has_its_schedule_to_the_end() -> None:
    """max_epochs comes before max_steps."""
    module = TinyGPT(SMALL, OptimConfig(warmup_iters=1))
    pl.Trainer(max_epochs=1, max_steps=100, **OPTIONS).fit(module, loader(batches=5))
    assert module.lr_at(5) == module.optim.min_lr < module.lr_at(4)


class Endless:
    """Batches without a length, as those of the recipe."""

    def __iter__(self) -> Any:
        while True:
            yield from loader()


def test_a_schedule_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="the schedule needs an end: give the Trainer max_steps, or OptimConfig max_i"):
        pl.Trainer(max_steps=-1, max_time="00:00:01:00", **OPTIONS).fit(TinyGPT(SMALL), Endless())
    timed = pl.Trainer(max_steps=-1, max_time={"seconds": 0.2}, **OPTIONS)  # type: ignore[dict-item]
    timed.fit(TinyGPT(SMALL, OptimConfig(max_iters=10)), Endless())
    assert timed.global_step > 0


@pytest.mark.parametrize("loaders", [1, 2])
def test_only_a_loss_that_was_measured_is_reported(loaders: int) -> None:
    trainer = pl.Trainer(max_steps=6, num_sanity_val_steps=0, **OPTIONS)
    trainer.fit(TinyGPT(SMALL), loader(), [loader() for _ in range(loaders)])
    found = {name for name, value in trainer.callback_metrics.items() if name.startswith("eval/")}
    assert found == {"eval/val_loss", "eval/val_perplexity"} | (
        {"eval/train_loss", "eval/gap"} if loaders == 2 else set()
    )
    assert all(math.isfinite(value) for name, value in trainer.callback_metrics.items())
