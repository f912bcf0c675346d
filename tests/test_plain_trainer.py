"""TinyGPT and TextDataModule in a Trainer of Lightning's own, without a callback of the recipe."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner.tuning import Tuner
from torch.nn import functional as F

from tests.reference import CLIP, EVAL_INTERVAL, GPT_CONFIG, OPTIM, STEPS, lightning_fit
from tests.small_runs import Run, small
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.windows import FixedWindows, full_pass

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def column(run: Path, tag: str) -> dict[int, float]:
    """The values of a tag in Lightning's CSV file, by step."""
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[tag]) for row in csv.DictReader(file) if row[tag]}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_metric_of_a_run_reaches_the_loggers_at_its_step(
    text_file: Path, tmp_path: Path, accumulate: int
) -> None:
    """Guards against a module that logs nothing unless the callbacks of the recipe do it."""
    logger = CSVLogger(tmp_path, name="", version="")
    options: dict[str, Any] = {"logger": logger, "log_every_n_steps": 1}
    batch_size = 16 // accumulate
    record = lightning_fit(text_file, TinyGPT(GPT_CONFIG, OPTIM), batch_size, accumulate, **options)
    steps = range(STEPS)
    assert column(tmp_path, "train/loss") == pytest.approx(dict(zip(steps, record.train_losses, strict=True)))
    assert column(tmp_path, "optim/grad_norm") == pytest.approx(dict(zip(steps, record.grad_norms, strict=True)))
    for tag, group in (("optim/lr", 0), ("optim/lr_no_decay", -1)):
        rates = [rates[group] for rates in record.learning_rates]
        assert column(tmp_path, tag) == pytest.approx(dict(zip(steps, rates, strict=True)))
    tokens = {it: 16 * GPT_CONFIG.block_size * (it + 1) for it in steps}
    assert column(tmp_path, "progress/tokens_seen") == tokens
    assert column(tmp_path, "eval/train_loss") == pytest.approx({it: train for it, train, _ in record.evaluations})
    assert column(tmp_path, "eval/val_loss") == pytest.approx({it: val for it, _, val in record.evaluations})
    assert EVAL_INTERVAL in column(tmp_path, "eval/val_loss")
    assert max(record.grad_norms) > CLIP


def test_validate_test_and_predict_return_what_they_find(text_file: Path) -> None:
    """Guards against results of [{}, {}], the losses being in callback_metrics alone."""
    torch.manual_seed(0)
    data = TextDataModule(str(text_file), block_size=8, batch_size=16, eval_coverage="full")
    module = TinyGPT.for_data(data, GPTConfig(n_layer=1, n_head=2, n_embd=16, dropout=0.5))
    trainer = pl.Trainer(**QUIET)
    validated, *_ = trainer.validate(module, data, verbose=False)
    (tested,) = trainer.test(module, data, verbose=False)
    ids = data.splits["val"]
    windows = FixedWindows(ids, full_pass(len(ids), 8, 16))
    with torch.no_grad():
        pairs = [(module.eval()(idx)[0], targets) for idx, targets in windows]
    logits = torch.cat([logits.flatten(0, 1) for logits, _ in pairs])
    expected = F.cross_entropy(logits, torch.cat([targets.flatten() for _, targets in pairs])).item()
    assert tested == pytest.approx({"test/loss": expected})
    assert validated["eval/val_loss"] == pytest.approx(expected)
    assert validated["eval/gap"] == pytest.approx(expected - validated["eval/train_loss"], abs=1e-6)
    predicted = trainer.predict(module, data)
    assert predicted is not None
    found = torch.cat([batch.flatten(0, 1) for batch in predicted])  # type: ignore[union-attr]  # one loader
    torch.testing.assert_close(found, logits.log_softmax(-1))
    idx = next(iter(windows))[0]
    torch.testing.assert_close(module.predict_step(idx, 0).flatten(0, 1), found[: idx.numel()])


