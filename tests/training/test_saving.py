"""Which checkpoint is the best."""

from pathlib import Path

import pytest
import torch

from tests.reference import GPT_CONFIG, OPTIM, lightning_fit
from tests.small_runs import load
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.training.saving import BestCheckpoint, CheckpointFiles, LastCheckpoint, StopSignals


@pytest.mark.parametrize(("monitor", "kept"), [("eval/val_loss", 10), ("eval/train_loss", 30)])
def test_the_best_checkpoint_is_kept_by_validation_loss(tmp_path: Path, monitor: str, kept: int) -> None:
    """On a text whose end is unlike its beginning, validation rises while training falls; case two is the trap."""
    path = tmp_path / "text"
    path.write_text("ab" * 900 + "ba" * 50 + "aabb" * 25)
    torch.manual_seed(0)
    files = CheckpointFiles()
    best = BestCheckpoint(tmp_path, files)
    assert best.monitor == "eval/val_loss"
    best.monitor = monitor
    saving = (best, LastCheckpoint(tmp_path, 5.0, StopSignals(), files))
    module = TinyGPT({**vars(GPT_CONFIG), "vocab_size": 2}, OPTIM)
    record = lightning_fit(path, module, callbacks=saving, enable_checkpointing=True)
    _, *rows = record.evaluations
    assert min(rows, key=lambda row: row[1])[0] == 30, "training loss was meant to fall"
    assert min(rows, key=lambda row: row[2])[0] == 10, "validation loss was meant to rise"
    assert load_step(tmp_path / "checkpoints" / "best.ckpt") == kept
    assert load_step(tmp_path / "checkpoints" / "last.ckpt") == 30


def load_step(path: Path) -> int:
    return int(load(path)["global_step"])
