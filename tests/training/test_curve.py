"""The rows of the curve."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference import CLIP, GPT_CONFIG, OPTIM, lightning_fit
from tests.small_runs import scalars
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.system.machine import matmul_flops
from tinygpt_pl.training import curve as curve_module
from tinygpt_pl.training.curve import Curve
from tinygpt_pl.training.events import EventLogger
from tinygpt_pl.windows import Batch


def test_a_row_speaks_of_all_micro_batches_of_its_step(text_file: Path, tmp_path: Path) -> None:
    """Lightning's own logging would keep the last micro-batch alone."""
    torch.manual_seed(0)
    run = tmp_path / "run"
    record = lightning_fit(
        text_file,
        TinyGPT(GPT_CONFIG, OPTIM),
        batch_size=4,
        accumulate=4,
        callbacks=(Curve(log_every_n_steps=5),),
        logger=EventLogger(run),
    )
    curve = scalars(run)
    assert [step for step, _ in curve["train/loss"]] == [0, 5, 10, 15, 20, 25]
    for step, loss in curve["train/loss"]:
        assert loss == pytest.approx(record.train_losses[step], rel=1e-6)
    for step, norm in curve["optim/grad_norm"]:
        assert norm == pytest.approx(record.grad_norms[step], rel=1e-6)
    for step, lr in curve["optim/lr"]:
        assert [lr, lr] == pytest.approx(record.learning_rates[step], rel=1e-6)
    clipped = [norm > CLIP for norm in record.grad_norms]
    for step, share in curve["optim/clipped_share"]:
        since = clipped[max(step - 4, 0) : step + 1]
        assert share == pytest.approx(sum(since) / len(since))
    assert curve["progress/tokens_seen"] == [(step, 256.0 * (step + 1)) for step in range(0, 30, 5)]


class Clock:
    """Shows the seconds that the steps of a model say they take."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class TimedSteps(TinyGPT):
    """A training step of 10 ms, and evaluations that take ten times as long."""

    clock = Clock()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.clock.now += 0.01
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.clock.now += 0.1
        super().validation_step(batch, batch_idx, dataloader_idx)


def test_throughput_is_that_of_training_alone(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve_module, "time", TimedSteps.clock)
    module, callback = TimedSteps(GPT_CONFIG, OPTIM), Curve(log_every_n_steps=5)
    lightning_fit(text_file, module, callbacks=(callback,), logger=EventLogger(tmp_path))
    curve = scalars(tmp_path)
    for (_, speed), (_, mfu) in zip(curve["perf/tokens_per_second"], curve["perf/mfu"], strict=True):
        assert speed == pytest.approx(16 * 16 / 0.01), "evaluations were counted in"
        assert mfu == pytest.approx(speed * module.gpt.flops_per_token() / callback.ceiling, rel=1e-5)


def test_counting_goes_on_where_a_checkpoint_left_it() -> None:
    curve = Curve()
    curve.clipped, curve.steps = torch.tensor(3), 7
    other = Curve()
    other.load_state_dict(curve.state_dict())
    assert (other.clipped, other.steps) == (3.0, 7)


def test_the_ceiling_is_a_rate_of_this_machine() -> None:
    rate = matmul_flops(torch.device("cpu"), "32-true")
    assert 1e8 < rate < 1e14


# The writer's thread ends with the same error, which training/console.py keeps quiet about in a run.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_when_a_row_is_written_ends_the_curve_alone(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning raises a ValueError there, which ended the run."""
    logger = EventLogger(small_disk)
    for step in range(20_000):
        logger.log_metrics({"loss": 1.0}, step)
    logger.save()
    assert logger.broken
    assert capsys.readouterr().err.count("WARNING: the curve ends here, since it cannot be written: [Errno 28]") == 1
    with pytest.raises(ValueError, match="log"):  # a value that no curve can have is still a mistake
        EventLogger(tmp_path / "other").log_metrics({"loss": object()}, 0)  # type: ignore[dict-item]