def test_a_learning_rate_monitor_follows_every_parameter_group(text_file: Path, tmp_path: Path) -> None:
    """Guards against groups of one name, which it refuses: Muon has one for each way of joining matrices."""
    logger = CSVLogger(tmp_path, name="", version="")
    gpt, optim = replace(GPT_CONFIG, activation="swiglu"), replace(OPTIM, optimizer="muon")
    monitor = LearningRateMonitor("step")
    record = lightning_fit(
        text_file, TinyGPT(gpt, optim), callbacks=(monitor,), logger=logger, max_steps=4, log_every_n_steps=1
    )
    tags = [key for key in monitor.lrs if key.endswith(("muon", "decay"))]
    assert len(monitor.lrs) == 5, "muon twice joined, muon, decay and no_decay"
    for tag in tags:
        assert [*column(tmp_path, tag).values()] == pytest.approx([rates[0] for rates in record.learning_rates])


def test_a_learning_rate_finder_sets_the_highest_rate(text_file: Path, tmp_path: Path) -> None:
    """Guards against a method called learning_rate, which it took for the rate; checkpoints keep what it found."""
    data = TextDataModule(str(text_file), block_size=8, batch_size=4, eval_iters=1)
    module = TinyGPT.for_data(data, GPTConfig(n_layer=1, n_head=2, n_embd=16), OPTIM)
    trainer = pl.Trainer(**QUIET, max_steps=4, default_root_dir=tmp_path)
    finder = Tuner(trainer).lr_find(module, data, num_training=20)
    assert finder is not None
    assert module.learning_rate == module.optim.max_lr == finder.suggestion()
    assert module.hparams["optim"]["max_lr"] == finder.suggestion()
    trainer.fit(module, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(module.lr_at(4))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_of_a_plain_trainer_serves_every_command_that_needs_no_run(
    cli: Run, text_file: Path, weights_only: bool
) -> None:
    """Guards against its being "no checkpoint of a run"; fit cannot resume from it, and lists what it lacks."""
    torch.manual_seed(0)
    data = TextDataModule(str(text_file), block_size=8, batch_size=16, eval_coverage="full")
    module = TinyGPT.for_data(data, GPTConfig(n_layer=1, n_head=2, n_embd=16))
    saving = ModelCheckpoint(".", "plain", save_weights_only=weights_only)
    quiet = QUIET | {"enable_checkpointing": True}
    trainer = pl.Trainer(**quiet, max_steps=4, val_check_interval=4, limit_val_batches=1, callbacks=[saving])
    trainer.fit(module, data)
    (tested,) = trainer.test(module, data, verbose=False)
    options = [option for option in small(text_file) if ".gpt." not in option]

    code, out, err = cli("test", "--ckpt_path=plain.ckpt", f"--data.corpus={text_file}", "--trainer.accelerator=cpu")
    assert code == 0, err
    assert out.startswith("iter 4 | ")
    assert f"\n{tested['test/loss']:.4f} nats" in out
    code, out, err = cli("validate", "--ckpt_path=plain.ckpt", *options, "--data.eval_coverage=full")
    assert code == 0, err
    assert f"| val {tested['test/loss']:.4f} | plain.ckpt" in out
    code, out, err = cli("generate", "--ckpt_path=plain.ckpt", "--max_new_tokens=5", "--num_samples=1")
    assert code == 0, err
    code, _, err = cli("export", "--ckpt_path=plain.ckpt", "--output_dir=exported")
    assert code == 0, err
    code, out, err = cli("fit", "--init_from=plain.ckpt", *options)
    assert code == 0, err
    assert "iter 0 | train" in out
    code, _, err = cli("fit", "--ckpt_path=plain.ckpt", *options)
    assert code == 2
    assert "plain.ckpt was saved without the callbacks of the recipe" in err
    assert ("lacks optimizer_states," in err) is weights_only
    assert "config, corpus, windows_per_step, evaluated, val_loss, events; --init_from starts a new run" in err


def test_a_checkpoint_without_a_vocabulary_is_refused_for_that(cli: Run, tmp_path: Path) -> None:
    """Guards against calling a sound file damaged: a model that is not made for data knows no characters."""
    trainer = pl.Trainer(**QUIET)
    trainer.strategy.connect(TinyGPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)))
    trainer.save_checkpoint(tmp_path / "bare.ckpt", weights_only=True)
    code, _, err = cli("generate", f"--ckpt_path={tmp_path / 'bare.ckpt'}")
    assert code == 2
    assert "bare.ckpt has no vocabulary; build the model with TinyGPT.for_data(data)" in err
