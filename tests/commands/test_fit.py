"""Whole runs from the command line."""

import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional as F

from tests.small_runs import RUN, Fitted, Run, assert_same, load, scalars, shell, signal_at, small, table
from tinygpt_pl import GPT, GPTConfig, TinyGPT, warmup_cosine
from tinygpt_pl.commands import fit
from tinygpt_pl.runs.folder import MARK
from tinygpt_pl.training import auto, trainer
from tinygpt_pl.windows import Batch

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

LONGER = "--trainer.max_steps=4"


def test_a_run_from_table_to_test(cli: Run, text_file: Path) -> None:
    code, out, _ = cli("fit", *small(text_file))
    assert code == 0
    lines = out.splitlines()
    assert "3,600 tokens for training, 400 for validation, 27 different ones" in lines[0]
    assert lines[1] == "3,872 parameters (0.00M)"
    assert lines[2] == "decayed: 6 tensors, 3,632 parameters"
    assert lines[3] == "non-decayed: 10 tensors, 240 parameters"
    assert lines[4].startswith("ln(27) = 3.2958")
    assert lines[5:7] == [f"run: {RUN} on cpu in 32-true", "curves: tensorboard --logdir lightning_logs"]
    rows = table(out)
    assert [int(row[0]) for row in rows] == [0, 4, 8, 10]
    for it, train, val, lr in rows:
        assert lr == f"{warmup_cosine(int(it), 1e-2, 1e-3, 2, 10):.2e}"
        assert abs(float(train) - float(val)) < 0.5
    best = min(rows[1:], key=lambda row: float(row[2]))
    assert lines[-4] == f"best: iter {best[0]} | val {best[2]} | {RUN}/checkpoints/best.ckpt"
    probability = float(lines[-3].removeprefix("average probability of the true next character: "))
    assert probability == pytest.approx(math.exp(-float(best[2])), abs=1e-4)

    files = sorted(p.name for p in RUN.iterdir() if not p.name.startswith("events."))
    assert files == [".lock", ".lock.pid", "checkpoints", "config.yaml"]
    assert sorted(p.name for p in (RUN / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]

    code, out, _ = cli("validate", "--ckpt_path", "best")
    assert code == 0
    assert table(out)[0][:3] == best[:3]
    assert len(out.splitlines()) == 1, "the bar belongs on the error stream"

    score, write = (line.split("python -m tinygpt_pl ")[1].split() for line in lines[-2:])
    code, out, _ = cli(*write)
    assert (code, len(out)) == (0, 501)
    code, out, _ = cli(*score)
    assert code == 0
    nats = nats_by_hand(RUN / "checkpoints/best.ckpt", text_file)
    assert "399 tokens" in out
    assert len(out.splitlines()) == 2, "the bar belongs on the error stream"
    assert (
        f"{nats:.4f} nats and {(bits := nats / math.log(2)):.4f} bits per character | perplexity {math.exp(nats):.4f} "
        f"| average probability {math.exp(-nats):.4f} | bits: {bits:.4f} per byte"
    ) in out


def nats_by_hand(path: Path, text_file: Path) -> float:
    """Mean loss over the validation split, window by window, in float64."""
    model = TinyGPT.load_from_checkpoint(path).double().eval()
    assert model.tokenizer is not None
    ids = torch.from_numpy(model.tokenizer.encode(text_file.read_text())).long()[3600:]
    total = 0.0
    with torch.no_grad():
        for i in range(0, 399, 8):
            x, y = ids[i : i + 8][: 399 - i], ids[i + 1 : i + 9]
            total += F.cross_entropy(model(x[None])[0][0], y, reduction="sum").item()
    return total / 399


def test_the_curve_is_written_at_the_true_step(fitted: Fitted) -> None:
    out = fitted()
    curve = scalars(RUN)
    evaluated, trained = [0, 4, 8, 10], [0, 2, 4, 6, 8]
    steps = {tag: [step for step, _ in rows] for tag, rows in curve.items()}
    assert steps == {
        **dict.fromkeys(
            (
                *("eval/train_loss", "eval/val_loss", "eval/gap", "eval/val_perplexity"),
                *("eval/val_bits_per_char", "eval/val_bits_per_byte"),
            ),
            evaluated,
        ),
        **dict.fromkeys(
            ("train/loss", "optim/lr", "optim/grad_norm", "optim/clipped_share", "perf/tokens_per_second", "perf/mfu"),
            trained,
        ),
        "optim/lr_no_decay": trained,
        **{f"result/{name}": [10] for name in ("best_val_loss", "best_iter", "val_loss", "train_loss")},
        "progress/tokens_seen": trained,
    }
    for row, (_, train), (_, val) in zip(table(out), curve["eval/train_loss"], curve["eval/val_loss"], strict=True):
        assert (f"{train:.4f}", f"{val:.4f}") == row[1:3]
    for step, lr in curve["optim/lr"]:
        assert lr == pytest.approx(warmup_cosine(step, 1e-2, 1e-3, 2, 10), rel=1e-6)
    losses = zip(curve["eval/train_loss"], curve["eval/val_loss"], strict=True)
    for i, ((_, train), (_, val)) in enumerate(losses):
        assert curve["eval/gap"][i][1] == pytest.approx(val - train, abs=1e-6)
        assert curve["eval/val_bits_per_char"][i][1] == pytest.approx(val / math.log(2), rel=1e-5)
        assert curve["eval/val_perplexity"][i][1] == pytest.approx(math.exp(val), rel=1e-5)
    assert curve["progress/tokens_seen"] == [(step, 32.0 * (step + 1)) for step in trained]
    texts = EventAccumulator(str(RUN)).Reload().Tags()["tensors"]
    assert "custom_scalars__config__" in texts
    assert "config/text_summary" in texts


def test_accumulation_changes_no_evaluation_step_and_no_line_of_the_table(
    cli: Run, fitted: Fitted, text_file: Path
) -> None:
    whole = fitted()
    code, accumulated, _ = cli("fit", *small(text_file, data__batch_size=1, trainer__accumulate_grad_batches=4))
    assert code == 0
    assert [row[0] for row in table(accumulated)] == ["0", "4", "8", "10"]
    for a, b in zip(table(whole), table(accumulated), strict=True):
        assert [float(x) for x in a[1:]] == pytest.approx([float(x) for x in b[1:]], abs=2e-4)
    assert [step for step, _ in scalars(Path("lightning_logs/version_1"))["train/loss"]] == [0, 2, 4, 6, 8]


def test_the_saved_configuration_repeats_the_run(cli: Run, text_file: Path) -> None:
    _, first, _ = cli("fit", *small(text_file, model__gpt__dropout=0.2, trainer__gradient_clip_val="null"))
    code, second, _ = cli("fit", "--config", str(RUN / "config.yaml"))
    assert code == 0
    assert table(second) == table(first)
    a, b = (load(Path(f"lightning_logs/version_{n}/checkpoints/last.ckpt"))["state_dict"] for n in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert "gradient_clip_val: null" in (RUN / "config.yaml").read_text(), "left out, the default would return"


def test_a_resumed_run_ends_with_the_same_bits(cli: Run, text_file: Path) -> None:
    options = small(text_file, model__gpt__dropout=0.2, model__optim__max_iters=10)
    _, straight, _ = cli("fit", *options, "--run_dir=straight")
    cli("fit", *options, "--run_dir=stopped", "--trainer.max_steps=8")
    code, rest, _ = cli("fit", "--run_dir=stopped", "--ckpt_path=last", "--trainer.max_steps=10")
    assert code == 0
    assert table(rest) == table(straight)[-1:]
    assert rest.splitlines()[-3].replace("stopped", "straight") == straight.splitlines()[-3]
    a, b = (load(Path(run) / "checkpoints/last.ckpt") for run in ("straight", "stopped"))
    assert_equal_states(a["state_dict"], b["state_dict"])
    assert_equal_states(a["optimizer_states"], b["optimizer_states"])
    assert a["val_loss"] == b["val_loss"]
    code, out, _ = cli("fit", "--run_dir=stopped", "--ckpt_path=last")
    assert (code, out) == (0, "nothing to do: iteration 10 is reached; a larger --trainer.max_steps goes on\n")


def test_settings_of_the_optimizer_that_change_on_resume_are_honoured(cli: Run, fitted: Fitted) -> None:
    """A checkpoint brings the old ones back with the optimizer's state."""
    fitted(trainer__max_steps=4)
    changed = ["--model.optim.max_lr=0.02", "--model.optim.weight_decay=0.7", "--model.optim.betas=[0.5,0.6]"]
    code, _, _ = cli("fit", "--ckpt_path=last", "--trainer.max_steps=10", *changed)
    assert code == 0
    for step, lr in scalars(RUN)["optim/lr"][2:]:
        assert lr == pytest.approx(warmup_cosine(step, 0.02, 1e-3, 2, 10), rel=1e-6)
    decay, no_decay = load(RUN / "checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.7, 0.0)
    assert tuple(decay["betas"]) == tuple(no_decay["betas"]) == (0.5, 0.6)


def test_a_run_that_was_moved_keeps_its_best(cli: Run, fitted: Fitted) -> None:
    fitted(trainer__max_steps=4)
    best = (RUN / "checkpoints/best.ckpt").read_bytes()
    RUN.rename("moved")
    worse = ["--model.optim.max_lr=0.3", "--model.optim.min_lr=0.3", "--trainer.max_steps=8"]
    code, out, err = cli("fit", "--ckpt_path=moved/checkpoints/last.ckpt", *worse)
    assert code == 0
    assert "has changed" not in err
    assert Path("moved/checkpoints/best.ckpt").read_bytes() == best
    assert load(Path("moved/checkpoints/last.ckpt"))["global_step"] == 8
    assert "best: iter 4 | val " in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.accumulate_grad_batches=2", LONGER], "the number of windows in a step .* has to stay 4 .*, got 8"),
        (
            ["--data.batch_size=8", LONGER],
            "the number of windows in a step .* has to stay 4 in a run that goes on, got 8",
        ),
        (["--data.eval_iters=4"], "data.eval_iters has to stay 3 in a run that goes on, got 4"),
        (["--data.val_fraction=0.2"], "data.val_fraction has to stay 0.1"),
        (["--data.eval_coverage=full"], "data.eval_coverage has to stay sampled"),
        (["--data.corpus=changed.txt"], r"data.corpus has to stay .*english.txt \(SHA-256 \w+…\) .* got changed.txt"),
        (["--seed_everything=1"], "seed_everything has to stay 1337"),
        (["--trainer.max_steps=1"], "the checkpoint is of iteration 2, beyond trainer.max_steps 1"),
        (["--run_dir=other", LONGER], "other holds a run already"),
    ],
)
def test_a_run_does_not_go_on_as_another(
    cli: Run, fitted: Fitted, text_file: Path, options: list[str], message: str
) -> None:
    for run in ("one", "other"):
        fitted(run, trainer__max_steps=2)
    Path("changed.txt").write_text(text_file.read_text()[::-1])
    before = contents()
    code, _, err = cli("fit", "--ckpt_path=one/checkpoints/last.ckpt", *options)
    assert code == 2
    assert re.search(message, err), err
    assert contents() == before


def contents() -> list[tuple[Path, int]]:
    """Every file below this folder but the locks and the cache, with the time of its last change."""
    files = (p for p in Path().rglob("*") if p.is_file() and not p.name.startswith(".lock") and p.parts[0] != "data")
    return sorted((p, p.stat().st_mtime_ns) for p in files)


def assert_equal_states(a: object, b: object) -> None:
    """Compare nested containers of tensors bit by bit."""
    assert type(a) is type(b)
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_states(a[key], b[key])
    elif isinstance(a, list) and isinstance(b, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_states(x, y)
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_a_checkpoint_is_complete_and_loads_as_data(fitted: Fitted) -> None:
    fitted()
    checkpoint = load(RUN / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 10
    assert checkpoint["val_loss"] == pytest.approx(scalars(RUN)["eval/val_loss"][-1][1], rel=1e-6)
    assert checkpoint["config"] == (RUN / "config.yaml").read_text()
    assert checkpoint["hyper_parameters"]["gpt"]["n_embd"] == 16
    assert checkpoint["hyper_parameters"]["tokenizer"]["characters"] == " abcdefghijklmnopqrstuvwxyz"
    assert len(checkpoint["optimizer_states"][0]["param_groups"]) == 2
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 10
    assert sum("wte" in name or "head" in name for name in checkpoint["state_dict"]) == 1

    model = TinyGPT.load_from_checkpoint(RUN / "checkpoints/last.ckpt")
    assert model.tokenizer is not None
    logits, _ = model(torch.from_numpy(model.tokenizer.encode("the box"))[None])
    assert logits.shape == (1, 7, 27)


def test_the_untrained_network_is_never_the_best(cli: Run, text_file: Path) -> None:
    _, out, _ = cli("fit", *small(text_file, model__optim__max_lr=0.3, model__optim__min_lr=0.3))
    rows = table(out)
    assert min(rows, key=lambda row: float(row[2]))[0] == "0", "the run was meant to get worse"
    assert load(RUN / "checkpoints/best.ckpt")["global_step"] > 0


class SummedLoss(TinyGPT):
    """The loss is a sum over tokens, not their mean: it starts at T times ln V."""

    def loss_of(self, batch: Batch) -> Tensor:
        return super().loss_of(batch) * batch[0].shape[1]


def test_a_start_far_from_a_uniform_guess_stops_the_run(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "TinyGPT", SummedLoss)
    code, out, err = cli("fit", *small(text_file))
    assert code == 1
    assert [row[0] for row in table(out)] == ["0"]
    message = err[err.index("error: ") :]
    assert re.search(r"the loss starts at 2\d\.\d+, far from ln\(27\) = 3.2958", message)
    assert len(message.splitlines()) <= 3
    assert not (RUN / "checkpoints").exists()


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_stand_in_is_named_everywhere(cli: Run) -> None:
    code, out, _ = cli("fit", *small(Path("tinyshakespeare"), trainer__max_steps=2))
    assert code == 0
    place = Path("data/tinyshakespeare.txt")
    notice = f"NOTE: tinyshakespeare could not be downloaded; save it as {place} to train on it. pydoc is used instead"
    assert out.splitlines()[0] == out.splitlines()[-1] == notice
    config = (RUN / "config.yaml").read_text()
    assert notice in config
    assert "corpus: pydoc" in config
    code, out, _ = cli("fit", "--ckpt_path=last", "--trainer.max_steps=6", signal_at(step=4, signum=2))
    assert code == 130
    assert out.splitlines()[0] == out.splitlines()[-1] == notice
    assert (RUN / "config.yaml").read_text().splitlines()[1] == f"# {notice}"
    text = EventAccumulator(str(RUN)).Reload().Tensors("config/text_summary")[0]
    assert notice.encode() in text.tensor_proto.string_val[0]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision_is_a_matter_of_one_option(cli: Run, text_file: Path, precision: str) -> None:
    """Fused AdamW, mixed precision and clipping together are refused by Lightning's own clipping."""
    code, out, _ = cli("fit", *small(text_file, trainer__precision=precision))
    assert code == 0
    assert float(table(out)[-1][2]) < float(table(out)[0][2])
    assert all(0.01 < norm < 100 for _, norm in scalars(RUN)["optim/grad_norm"])


def test_what_is_left_to_the_machine_is_settled_and_written_down(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is repeated from its config.yaml, perhaps on another machine: no auto may be left in it."""
    monkeypatch.setattr(trainer, "multiplies_bf16", lambda device: False)
    code, out, _ = cli("fit", *small(text_file), "--trainer.precision=auto", "--compile=auto")
    assert code == 0
    settings = yaml.safe_load((RUN / "config.yaml").read_text())
    assert settings["trainer"]["precision"] == "32-true"
    assert settings["compile"] is False
    assert "NOTE: float32, since this cpu has no instructions for bfloat16" in out
    assert "NOTE: not compiled, since that does not pay on a cpu" in out
    assert "on cpu in 32-true" in out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of torch's compiler itself
def test_a_processor_that_gains_by_bfloat16_compiles(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run stopped halfway, compiled again, ends with the bits of one that was not: dropout goes by its seeds."""
    monkeypatch.setattr(trainer, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr(auto, "bfloat16_pays", lambda gpt, windows: True)
    monkeypatch.setattr(auto, "WIDE", 16)
    words = [*small(text_file, model__gpt__dropout=0.2), "--model.gpt.attn_dropout=0", "--trainer.precision=auto"]
    words.append("--compile=auto")
    code, out, _ = cli("fit", *words, "--run_dir=whole")
    assert code == 0
    assert "on cpu in bf16-mixed" in out
    assert re.search(r"^compiled in \d+s$", out, re.MULTILINE)
    halfway = ["--model.optim.max_iters=10", "--trainer.max_steps=5", "--run_dir=parts"]
    assert cli("fit", *words, *halfway)[0] == 0
    torch.compiler.reset()
    assert cli("fit", "--ckpt_path=parts/checkpoints/last.ckpt", "--trainer.max_steps=10")[0] == 0
    assert_same(*(load(Path(run) / "checkpoints/last.ckpt")["state_dict"] for run in ("whole", "parts")))


def test_the_settings_of_an_older_run_are_taken(cli: Run, text_file: Path) -> None:
    """It wrote down null where no precision was asked for."""
    code, out, _ = cli("fit", *small(text_file), "--trainer.precision=null")
    assert code == 0
    assert "on cpu in 32-true" in out


def test_full_coverage_is_the_score_of_the_whole_split(cli: Run, text_file: Path) -> None:
    code, out, _ = cli("fit", *small(text_file, data__eval_coverage="full"))
    assert code == 0
    score = cli("test", "--ckpt_path=last")[1]
    assert f"{table(out)[-1][2]} nats" in score
    again = cli("validate", "--ckpt_path=last")[1]
    assert table(again)[0][:3] == table(out)[-1][:3]


def test_a_ceiling_that_is_given_is_what_mfu_refers_to(cli: Run, text_file: Path) -> None:
    assert cli("fit", *small(text_file, trainer__max_steps=4), "--peak_tflops=2")[0] == 0
    curve = scalars(RUN)
    flops = GPT(GPTConfig(27, 8, 1, 2, 16, 0.0)).flops_per_token()
    for (_, speed), (_, mfu) in zip(curve["perf/tokens_per_second"], curve["perf/mfu"], strict=True):
        assert mfu == pytest.approx(speed * flops / 2e12, rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of torch's compiler itself
def test_a_compiled_run_is_the_same_run(cli: Run, text_file: Path) -> None:
    """Needs a C++ compiler; checkpoints have the names of a network that was never compiled."""
    plain = table(cli("fit", *small(text_file))[1])
    code, out, _ = cli("fit", *small(text_file), "--compile=true", "--print_samples=true")
    assert code == 0
    assert re.search(r"^compiled in \d+s$", out, re.MULTILINE)
    for row, expected in zip(table(out), plain, strict=True):
        assert [float(x) for x in row] == pytest.approx([float(x) for x in expected], abs=2e-4)
    weights = load(RUN.with_name("version_1") / "checkpoints/last.ckpt")["state_dict"]
    assert weights.keys() == load(RUN / "checkpoints/last.ckpt")["state_dict"].keys()


@pytest.mark.slow
def test_fault_28_a_run_that_cannot_be_compiled_goes_on_without(text_file: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tinygpt_pl", "fit", *small(text_file), "--compile=true"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^NOTE: not compiled, since that failed: .+$", done.stdout, re.MULTILINE)) == 1
    assert len(table(done.stdout)) == 4


def test_a_folder_that_holds_a_run_is_not_run_into(cli: Run, fitted: Fitted, text_file: Path) -> None:
    fitted("mine", trainer__max_steps=2)
    before = contents()
    code, _, err = cli("fit", *small(text_file, trainer__max_steps=2), "--run_dir=mine")
    assert code == 2
    assert "mine holds a run already; resume with --ckpt_path mine/checkpoints/last.ckpt, or give another" in err
    assert contents() == before


def test_another_logger_has_the_curve_and_the_settings_too(cli: Run, text_file: Path) -> None:
    """Guards against a logger in place of the event file, without which diagnose refuses the run."""
    words = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv", "--trainer.logger.name=mine"]
    assert cli("fit", *small(text_file), *words)[0] == 0
    assert cli("diagnose", str(RUN))[0] in (0, 3)
    with Path("csv/mine/version_0/metrics.csv").open() as file:
        rows = [*csv.DictReader(file)]
    for tag in ("train/loss", "optim/grad_norm", "eval/val_loss"):
        found = {int(row["step"]): float(row[tag]) for row in rows if row[tag]}
        assert found == pytest.approx(dict(scalars(RUN)[tag]))
    settings = yaml.safe_load(Path("csv/mine/version_0/hparams.yaml").read_text())
    assert settings["model"]["gpt"]["n_embd"] == 16
    code, _, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=12", *words)
    assert code == 0, err
    assert Path("csv/mine/version_1/hparams.yaml").is_file(), "a run that resumes begins a version of its own"


def test_the_report_of_a_profiler_is_printed(text_file: Path, tmp_path: Path) -> None:
    """Guards against a report that is silenced together with Lightning's notices."""
    words = [*small(text_file, trainer__max_steps=2), "--trainer.profiler=simple"]
    command = [sys.executable, "-m", "tinygpt_pl", "fit", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.count("FIT Profiler Report") == 1
    assert "run_training_batch" in done.stderr


def test_a_run_needs_no_logger(cli: Run, text_file: Path) -> None:
    code, out, _ = cli("fit", *small(text_file), "--trainer.logger=false")
    assert code == 0
    assert len(table(out)) == 4
    assert sorted(p.name for p in RUN.iterdir()) == [".lock", ".lock.pid", "checkpoints", "config.yaml"]


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_folder_that_cannot_be_made_is_a_mistake(cli: Run, text_file: Path, place: str) -> None:
    Path("file").touch()
    code, _, err = cli("fit", *small(text_file), f"--run_dir={place}")
    assert code == 2
    assert place in err


def test_a_run_that_stopped_before_its_first_checkpoint_is_named(cli: Run, text_file: Path) -> None:
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text(f"{MARK}0.1.0\n")
    code, _, err = cli("fit", *small(text_file), "--run_dir=mine")
    assert code == 2
    assert "mine holds a run already: there is mine/config.yaml, but no checkpoint to go on from" in err
    assert "delete" not in err


def test_a_checkpoint_of_another_network_or_text_is_refused(cli: Run, fitted: Fitted, tmp_path: Path) -> None:
    fitted(trainer__max_steps=2)
    code, _, err = cli("fit", "--ckpt_path=last", "--model.gpt.n_embd=32", "--model.gpt.n_layer=2")
    assert code == 2
    assert "n_layer is 1 in the checkpoint and 2 here; n_embd is 16 in the checkpoint and 32 here" in err
    other = tmp_path / "other.txt"
    other.write_text("ABCDEFGHIJKLMNOPQRSTUVWXYZ " * 50)
    code, _, err = cli("validate", f"--data.corpus={other}")
    assert code == 2
    assert f"corpus '{other}' has 26 characters that are not among the 27 known ones: 'A', 'B'" in err


@pytest.mark.slow
def test_a_plain_run_is_quiet_and_shows_its_progress(text_file: Path, tmp_path: Path) -> None:
    """In a process of its own, since only there the console is what a user sees."""
    done = shell("fit", *small(text_file), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(table(done.stdout)) == 4
    frames = [frame.strip() for frame in re.split(r"[\r\n]", done.stderr) if frame.strip()]
    assert all(re.search(r"\d+%\|.*\| \d+/10 \[", frame) for frame in frames), done.stderr
    assert re.search(r"training 100%\|█+\| 10/10 \[\d\d:\d\d, 00:00 left, loss \d\.\d{4}\]", frames[-1])


NO_BACKWARD = """
import sys
import torch._inductor.config

def fail_for_a_backward_pass(graph):
    if any(node.name.startswith("tangents") for node in graph.nodes):
        raise RuntimeError("no backward passes here")

torch._inductor.config.post_grad_custom_post_pass = fail_for_a_backward_pass
from tinygpt_pl.commands.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_whose_backward_pass_cannot_be_compiled_goes_on_without(text_file: Path, tmp_path: Path) -> None:
    """It is compiled when it first runs, after the forward has gone well; the steps are those of a plain run."""
    for name, compiled in (("compiled", "true"), ("plain", "false")):
        words = ["fit", *small(text_file, trainer__max_steps=4), f"--compile={compiled}", f"--run_dir={name}"]
        command = [sys.executable, "-c", NO_BACKWARD, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        notes = re.findall("^NOTE: not compiled, since that failed: .*no backward passes here$", done.stdout, re.M)
        assert len(notes) == (name == "compiled"), done.stdout
    weights = [load(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("compiled", "plain")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
