"""That a checkpoint is written whole, and read as data."""

import itertools
import random
import re
import time
import zipfile
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_runs import FORKS, load
from tinygpt_pl import module
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.runs.checkpoint import (
    FORMAT,
    Content,
    DamagedCheckpoint,
    check_same_network,
    check_weights,
    iteration_of,
    newest_sound,
    read_checkpoint,
    write_checkpoint,
)
from tinygpt_pl.system.files import PARTIAL, sweep
from tinygpt_pl.text.tokenizer import CharTokenizer

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


SHAPE, TOKENIZER = GPTConfig(vocab_size=2, n_layer=2, dropout=0.1), CharTokenizer("ab")


def smallest(**changes: Any) -> dict[str, Any]:
    """A mapping that passes for a checkpoint."""
    return {
        "format": FORMAT,
        **{name: {} for name in ("state_dict", "loops", "callbacks", "events")},
        **{name: [] for name in ("optimizer_states", "lr_schedulers")},
        **dict.fromkeys(("global_step", "windows_per_step", "evaluated"), 0),
        "hyper_parameters": {"gpt": asdict(SHAPE), "optim": {}, "tokenizer": asdict(TOKENIZER)},
        "config": "",
        "corpus": {"name": "", "sha256": ""},
        "val_loss": 0.0,
    } | changes


def test_what_is_written_is_read() -> None:
    state = {"weight": torch.randn(3, 2), "half": torch.ones(4, dtype=torch.bfloat16)}
    write_checkpoint(smallest(state_dict=state, config="a: 1"), Path("deep/x.ckpt"))
    checkpoint = read_checkpoint(Path("deep/x.ckpt"))
    assert checkpoint.content["config"] == "a: 1"
    for name, tensor in state.items():
        assert torch.equal(checkpoint.content["state_dict"][name], tensor)
    assert [path.name for path in Path("deep").iterdir()] == ["x.ckpt"]


def test_a_write_that_fails_leaves_the_old_file() -> None:
    write_checkpoint(smallest(config="old"), Path("x.ckpt"))
    with pytest.raises(AttributeError, match="pickle"):
        write_checkpoint(smallest(config=lambda: None), Path("x.ckpt"))
    assert read_checkpoint(Path("x.ckpt")).content["config"] == "old"
    assert [path.name for path in Path().iterdir()] == ["x.ckpt"]


