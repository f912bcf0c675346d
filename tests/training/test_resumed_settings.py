"""What must stay the same when a run resumes, and what may change."""

import re
from pathlib import Path

import pytest

from tests.small_runs import (
    DROPOUT,
    LAST,
    LONGER,
    Fitted,
    Run,
    assert_same,
    outcome,
    scalars,
    signal_at,
    small,
    three_lines,
)
from tinygpt_pl.commands.settings import plain_settings

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_fault_11_the_windows_after_a_resume(cli: Run, text_file: Path) -> None:
    see = "--trainer.callbacks=tests.callbacks.Windows"
    options = small(text_file, **DROPOUT)
    cli("fit", *options, "--run_dir=alone", see)
    straight = Path("windows").read_text().splitlines()
    assert len({line.split()[1] for line in straight}) == len(straight) == 20
    Path("windows").unlink()
    cli("fit", *options, "--run_dir=run", see, "--trainer.max_steps=6")
    cli("fit", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.max_steps=10", see)
    assert Path("windows").read_text().splitlines() == straight


def test_fault_12_the_same_seed_and_another(cli: Run, text_file: Path) -> None:
    for run, seed in (("one", 1), ("two", 1), ("three", 2)):
        assert cli("fit", *small(text_file, **DROPOUT, seed_everything=seed), f"--run_dir={run}")[0] == 0
    one, two, three = (outcome(Path(run)) for run in ("one", "two", "three"))
    assert_same(one, two)
    for tag in ("train/loss", "eval/val_loss", "optim/grad_norm"):
        assert all(a != b for a, b in zip(one["curve"][tag], three["curve"][tag], strict=True))


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--model.gpt.n_embd=32", "n_embd is 16 in the checkpoint and 32 here"),
        ("--model.gpt.block_size=16", "block_size is 8 in the checkpoint and 16 here"),
        (
            "--data.corpus=other.txt",
            r"data.corpus has to stay \S+english.txt \(SHA-256 \w+…\) in a run that goes on, got other.txt",
        ),
        ("--data.batch_size=3", "the number of windows in a step .* has to stay 4 in a run that goes on, got 3"),
        ("--seed_everything=7", "seed_everything has to stay 1337 in a run that goes on, got 7"),
        ("--data.eval_seed=7", "data.eval_seed has to stay 1337 in a run that goes on, got 7"),
        ("--model.optim.optimizer=muon", "model.optim.optimizer has to stay adamw in a run that goes on, got muon"),
        ("--ema_decay=0.9", "ema_decay has to stay null in a run that goes on, got 0.9"),
    ],
)
def test_fault_13_going_on_as_another_run(cli: Run, fitted: Fitted, option: str, named: str) -> None:
    Path("other.txt").write_text("abc" * 500)
    fitted(trainer__max_steps=4)
    before = LAST.read_bytes()
    code, _, err = cli("fit", "--ckpt_path=last", option, LONGER)
    assert code == 2
    assert re.search(named, three_lines(err)), err
    assert LAST.read_bytes() == before


def test_what_may_change_is_honoured_and_named(cli: Run, text_file: Path) -> None:
    """Other micro-batches take the same steps."""
    options = small(text_file, data__batch_size=2, trainer__accumulate_grad_batches=2)
    cli("fit", *options, "--run_dir=alone")
    assert cli("fit", *options, "--run_dir=run", signal_at(step=4))[0] == 143
    code, out, _ = cli(
        *("fit", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.callbacks=null", "--data.batch_size=4"),
        *("--trainer.accumulate_grad_batches=1", "--trainer.log_every_n_steps=1"),
    )
    assert code == 0
    changed = [line for line in out.splitlines() if line.startswith("changed: ") and "callbacks" not in line]
    assert sorted(changed) == [
        "changed: data.batch_size 2 -> 4",
        "changed: trainer.accumulate_grad_batches 2 -> 1",
        "changed: trainer.log_every_n_steps 2 -> 1",
    ]
    a, b = (scalars(Path(run)) for run in ("alone", "run"))
    assert [step for step, _ in b["train/loss"]] == [0, 2, 4, 5, 6, 7, 8, 9]
    assert [step for step, _ in b["eval/val_loss"]] == [0, 4, 8, 10]
    for tag in ("train/loss", "eval/val_loss", "optim/lr", "progress/tokens_seen"):
        rows = dict(b[tag])
        for step, value in a[tag]:
            assert rows[step] == pytest.approx(value, rel=1e-4)


def test_a_run_of_an_earlier_version_keeps_its_evaluation_windows() -> None:
    """They followed from the seed of the run."""
    before, _ = plain_settings("seed_everything: 7\ndata: {eval_iters: 3}\ntrainer: {}")
    assert before["data"] == {"eval_iters": 3, "eval_seed": 7}
    since, _ = plain_settings("seed_everything: 7\ndata: {eval_seed: 1}\ntrainer: {}")
    assert since["data"] == {"eval_seed": 1}


def test_a_new_end_moves_the_schedule_and_says_so(cli: Run, fitted: Fitted) -> None:
    fitted(trainer__max_steps=4)
    code, out, _ = cli("fit", "--ckpt_path=last", LONGER)
    assert code == 0
    assert out.splitlines()[:3] == [
        f"going on from iteration 4 of {LAST}",
        "changed: trainer.max_steps 4 -> 12",
        "changed: the learning rate of the next step 1.00e-03 -> 9.14e-03",
    ]
