"""Every command refuses a checkpoint that is damaged, of another format or hostile."""

import contextlib
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_runs import BEST, LAST, LONGER, Fitted, Run, load, three_lines
from tinygpt_pl.commands.parser import VERBS
from tinygpt_pl.runs.checkpoint import FORMAT

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.mark.parametrize("length", [0, 1, 0.5, -1])
def test_fault_03_a_truncated_checkpoint(cli: Run, fitted: Fitted, length: float) -> None:
    fitted(trainer__max_steps=4)
    whole = LAST.read_bytes()
    LAST.write_bytes(whole[: len(whole) // 2] if length == 0.5 else whole[: int(length)])
    damaged = LAST.read_bytes()
    for verb in ("fit", "validate", "test"):
        code, _, err = cli(verb, "--ckpt_path=last")
        assert code == 2
        message = three_lines(err)
        assert f"{LAST} is damaged or no checkpoint" in message
        assert f"the newest sound one beside it is {BEST}, of iteration 4" in message
    assert LAST.read_bytes() == damaged
    assert cli("fit", f"--ckpt_path={BEST}", "--trainer.max_steps=6")[0] == 0, "the way out that was offered"
    assert load(LAST)["global_step"] == 6


def test_fault_03_a_damaged_best_is_replaced(cli: Run, fitted: Fitted) -> None:
    worse = ["--model.optim.max_lr=0.3", "--model.optim.min_lr=0.3"]
    fitted(trainer__max_steps=4)
    BEST.write_bytes(BEST.read_bytes()[:-7])
    code, out, _ = cli("fit", "--ckpt_path=last", "--trainer.max_steps=8", *worse)
    assert code == 0
    assert "best: iter 8" in out


def test_fault_04_a_flipped_bit(cli: Run, fitted: Fitted) -> None:
    """torch loads such a file without a word."""
    fitted(trainer__max_steps=4)
    raw = bytearray(LAST.read_bytes())
    with zipfile.ZipFile(LAST) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size if "/data/" in entry.filename else 0)
        offset = raw.index(archive.read(entry)) + entry.file_size // 2
    raw[offset] ^= 1
    LAST.write_bytes(raw)
    torch.load(LAST, weights_only=True)
    code, _, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=6")
    assert code == 2
    assert f"{LAST} is damaged: the check sum of " in three_lines(err)
    assert f"the newest sound one beside it is {BEST}, of iteration 4" in err
    flipped = load(LAST) | {"global_step": 5}  # as if the run had trained beyond its best
    torch.save(flipped, LAST)
    raw = bytearray(LAST.read_bytes())
    raw[raw.index(flipped["state_dict"]["gpt.wte.weight"].numpy().tobytes())] ^= 1
    LAST.write_bytes(raw)
    assert cli("fit", f"--ckpt_path={BEST}", "--trainer.max_steps=6")[0] == 0, "the way out that was offered"
    assert load(LAST)["global_step"] == 6, "in the folder of the run"


@pytest.mark.parametrize("version", [None, FORMAT + 1])
@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_fault_15_a_checkpoint_of_another_format(cli: Run, fitted: Fitted, verb: str, version: int | None) -> None:
    fitted(trainer__max_steps=4)
    checkpoint = load(LAST)
    if version is None:
        del checkpoint["format"]
    else:
        checkpoint["format"] = version
    torch.save(checkpoint, LAST)
    code, _, err = cli(verb, "--ckpt_path=last")
    assert code == 2
    assert f"{LAST} has format {version or 0}, but this version of tinygpt_pl reads format {FORMAT} alone" in err
    three_lines(err)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def bombs(sound: Path) -> dict[str, bytes]:
    """Files that run a command when they are unpickled: plain, in torch's format, and two kinds of file in one."""
    checkpoint = load(sound)
    checkpoint["config"] = Bomb()
    torch.save(checkpoint, "zipped.ckpt")
    torch.save(checkpoint, "legacy.ckpt", _use_new_zipfile_serialization=False)
    zipped, legacy = (Path(f"{name}.ckpt").read_bytes() for name in ("zipped", "legacy"))
    plain = pickle.dumps(Bomb())
    return {"plain": plain, "zipped": zipped, "legacy": legacy, "polyglot": plain + sound.read_bytes()}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("import", "diagnose")])
