"""A run stops before it saves a number that is NaN, infinite or far too large."""

import contextlib
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference import GPT_CONFIG, OPTIM, lightning_fit
from tests.small_runs import BEST, DROPOUT, LAST, RUN, Run, assert_same, load, scalars, small, table, three_lines
from tinygpt_pl import TinyGPT
from tinygpt_pl.commands import fit
from tinygpt_pl.guards import Diverged
from tinygpt_pl.runs.checkpoint import read_checkpoint
from tinygpt_pl.training import steps
from tinygpt_pl.windows import Batch

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


class Spoiled(TinyGPT):
    """From the micro-batch (5, 1) on, the loss or its gradient alone is no number."""

    value, in_loss = float("nan"), True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx < 11:
            return loss
        if self.in_loss:
            spoiled = loss * self.value
            self.step_loss = self.step_loss + spoiled.detach()
            return spoiled
        self.gpt.ln_f.weight.register_hook(lambda gradient: gradient * self.value)  # type: ignore[no-untyped-call]  # torch's gap
        return loss


@pytest.mark.parametrize("in_loss", [True, False], ids=["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fault_18_a_number_that_is_none(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, value: float, in_loss: bool
) -> None:
    """The step is not taken, and nothing of it is saved, not even on the way out."""
    monkeypatch.setattr(Spoiled, "value", value)
    monkeypatch.setattr(Spoiled, "in_loss", in_loss)
    monkeypatch.setattr(fit, "TinyGPT", Spoiled)
    code, out, err = cli("fit", *small(text_file, **DROPOUT), "--save_minutes=0")
    assert code == 1
    assert [row[0] for row in table(out)] == ["0", "4"]
    message = three_lines(err)
    number = r"(nan|inf)"
    loss = number if in_loss else r"\d\.\d{4}"
    assert re.search(
        rf"at iteration 5 the loss is {loss} and the gradient norm {number}, at learning rate 7.22e-03; the step",
        message,
    )
    assert "Try a lower --model.optim.max_lr" in message
    assert f"iteration 5 is safe: python -m tinygpt_pl fit --ckpt_path {LAST} --model.optim.max_lr 0.001" in message
    for path, iteration in ((LAST, 5), (BEST, 4)):
        checkpoint = read_checkpoint(path)
        assert checkpoint.iteration == iteration
        assert all(weight.isfinite().all() for weight in checkpoint.content["state_dict"].values())


@pytest.mark.parametrize("save_minutes", [0, 5])
def test_fault_18_a_number_that_is_none_where_nobody_waits_for_the_device(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, save_minutes: int
) -> None:
    """As on a GPU, where a step is not looked at before it is taken: the kernel leaves it out, and all after it."""
    monkeypatch.setattr(steps, "SKIPPING_DEVICES", {"cpu"})
    monkeypatch.setattr(fit, "TinyGPT", Spoiled)
    code, out, err = cli("fit", *small(text_file, **DROPOUT), f"--save_minutes={save_minutes}")
    assert code == 1
    assert [row[0] for row in table(out)] == ["0", "4"]
    message = three_lines(err)
    assert re.search(r"at iteration 5 the loss is nan and the gradient norm nan, at learning rate 7.22e-03", message)
    assert [step for step, _ in scalars(RUN)["train/loss"]] == [0, 2, 4], "no row has asked"
    sound = 4 if save_minutes else 5
    assert f"iteration {sound} is safe" in message
    assert read_checkpoint(LAST).iteration == sound


def test_fault_18_no_step_is_taken_after_one_that_is_no_number(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SKIPPING_DEVICES", {"cpu"})
    weights = []
    for network, count in ((TinyGPT, 5), (Spoiled, 8)):
        torch.manual_seed(0)
        trained = network(GPT_CONFIG, OPTIM)
        with contextlib.nullcontext() if network is TinyGPT else pytest.raises(Diverged, match="iteration 5"):
            guard = (steps.DeferredGuard(),)
            lightning_fit(text_file, trained, accumulate=2, callbacks=guard, max_steps=count, val_check_interval=16)
        weights.append(trained.gpt.state_dict())
    assert_same(weights[0], weights[1])


class BlindEvaluation(TinyGPT):
    """From iteration 8 on, an evaluation gives no number."""

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx, dataloader_idx)
        if self.global_step >= 8:
            self.val_loss.total *= float("nan")


def test_fault_18_an_evaluation_that_gives_no_number(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "TinyGPT", BlindEvaluation)
    code, _, err = cli("fit", *small(text_file))
    assert code == 1
    assert "at iteration 8 the loss is" in three_lines(err)
    assert [load(path)["global_step"] for path in (LAST, BEST)] == [4, 4]


def test_fault_19_a_run_that_diverges(cli: Run, text_file: Path) -> None:
    code, out, err = cli("fit", *small(text_file, model__optim__max_lr=10.0, model__optim__min_lr=10.0))
    assert code == 1
    assert [row[0] for row in table(out)] == ["0", "4"]
    assert re.search(r"at iteration 4 the loss is \d{2,}\.\d+ in training .*; a uniform guess has 3.2958", err)
    assert "Try a lower --model.optim.max_lr" in three_lines(err)
    assert not BEST.exists()
    assert load(LAST)["global_step"] == 0
