"""Settings that are left to the machine, when a run is resumed, scored or repeated; and a machine that has changed."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.small_runs import LAST, RUN, Run, assert_same, load, small
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.training import auto, trainer

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

LEFT = ["--trainer.precision=auto", "--trainer.accelerator=auto", "--trainer.devices=auto"]


def settings(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return found


def able(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    """Have this machine multiply bfloat16, and faster than float32, or not."""
    monkeypatch.setattr(trainer, "multiplies_bf16", lambda device: bfloat16)
    monkeypatch.setattr(auto, "bfloat16_pays", lambda gpt, windows: True)


def from_a_gpu(path: Path, to: Path) -> None:
    """A checkpoint of a run as if a GPU had trained it, and its config.yaml."""
    checkpoint = load(path)
    for name, old, new in (
        ("accelerator", "cpu", "cuda"),
        ("compile", "false", "true"),
        ("precision", "32-true", "bf16-mixed"),
    ):
        checkpoint["config"] = checkpoint["config"].replace(f"{name}: {old}", f"{name}: {new}")
    checkpoint["machine"] = {"device": "cuda", "name": "NVIDIA T4", "torch": str(torch.__version__)}
    torch.save(checkpoint, to)
    to.with_suffix(".yaml").write_text(checkpoint["config"])


def test_what_was_asked_for_is_kept_beside_what_it_became(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able(monkeypatch, bfloat16=True)
    assert cli("fit", *small(text_file), *LEFT)[0] == 0
    written = settings(RUN)
    assert written["auto"] == [*auto.NAMES[:-1]]
    assert (written["trainer"]["accelerator"], written["trainer"]["devices"]) == ("cpu", 1)
    assert written["trainer"]["precision"] == "bf16-mixed"
    assert load(LAST)["machine"]["device"] == "cpu"
    code, out, err = cli("validate")  # on the same machine: nothing to report
    assert (code, "NOTE" in out + err) == (0, False)
    assert cli("fit", *small(text_file))[0] == 0
    assert "auto" not in settings(RUN.with_name("version_1")), "nothing was left to the machine"


@pytest.mark.parametrize("verb", ["validate", "test", "fit", "repeat"])
def test_a_machine_without_bfloat16_is_not_bound_to_it(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    able(monkeypatch, bfloat16=True)
    assert cli("fit", *small(text_file), *LEFT)[0] == 0
    able(monkeypatch, bfloat16=False)
    words = ["fit", f"--config={RUN}/config.yaml"] if verb == "repeat" else [verb, "--ckpt_path=last"]
    code, out, err = cli(*words, *(["--trainer.max_steps=12"] if verb == "fit" else []))
    assert code == 0, err
    note = "NOTE: trainer.precision is left to the machine: 32-true here, bf16-mixed in the run before"
    assert (out + err).count(note) == 1
    assert "changed: trainer.precision" not in out
    if verb in ("fit", "repeat"):
        assert "on cpu in 32-true" in out
        assert settings(RUN if verb == "fit" else RUN.with_name("version_1"))["auto"] == [*auto.NAMES[:-1]]


def test_a_repeat_has_what_the_run_had_where_the_machine_does_it(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able(monkeypatch, bfloat16=False)
    assert cli("fit", *small(text_file), *LEFT)[0] == 0
    able(monkeypatch, bfloat16=True)
    code, out, _ = cli("fit", f"--config={RUN}/config.yaml")
    assert code == 0
    assert "NOTE: trainer.precision is 32-true, as in the run before; --trainer.precision auto takes bf16-mixed" in out
    again = RUN.with_name("version_1") / "checkpoints/last.ckpt"
    assert_same(*(load(path)["state_dict"] for path in (LAST, again)))
    code, out, _ = cli("fit", f"--config={RUN}/config.yaml", "--trainer.precision=auto")
    assert "on cpu in bf16-mixed" in out
    code, out, _ = cli("fit", f"--config={RUN}/config.yaml", "--trainer.precision=bf16-true")
    assert "on cpu in bf16-true" in out, "what is given is no longer left to the machine"
    assert "trainer.precision" not in settings(RUN.with_name("version_3"))["auto"]


def test_on_another_device_all_is_chosen_again(cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    able(monkeypatch, bfloat16=False)
    assert cli("fit", *small(text_file), *LEFT, "--compile=auto")[0] == 0
    from_a_gpu(LAST, Path("gpu.ckpt"))
    device = "NOTE: trainer.accelerator is left to the machine: cpu here, cuda in the run before"
    precision = "NOTE: trainer.precision is left to the machine: 32-true here, bf16-mixed in the run before"
    compiled = "NOTE: compile is left to the machine: False here, True in the run before"
    _, out, err = cli("validate", "--ckpt_path=gpu.ckpt")
    assert device in err
    assert precision in err
    assert compiled not in err, "nothing is compiled to score"
    assert "NOTE" not in out, "the output is the score"
    for words in (["--ckpt_path=gpu.ckpt", "--trainer.max_steps=12", "--run_dir=resumed"], ["--config=gpu.yaml"]):
        code, out, err = cli("fit", *words)
        assert code == 0, err
        assert out.count(device) == out.count(precision) == out.count(compiled) == 1
        assert ("NOTE: from here on the bits are not those of a run left alone: device cuda -> cpu" in out) is (
            words[0] == "--ckpt_path=gpu.ckpt"
        )


@pytest.mark.parametrize("pays", [True, False])
def test_a_processor_takes_bfloat16_where_this_network_gains_by_it(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    """At the size of small.yaml a step in bfloat16 takes longer, whatever instructions the processor has."""
    able(monkeypatch, bfloat16=True)
    monkeypatch.setattr(auto, "bfloat16_pays", lambda gpt, windows: pays)
    code, out, _ = cli("fit", *small(text_file), *LEFT)
    assert code == 0
    assert ("NOTE: float32, since a network of this size is no faster in bfloat16 on this cpu" in out) is not pays
    assert f"on cpu in {'bf16-mixed' if pays else '32-true'}" in out
    monkeypatch.setattr(auto, "bfloat16_pays", lambda gpt, windows: not pays)
    code, out, _ = cli("fit", "--ckpt_path=last", "--trainer.max_steps=11")
    assert code == 0
    assert ("NOTE: trainer.precision is 32-true, as in the run before" in out) is not pays
    assert f"on cpu in {'bf16-mixed' if pays else '32-true'}" in out, "a run keeps its precision"


@pytest.mark.parametrize(("wide", "changes"), [(256, {}), (16, {"model__gpt__dropout": 0.1})])
def test_a_network_that_gains_nothing_is_not_compiled_on_a_processor(
    cli: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, wide: int, changes: dict[str, float]
) -> None:
    """At the size of small.yaml, or with dropout in attention, a compiled step is no faster, and compiling costs."""
    able(monkeypatch, bfloat16=True)
    monkeypatch.setattr(auto, "WIDE", wide)
    code, out, _ = cli("fit", *small(text_file, **changes), *LEFT, "--compile=auto")
    assert code == 0
    assert "on cpu in bf16-mixed" in out
    assert "NOTE: not compiled, since that does not pay on a cpu" in out


def test_a_measurement_of_bfloat16_leaves_random_numbers_alone_and_takes_no_time() -> None:
    """A network with channels or places beyond count is refused later, in words, and not here by its memory."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert auto.bfloat16_pays(GPTConfig(n_embd=6_000_000), windows=64)
    start = time.perf_counter()
    assert auto.bfloat16_pays(GPTConfig(block_size=10**12, n_layer=1, n_head=2, n_embd=16), windows=2) in (True, False)
    assert time.perf_counter() - start < 4
    assert torch.equal(torch.rand(1), expected)


