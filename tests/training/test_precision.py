"""What is reported in each precision, and which precision a name or a device stands for."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator

from tests.reference import GPT_CONFIG, OPTIM
from tests.small_runs import RUN, Run, scalars, small, table
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.module import TinyGPT, TokenMean
from tinygpt_pl.training import trainer as trainers
from tinygpt_pl.training.trainer import choose_precision, make_trainer

PRECISIONS = ["32-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed", "64-true"]


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_loss_over_many_batches_is_that_of_a_loop(text_file: Path, precision: Any) -> None:
    """260 batches of 128 tokens: sums that bfloat16 stops counting and float16 cannot hold."""
    torch.manual_seed(0)
    module = TinyGPT(GPTConfig(27, 8, 1, 1, 8, dropout=0.0))
    data = TextDataModule(str(text_file), block_size=8, batch_size=16, eval_iters=260)
    data.setup()
    trainer = make_trainer(accelerator="cpu", precision=precision, enable_progress_bar=False)
    for run, losses in ((trainer.validate, ("eval/val_loss", "eval/train_loss")), (trainer.test, ("test/loss",))):
        run(module, data, verbose=False)
        loaders = data.val_dataloader() if run == trainer.validate else [data.test_dataloader()]
        for name, loader in zip(losses, loaders, strict=True):
            total = tokens = 0.0
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                for idx, targets in loader:
                    loss = module.gpt(idx, targets)[1].item()
                    total, tokens = total + loss * targets.numel(), tokens + targets.numel()
            assert trainer.callback_metrics[name].item() == pytest.approx(total / tokens, rel=2e-6), name


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_stay_exact_however_a_model_is_cast(cast: torch.dtype) -> None:
    holder = torch.nn.ModuleDict({"mean": TokenMean()}).to(cast)
    mean = holder["mean"]
    assert isinstance(mean, TokenMean)
    for _ in range(2):  # the second time after a reset
        for _ in range(1000):
            mean.update(torch.tensor(4.1875), 4097)
        assert mean.compute().item() == pytest.approx(4.1875, rel=2e-5)
        mean.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_gradient_norm_has_all_its_digits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = TinyGPT(GPT_CONFIG, OPTIM).to(dtype)
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for p in module.parameters():
        p.grad = torch.full_like(p, 1000.0)
    count = sum(p.numel() for p in module.parameters())
    module.configure_gradient_clipping(torch.optim.SGD(module.parameters()), 1.0)
    assert module.grad_norm.item() == pytest.approx(1000.0 * count**0.5, rel=1e-6), "float16 ends at 65504"
    clipped = torch.cat([p.grad.flatten().double() for p in module.parameters() if p.grad is not None])
    assert clipped.norm().item() == pytest.approx(1.0, rel=1e-2)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_run_in_half_precision_reports_what_one_in_float32_does(cli: Run, text_file: Path, precision: str) -> None:
    changes = {"data__batch_size": 32, "data__eval_iters": 100, "trainer__max_steps": 4}
    code, out, err = cli("fit", *small(text_file, **changes, trainer__precision=precision))
    assert code == 0, err
    _, exact, _ = cli("fit", *small(text_file, **changes))
    for row, expected in zip(table(out), table(exact), strict=True):
        assert [float(x) for x in row[1:3]] == pytest.approx([float(x) for x in expected[1:3]], abs=0.05)
    (_, norm), (_, exact_norm) = (scalars(run)["optim/grad_norm"][0] for run in (RUN, RUN.with_name("version_1")))
    assert norm == pytest.approx(exact_norm, rel=0.01)


@pytest.mark.parametrize(
    ("given", "name"),
    [(16, "16-mixed"), ("16", "16-mixed"), ("bf16", "bf16-mixed"), (32, "32-true"), ("64", "64-true"), (None, None)],
)
def test_a_precision_has_one_name(given: Any, name: str | None) -> None:
    assert choose_precision(given, "cpu") == name
    assert choose_precision(name, "cpu") == name


@pytest.mark.parametrize(
    ("device", "able", "precision"),
    [
        ("cuda", True, "bf16-mixed"),
        ("cuda", False, "16-mixed"),  # a T4
        ("cpu", True, "bf16-mixed"),
        ("cpu", False, "32-true"),
        ("mps", False, "32-true"),
    ],
)
def test_auto_is_the_fast_precision_of_a_device(
    monkeypatch: pytest.MonkeyPatch, device: str, able: bool, precision: str
) -> None:
    monkeypatch.setattr(trainers, "multiplies_bf16", lambda kind: able)
    assert choose_precision("auto", device) == precision
    if device == "cpu":
        assert choose_precision("auto", CPUAccelerator()) == precision
        trainer = make_trainer(accelerator=CPUAccelerator(), precision="auto")
        assert trainer.precision == precision
        assert getattr(trainer.precision_plugin, "device", "cpu") == "cpu", "the autocast of another device"


def test_float64_is_refused_on_an_apple_gpu() -> None:
    with pytest.raises(ValueError, match="Apple GPUs have no float64; give 32-true"):
        choose_precision(64, "mps")


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("precision", ["16", "16-mixed"])
def test_a_short_name_is_refused_where_the_long_one_is(cli: Run, text_file: Path, precision: str) -> None:
    code, _, err = cli("fit", *small(text_file, trainer__precision=precision, trainer__strategy="fsdp2"))
    assert code == 2
    assert "trainer.precision 16-mixed scales a loss by whole gradients" in err
