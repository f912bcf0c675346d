"""docs/lightning.md, row by row: what it says of a logger, a callback or an option is what happens."""

import re
from pathlib import Path

import pytest

from tests.small_runs import RUN, Run, small, three_lines
from tinygpt_pl.commands.counterparts import COUNTERPARTS

PAGE = (Path(__file__).parents[2] / "docs/lightning.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(--trainer\.(?:logger|callbacks)=.*?)` \| (works|refused: `(.*)` \|)", PAGE, re.MULTILINE)

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def words_of(options: str) -> list[str]:
    """The options of a row; a value in braces has a blank of its own."""
    return re.split(r" (?=--)", options)


@pytest.mark.filterwarnings("ignore:.*ModelCheckpoint.*:UserWarning")
@pytest.mark.parametrize(("options", "result", "refusal"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row(cli: Run, text_file: Path, options: str, result: str, refusal: str) -> None:
    code, out, err = cli("fit", *small(text_file), *words_of(options))
    if result == "works":
        assert code == 0, err
        assert "best: iter" in out
        assert cli("generate", "--max_new_tokens=3", f"--run_dir={RUN}")[0] == 0
    else:
        assert code == 2
        assert refusal in three_lines(err)


def test_the_page_has_each_option_that_lightning_has_and_fit_has_not() -> None:
    listed = dict(re.findall(r"^\| `--trainer\.(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert listed == COUNTERPARTS
    assert len(ROWS) > 15


def test_early_stopping_says_when_and_why_it_stopped(cli: Run, text_file: Path) -> None:
    """Guards against a run that ends before its time without a word."""
    callback = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=eval/val_loss"]
    options = small(text_file, model__optim__max_lr=1e-9, model__optim__min_lr=0, eval_interval=2)
    code, out, err = cli(
        "fit", *options, *callback, "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=1"
    )
    assert code == 0, err
    assert "NOTE: a callback stopped the run at iteration 2 of 10: Monitored metric eval/val_loss did not impr" in out
    assert cli("fit", "--ckpt_path=last", *callback)[0] == 0
