"""The system around the network: loss, optimizer, schedule, clipping and evaluation, as a LightningModule."""

import dataclasses
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.parsing import collect_init_args
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.guards import StepGuard
from tinygpt_pl.optim import FUSED_DEVICES, OptimConfig, configure_optimizer, decay_groups, scheduled_lr
from tinygpt_pl.text.tokenizer import Tokenizer, tokenizer_from
from tinygpt_pl.windows import Batch

Settings = TypeVar("Settings", GPTConfig, OptimConfig)


class Text(Protocol):
    """What a model needs to know of its data, such as a TextDataModule."""

    tokenizer: Tokenizer
    block_size: int

    def setup(self, stage: str | None = None) -> None:
        """Read the text, if that has not been done."""


class TokenMean(Metric):
    """Token-weighted mean over all batches and devices, summed in float32 or better; a NaN loss makes the mean NaN.

    torchmetrics' own MeanMetric waits for the device at each batch to look for NaN, and where it is told not to look,
    version 1.9 forgets the weights.
    """

    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, tokens: int) -> None:
        """Add a batch whose mean loss over `tokens` targets is `loss`, in nats."""
        # The sums have been cast with the weights, and bfloat16 cannot count to 257; they are 0 until now.
        exact = torch.promote_types(loss.dtype, torch.float32)
        self.total = self.total.to(exact) + loss.to(self.total.device, exact) * tokens
        self.tokens = self.tokens.to(exact) + tokens

    def compute(self) -> Tensor:
        """Nats per token."""
        return self.total / self.tokens


