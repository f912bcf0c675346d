"""What the command line refuses, and how."""

import inspect
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest

from tests.small_runs import Run
from tinygpt_pl.commands.counterparts import COUNTERPARTS
from tinygpt_pl.commands.parser import VERBS
from tinygpt_pl.commands.settings import build_parser
from tinygpt_pl.training.trainer import make_trainer


@pytest.fixture(autouse=True)
def in_an_empty_folder_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model.gpt.n_layers=3"], "model.gpt.n_layers.*did you mean --model.gpt.n_layer"),
        (["--trainer.max_stps=3"], "trainer.max_stps.*did you mean --trainer.max_steps"),
        (["--trainer.val_check_interval=3"], "trainer.val_check_interval"),
        (["--model.gpt.n_embd=wide"], "model.gpt.n_embd must be a whole number, got wide"),
        (["--model.optim.betas=0.9"], r"model.optim.betas must be a list, as in \[0.9\], got 0.9"),
        (["--trainer.logger=WandbLogger"], "^error: lightning.*WandbLogger cannot be used: Requirement 'wandb"),
        (["--auto=compile"], r"auto must be a list, as in \[compile\], got compile"),
        (["--auto=[precision]"], "auto is a list of settings out of trainer.accelerator, .*, got precision"),
        (["--seed_everything=x"], "seed_everything.*x"),
        (["--seed_everything=-1"], "seed.*-1"),
        (["--model.gpt.n_embd=100"], "n_embd has to be a multiple of n_head, got n_embd 100 and n_head 6"),
        (["--model.gpt.dropout=1.5"], r"dropout has to be in \[0, 1\), got 1.5"),
        (["--model.optim.max_lr=-1"], "max_lr has to be positive and finite, got -1"),
        (["--eval_interval=0"], "eval_interval has to be at least 1, got 0"),
        (["--trainer.max_steps=-1"], "trainer.max_steps has to be at least 1, got -1"),
        (["--trainer.log_every_n_steps=0"], "trainer.log_every_n_steps has to be at least 1, got 0"),
        (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches.*at least 1, got 0"),
        (["--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val has to be at least 0, got -1"),
        (["--trainer.gradient_clip_val=.nan"], "trainer.gradient_clip_val has to be at least 0, got nan"),
        (["--trainer.log_every_n_steps=null"], "trainer.log_every_n_steps must be a whole number, got null"),
        (["--config=../null.yaml"], "data.batch_size cannot be null"),
        (["--config=../nulls.yaml"], "trainer.* cannot be null"),
        (["--trainer.devices=-1", "--trainer.accelerator=cpu"], "trainer: .*devices"),
        (["--trainer.accelerator=abacus"], "abacus"),
        (["--trainer.strategy=ddp_spawn"], "trainer.strategy ddp_spawn .*; use ddp"),
        (["--save_minutes=-1"], "save_minutes has to be at least 0, got -1"),
        (["--save_minutes=.nan"], "save_minutes has to be at least 0, got nan"),
        (["--trainer.precision=7"], "trainer.precision must be auto, bf16-mixed, .*, 64, .* or null, got 7"),
        (["--compile=maybe"], "compile must be auto, true or false, got maybe"),
        (["--data.tokenizer=words"], "tokenizer must be one of char, byte, bpe, got 'words'"),
        (["--ema_decay=x"], "ema_decay must be a number or null, got x"),
        (["--trainer.logger=Nope"], "trainer.logger: class Nope not found; give your own as module.Class"),
        (["--trainer.callbacks=[{class_path: my.Own}]"], "callbacks: my.Own cannot be used: No module named 'my'"),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitr=x"],
            "'monitr' .*\nits settings: .*monitor",
        ),
        (["--model.optim.lr=1"], "did you mean --model.optim.max_lr or --model.optim.min_lr"),
        (["--trainer.max_epochs=3"], "training has no epochs: use --trainer.max_steps"),
        (["--trainer.default_root_dir", "runs"], "use --run_dir"),
        (["--config=../epochs.yaml"], "training has no epochs: use --trainer.max_steps"),
        (["--batch_size=3"], "did you mean --data.batch_size"),
        (["--no-compile"], "did you mean --compile"),
        (["base.yaml"], "did you mean --config base.yaml"),
        (["--data.corpus", "-cats.txt"], "joined by =: --data.corpus=-cats.txt"),
        (["--run_dir", "--seed_everything=1"], r"expected one argument\nall options"),
        (["--data.batch_size=0"], "batch_size has to be at least 1, got 0"),
        (["--data.corpus=nowhere.txt"], "no corpus 'nowhere.txt'"),
        (["--data.corpus=../settings"], "it has no files but settings"),
        (["--data.corpus=../few.txt"], "a window needs at least 257"),
        (["--data.offline_corpus=null"], "could not be downloaded.*save it as data/tinyshakespeare.txt"),
        (["--config=nowhere.yaml"], r"nowhere.yaml'\nall options"),
        (["--config=../latin.yaml"], r"latin.yaml is not UTF-8: byte 0xe4 at offset 16; .* iconv"),
        (["--config=../wide.yaml"], r"wide.yaml is not UTF-8"),
        (["--config=../broken.yaml"], "broken.yaml: expected ',' or ']', but got '<stream end>' in line 1"),
        (["--config=../unknown.yaml"], "n_layers.*did you mean --model.gpt.n_layer"),
        (["--ckpt_path=last"], "no last checkpoint: there is no run in"),
        (["--ckpt_path=nowhere.ckpt"], "no checkpoint 'nowhere.ckpt'"),
        (["--ckpt_path=../broken.yaml"], "damaged or no checkpoint"),
        (["surplus"], "surplus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_fault_25_a_mistake_costs_three_lines_and_exit_code_2(
    cli: Run, tmp_path: Path, options: list[str], named: str
) -> None:
    (tmp_path / "few.txt").write_text("few")
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "a.yaml").touch()
    (tmp_path / "broken.yaml").write_text("trainer: [3")
    (tmp_path / "unknown.yaml").write_text("model: {gpt: {n_layers: 3}}")
    (tmp_path / "epochs.yaml").write_text("trainer: {max_epochs: 3}")
    (tmp_path / "latin.yaml").write_text("data: {corpus: Wälder.txt}", "latin-1")
    (tmp_path / "wide.yaml").write_text("data: {corpus: my.txt}", "utf-16")
    (tmp_path / "null.yaml").write_text("data: {batch_size: null}")
    (tmp_path / "nulls.yaml").write_text("trainer: null")
    code, out, err = cli("fit", *options)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3
    assert re.search(named, err, re.DOTALL), err
    assert "Traceback" not in err
    given = options[0].split("=")[0]
    assert f"did you mean {given}?" not in err
    assert {path.name for path in Path().iterdir()} <= {"data"}, "a refused command leaves more than the cache behind"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"", "is empty"),
        (b"abc\xff", "not UTF-8: byte 0xff at offset 3"),
        (b"ab" * 300, "the val split of .* has 60 of its 600 tokens, but a window needs at least 65"),
        (b"ab" * 30, "the train split of .* has 54 of its 60 tokens, but a window needs at least 65"),
    ],
)
def test_fault_20_21_and_22_an_unfit_text_costs_three_lines_and_exit_code_2(
    cli: Run, tmp_path: Path, text: bytes, named: str
) -> None:
    (tmp_path / "text").write_bytes(text)
    code, _, err = cli("fit", "--data.corpus=../text", "--model.gpt.block_size=64")
    assert code == 2
    assert len(err.splitlines()) <= 3
    assert re.search(named, err), err


