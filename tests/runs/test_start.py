"""Where a run starts: in its own folder, from another run's checkpoint, or not at all."""

import shutil
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.small_runs import (
    BEST,
    FORKS,
    LAST,
    LONGER,
    RUN,
    Fitted,
    Run,
    command,
    finish,
    load,
    scalars,
    small,
    three_lines,
)
from tinygpt_pl.runs.start import Start, claim_run

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_fault_14_nothing_left_to_do(cli: Run, fitted: Fitted) -> None:
    fitted(trainer__max_steps=4)
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    code, out, _ = cli("fit", "--ckpt_path=last")
    assert (code, out) == (0, "nothing to do: iteration 4 is reached; a larger --trainer.max_steps goes on\n")
    code, _, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=3")
    assert code == 2
    assert "the checkpoint is of iteration 4, beyond trainer.max_steps 3" in three_lines(err)
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before


def test_going_back_to_the_best_starts_a_branch(cli: Run, fitted: Fitted) -> None:
    """In its own folder it would write over what came after."""
    worse = ["--model.optim.max_lr=0.3", "--model.optim.min_lr=0.3"]
    fitted(trainer__max_steps=4)
    cli("fit", "--ckpt_path=last", "--trainer.max_steps=8", *worse)
    assert (load(BEST)["global_step"], load(LAST)["global_step"]) == (4, 8)
    code, _, err = cli("fit", "--ckpt_path=best", "--trainer.max_steps=6", f"--run_dir={RUN}")
    assert code == 2
    assert f"{RUN} has gone on from {BEST} (iteration 4) to iteration 8; resume with --ckpt_path {LAST}" in err
    code, out, err = cli("fit", "--ckpt_path=best", "--trainer.max_steps=6")
    assert code == 0, err
    assert f"NOTE: {RUN} has gone on from {BEST} (iteration 4) to iteration 8: this is a new run that starts" in out
    assert (load(BEST)["global_step"], load(LAST)["global_step"]) == (4, 8)
    branch = Path("lightning_logs/version_1")
    assert load(branch / "checkpoints/last.ckpt")["global_step"] == 6
    assert [step for step, _ in scalars(branch)["eval/val_loss"]] == [6]
    texts = EventAccumulator(str(branch)).Reload().Tags()["tensors"]
    assert {"config/text_summary", "custom_scalars__config__"} <= set(texts)
    assert "dirpath" not in err


def test_files_of_others_are_left_alone(cli: Run, fitted: Fitted) -> None:
    """A folder called checkpoints does not make its parent a run, and a run's folder may hold other files."""
    fitted(trainer__max_steps=4)
    for folder in (Path("mine"), Path("mine/checkpoints"), Path("new")):
        folder.mkdir()
    others = {
        **{Path(f"mine/{name}"): name for name in ("config.yaml", "movie.partial", "events.out.tfevents.123.other")},
        **{Path(f"new/{name}"): name for name in ("movie.partial", "events.out.tfevents.123.other")},
    }
    for path, text in others.items():
        path.write_text(text)
    shutil.copy(LAST, "mine/checkpoints/mine.ckpt")
    code, _, err = cli("fit", "--ckpt_path=mine/checkpoints/mine.ckpt", LONGER)
    assert code == 0, err
    assert load(Path("lightning_logs/version_1/checkpoints/last.ckpt"))["global_step"] == 12
    assert cli("fit", f"--ckpt_path={LAST}", LONGER, "--run_dir=new")[0] == 0
    assert {path: path.read_text() for path in others} == others


def test_a_run_that_goes_on_meanwhile_is_not_cut(cli: Run, fitted: Fitted) -> None:
    """Its checkpoint was read before its folder could be had."""
    fitted(trainer__max_steps=4)
    start = Start.of("last", None, "resume")
    assert cli("fit", "--ckpt_path=last", "--trainer.max_steps=8")[0] == 0
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file() and path.name != ".lock"}
    with (
        pytest.raises(ValueError, match="has just been written anew; give the command again"),
        claim_run(RUN, start, owner=True),
    ):
        pass
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_without_its_configuration_is_not_written_over(cli: Run, fitted: Fitted, text_file: Path) -> None:
    fitted("run")
    Path("run/config.yaml").unlink()
    code, _, err = cli("fit", *small(text_file), "--run_dir=run")
    assert code == 2
    assert "run holds a run already" in three_lines(err)


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/mine.ckpt"])
def test_a_file_of_ones_own_is_neither_written_over_nor_called_deletable(cli: Run, text_file: Path, name: str) -> None:
    path = Path("mine", name)
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    code, _, err = cli("fit", *small(text_file), "--run_dir=mine")
    assert code == 2
    assert str(path) in three_lines(err)
    assert "delete" not in err
    assert path.read_text() == "mine"


def resume_and_list_opened(folder: Path) -> None:
    """Resume a run, and write down each file that is opened: an audit hook stays until its process ends."""
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    try:
        command(["fit", "--ckpt_path=last", LONGER], folder)
    finally:
        Path("opened").write_text("\n".join(opened))


def test_a_run_that_resumes_reads_its_checkpoint_once(fitted: Fitted, tmp_path: Path) -> None:
    """Settings, weights and training state are of one reading; best.ckpt is only asked for its step and its loss."""
    fitted(trainer__max_steps=4)
    process = FORKS.Process(target=resume_and_list_opened, args=(tmp_path,))
    process.start()
    finish(process, tmp_path)
    opened = [path for path in Path("opened").read_text().splitlines() if path.endswith(".ckpt")]
    assert opened.count(str(LAST)) == 1
    assert {Path(path).absolute() for path in opened} == {LAST.absolute(), BEST.absolute()}
