"""The seeds of dropout, the samples, and what is told of the curve."""

import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.small_runs import Run, assert_same, load, outcome, scalars, small, table, texts
from tinygpt_pl import generate
from tinygpt_pl.runs.checkpoint import load_network, read_checkpoint
from tinygpt_pl.text.tokenizer import CharTokenizer
from tinygpt_pl.training.steps import dropout_seed


def test_dropout_seeds_differ_and_repeat() -> None:
    seeds = [dropout_seed(s, t, m, r) for s in range(3) for t in range(3) for m in range(3) for r in range(3)]
    assert len(set(seeds)) == 81
    assert dropout_seed(1, 2, 0, 1) == dropout_seed(1, 2, 0, 1)


def test_samples_are_drawn_after_each_evaluation_and_change_no_bit(
    cli: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout and all: guards against a sample that uses up random numbers, or leaves the network in another mode."""
    monkeypatch.chdir(tmp_path)
    options = small(text_file, model__gpt__dropout=0.3)
    code, with_samples, err = cli("fit", *options, "--run_dir=with", "--sample_tokens=20", "--print_samples=true")
    assert code == 0, err
    code, without, err = cli("fit", *options, "--run_dir=without", "--sample_tokens=0")
    assert code == 0, err
    assert_same(outcome(Path("with")), outcome(Path("without")))

    written = texts(Path("with"))["sample/text_summary"]
    assert [step for step, _ in written] == [0, 4, 8, 10]
    assert len({text for _, text in written}) == 4, "the network learns, but its samples stay the same"
    for step, text in written:
        assert re.fullmatch(r"    [a-z ]{20}", text), "not preformatted"
        assert f"iter {step} |" in with_samples.split(text)[0], "a sample stands before its evaluation"
    assert not any(text in without for _, text in written)
    assert "sample/text_summary" not in texts(Path("without"))

    best = load_network(read_checkpoint(Path("with/checkpoints/best.ckpt")))[0]
    best_step = load(Path("with/checkpoints/best.ckpt"))["global_step"]
    ids = generate(best, torch.tensor([[0]]), 20, seed=1337)[0, 1:]
    assert dict(written)[best_step].strip(" ") == CharTokenizer.from_text(text_file.read_text()).decode(ids).strip(" ")


def test_a_resumed_run_has_each_sample_once(
    cli: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli("fit", *small(text_file, trainer__max_steps=6))
    cli("fit", "--ckpt_path=last", "--trainer.max_steps=10")
    written = texts(Path("lightning_logs/version_0"))["sample/text_summary"]
    assert [step for step, _ in written] == [0, 4, 6, 8, 10]


def test_tensorboard_has_what_runs_are_sorted_by(
    cli: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against results of iteration 0, as where they are written with the settings at the start."""
    monkeypatch.chdir(tmp_path)
    _, said, _ = cli("fit", *small(text_file, run_dir="run"))
    content = EventAccumulator("run").Reload().PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert (start["max_lr"].number_value, start["n_layer"].number_value) == (1e-2, 1)
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    curve, rows = scalars(Path("run")), table(said)
    shown = [info.name.tag for info in experiment.metric_infos]
    first = [info.name for info in experiment.hparam_infos if info.differs]  # TensorBoard shows these, by name
    assert sorted(first) == ["batch_size", "max_lr", "max_steps", "n_embd", "n_layer"]
    (layout,) = EventAccumulator("run").Reload().Tensors("custom_scalars__config__")
    chart = Layout.FromString(layout.tensor_proto.string_val[0]).category[0].chart[0]
    (band,) = chart.margin.series
    assert (band.value, band.lower) == ("eval/val_loss", "eval/train_loss")
    assert shown == ["result/best_val_loss", "result/best_iter", "result/val_loss", "result/train_loss"]
    best = min(rows, key=lambda row: float(row[2]))
    for tag, value in zip(shown, (best[2], best[0], rows[-1][2], rows[-1][1]), strict=True):
        ((step, result),) = curve[tag]
        assert (step, f"{result:.4f}") == (10, f"{float(value):.4f}")


def test_a_finding_is_told_once_though_the_run_goes_on(
    cli: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cold = {"model__optim__max_lr": 1e-7, "model__optim__min_lr": 1e-8}
    length = {"trainer__max_steps": 100, "model__optim__max_iters": 300, "eval_interval": 20}
    _, before, _ = cli("fit", *small(text_file, **length, **cold))
    assert "FINDING: flat at iter 100" in before
    code, after, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=110")
    assert code == 0, err
    assert "FINDING" not in after
    assert "ill (flat): validation went from" in after, "what was before it went on is forgotten"
    written = texts(Path("lightning_logs/version_0"))
    assert [step for step, _ in written["findings/text_summary"]] == [100]
    assert [step for step, _ in written["facts/text_summary"]] == [0, 100]
    assert "flat" in dict(written["summary/text_summary"])[110]