def test_other_threads_are_reported_when_a_run_resumes(cli: Run, text_file: Path) -> None:
    """Sums in parallel are added in another order; the bits that a resume promises are those of as many threads."""
    torch.set_num_threads(2)
    try:
        assert cli("fit", *small(text_file, trainer__max_steps=1))[0] == 0
        same = cli("fit", "--ckpt_path=last", "--trainer.max_steps=2")[1]
    finally:
        torch.set_num_threads(1)
    assert "bits" not in same
    code, out, _ = cli("fit", "--ckpt_path=last", "--trainer.max_steps=3")
    assert code == 0
    note = r"NOTE: from here on the bits are not .*: threads 2 -> 1; OMP_NUM_THREADS=2 keeps them"
    assert len(re.findall(note, out)) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"torch": "2.10.0"}, "torch 2.10.0 -> "), ({"instructions": "VSX"}, "instructions VSX -> ")],
)
def test_another_machine_is_reported_when_a_run_resumes(
    cli: Run, text_file: Path, changed: dict[str, str], said: str
) -> None:
    assert cli("fit", *small(text_file))[0] == 0
    checkpoint = load(LAST)
    checkpoint["machine"] |= changed
    torch.save(checkpoint, LAST)
    out = cli("fit", "--ckpt_path=last", "--trainer.max_steps=11")[1]
    assert f"the bits are not those of a run left alone: {said}" in out
    assert "OMP_NUM_THREADS" not in out
