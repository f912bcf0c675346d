"""The option --ensemble of test and generate."""

import re
from pathlib import Path

import pytest
import torch

from tests.reference import english
from tests.small_runs import BEST, Fitted, Run, three_lines
from tinygpt_pl import Ensemble, TinyGPT, generate

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

SECOND = "second/checkpoints/best.ckpt"


@pytest.fixture
def two_runs(fitted: Fitted, in_a_folder_of_its_own: None) -> Ensemble:
    """Two runs that differ in their seed, and their best checkpoints as an ensemble."""
    fitted("second", seed_everything=2)
    fitted()
    return Ensemble([TinyGPT.load_from_checkpoint(path).eval().gpt for path in (BEST, SECOND)])


def nats(out: str) -> float:
    (found,) = re.findall(r"^(\d+\.\d+) nats and", out, re.MULTILINE)
    return float(found)


def test_the_mean_of_two_runs_is_scored(cli: Run, two_runs: Ensemble) -> None:
    """A pattern that matches the first checkpoint, too, does not count it twice."""
    module = TinyGPT.load_from_checkpoint(BEST)
    assert module.tokenizer
    text = english()[50:2051]
    Path("other.txt").write_text(text)
    ids = torch.from_numpy(module.tokenizer.encode(text)).long()
    size = module.gpt.config.block_size
    with torch.no_grad():
        _, loss = two_runs(ids[:-1].view(-1, size), ids[1:].view(-1, size))
    data = ("--data.corpus=other.txt", "--data.val_fraction=1")
    code, out, err = cli("test", f"--ckpt_path={BEST}", "--ensemble", str(BEST), SECOND, *data)
    assert code == 0, err
    assert f"{BEST} and 1 more\n" in out
    assert nats(out) == pytest.approx(float(loss), abs=1e-4)
    assert nats(cli("test", f"--ckpt_path={BEST}", *data)[1]) != nats(out)


def test_two_runs_write_together(cli: Run, two_runs: Ensemble) -> None:
    tokenizer = TinyGPT.load_from_checkpoint(BEST).tokenizer
    assert tokenizer
    code, out, err = cli(
        "generate", f"--ckpt_path={BEST}", "--ensemble", SECOND, "--prompt=the ", "--max_new_tokens=30", "--seed=3"
    )
    assert code == 0, err
    idx = torch.from_numpy(tokenizer.encode("the ")).long()[None]
    assert out == tokenizer.decode(generate(two_runs, idx, 30, seed=3)[0]) + "\n"
    assert f"{BEST} and 1 more, iteration" in err


@pytest.mark.parametrize("verb", ["test", "generate"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.gpt.block_size": 4}, "must have one block_size"),
        ({"data.tokenizer": "byte"}, "the vocabulary of third/checkpoints/best.ckpt is not that of "),
        (None, "no checkpoint 'third/checkpoints/best.ckpt'"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    cli: Run, fitted: Fitted, verb: str, changes: dict[str, object] | None, named: str
) -> None:
    fitted()
    if changes:
        fitted("third", **changes)
    code, _, err = cli(verb, "--ensemble", "third/checkpoints/best.ckpt")
    assert code == 2
    assert named in err
    assert three_lines(err)
