"""The recipe as a plain PyTorch loop, and the same run through Lightning, both recorded for comparison."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.optim import OptimConfig
from tinygpt_pl.training.evaluation import Evaluation
from tinygpt_pl.training.steps import StepSeed, dropout_seed
from tinygpt_pl.windows import window_starts

SEED = 1337
STEPS = 30
EVAL_INTERVAL = 10
EVAL_ITERS = 3
CLIP = 1.0  # the norm of some steps is above it, of others below
GPT_CONFIG = GPTConfig(vocab_size=27, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.0)
OPTIM = OptimConfig(max_lr=1e-2, min_lr=1e-3, warmup_iters=10, max_iters=25, weight_decay=0.1)


@dataclass
class Record:
    """What both loops leave behind."""

    train_losses: list[float] = field(default_factory=list)  # nats, one per optimizer step
    learning_rates: list[list[float]] = field(default_factory=list)  # per step, one per parameter group
    grad_norms: list[float] = field(default_factory=list)  # before clipping
    evaluations: list[tuple[int, float, float]] = field(default_factory=list)  # iteration, train, val
    windows: list[Tensor] = field(default_factory=list)  # per step, (windows, T), in the order they were seen
    weights: dict[str, Tensor] = field(default_factory=dict)


def english(length: int = 4000) -> str:
    """Words that are predictable enough to learn something in 30 steps; 27 different symbols."""
    words = ["pack", "my", "box", "with", "five", "dozen", "liquor", "jugs", "the", "quick", "fox", "naps"]
    picks = torch.randint(len(words), (length,), generator=torch.Generator().manual_seed(0)).tolist()
    return ("abcdefghijklmnopqrstuvwxyz " + " ".join(words[i] for i in picks))[:length]


def plain_loop(
    text: str,
    state_dict: dict[str, Tensor],
    gpt: GPTConfig = GPT_CONFIG,
    optim: OptimConfig = OPTIM,
    batch_size: int = 16,
    accumulate: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Record:
    """Train for STEPS iterations with nothing but torch."""
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(c) for c in text])
    n = int(0.9 * len(ids))
    splits = {"train": ids[:n], "val": ids[n:]}
    T = gpt.block_size

    def stack(split: str, starts: list[int]) -> tuple[Tensor, Tensor]:
        data = splits[split]
        return torch.stack([data[i : i + T] for i in starts]), torch.stack([data[i + 1 : i + T + 1] for i in starts])

    def windows(stream: str, split: str, step: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        starts = window_starts(SEED, stream, step, count, len(splits[split]) - T).tolist()
        for i in range(0, count, batch_size):
            yield stack(split, starts[i : i + batch_size])

    def get_lr(it: int) -> float:
        assert optim.max_iters is not None
        if it < optim.warmup_iters:
            return optim.max_lr * (it + 1) / optim.warmup_iters
        if it >= optim.max_iters:
            return optim.min_lr
        progress = (it - optim.warmup_iters) / (optim.max_iters - optim.warmup_iters)
        return optim.min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (optim.max_lr - optim.min_lr)

    @torch.no_grad()
    def estimate_loss(split: str) -> float:
        model.eval()
        batches = windows(f"eval_{split}", split, 0, EVAL_ITERS * batch_size * accumulate)
        losses: list[float] = [model(x, y)[1].item() for x, y in batches]
        model.train()
        return sum(losses) / len(losses)

    model = GPT(gpt).to(dtype)
    model.load_state_dict(state_dict)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # The key biases have a true gradient of zero: what float32 leaves of it is noise, which Adam scales up to whole
    # steps. Only the same kernel gives the same noise; in float64 it stays below Adam's epsilon, whatever the kernel.
    fused = dtype is torch.float32
    optimizer = torch.optim.AdamW(groups, lr=optim.max_lr, betas=optim.betas, fused=fused)
    record = Record()
    model.train()
    for it in range(STEPS + 1):
        if it % EVAL_INTERVAL == 0:
            record.evaluations.append((it, estimate_loss("train"), estimate_loss("val")))
        if it == STEPS:
            break
        for group in optimizer.param_groups:
            group["lr"] = get_lr(it)
        optimizer.zero_grad(set_to_none=True)
        total, seen = 0.0, []
        for micro, (x, y) in enumerate(windows("train", "train", it, batch_size * accumulate)):
            torch.manual_seed(dropout_seed(SEED, it, micro, 0))
            _, loss = model(x, y)
            (loss / accumulate).backward()
            total += loss.item() / accumulate
            seen.append(x)
        record.train_losses.append(total)
        record.grad_norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        record.learning_rates.append([group["lr"] for group in optimizer.param_groups])
        record.windows.append(torch.cat(seen))
        optimizer.step()
    record.weights = {name: p.detach().clone() for name, p in model.state_dict().items()}
    return record


class Recorder(Callback):
    """Fills a Record from outside, through public hooks alone."""

    def __init__(self) -> None:
        self.record = Record()
        self.loss = 0.0
        self.seen: list[Tensor] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        losses = (metrics["eval/train_loss"].item(), metrics["eval/val_loss"].item())
        self.record.evaluations.append((trainer.global_step, *losses))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, idx: int) -> None:
        self.step = trainer.global_step
        self.seen.append(batch[0])

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.record.learning_rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TinyGPT)
        self.loss += outputs["loss"].item()
        if trainer.global_step > self.step:
            self.record.train_losses.append(self.loss)
            self.record.grad_norms.append(pl_module.grad_norm.item())
            self.record.windows.append(torch.cat(self.seen))
            self.loss, self.seen = 0.0, []


def lightning_fit(
    text_file: Path,
    module: TinyGPT,
    batch_size: int = 16,
    accumulate: int = 1,
    callbacks: tuple[Callback, ...] = (),
    **trainer_options: Any,
) -> Record:
    """Train the same through the project: its module, its data module and its callbacks in a Trainer."""
    data = TextDataModule(
        corpus=str(text_file),
        block_size=module.gpt.config.block_size,
        batch_size=batch_size,
        eval_iters=EVAL_ITERS,
        seed=SEED,
    )
    data.setup()
    recorder = Recorder()
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": STEPS,
        "gradient_clip_val": CLIP,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": EVAL_INTERVAL * accumulate,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    } | trainer_options
    evaluation = Evaluation(options["val_check_interval"] // accumulate, fresh=True)
    trainer = pl.Trainer(callbacks=[StepSeed(SEED), *callbacks, evaluation, recorder], **options)
    trainer.fit(module, data)
    recorder.record.weights = {name: p.detach().clone() for name, p in module.gpt.state_dict().items()}
    return recorder.record


def assert_same_run(found: Record, expected: Record, rtol: float) -> None:
    """Compare two records; weights relative to the largest of their tensor."""
    assert len(found.windows) == len(expected.windows) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(found.windows, expected.windows, strict=True)), "windows differ"
    for name in ("learning_rates", "train_losses", "grad_norms", "evaluations"):
        a, b = (torch.tensor(getattr(record, name), dtype=torch.float64) for record in (found, expected))
        assert a.shape == b.shape, f"{name} differ in number"
        worst = ((a - b).abs() / b.abs().clamp(min=1e-300)).max().item()
        assert worst <= rtol, f"{name} differ by {worst:.1e}"
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        worst = ((found.weights[name] - weight).abs().max() / weight.abs().max()).item()
        assert worst <= rtol, f"weights of {name} differ by {worst:.1e}"


def with_dropout(config: GPTConfig = GPT_CONFIG) -> GPTConfig:
    """The small network with dropout on."""
    return replace(config, dropout=0.2)