def test_commands_are_listed_and_others_refused(cli: Run) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)
    assert cli()[0] == 2
    code, _, err = cli("predict")
    assert (code, len(err.splitlines())) == (2, 1)
    for words, hint in (
        (["Fitt"], "did you mean fit?"),
        (["trian"], "did you mean fit?"),
        (["exports"], "did you mean export?"),
        (["--config", "cpu", "fit"], "the command comes first: python -m tinygpt_pl fit --config"),
        (["--seed", "1"], "the command comes first: python -m tinygpt_pl COMMAND --seed"),
    ):
        code, _, err = cli(*words)
        assert (code, err.splitlines()[1][: len(hint)]) == (2, hint)


@pytest.mark.parametrize("verb", ["export", "import"])
def test_what_has_to_be_given_is_named_as_it_is_typed(cli: Run, verb: str) -> None:
    code, _, err = cli(verb)
    assert code == 2
    assert re.match("error: the following arguments are required: --(output_dir|input_dir, --output)\n", err)


def test_help_speaks_of_every_setting(cli: Run) -> None:
    code, out, _ = cli("fit", "--help")
    assert code == 0
    for option in build_parser("fit")._option_string_actions:
        assert option in out
    text = " ".join(out.split())
    assert "Share of activations dropped in training" in text
    assert "windows per device and micro-batch" in text


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_scoring_needs_a_checkpoint(cli: Run, verb: str) -> None:
    code, _, err = cli(verb)
    assert code == 2
    assert "no best checkpoint" in err


def test_every_option_of_lightnings_trainer_is_taken_or_has_a_counterpart() -> None:
    """Guards against an option that a later Lightning adds, and that would be refused without a word."""
    options = inspect.signature(pl.Trainer.__init__).parameters.keys() - {"self"}
    assert options - inspect.signature(make_trainer).parameters.keys() == COUNTERPARTS.keys()
    named = {option for sentence in COUNTERPARTS.values() for option in re.findall(r"--[\w.]+\w", sentence)}
    assert named - {"--ckpt_path"} <= {f"--{name}" for name in build_parser("fit").get_defaults().keys()}  # noqa: SIM118
