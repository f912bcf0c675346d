"""A run's curve as it is read back from its event files."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.small_runs import Fitted, Run, scalars, small, table
from tinygpt_pl.insight.history import History, fenced, read_history, unfenced
from tinygpt_pl.optim import scheduled_lr, warmup_cosine
from tinygpt_pl.training.events import EventLogger


def test_a_run_is_read_back_as_it_was(cli: Run, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    _, said, _ = cli("fit", *small(text_file, run_dir=run, model__gpt__dropout=0.25, data__val_fraction=0.2))
    history = read_history(run)
    assert [(str(e.it), f"{e.train:.4f}", f"{e.val:.4f}") for e in history.evaluations] == [
        row[:3] for row in table(said)
    ]
    assert {tag: history.curve(tag) for tag in history.rows} == scalars(run)
    (setup,) = history.setups
    assert (setup.vocab_size, setup.max_steps, setup.dropout, setup.clip) == (27, 10, 0.25, 1.0)
    assert (setup.optim.warmup_iters, setup.optim.schedule, [*setup.optim.betas]) == (2, "cosine", [0.9, 0.95])
    assert (setup.start, setup.fresh, setup.sampled, setup.eval_batches) == (0, True, True, 3)
    assert 0 < setup.bigram_loss < setup.unigram_loss < 3.3
    assert history.finished


def test_a_run_that_went_on_has_two_setups(cli: Run, fitted: Fitted, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fitted(run)
    cli("fit", f"--ckpt_path={run}/checkpoints/last.ckpt", "--trainer.max_steps=20")
    history = read_history(run)
    assert [(setup.start, setup.max_steps) for setup in history.setups] == [(0, 10), (10, 20)]
    assert [history.setup(it).max_steps for it in (0, 9, 10, 19)] == [10, 10, 20, 20]


def test_a_file_that_ends_in_the_middle_of_a_row_is_read_up_to_there(fitted: Fitted, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fitted(run)
    (events,) = run.glob("events.*")
    whole = events.read_bytes()
    events.write_bytes(whole[: len(whole) * 3 // 4])
    history = read_history(run)
    assert history.evaluations
    assert not history.finished


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    logger = EventLogger(tmp_path)
    logger.log_text("config", fenced("model: {}"), 0)
    logger.log_text("facts", fenced("vocab_size: 65"), 0)
    logger.finalize("success")
    with pytest.raises(ValueError, match="not those of this version"):
        read_history(tmp_path)


OLD = {
    "model": {
        "gpt": {"dropout": 0.0},
        "optim": {"max_lr": 1e-3, "min_lr": 1e-4, "warmup_iters": 9, "betas": [0.9, 0.95]},
    },
    "trainer": {"max_steps": 100, "gradient_clip_val": 1.0},
    "data": {"eval_coverage": "full"},
}
"""Settings from before there was more than one optimizer and schedule."""

FACTS = {
    "vocab_size": 65,
    "logit_variance": 0.15,
    "start": 0,
    "fresh": True,
    "eval_batches": 3.0,
    "table_losses": {"singles": 3.3, "pairs": 2.5},
}


def log(folder: Path, config: dict[str, Any]) -> None:
    """Write an event file with settings and facts and nothing else."""
    logger = EventLogger(folder)
    logger.log_text("config", fenced(yaml.safe_dump(config)), 0)
    logger.log_text("facts", fenced(yaml.safe_dump(FACTS)), 0)
    logger.finalize("success")


def test_settings_of_an_older_run_are_completed_by_defaults(tmp_path: Path) -> None:
    log(tmp_path, OLD)
    (setup,) = read_history(tmp_path).setups
    assert (setup.optim.optimizer, setup.optim.schedule, setup.clip) == ("adamw", "cosine", 1.0)
    assert (setup.unigram_loss, setup.bigram_loss) == (3.3, 2.5)
    for it in (0, 9, 50, 100):
        assert scheduled_lr(it, setup.optim, setup.max_steps) == warmup_cosine(it, 1e-3, 1e-4, 9, 100)


@pytest.mark.parametrize("wrong", [{"max_lr": -1.0}, {"of_a_later_version": 1}])
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    log(tmp_path, OLD | {"model": {"gpt": {"dropout": 0.0}, "optim": wrong}})
    with pytest.raises(ValueError, match="not those of this version"):
        read_history(tmp_path)


def test_yaml_is_shown_as_it_is_and_read_again() -> None:
    text = "a: 1\nb: |\n  ```\n  c\n"
    assert unfenced(fenced(text)) == text


def test_nothing_is_known_of_a_run_without_rows() -> None:
    assert (History().last, History().evaluations, History().curve("train/loss")) == (0, [], [])
