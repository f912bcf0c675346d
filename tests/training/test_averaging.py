"""The average of the weights: what it is, that it is what is evaluated, and that both are saved."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tests.small_runs import Fitted, Run, assert_same, load, scalars, small, table
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.training.averaging import Averaging

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

LAST, BEST = (Path(f"run/checkpoints/{name}.ckpt") for name in ("last", "best"))
AVERAGED = {"ema_decay": 0.8, "trainer__enable_progress_bar": "false"}


class KeepWeights(Callback):
    """Writes the weights down after each step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.kept: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.kept.append({name: p.detach().clone() for name, p in pl_module.state_dict().items()})
        torch.save(self.kept, "kept")


class SaveInside(Callback):
    """Saves in the middle of each evaluation."""

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if (dataloader_idx, batch_idx) == (1, 1):
            trainer.save_checkpoint("inside.ckpt")


def test_the_average_is_that_of_all_steps(cli: Run, text_file: Path) -> None:
    keep = "--trainer.callbacks=tests.training.test_averaging.KeepWeights"
    assert cli("fit", *small(text_file, **AVERAGED), "--run_dir=run", keep)[0] == 0
    kept = torch.load("kept", weights_only=True)
    checkpoint = load(LAST)
    assert len(kept) == checkpoint["averaging_state"]["n_averaged"] == 10
    average = dict(kept[0])
    for n, weights in enumerate(kept[1:], 1):
        decay = min(0.8, (1 + n) / (10 + n))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    for name, expected in average.items():
        torch.testing.assert_close(checkpoint["state_dict"][name], expected)
        assert torch.equal(checkpoint["current_model_state"][name], kept[-1][name])


def test_a_run_with_an_average_takes_the_steps_of_one_without(cli: Run, fitted: Fitted) -> None:
    """Its `raw val` is the other's `val`; its own is that of the average, which `validate` and `test` find again."""
    plain = fitted("plain")
    averaged = fitted("run", **AVERAGED)
    a, b = scalars(Path("plain")), scalars(Path("run"))
    assert a["train/loss"] == b["train/loss"]
    assert a["eval/val_loss"] == b["eval/raw_val_loss"]
    assert [step for step, _ in b["eval/val_loss"]] == [0, 4, 8, 10]
    assert b["eval/val_loss"][0] == a["eval/val_loss"][0], "before the first step both are the same"
    assert b["eval/val_loss"][1:] != a["eval/val_loss"][1:]
    raw = [line.split(" | ")[3] for line in averaged.splitlines() if line.startswith("iter ")]
    assert raw == [f"raw val {row[2]}" for row in table(plain)]
    assert load(LAST)["current_model_state"].keys() == load(Path("plain/checkpoints/last.ckpt"))["state_dict"].keys()
    for name, weight in load(Path("plain/checkpoints/last.ckpt"))["state_dict"].items():
        assert torch.equal(load(LAST)["current_model_state"][name], weight)
    _, line, _ = cli("validate", f"--ckpt_path={LAST}")
    assert f"val {b['eval/val_loss'][-1][1]:.4f}" in line
    assert load(BEST)["val_loss"] == pytest.approx(min(value for _, value in b["eval/val_loss"]))


def test_an_average_that_keeps_nothing_is_the_weights_themselves(cli: Run, text_file: Path) -> None:
    cli("fit", *small(text_file, **AVERAGED | {"ema_decay": 0.0}), "--run_dir=run")
    rows = scalars(Path("run"))
    assert rows["eval/val_loss"] == rows["eval/raw_val_loss"]


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused_by_name(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ema_decay has to be in \[0, 1\)"):
        Averaging(decay, TextDataModule())


def test_weights_of_half_precision_have_no_average(cli: Run, text_file: Path) -> None:
    """A thousandth of the way is less than half of their last digit."""
    code, _, err = cli("fit", *small(text_file, **AVERAGED, trainer__precision="bf16-true"))
    assert code == 2
    assert "ema_decay needs weights of more digits than bf16-true" in err


def test_a_save_in_the_middle_of_an_evaluation_changes_nothing(cli: Run, fitted: Fitted, text_file: Path) -> None:
    save = "--trainer.callbacks=tests.training.test_averaging.SaveInside"
    fitted("alone", **AVERAGED)
    assert cli("fit", *small(text_file, **AVERAGED), "--run_dir=run", save)[0] == 0
    a, b = scalars(Path("alone")), scalars(Path("run"))
    for tag in ("train/loss", "eval/val_loss", "eval/raw_val_loss"):
        assert a[tag] == b[tag]
    inside = load(Path("inside.ckpt"))
    for key in ("state_dict", "current_model_state"):
        assert_same(dict(inside[key]), dict(load(LAST)[key]))


def test_a_run_keeps_its_average_to_the_end(cli: Run, fitted: Fitted) -> None:
    """Without it, the optimizer's state would go on with weights that it does not belong to."""
    fitted("run", **AVERAGED)
    code, _, err = cli("fit", f"--ckpt_path={LAST}", "--ema_decay=null", "--trainer.max_steps=12")
    assert code == 2
    assert "ema_decay has to stay 0.8 in a run that goes on, got null" in err


def test_another_run_may_start_from_the_average(cli: Run, fitted: Fitted, text_file: Path) -> None:
    fitted("run", **AVERAGED)
    code, _, err = cli("fit", *small(text_file, trainer__max_steps=2), "--run_dir=next", f"--init_from={LAST}")
    assert code == 0, err
    assert scalars(Path("next"))["eval/val_loss"][0][1] == pytest.approx(scalars(Path("run"))["eval/val_loss"][-1][1])


@pytest.mark.parametrize("lost", ["current_model_state", "averaging_state", "averaging_state/n_averaged"])
def test_a_checkpoint_that_has_lost_one_of_the_two_is_damaged(cli: Run, fitted: Fitted, lost: str) -> None:
    fitted("run", **AVERAGED)
    checkpoint = load(LAST)
    where, _, entry = lost.partition("/")
    if entry:
        checkpoint[where][entry] = torch.zeros(3)
    else:
        del checkpoint[where]
    torch.save(checkpoint, "spoilt.ckpt")
    code, _, err = cli("fit", "--ckpt_path=spoilt.ckpt", "--trainer.max_steps=12")
    assert code == 2
    assert "the checkpoint is damaged: it lacks the weights beside their average" in err
