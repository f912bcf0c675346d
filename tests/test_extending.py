"""The changes of docs/extending.md: each is one file, and does what its page says."""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.small_runs import LAST, LONGER, RUN, Run, small
from tinygpt_pl.insight.diagnosis import SYMPTOMS
from tinygpt_pl.insight.history import read_history
from tinygpt_pl.runs.checkpoint import read_checkpoint
from tinygpt_pl.text.corpus import CORPORA
from tinygpt_pl.text.tokenizer import TOKENIZERS

PAGE = (Path(__file__).parent.parent / "docs/extending.md").read_text(encoding="utf-8")
CHANGES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

Script = Callable[..., tuple[int, str, str]]
"""A heading of the page and the words of a command in; exit code, output and errors out."""


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """Run the script of a heading as `python mine.py`, in this process."""
    registries: tuple[Any, ...] = (CORPORA, TOKENIZERS, SYMPTOMS)
    before = [registry.copy() for registry in registries]

    def run(heading: str, *words: str) -> tuple[int, str, str]:
        Path("mine.py").write_text(CHANGES[heading], encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["mine.py", *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path("mine.py", run_name="__main__")
        return int(stop.value.code or 0), *capsys.readouterr()

    yield run
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        (registry.update if isinstance(registry, dict) else registry.extend)(content)


def test_each_change_is_a_few_lines_of_one_file() -> None:
    assert len(CHANGES) == 11
    assert all(len(code.splitlines()) < 45 for code in CHANGES.values())


CLASSES = {
    "Another attention": ["--model.reach=3"],
    "Another loss term": ["--model.z_loss=0.01"],
    "Another optimizer": [],
    "Another schedule": [],
    "A metric": [],
    "Another model in TinyGPT": [],
}


@pytest.mark.parametrize("heading", CLASSES)
def test_a_subclass_trains_resumes_and_generates(script: Script, cli: Run, text_file: Path, heading: str) -> None:
    """With the same bits whether it was stopped or not, and other ones than TinyGPT."""
    settings = {"model__optim__max_iters": 12}
    own = CLASSES[heading]
    code, out, err = script(heading, "fit", *small(text_file, **settings, trainer__max_steps=12), *own)
    assert code == 0, err
    assert "healthy: " in out
    assert "generate text: python mine.py generate --ckpt_path" in out
    assert script(heading, "fit", *small(text_file, **settings), *own, "--run_dir=parts")[0] == 0
    code, _, err = script(heading, "fit", "--ckpt_path=parts/checkpoints/last.ckpt", LONGER)
    assert code == 0, err
    whole, parts = (read_checkpoint(path).content for path in (LAST, Path("parts/checkpoints/last.ckpt")))
    assert all(torch.equal(whole["state_dict"][name], weight) for name, weight in parts["state_dict"].items())
    code, out, err = script(heading, "generate", f"--ckpt_path={LAST}", "--max_new_tokens=20", "--seed=1")
    assert code == 0, err
    assert "WARNING" not in err
    assert len(out) == 21
    assert cli("fit", *small(text_file, **settings, trainer__max_steps=12), "--run_dir=plain")[0] == 0
    plain = read_checkpoint(Path("plain/checkpoints/last.ckpt")).content["state_dict"]
    assert (heading == "A metric") == all(
        name in plain and torch.equal(plain[name], weight) for name, weight in whole["state_dict"].items()
    )


def test_a_local_attention_sees_no_further_than_its_reach(script: Script, text_file: Path) -> None:
    """Through `reach` times the layers: here three positions, and one layer."""
    assert script("Another attention", "fit", *small(text_file), "--model.reach=3")[0] == 0
    classes = runpy.run_path("mine.py")
    module = classes["LocalGPT"](**read_checkpoint(LAST).content["hyper_parameters"]).eval()
    idx = torch.zeros(1, 8, dtype=torch.long)
    changed = idx.clone()
    changed[0, 2] = 1
    same = (module(idx)[0] == module(changed)[0]).all(-1)[0].tolist()
    assert same == [True, True, False, False, False, False, True, True]


def test_a_metric_is_in_the_curve(script: Script, text_file: Path) -> None:
    assert script("A metric", "fit", *small(text_file))[0] == 0
    rows = read_history(RUN).curve("eval/accuracy")
    assert [it for it, _ in rows] == [0, 4, 8, 10]
    assert all(0.0 <= share <= 1.0 for _, share in rows)


def test_a_corpus_by_name(script: Script, text_file: Path) -> None:
    code, out, err = script("A corpus by name", "fit", *small(text_file), "--data.corpus=email")
    assert code == 0, err
    assert "email: " in out


def test_a_tokenizer_goes_with_its_checkpoints(script: Script, cli: Run, text_file: Path) -> None:
    """It is not forgotten by `generate`, and transformers, which has none like it, is not made to guess."""
    heading = "Another tokenizer"
    options = ["--data.tokenizer=word", "--data.vocab_size=300"]
    code, out, err = script(heading, "fit", *small(text_file), *options)
    assert code == 0, err
    assert "average probability of the true next word" in out
    code, out, err = script(heading, "generate", f"--ckpt_path={LAST}", "--max_new_tokens=3", "--prompt=the ")
    assert code == 0, err
    assert out.startswith("the ")
    code, _, err = cli("export", f"--ckpt_path={LAST}", "--output_dir=exported")
    assert code == 2
    assert "transformers has no tokenizer of the kind word" in err


def test_a_callback_in_the_working_folder(text_file: Path) -> None:
    Path("mine.py").write_text(CHANGES["A callback"], encoding="utf-8")
    command = [sys.executable, "-m", "tinygpt_pl", "fit", *small(text_file), "--trainer.callbacks=mine.WeightNorm"]
    subprocess.run(command, check=True, capture_output=True)
    events = EventAccumulator(str(RUN)).Reload()
    assert [row.step for row in events.Scalars("own/weight_norm")] == [0, 4, 8, 10]


def test_a_finding_is_told(script: Script, cli: Run, text_file: Path) -> None:
    """Where its symptom is there, and not elsewhere."""
    assert cli("fit", *small(text_file))[0] == 0
    _, out, err = script("A finding of `diagnose`", "diagnose", str(RUN))
    assert "small-gradients" not in out + err
    flat = small(text_file, model__optim__max_lr=1e-9, model__optim__min_lr=0)
    assert cli("fit", *flat, "--run_dir=flat")[0] == 0
    history = read_history(Path("flat"))
    history.rows["optim/grad_norm"] = dict.fromkeys(history.rows["optim/grad_norm"], 1e-4)
    assert runpy.run_path("mine.py")["small_gradients"](history).name == "small-gradients"


def test_our_model_in_a_module_of_somebody_else(
    shakespeare_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINYGPT_CACHE", str(shakespeare_cache))
    code = CHANGES["GPT in another LightningModule"]
    code = code.replace("max_steps=100, val_check_interval=50", "max_steps=3, val_check_interval=3, logger=False")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["trainer"].global_step == 3
    assert 3.5 < names["trainer"].callback_metrics["val_loss"] < 4.5
