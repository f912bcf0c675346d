"""A run's curve as it is read back from its event files."""

from pathlib import Path

import pytest

from tests.small_runs import Run, scalars, small, table
from tinygpt_pl.insight.history import History, fenced, read_history, unfenced
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
    assert (setup.vocab_size, setup.max_steps, setup.warmup_iters, setup.dropout, setup.clip) == (27, 10, 2, 0.25, 1.0)
    assert (setup.start, setup.fresh, setup.sampled, setup.eval_batches) == (0, True, True, 3)
    assert 0 < setup.pairs < setup.singles < 3.3
    assert history.finished


def test_a_run_that_went_on_has_two_setups(cli: Run, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cli("fit", *small(text_file, run_dir=run))
    cli("fit", f"--ckpt_path={run}/checkpoints/last.ckpt", "--trainer.max_steps=20")
    history = read_history(run)
    assert [(setup.start, setup.max_steps) for setup in history.setups] == [(0, 10), (10, 20)]
    assert [history.setup(it).max_steps for it in (0, 9, 10, 19)] == [10, 10, 20, 20]


def test_a_file_that_ends_in_the_middle_of_a_row_is_read_up_to_there(cli: Run, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cli("fit", *small(text_file, run_dir=run))
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


def test_yaml_is_shown_as_it_is_and_read_again() -> None:
    text = "a: 1\nb: |\n  ```\n  c\n"
    assert unfenced(fenced(text)) == text


def test_nothing_is_known_of_a_run_without_rows() -> None:
    assert (History().last, History().evaluations, History().curve("train/loss")) == (0, [], [])
