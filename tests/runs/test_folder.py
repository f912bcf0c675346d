"""Where checkpoints are looked for, who owns a folder, and how a curve goes back."""

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.small_runs import (
    FORKS,
    LONGER,
    RUN,
    Fitted,
    Run,
    finish,
    load,
    run_forked,
    scalars,
    small,
    start,
    three_lines,
    wait_for,
)
from tinygpt_pl.runs.folder import MARK, RunFolder, event_sizes, find_checkpoint, new_run_dir, newest_run, rewind_events
from tinygpt_pl.system.files import make_once

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def make(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MARK if path.name == "config.yaml" else "")


def test_runs_are_numbered() -> None:
    assert new_run_dir() == Path("lightning_logs/version_0")
    make("lightning_logs/version_9/config.yaml", "lightning_logs/version_10/config.yaml", "lightning_logs/version_x/a")
    assert new_run_dir() == Path("lightning_logs/version_11")


def test_last_and_best_are_those_of_the_newest_run() -> None:
    make(*(f"lightning_logs/version_{n}/checkpoints/{name}.ckpt" for n in (9, 10) for name in ("last", "best")))
    make(*(f"lightning_logs/version_{n}/config.yaml" for n in (9, 10)), "lightning_logs/version_11/.lock")
    assert find_checkpoint("last") == Path("lightning_logs/version_10/checkpoints/last.ckpt")
    assert find_checkpoint("best") == Path("lightning_logs/version_10/checkpoints/best.ckpt")
    nine = Path("lightning_logs/version_9")
    assert find_checkpoint("last", nine) == nine / "checkpoints/last.ckpt"
    path = nine / "checkpoints/best.ckpt"
    assert find_checkpoint(str(path)) == path


def test_the_newest_run_is_the_one_started_last_whatever_its_name(tmp_path: Path) -> None:
    """Also in a folder of folders, behind a link, and where an older run resumes."""
    names = ["version_10", "exp1", "version_9", "group/a", "link"]
    Path("lightning_logs").mkdir()
    Path("elsewhere").mkdir()
    Path("lightning_logs/link").symlink_to(tmp_path / "elsewhere")
    for begun, name in enumerate(names):
        run = Path("lightning_logs", name)
        make(str(run / "config.yaml"), str(run / "checkpoints/best.ckpt"))
        os.utime(run / "config.yaml", (begun, begun))
        assert newest_run() == run
        assert find_checkpoint("best") == run / "checkpoints/best.ckpt"
    os.utime("lightning_logs/version_9/config.yaml")
    assert newest_run() == Path("lightning_logs/version_9")
    make("lightning_logs/notes/config.yaml")
    Path("lightning_logs/notes/config.yaml").write_text("mine: 1")
    assert newest_run() == Path("lightning_logs/version_9"), "it was not written by fit"


def test_a_missing_checkpoint_is_never_a_start_from_scratch() -> None:
    with pytest.raises(ValueError, match="no last checkpoint: there is no run in"):
        find_checkpoint("last")
    make("lightning_logs/version_3/config.yaml")
    with pytest.raises(ValueError, match="no best checkpoint in lightning_logs/version_3; give the path of one"):
        find_checkpoint("best")
    make("lightning_logs/version_2/checkpoints/best.ckpt", "lightning_logs/version_2/config.yaml")
    os.utime("lightning_logs/version_2/config.yaml", (0, 0))  # an older run
    with pytest.raises(ValueError, match="the newest that has one is --run_dir lightning_logs/version_2"):
        find_checkpoint("best")
    with pytest.raises(ValueError, match=r"no checkpoint 'x\.ckpt'"):
        find_checkpoint("x.ckpt")


def test_a_folder_has_one_owner() -> None:
    first = RunFolder(Path("run"))
    assert Path("run/.lock").read_bytes() == b"", "Windows lets nobody write into a file that is locked"
    with pytest.raises(ValueError, match=f"run is in use by process {os.getpid()}; wait for its end or give another"):
        RunFolder(Path("run"))
    first.release()
    RunFolder(Path("run")).release()


def hold_for_good(folder: Path) -> None:
    """Hold a folder of runs where nothing can be locked, until this process is killed."""
    os.chdir(folder)
    without_locks(errno.ENOSYS)
    held = RunFolder(Path("run"))  # a lock without a name left for it is let go of
    Path("held").touch()
    time.sleep(100)
    held.release()