class TinyGPT(pl.LightningModule):
    """A GPT and how it is trained.

    A checkpoint holds the three arguments as plain mappings, so that it loads under `weights_only=True`, and
    `TinyGPT.load_from_checkpoint(path)` needs nothing else. It also holds those arguments of a subclass that are plain
    data. All parameters of a subclass are trained.
    """

    def __init__(
        self,
        gpt: GPTConfig | Mapping[str, Any] = GPTConfig(),
        optim: OptimConfig | Mapping[str, Any] = OptimConfig(),
        tokenizer: Tokenizer | Mapping[str, Any] | None = None,
    ) -> None:
        """Build the network with fresh weights.

        Args:
            gpt: its shape.
            optim: the optimizer and its schedule.
            tokenizer: the vocabulary that its ids stand for, if any is known.

        Raises:
            ValueError: if the vocabulary and the network differ in size.
        """
        super().__init__()
        self.gpt = GPT(_settings(GPTConfig, gpt))
        self.optim = _settings(OptimConfig, optim)
        self.tokenizer = tokenizer_from(tokenizer) if isinstance(tokenizer, Mapping) else tokenizer
        if self.tokenizer and self.tokenizer.vocab_size != self.gpt.config.vocab_size:
            raise ValueError(
                f"vocab_size is {self.gpt.config.vocab_size}, but the vocabulary has {self.tokenizer.vocab_size} tokens"
            )
        self._keep_arguments()
        self.val_loss, self.train_loss, self.test_loss = TokenMean(), TokenMean(), TokenMean()
        self.step_loss = self.grad_norm = torch.zeros(())
        self.step_tokens = 0  # of an optimizer step, on all devices
        self.step_guard = StepGuard()
        self.logs = True
        """Whether `self.log` sends metrics to the Trainer's loggers; the recipe's Curve writes them itself."""

    @classmethod
    def for_data(cls, data: Text, gpt: GPTConfig = GPTConfig(), optim: OptimConfig = OptimConfig()) -> Self:
        """A model with the vocabulary and the context length of a data module.

        Args:
            data: set up here, if it has not been.
            gpt: the rest of the model's shape.
            optim: the optimizer and its schedule.
        """
        data.setup()
        shape = dataclasses.replace(gpt, vocab_size=data.tokenizer.vocab_size, block_size=data.block_size)
        return cls(shape, optim, data.tokenizer)

    def setup(self, stage: str) -> None:
        """Compare the vocabulary with that of the data.

        Raises:
            ValueError: if the data have tokens that the model has no row for.
        """
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        known, found = self.gpt.config.vocab_size, getattr(tokenizer, "vocab_size", 0)
        if found > known:
            raise ValueError(
                f"vocab_size is {known}, but the data have {found} tokens: make it by TinyGPT.for_data(data)"
            )

    def _keep_arguments(self) -> None:
        """Keep what this object was built with, for checkpoints, as far as they can hold it."""
        own = {
            "gpt": dataclasses.asdict(self.gpt.config),
            "optim": dataclasses.asdict(self.optim),
            "tokenizer": self.tokenizer and dataclasses.asdict(self.tokenizer),
        }
        given: dict[str, Any] = {}
        for arguments in collect_init_args(inspect.currentframe(), [], classes=(type(self),)):  # type: ignore[arg-type]
            given |= arguments
        for name in given.keys() - own.keys():
            if not _is_plain(given[name]):
                del given[name]
                message = f"checkpoints hold plain data alone, and so not {name}: give it to load_from_checkpoint"
                warnings.warn(message, stacklevel=2)
        self.save_hyperparameters(given | own, logger=False)

    def configure_model(self) -> None:
        """Shard the weights among the devices, if the strategy asks for it; Lightning may call this twice.

        Raises:
            ValueError: for parameters outside `gpt`, whose gradients no device would share.
        """
        if self.device_mesh is not None and not isinstance(self.gpt, FSDPModule):
            others = [name for name, _ in self.named_parameters() if not name.startswith("gpt.")]
            if others:
                raise ValueError(f"only the parameters of gpt can be sharded, but this model has {others[0]}; use ddp")
            for part in (*self.gpt.h, self.gpt):  # a block is gathered while it computes
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) and, with targets (B, T), the loss in nats per token."""
        logits, loss = self.gpt(idx, targets)
        return logits, loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a micro-batch, a mean; Lightning divides it by `accumulate_grad_batches` before its backward.

        `step_loss` is the mean over the micro-batches of an optimizer step, once all have been seen.
        """
        loss = self.loss_of(batch)
        share = loss.detach() / self.trainer.accumulate_grad_batches
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self.step_loss = share if first else self.step_loss + share
        self.step_tokens = batch[0].numel() * self.trainer.accumulate_grad_batches * self.trainer.world_size
        return loss

    def loss_of(self, batch: Batch) -> Tensor:
        """Mean loss of a batch in nats per token, for training and evaluation; override it to change the loss."""
        _, loss = self.gpt(*batch)
        assert isinstance(loss, Tensor)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the mean of its split; Lightning holds eval mode and no gradients around it."""
        metric = (self.val_loss, self.train_loss)[dataloader_idx]
        metric.update(self.loss_of(batch), batch[1].numel())

    def on_validation_epoch_end(self) -> None:
        """Report the losses, and what follows from them, to checkpoints and callbacks."""
        val = _read(self.val_loss)
        report = {"eval/val_loss": val, "eval/val_perplexity": val.exp()}
        if sum(self.trainer.num_val_batches[1:]):
            train = _read(self.train_loss)
            report |= {"eval/train_loss": train, "eval/gap": val - train}
        # In these units, models with different tokenizers compare.
        tokens_per = getattr(getattr(self.trainer, "datamodule", None), "tokens_per", {})
        for tag, unit in (("char", "character"), ("byte", "byte")):
            if unit in tokens_per:
                report[f"eval/val_bits_per_{tag}"] = val / math.log(2) * tokens_per[unit]
        if self.logs and self.trainer.state.fn == "fit":
            self.log("step", float(self.global_step))  # the x axis, which Lightning has one step too early
        # They are equal on all devices, which Lightning cannot know; and True in place of None would warn of no logger.
        self.log_dict(report, logger=None if self.logs else False, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the mean over the whole split, each target with the same weight."""
        self.test_loss.update(self.loss_of(batch), batch[1].numel())

    def on_test_epoch_end(self) -> None:
        """Report the mean loss in nats per token."""
        self.log("test/loss", _read(self.test_loss), sync_dist=True)

    def predict_step(self, batch: Tensor | Batch, batch_idx: int) -> Tensor:
        """Log-probabilities (B, T, V) of the token after each of the ids (B, T); targets beside them are ignored."""
        logits, _ = self.gpt(batch if isinstance(batch, Tensor) else batch[0])
        scores: Tensor = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return scores.log_softmax(-1)

    @property
    def learning_rate(self) -> float:
        """The highest rate of the schedule, under the name by which Lightning's LearningRateFinder sets it."""
        return self.optim.max_lr

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optim = dataclasses.replace(self.optim, max_lr=value, min_lr=min(self.optim.min_lr, value))
        self.hparams["optim"] = dataclasses.asdict(self.optim)

    def lr_at(self, it: int) -> float:
        """The schedule's value at optimizer step `it`.

        Raises:
            ValueError: if nothing says where the schedule ends.
        """
        end = self.optim.max_iters or self.trainer.estimated_stepping_batches  # by max_steps or max_epochs
        if not 0 < end < math.inf:
            raise ValueError("the schedule needs an end: give the Trainer max_steps, or OptimConfig max_iters")
        return scheduled_lr(it, self.optim, int(end))

    @property
    def custom_schedule(self) -> bool:
        """Whether a subclass overrides the schedule of `optim`."""
        return type(self).lr_at is not TinyGPT.lr_at or self.custom_optimizer

    @property
    def custom_optimizer(self) -> bool:
        """Whether a subclass overrides `configure_optimizers`."""
        return type(self).configure_optimizers is not TinyGPT.configure_optimizers

    @property
    def fused(self) -> bool:
        """Whether one kernel updates all parameters."""
        # A fused AdamW undoes float16's loss scaling itself, too late for the clipping, which comes before.
        return self.device.type in FUSED_DEVICES and self.trainer.precision != "16-mixed"

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The grouped optimizer, and the schedule set on every group before every optimizer step."""
        products = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        optimizer = configure_optimizer(self, self.optim, fused=self.fused, products=products)
        scheduler = LambdaLR(optimizer, lambda it: self.lr_at(it))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Put the present settings over those that a checkpoint brought back with the optimizer's state.

        A subclass with `configure_optimizers` of its own keeps what the checkpoint has.
        """
        if self.custom_optimizer:
            return
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        for group, fresh in zip(optimizer.param_groups, decay_groups(self, self.optim), strict=True):
            group["name"], group["weight_decay"] = fresh["name"], fresh["weight_decay"]
            group["betas"] = self.optim.betas
            group["lr"] = self.lr_at(self.global_step)
            if "momentum" in fresh:
                group["momentum"] = fresh["momentum"]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the accumulated gradient by its global norm, and keep that norm, as it was before, in `grad_norm`.

        Lightning's own clipping gives no norm, and refuses a fused optimizer in mixed precision.

        Raises:
            ValueError: for clipping by value.
            Diverged: if the loss or the norm is not finite; such a step is not taken. Where failures are kept on the
                device, `check_steps` raises instead, before anything is saved.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(f"gradients are clipped by norm alone, got {gradient_clip_algorithm!r}")
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        # In bfloat16 a norm has two digits, and in float16 it is infinite above 65504.
        norm = nn.utils.get_total_norm([g.to(torch.promote_types(g.dtype, torch.float32)) for g in gradients])
        nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val or math.inf, norm)
        self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # An infinite gradient is nothing special in float16: the loss is scaled down and the step skipped.
        checked = torch.zeros_like(self.grad_norm) if self.trainer.precision == "16-mixed" else self.grad_norm
        rates = [group["lr"] for group in optimizer.param_groups]
        self.step_guard.see(self.global_step, self.step_loss, checked, rates[0])
        if self.logs and self.trainer.state.fn == "fit":
            row = {"optim/lr": rates[0], "optim/lr_no_decay": rates[-1], "optim/grad_norm": self.grad_norm}
            self.log_dict(row | {"progress/tokens_seen": float(self.step_tokens * (self.global_step + 1))})
            self.log("train/loss", self.step_loss, sync_dist=True)

    def check_steps(self) -> None:
        """See whether all optimizer steps so far were finite.

        Raises:
            Diverged: if one was not.
        """
        self.step_guard.check(self.lr_at)

    def on_validation_start(self) -> None:
        """See that there is something to evaluate."""
        self.check_steps()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the steps before they are saved, and add the name of a subclass, which TinyGPT cannot replace."""
        self.check_steps()
        if type(self) is not TinyGPT:
            checkpoint["module"] = type(self).__qualname__


def _settings(kind: type[Settings], value: Any) -> Settings:
    return value if isinstance(value, kind) else kind(**value)


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint can hold a value and be read as data, never as code."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return value is None or type(value) in (bool, int, float, str)


def _read(metric: TokenMean) -> Tensor:
    value: Tensor = metric.compute()
    metric.reset()
    return value