def test_every_flipped_bit_in_a_tensor_is_noticed() -> None:
    write_checkpoint(smallest(state_dict={"weight": torch.arange(1000.0)}), Path("x.ckpt"))
    whole = Path("x.ckpt").read_bytes()
    start = whole.index(torch.arange(1000.0).numpy().tobytes())
    for bit in range(0, 32_000, 997):
        raw = bytearray(whole)
        raw[start + bit // 8] ^= 1 << bit % 8
        Path("x.ckpt").write_bytes(raw)
        with pytest.raises(DamagedCheckpoint, match=r"x\.ckpt is damaged: the check sum of .*/data/0 does not fit"):
            read_checkpoint(Path("x.ckpt"))


def test_no_byte_of_a_file_breaks_the_reader() -> None:
    """Whatever the damage, the answer is the same checkpoint or that it is damaged."""
    write_checkpoint(smallest(state_dict={"weight": torch.arange(3.0)}), Path("x.ckpt"))
    whole = Path("x.ckpt").read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        raw = bytearray(whole)
        raw[position] ^= 0xFF
        Path("x.ckpt").write_bytes(raw)
        try:
            checkpoint = read_checkpoint(Path("x.ckpt"))
        except DamagedCheckpoint:
            refused += 1
        else:
            assert torch.equal(checkpoint.content["state_dict"]["weight"], torch.arange(3.0))
    assert refused > 50


@pytest.mark.parametrize("name", Content.__annotations__)
def test_a_checkpoint_that_lacks_something_is_named(name: str) -> None:
    torch.save(smallest(**{name: None}), "x.ckpt")
    with pytest.raises(DamagedCheckpoint, match=f"x.ckpt is damaged: its {name} is missing or of another type"):
        read_checkpoint(Path("x.ckpt"))


def test_a_checkpoint_of_another_project_is_refused() -> None:
    torch.save({"model": {}}, "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt was not written by tinygpt_pl"):
        read_checkpoint(Path("other.ckpt"))
    with zipfile.ZipFile("archive.ckpt", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(DamagedCheckpoint, match="is damaged or no checkpoint"):
        read_checkpoint(Path("archive.ckpt"))


def test_the_newest_sound_checkpoint() -> None:
    assert newest_sound(Path("nowhere")) is None
    for name, iteration in (("best", 3), ("last", 8), ("other", 5)):
        write_checkpoint(smallest(global_step=iteration), Path(f"{name}.ckpt"))
    assert newest_sound(Path()) == (8, Path("last.ckpt"))
    Path("last.ckpt").write_bytes(b"")
    assert iteration_of(Path("last.ckpt")) == iteration_of(Path("nowhere")) == -1
    assert newest_sound(Path()) == (5, Path("other.ckpt"))


def test_weights_of_another_shape_are_named() -> None:
    fresh = {"a": torch.zeros(2), "b": torch.zeros(2, 3)}
    check_weights({"a": torch.ones(2), "b": torch.ones(2, 3)}, fresh)
    with pytest.raises(DamagedCheckpoint, match=r"b has shape \[3, 2\] in it and \[2, 3\] in the network"):
        check_weights({"a": torch.ones(2), "b": torch.ones(3, 2)}, fresh)
    with pytest.raises(DamagedCheckpoint, match=r"a has shape None in it and \[2\] in the network"):
        check_weights({"b": torch.ones(2, 3)}, fresh)


def test_networks_are_compared_but_for_dropout() -> None:
    torch.save(smallest(), "x.ckpt")
    stored = read_checkpoint(Path("x.ckpt"))
    check_same_network(stored, replace(SHAPE, dropout=0.3))
    with pytest.raises(ValueError, match="n_layer is 2 in the checkpoint and 3 here"):
        check_same_network(stored, replace(SHAPE, n_layer=3))


def test_a_vocabulary_of_another_size_is_damage() -> None:
    content = smallest()
    content["hyper_parameters"]["tokenizer"] = {"characters": "abc"}
    torch.save(content, "x.ckpt")
    with pytest.raises(DamagedCheckpoint, match="no network with its vocabulary"):
        read_checkpoint(Path("x.ckpt"))


def test_a_checkpoint_from_before_there_was_a_choice() -> None:
    """Neither the activation nor the kind of the tokenizer was stored by the first version."""
    content = smallest()
    content["hyper_parameters"]["tokenizer"] = {"characters": "ab"}
    del content["hyper_parameters"]["gpt"]["activation"]
    torch.save(content, "x.ckpt")
    checkpoint = read_checkpoint(Path("x.ckpt"))
    assert (checkpoint.gpt, checkpoint.tokenizer) == (SHAPE, TOKENIZER)


def write_forever(path: str) -> None:
    for n in itertools.count():
        write_checkpoint({"n": n, "tensor": torch.full((200_000,), float(n))}, Path(path))


@pytest.mark.slow
def test_fault_01_killed_inside_a_save(tmp_path: Path) -> None:
    """The old file or the new one, never half of one; what was not finished is swept."""
    path, left, newest = tmp_path / "x.ckpt", 0, -1
    draw = random.Random(1)
    for _ in range(20):
        before = path.stat().st_ino if path.exists() else 0
        process = FORKS.Process(target=write_forever, args=(str(path),))
        process.start()
        while not path.exists() or path.stat().st_ino == before:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.02))
        process.kill()
        process.join()
        left += len(list(tmp_path.glob(f"*{PARTIAL}")))
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        checkpoint = load(path)
        assert torch.equal(checkpoint["tensor"], torch.full((200_000,), float(checkpoint["n"])))
        newest = max(newest, checkpoint["n"])
        sweep(tmp_path, "*.ckpt")
        assert list(tmp_path.iterdir()) == [path]
    assert left > 0, "no save was ever interrupted"
    assert newest > 0


def test_fault_16_every_load_is_a_safe_one() -> None:
    """No other way of reading a pickle is in the package, and none that falls back to an unsafe one."""
    package = Path(module.__file__).parent
    source = "\n".join(path.read_text() for path in package.rglob("*.py"))
    assert re.findall(r"weights_only=(\w+)", source).count("True") == len(re.findall(r"weights_only=", source)) > 0
    assert not re.search(r"pickle\.|import pickle|joblib|dill", source)
    assert len(re.findall(r"(?<!safetensors\.)torch\.load\(", source)) == 1


class Elsewhere(torch.Tensor):
    """Stands on another device, from which `cpu` gives a copy."""

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).clone()


def test_tensors_of_another_device_are_saved_as_those_of_main_memory(tmp_path: Path) -> None:
    """A machine without that device could not read the file, and Python's README would mix two."""
    there = torch.ones(2).as_subclass(Elsewhere)
    weights = OrderedDict(w=there)
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as torch's state dicts have it
    write_checkpoint({"state_dict": weights, "nested": [(there, 1)]}, tmp_path / "a.ckpt")
    read = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert type(read["state_dict"]["w"]) is type(read["nested"][0][0]) is torch.Tensor
    assert read["state_dict"]._metadata == {"": {"version": 1}}
    assert weights["w"] is there, "what is saved trains on where it is"
