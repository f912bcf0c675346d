"""The command diagnose: its words, its exit codes, its page."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback

from tests.small_runs import Fitted, Run, shell, small, three_lines
from tinygpt_pl.runs.folder import newest_run


class Crash(Callback):
    """Fails half way."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        if trainer.global_step == 101:
            raise RuntimeError("half way")


def test_the_newest_run_is_read_from_its_event_files_alone(
    cli: Run, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fitted()
    code, out, err = cli("diagnose")
    assert (code, err) == (0, "")
    first, *_ = out.splitlines()
    assert first.startswith("lightning_logs/version_0: healthy: validation went from")
    assert first.removeprefix("lightning_logs/version_0: ") in said, "live and afterwards it says something else"

    run = newest_run()
    for path in (*run.glob("checkpoints/*"), run / "config.yaml"):
        path.unlink()
    assert cli("diagnose", str(run))[:2] == (code, out)


def test_a_fault_gives_exit_code_3_and_says_what_to_change(
    cli: Run, fitted: Fitted, text_file: Path, tmp_path: Path
) -> None:
    cold = {"model__optim__max_lr": 1e-7, "model__optim__min_lr": 1e-8, "trainer__max_steps": 60, "eval_interval": 20}
    assert cli("fit", *small(text_file, run_dir=tmp_path / "cold", **cold))[0] == 0
    fitted(tmp_path / "well")
    code, out, _ = cli("diagnose", str(tmp_path / "cold"))
    assert code == 3
    assert "ill (flat)" in out
    assert "  FINDING flat, at iteration 60" in out
    assert "--model.optim.max_lr" in out
    code, out, _ = cli("diagnose", str(tmp_path / "well"), str(tmp_path / "cold"))
    assert code == 3, "one of two runs is ill"
    assert "well: healthy" in out


def test_a_run_that_was_stopped_half_way_is_read(cli: Run, text_file: Path, tmp_path: Path) -> None:
    options = small(text_file, run_dir=tmp_path / "run", trainer__max_steps=200, eval_interval=20, data__eval_iters=80)
    crash = "--trainer.callbacks=tests.commands.test_diagnose.Crash"
    with pytest.raises(RuntimeError, match="half way"):
        cli("fit", *options, crash)
    code, out, _ = cli("diagnose", str(tmp_path / "run"))
    assert code == 0
    assert "it has come to iteration 1" in out
    assert "of 200" in out


def test_the_page_lies_beside_its_run_or_where_it_is_asked_for(
    cli: Run, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        fitted(name)
    code, out, err = cli("diagnose", "a", "--report")
    assert (code, out.splitlines()[-1]) == (0, "report: a/report.html"), err
    assert "<svg" in Path("a/report.html").read_text(encoding="utf-8")
    code, out, err = cli("diagnose", "a", "b", "--report")
    assert (code, out.splitlines()[-1]) == (0, "report: report.html"), err
    assert cli("diagnose", "a", "--report", "--output", "page.html")[0] == 0
    assert Path("page.html").read_bytes() == Path("a/report.html").read_bytes()


def test_the_page_takes_the_place_of_no_other_file(
    cli: Run, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    monkeypatch.chdir(tmp_path)
    fitted("run")
    assert cli("diagnose", "run", "--report")[0] == 0
    assert cli("diagnose", "run", "--report")[0] == 0, "its own page may be replaced"
    page = Path("run/report.html").read_bytes()

    Path("run/report.html").write_text("mine")
    code, out, err = cli("diagnose", "run", "--report")
    assert (code, out) == (2, "")
    assert "run/report.html is there already, and no page of diagnose; give another --output" in three_lines(err)
    assert Path("run/report.html").read_text() == "mine"
    best = Path("run/checkpoints/best.ckpt")
    before = best.read_bytes()
    assert cli("diagnose", "run", "--report", f"--output={best}")[0] == 2
    assert best.read_bytes() == before

    Path("real.html").write_text("mine")
    Path("page.html").symlink_to("real.html")
    code, _, err = cli("diagnose", "run", "--report", "--output=page.html")
    assert (code, err) == (0, "WARNING: page.html was there already, and no page of diagnose; it is replaced\n")
    assert Path("page.html").is_symlink()
    assert Path("real.html").read_bytes() == page


def test_a_page_that_cannot_be_written_costs_no_diagnosis(
    cli: Run, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: Callable[[Path], None]
) -> None:
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    monkeypatch.chdir(tmp_path)
    fitted("run")
    read_only(Path("run"))
    code, out, err = cli("diagnose", "run", "--report")
    assert (code, out.startswith("run: ")) == (2, True)
    assert "report.html" in three_lines(err)


def test_the_page_goes_to_a_device_or_a_pipe(
    cli: Run, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    monkeypatch.chdir(tmp_path)
    fitted("run")
    os.mkfifo("pipe")
    with ThreadPoolExecutor() as reader:
        read = reader.submit(Path("pipe").read_bytes)
        assert cli("diagnose", "run", "--report", "--output=pipe")[0] == 0
        assert b"<svg" in read.result()
    assert cli("diagnose", "run", "--report", "--output=/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()
    done = shell("diagnose", "run", "--report", "--output=/dev/stdout", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("<!DOCTYPE html>")
    assert "report: /dev/stdout" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "no run in 'nothing'"),
        (["."], "no run in '.'"),
        ([], "there is no run in"),
        (["run", "--output", "x.html"], "--output x.html"),
        (["run", "--report", "--output", "no/such/x.html"], "no/such/x.html cannot be the page"),
        (["run", "--raport"], "did you mean --report"),
        (["--run_dir=run"], "all options: "),  # the folders have no option's name to be suggested
        (["foreign"], "no curve of a run"),
    ],
)
def test_a_mistake_is_told_in_three_lines(
    options: list[str], message: str, cli: Run, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--report" in options:
        pytest.importorskip("matplotlib", reason="the extra report is not installed")
    if "run" in options:
        fitted("run", trainer__max_steps=2)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "events.out.tfevents.1.x.1.0").write_bytes(b"no event")
    code, out, err = cli("diagnose", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) <= 3
