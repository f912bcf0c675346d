"""What the README says is so: its commands parse, its code runs, its figures are computed."""

import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest
import yaml

from tests.small_runs import Run, assert_same, outcome, small
from tinygpt_pl import GPT, GPTConfig, warmup_cosine
from tinygpt_pl.commands import convert, diagnose, generate
from tinygpt_pl.commands.settings import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = r"```python\n(.*?)^ *```"
COMMANDS = sorted(set(re.findall(r"python -m tinygpt_pl (\w+)([^\n`&|#]*)", README)) - {("fit", " --help")})


def test_the_two_commands_are_on_the_first_screen() -> None:
    screen = "\n".join(README.splitlines()[:24])
    assert "pip install -c constraints.txt -e . && python -m tinygpt_pl fit --config configs/base.yaml" in screen
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in screen


def test_the_tree_names_the_files_that_exist() -> None:
    (tree,) = re.findall(r"```\ntinygpt_pl/\n(.*?)```", README, re.DOTALL)
    named, room = [], ""
    for indent, name, about in re.findall(r"^( +)(\S+) +(\S.*)$", tree, re.MULTILINE):
        assert about
        if name.endswith("/"):
            room = name
        else:
            named.append(name if indent == "  " else room + name)
    package = ROOT / "tinygpt_pl"
    there = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if not path.name.startswith("__")}
    assert len(named) == len(set(named)) == tree.count(".py ")
    assert set(named) == there


@pytest.mark.parametrize(("verb", "options"), COMMANDS)
def test_every_command_parses(verb: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "lightning_logs/version_0").mkdir(parents=True)
    (tmp_path / "lightning_logs/version_0/config.yaml").write_text("eval_interval: 250")
    monkeypatch.chdir(tmp_path)
    intervals = {"cpu.yaml": 75, "small.yaml": 500, "modern.yaml": 100, "half-hour": 100}
    expected = next((interval for name, interval in intervals.items() if name in options), 250)
    if verb == "generate":
        generate.build_parser().parse_args(shlex.split(options))
    elif verb == "diagnose":
        diagnose.build_parser().parse_args(shlex.split(options))
    elif verb in ("export", "import"):
        convert.build_parser(verb).parse_args(shlex.split(options))
    else:
        assert build_parser(verb).parse_args(shlex.split(options)).eval_interval == expected


def test_the_python_code_runs(
    cli: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli("fit", *small(text_file, model__gpt__block_size=64))[0] == 0
    (export,) = (options for verb, options in COMMANDS if verb == "export")
    assert cli("export", *shlex.split(export))[0] == 0
    there, here, _ = re.findall(CODE, README, re.DOTALL | re.MULTILINE)
    capsys.readouterr()
    exec(textwrap.dedent(there), {})
    assert re.fullmatch(r"to be [a-z ]{50}\n", capsys.readouterr().out)
    exec(here, {})
    assert re.fullmatch(r"torch.Size\(\[1, 6, 27\]\) next: .*\nto be [a-z ]{50}\n", capsys.readouterr().out)


SHORT = ["--data.eval_coverage=sampled", "--data.eval_iters=1"]


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_run_from_python_has_the_bits_of_fit(
    cli: Run, shakespeare_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In four steps, which Adam's moments and an evaluation are part of."""
    monkeypatch.setenv("TINYGPT_CACHE", str(shakespeare_cache))
    *_, script = re.findall(CODE, README, re.DOTALL | re.MULTILINE)
    assert len([line for line in script.splitlines() if line]) <= 15
    quick = script.replace('eval_coverage="full"', "eval_iters=1").replace("max_steps=2000", "max_steps=4")
    exec(quick, {})
    code, _, err = cli("fit", "--config=small", "--trainer.max_steps=4", *SHORT)
    assert code == 0, err
    script_run, fit_run = Path("lightning_logs/from-python"), Path("lightning_logs/version_0")
    assert_same(outcome(script_run), outcome(fit_run))
    ours, theirs = (yaml.safe_load((run / "config.yaml").read_text()) for run in (script_run, fit_run))
    assert ours == theirs


def test_the_arithmetic_of_the_note() -> None:
    """The note on the printed figures of the lesson."""
    C, T, V, L = 384, 256, 65, 6
    matrices = L * 12 * C * C + V * C + T * C
    vectors = L * 13 * C + 2 * C
    model = GPT(GPTConfig())
    assert matrices == sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    assert vectors == sum(p.numel() for p in model.parameters() if p.dim() < 2)
    for number in (matrices, vectors, matrices + vectors, L * 12 * C * C, V * C, T * C, L * 13 * C + 2 * C):
        assert f"{number:,}" in README
    assert f"{warmup_cosine(2500):.2e}" == "1.69e-04"
    assert "1.69e-4" in README