def without_locks(number: int) -> None:
    """As on a network drive."""

    def flock(descriptor: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    fcntl.flock = flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_folder_has_one_owner_where_nothing_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A process that was killed holds nothing, and one that lives is named with the file that stands for it."""
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)  # undoes what follows
    without_locks(number)
    process = FORKS.Process(target=hold_for_good, args=(tmp_path,))
    process.start()
    wait_for(Path("held").exists)
    with pytest.raises(ValueError, match=rf"in use by process {process.pid}; .* delete run/\.lock\.holder"):
        RunFolder(Path("run"))
    process.kill()
    process.join()
    (Path("run") / "config.yaml").touch()
    for _ in range(2):
        RunFolder(Path("run")).release()
    assert not Path("run/.lock.holder").exists()
    make_once(Path("cache/file"), lambda file: file.write(b"x"))
    assert sorted(path.name for path in Path("cache").iterdir()) == ["file", "file.lock"]


def test_a_folder_behind_a_link(cli: Run, text_file: Path) -> None:
    """Also one that has yet to be made, as on a disk that was just mounted."""
    Path("disk").mkdir()
    Path("there").symlink_to("disk")
    Path("new").symlink_to("disk/new")
    for link in ("there", "new"):
        assert cli("fit", *small(text_file), f"--run_dir={link}")[0] == 0
        assert cli("fit", f"--ckpt_path={link}/checkpoints/last.ckpt", LONGER)[0] == 0
        assert load(Path(link).resolve() / "checkpoints/last.ckpt")["global_step"] == 12


def claim(barrier: Barrier, folder: Path) -> None:
    os.chdir(folder)
    barrier.wait()
    (RunFolder(None).path / "mine").touch()


def test_processes_that_ask_at_the_same_time_get_folders_of_their_own(tmp_path: Path) -> None:
    for round in range(5):
        barrier = FORKS.Barrier(4)
        processes = [FORKS.Process(target=claim, args=(barrier, tmp_path)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=100)
            assert process.exitcode == 0
        assert len(list(Path("lightning_logs").glob("version_*/mine"))) == 4 * (round + 1)


def test_a_folder_that_nothing_was_written_into_goes_again() -> None:
    RunFolder(Path("deep/down/run")).release()
    assert list(Path().iterdir()) == []
    Path("mine").mkdir()
    RunFolder(Path("mine")).release()
    assert Path("mine").is_dir(), "it was there before"
    folder = RunFolder(None)
    assert folder.path == Path("lightning_logs/version_0")
    (folder.path / "config.yaml").touch()
    folder.release()
    assert (folder.path / "config.yaml").exists()


def test_taking_a_folder_sweeps_what_was_never_finished() -> None:
    make("run/config.yaml", "run/config.yaml.0123456789abcdef.partial")
    make("run/checkpoints/last.ckpt", "run/checkpoints/last.ckpt.0123456789abcdef.partial")
    RunFolder(Path("run")).release()
    left = sorted(str(path) for path in Path("run").rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    assert left == ["run/checkpoints/last.ckpt", "run/config.yaml"]


def test_a_curve_goes_back_to_where_it_was() -> None:
    """Also where a file has lost its end meanwhile, and none but the curve's own files is touched."""
    make("run/config.yaml")
    for name, text in (("1", "abcdef"), ("2", "gh")):
        Path(f"run/events.out.tfevents.{name}").write_text(text)
    sizes = event_sizes(Path("run"))
    assert sizes == {"events.out.tfevents.1": 6, "events.out.tfevents.2": 2}
    Path("run/events.out.tfevents.1").write_text("abc")
    Path("run/events.out.tfevents.2").write_text("ghijkl")
    Path("run/events.out.tfevents.3").write_text("mno")
    Path("run/events.out.tfevents.notes").write_text("mine")
    rewind_events(Path("run"), {"events.out.tfevents.9": 1})
    assert Path("run/events.out.tfevents.3").exists(), "the sizes are those of another curve"
    rewind_events(Path("run"), sizes)
    assert Path("run/events.out.tfevents.notes").read_text() == "mine"
    Path("run/events.out.tfevents.notes").unlink()
    left = {path.name: path.read_text() for path in Path("run").glob("events*")}
    assert left == {"events.out.tfevents.1": "abc", "events.out.tfevents.2": "gh"}
    assert Path("run/config.yaml").exists()


def test_a_folder_where_nothing_can_be_made(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, read_only: Callable[[Path], None]
) -> None:
    """As in a container whose root is read-only: first the cache cannot be made, then the run."""
    Path("here").mkdir()
    Path("elsewhere").mkdir()
    read_only(Path("here"))
    monkeypatch.chdir("here")
    monkeypatch.delenv("TINYGPT_CACHE", raising=False)
    for _ in range(2):
        code, _, err = cli("fit", *small(text_file))
        assert code == 2
        assert "set --run_dir and TINYGPT_CACHE to folders that can be written to" in three_lines(err)
        monkeypatch.setenv("HOME", str(Path("../elsewhere").resolve()))
        monkeypatch.setenv("TINYGPT_CACHE", "~/cache")
    assert cli("fit", *small(text_file), "--run_dir=../elsewhere/run")[0] == 0
    assert Path("../elsewhere/cache/tokens").is_dir()


@pytest.mark.parametrize(
    "kind", ["run", "checkpoints", "config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"]
)
def test_a_file_in_the_place_of_a_folder_or_the_other_way_round(cli: Run, text_file: Path, kind: str) -> None:
    """A run of hours would end without a checkpoint."""
    place = Path("run") / kind if kind != "run" else Path("run")
    place.parent.mkdir(parents=True, exist_ok=True)
    (Path.touch if kind in ("run", "checkpoints") else Path.mkdir)(place)
    before = sorted(Path().rglob("*"))
    code, _, err = cli("fit", *small(text_file), "--run_dir=run")
    assert code == 2
    assert sorted(Path().rglob("*")) == before
    assert re.search(f"{place} (must be|is there|was not written by fit)|run holds a run already", three_lines(err))


def test_a_disk_without_a_byte_left_is_named(cli: Run, text_file: Path, small_disk: Path) -> None:
    (small_disk / "run").mkdir()
    with suppress(OSError), (small_disk / "filler").open("wb") as file:
        file.write(bytes(500_000))
    code, _, err = cli("fit", *small(text_file), f"--run_dir={small_disk / 'run'}")
    assert code == 2
    assert str(small_disk / "run") in three_lines(err)
    assert not list((small_disk / "run").iterdir())


@pytest.mark.parametrize("folder", [".", "checkpoints"])
def test_fault_06_a_folder_that_cannot_be_written_to(
    cli: Run, fitted: Fitted, folder: str, read_only: Callable[[Path], None]
) -> None:
    fitted(trainer__max_steps=4)
    read_only(RUN / folder)
    code, _, err = cli("fit", "--ckpt_path=last", LONGER)
    assert code == 2
    assert str(RUN / folder) in three_lines(err)
    assert cli("test")[0] == 0, "reading is still possible"


def test_fault_24_two_runs_in_one_folder(cli: Run, text_file: Path, tmp_path: Path) -> None:
    """The second is refused; after the first was killed, its lock is taken over."""
    first = run_forked(text_file, tmp_path)
    before = Path("run/checkpoints/last.ckpt").read_bytes()
    for options in (["--ckpt_path=run/checkpoints/last.ckpt"], [*small(text_file), "--run_dir=run"]):
        code, _, err = cli("fit", *options)
        assert code == 2
        assert re.search(f"in use by process {first.pid}|holds a run already", three_lines(err))
    assert Path("run/checkpoints/last.ckpt").read_bytes() == before
    first.kill()
    first.join()
    code, _, err = cli("fit", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.max_steps=2", "--eval_interval=4")
    assert code == 0, err


def test_runs_that_start_at_the_same_time_get_folders_of_their_own(text_file: Path, tmp_path: Path) -> None:
    started = [start(["fit", *small(text_file)], tmp_path) for _ in range(4)]
    for process in started:
        finish(process, tmp_path)
    runs = sorted(path.name for path in Path("lightning_logs").iterdir())
    assert runs == [f"version_{n}" for n in range(4)]
    for run in runs:
        assert load(Path("lightning_logs") / run / "checkpoints/last.ckpt")["global_step"] == 10
        assert [step for step, _ in scalars(Path("lightning_logs") / run)["eval/val_loss"]] == [0, 4, 8, 10]


def test_a_folder_with_a_dollar_is_one_folder(cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS", "elsewhere")
    code, out, _ = cli("fit", *small(text_file), "--run_dir=$RUNS/a")
    assert code == 0
    assert "--ckpt_path '$RUNS/a/checkpoints/best.ckpt'" in out, "a shell would put the variable in"
    assert [step for step, _ in scalars(Path("$RUNS/a"))["eval/val_loss"]] == [0, 4, 8, 10]
    assert not Path("elsewhere").exists()


def test_a_home_folder_is_one_folder(cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path().absolute()))
    assert cli("fit", *small(text_file, trainer__max_steps=4), "--run_dir=~/run")[0] == 0
    assert cli("fit", "--run_dir=~/run", "--ckpt_path=last", "--trainer.max_steps=6")[0] == 0
    assert load(Path("run/checkpoints/last.ckpt"))["global_step"] == 6


def test_event_files_of_others_stay(fitted: Fitted, cli: Run) -> None:
    """A run that resumed deleted each event file that its checkpoint did not know."""
    fitted()
    with SummaryWriter(str(RUN)) as writer:
        writer.add_scalar("mine", 1.0, 0)
    (mine,) = [path for path in RUN.glob("events.out.tfevents.*") if b"mine" in path.read_bytes()]
    before = mine.read_bytes()
    assert cli("fit", "--ckpt_path=last", LONGER)[0] == 0
    assert mine.read_bytes() == before