def test_fault_16_code_in_a_checkpoint(cli: Run, fitted: Fitted, verb: str) -> None:
    fitted(trainer__max_steps=4)
    for name, raw in bombs(LAST).items():
        Path(f"{name}.ckpt").write_bytes(raw)
        more = {"fit": [LONGER], "export": ["--output_dir=exported"]}.get(verb, [])
        code, _, err = cli(verb, f"--ckpt_path={name}.ckpt", *more)
        assert not Path("exploded").exists(), name
        assert code == 2
        assert f"{name}.ckpt is damaged or no checkpoint" in three_lines(err)
    with contextlib.suppress(Exception):
        torch.load("zipped.ckpt", weights_only=False)
    assert Path("exploded").exists(), "the bomb would not have gone off anyway"


def test_fault_16_code_named_in_the_settings_of_a_checkpoint(
    cli: Run, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are text, but text that names a class makes the command line import its module."""
    Path("evil.py").write_text("from pathlib import Path\nPath('exploded').touch()\nclass X: ...")
    monkeypatch.syspath_prepend(str(Path().absolute()))
    fitted(trainer__max_steps=4)
    for callbacks in ("callbacks: evil.X", "callbacks: [{class_path: evil.X}]", "callbacks: {class_path: evil.X}"):
        checkpoint = load(BEST)
        checkpoint["config"] = checkpoint["config"].replace("callbacks: null", callbacks)
        assert "evil" in checkpoint["config"]
        torch.save(checkpoint, "evil.ckpt")
        code, _, err = cli("fit", "--ckpt_path=evil.ckpt", LONGER)
        assert code == 2
        assert "the run had trainer.callbacks with code of its own: give it again" in three_lines(err)
        assert cli("test", "--ckpt_path=evil.ckpt")[0] == 0
        assert cli("fit", "--ckpt_path=evil.ckpt", LONGER, "--trainer.callbacks=null")[0] == 0
    assert not Path("exploded").exists()


Spoil = Callable[[dict[str, Any]], Any]


SPOILT: dict[str, Spoil] = {
    "a weight that is none": lambda c: c["state_dict"]["gpt.wte.weight"].fill_(float("nan")),
    "a weight that is no tensor": lambda c: c["state_dict"].update({"gpt.wte.weight": "x"}),
    "a weight of another shape": lambda c: c["state_dict"].update({"gpt.wte.weight": torch.zeros(3)}),
    "no network": lambda c: c["hyper_parameters"].clear(),
    "no text": lambda c: c["corpus"].clear(),
    "a curve of negative length": lambda c: c["events"].update({"events.out.tfevents.1": -1}),
    "a step before the first": lambda c: c.update(global_step=-3),
    "another step": lambda c: c.update(global_step=3),
    "no schedule": lambda c: c.update(lr_schedulers=[]),
    "no optimizer": lambda c: c.update(optimizer_states=[None]),
    "an optimizer of another shape": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3, 3)),
    "an optimizer of whole numbers": lambda c: c["optimizer_states"][0]["state"][0].update(
        exp_avg=torch.zeros(27, 16, dtype=torch.int64)
    ),
    "no counters": lambda c: c["loops"].clear(),
}


@pytest.mark.parametrize("what", SPOILT)
def test_fault_03_a_checkpoint_that_was_tampered_with(cli: Run, fitted: Fitted, what: str) -> None:
    fitted(trainer__max_steps=4)
    checkpoint = load(LAST)
    SPOILT[what](checkpoint)
    torch.save(checkpoint, "spoilt.ckpt")
    code, _, err = cli("fit", "--ckpt_path=spoilt.ckpt", LONGER)
    assert code == 2
    assert "damaged" in three_lines(err)
    code, _, err = cli("test", "--ckpt_path=spoilt.ckpt")
    assert code in (0, 2), "what it lacks may be of no use to a score"
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0"]


@pytest.mark.parametrize("config", ["", "[1]", "a: [", "trainer: 3", "trainer: {max_steps: x}", "x: {}\ntrainer: {}"])
def test_fault_03_settings_in_a_checkpoint_that_are_none(cli: Run, fitted: Fitted, config: str) -> None:
    fitted(trainer__max_steps=4)
    torch.save({**load(LAST), "config": config}, "odd.ckpt")
    for verb in ("fit", "test"):
        code, _, err = cli(verb, "--ckpt_path=odd.ckpt")
        assert code == 2
        three_lines(err)
