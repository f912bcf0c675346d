"""--config takes a path, or the bare name of a shipped configuration, from any folder."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.small_runs import Run, small
from tinygpt_pl.commands.settings import build_parser

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def parse(*words: str) -> Any:
    config = build_parser("fit").parse_args(words)
    del config["config"]  # the paths
    return config


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_a_name_is_found_from_any_folder(verb: str) -> None:
    parser = build_parser(verb)
    for name in NAMES:
        given = parser.parse_args(["-c", name])
        assert str(given.config[-1]) == f"{CONFIGS / name}.yaml"
    assert parse("--config", "cpu") == parse("--config", f"{CONFIGS}/cpu.yaml")


def test_names_and_paths_are_stacked() -> None:
    config = parse("--config", "base", "--config", f"{CONFIGS}/accumulate.yaml", "--config", "fast")
    assert (config.data.batch_size, config.trainer.precision, config.model.gpt.n_embd) == (16, "auto", 384)


def test_a_file_of_that_name_comes_first() -> None:
    Path("base").write_text("eval_interval: 7")
    Path("cpu").mkdir()
    Path("fast.yaml").write_text("eval_interval: 8")
    assert [parse("--config", name).eval_interval for name in ("base", "cpu", "fast.yaml")] == [7, 75, 8]
    assert parse("--config", "fast").compile == "auto"


def test_a_file_and_the_words_may_name_a_configuration() -> None:
    Path("own.yaml").write_text("config: cpu\neval_interval: 7")
    for words in (["--config", "own.yaml"], ["--config", "config: cpu", "--eval_interval=7"]):
        config = parse(*words)
        assert (config.eval_interval, config.model.gpt.norm) == (7, "rmsnorm")


def test_a_pipe_is_refused_for_what_it_is(cli: Run) -> None:
    """It was read empty, and called a file without settings: the words of a command are parsed more than once."""
    os.mkfifo("pipe")
    code, _, err = cli("fit", "--config", "pipe")
    assert (code, len(err.splitlines())) == (2, 2)
    assert "must be a file that can be read twice; save pipe as a file" in err


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--config", "cqu"],
        ["fit", "-c", "base", "-ccqu"],
        ["fit", "--config=own.yaml"],
        ["validate", "-c", "cqu"],
        ["test", "-c", "cqu"],
    ],
    ids=" ".join,
)
def test_an_unknown_name_costs_three_lines_and_exit_code_2(cli: Run, words: list[str]) -> None:
    Path("own.yaml").write_text("config: cqu")
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) <= 3
    assert "cqu" in err
    assert all(name in err for name in NAMES)


def test_a_run_of_a_named_configuration_is_written_down_without_the_name(cli: Run, text_file: Path) -> None:
    code, _, err = cli("fit", "--config", "cpu", *small(text_file, model__optim__warmup_iters=0), "--run_dir=run")
    assert code == 0, err
    written = Path("run/config.yaml").read_text()
    assert "\nconfig:" not in written
    assert parse("--config=run/config.yaml").model.gpt.norm == "rmsnorm"
