"""What validate and test print: which part of which text, and its loss."""

import contextlib
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.reference import english
from tests.small_runs import BEST, Fitted, Run, small, three_lines
from tinygpt_pl import TinyGPT

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def loss_of(text: str) -> float:
    """The loss of the best checkpoint over a text, in windows side by side."""
    model = TinyGPT.load_from_checkpoint(BEST).eval()
    assert model.tokenizer is not None
    ids = torch.from_numpy(model.tokenizer.encode(text)).long()
    size = model.gpt.config.block_size
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, size):
            part = ids[start : start + size + 1]
            _, loss = model.gpt(part[None, :-1], part[None, 1:])
            assert loss is not None
            total += loss.item() * (len(part) - 1)
    return total / (len(ids) - 1)


@pytest.mark.parametrize("length", [2000, 30, 5])
def test_all_of_another_text_is_scored(cli: Run, fitted: Fitted, length: int) -> None:
    """Also one that is shorter than a window."""
    fitted()
    text = english()[50 : 50 + length]
    Path("other.txt").write_text(text)
    code, out, err = cli("test", "--data.corpus=other.txt", "--data.val_fraction=1")
    assert code == 0, err
    assert f"| {length - 1:,} tokens of other.txt, all its {length:,} characters (100%) | {BEST}" in out
    (nats,) = re.findall(r"^(\d+\.\d+) nats and", out, re.MULTILINE)
    assert float(nats) == pytest.approx(loss_of(text), abs=1e-4)
    assert "to score all" not in out


def test_the_part_of_a_text_that_is_scored_is_named(cli: Run, fitted: Fitted, text_file: Path) -> None:
    fitted()
    own, text = text_file.read_text(), english()[:2000]
    code, out, _ = cli("test")
    assert code == 0
    assert f"tokens of {text_file}, the last {len(own) // 10:,} of its {len(own):,} characters (10%)" in out
    assert "to score all" not in out
    Path("other.txt").write_text(text)
    code, out, _ = cli("test", "--data.corpus=other.txt")
    assert code == 0
    assert "199 tokens of other.txt, the last 200 of its 2,000 characters (10%)" in out
    assert out.endswith("to score all of this text: --data.val_fraction 1\n")
    (nats,) = re.findall(r"^(\d+\.\d+) nats and", out, re.MULTILINE)
    assert float(nats) == pytest.approx(loss_of(text[1800:]), abs=1e-4)


@pytest.mark.parametrize("words", [("fit", "--run_dir=other"), ("validate",)])
def test_what_needs_a_training_split_refuses_to_have_none(cli: Run, fitted: Fitted, words: tuple[str, ...]) -> None:
    fitted()
    config = "--config=lightning_logs/version_0/config.yaml"
    code, _, err = cli(*words, config, "--data.val_fraction=1")
    assert code == 2
    assert re.search(r"the train split of .* has 0 of its \d+ tokens", err)


def test_a_run_is_repeated_and_scored_from_another_folder(cli: Run, tmp_path: Path) -> None:
    """Paths that were given from the folder of the run lead to the same files from anywhere."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "texts", elsewhere):
        folder.mkdir(parents=True)
    (home / "texts" / "a.txt").write_text(english())
    with contextlib.chdir(home):
        for corpus, more in (("texts/a.txt", []), ("texts/*.txt", [f"--init_from={BEST}"])):
            code, _, err = cli("fit", *small(Path(corpus), trainer__max_steps=2), *more)
            assert code == 0, err
    with contextlib.chdir(elsewhere):
        for run in (home / "lightning_logs").iterdir():
            code, scored, err = cli("test", f"--ckpt_path={run}/checkpoints/best.ckpt")
            assert code == 0, err
            assert math.isfinite(float(re.findall(r"^(\d+\.\d+) nats", scored, re.MULTILINE)[0]))
            code, _, err = cli("fit", f"--config={run}/config.yaml", f"--run_dir={run.name}")
            assert code == 0, err


def test_a_text_that_has_changed_is_reported(cli: Run, fitted: Fitted, text_file: Path, tmp_path: Path) -> None:
    """Its numbers are not those of the run, which `validate` repeats."""
    text = Path(shutil.copy(text_file, tmp_path / "text.txt"))
    fitted(data__corpus=text)
    assert "has changed" not in cli("validate")[2]
    text.write_text(text.read_text() + "more")
    code, _, err = cli("validate")
    assert (code, "text.txt has changed since the run was trained on it" in err) == (0, True)
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() * 2)
    Path("other.yaml").write_text(f"data: {{corpus: {other}}}")
    for words in (f"--data.corpus={other}", "--config=other.yaml"):
        assert "has changed" not in cli("validate", words)[2], "another text was asked for"


def test_other_tokens_than_those_of_the_checkpoint_are_refused(cli: Run, fitted: Fitted) -> None:
    fitted()
    code, _, err = cli("test", "--data.tokenizer=byte")
    assert code == 2
    assert "data.tokenizer must stay char, that of the run, got byte" in three_lines(err)


@pytest.mark.parametrize("words", [("fit", "--ckpt_path=last", "--trainer.max_steps=12"), ("test",)])
def test_weights_to_begin_with_are_for_a_new_run(cli: Run, fitted: Fitted, words: tuple[str, ...]) -> None:
    """They were ignored, and written down."""
    fitted()
    code, _, err = cli(*words, f"--init_from={BEST}")
    assert code == 2
    assert "--init_from is for a new run" in three_lines(err)
