"""That a checkpoint is written whole, and read as data."""

import itertools
import random
import re
import time
import zipfile
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
    OURS,
    SETTINGS,
    TEXT,
    DamagedCheckpoint,
    check_same_network,
    check_weights,
    iteration_of,
    newest_sound,
    read_checkpoint,
    write_checkpoint,
)
from tinygpt_pl.system.files import PARTIAL, sweep

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def smallest(**changes: Any) -> dict[str, Any]:
    """A mapping that passes for a checkpoint."""
    checkpoint: dict[str, Any] = {"format": FORMAT, **{name: kind() for name, kind in OURS.items()}}
    checkpoint["hyper_parameters"] = {name: kind() for name, kind in SETTINGS.items()}
    checkpoint["corpus"] = {name: kind() for name, kind in TEXT.items()}
    return checkpoint | changes


def test_what_is_written_is_read() -> None:
    state = {"weight": torch.randn(3, 2), "half": torch.ones(4, dtype=torch.bfloat16)}
    write_checkpoint(smallest(state_dict=state, config="a: 1"), Path("deep/x.ckpt"))
    checkpoint = read_checkpoint(Path("deep/x.ckpt"))
    assert checkpoint["config"] == "a: 1"
    for name, tensor in state.items():
        assert torch.equal(checkpoint["state_dict"][name], tensor)
    assert [path.name for path in Path("deep").iterdir()] == ["x.ckpt"]


def test_a_write_that_fails_leaves_the_old_file() -> None:
    write_checkpoint(smallest(config="old"), Path("x.ckpt"))
    with pytest.raises(AttributeError, match="pickle"):
        write_checkpoint(smallest(config=lambda: None), Path("x.ckpt"))
    assert read_checkpoint(Path("x.ckpt"))["config"] == "old"
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
            assert torch.equal(checkpoint["state_dict"]["weight"], torch.arange(3.0))
    assert refused > 50


@pytest.mark.parametrize("name", OURS)
def test_a_checkpoint_that_lacks_something_is_named(name: str) -> None:
    torch.save(smallest(**{name: None}), "x.ckpt")
    with pytest.raises(DamagedCheckpoint, match=f"x.ckpt is damaged: its {name} is no {OURS[name].__name__}"):
        read_checkpoint(Path("x.ckpt"))


def test_a_checkpoint_of_another_project_is_refused() -> None:
    torch.save({"model": {}}, "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is no checkpoint of a run of tinygpt_pl"):
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
    asked = GPTConfig(vocab_size=2, n_layer=2, dropout=0.1)
    stored = {"hyper_parameters": {"gpt": asdict(asked), "tokenizer": {"characters": "ab"}}}
    check_same_network(stored, replace(asked, dropout=0.3))
    del stored["hyper_parameters"]["gpt"]["activation"]  # as in a checkpoint from before there was a choice
    check_same_network(stored, asked)
    with pytest.raises(ValueError, match="n_layer is 2 in the checkpoint and 3 here"):
        check_same_network(stored, replace(asked, n_layer=3))
    with pytest.raises(DamagedCheckpoint, match="no network with its vocabulary"):
        check_same_network({"hyper_parameters": {"gpt": asdict(asked), "tokenizer": {"characters": "abc"}}}, asked)


def write_forever(path: str) -> None:
    for n in itertools.count():
        write_checkpoint({"n": n, "tensor": torch.full((200_000,), float(n))}, Path(path))


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
    assert len(re.findall(r"torch\.load\(", source)) == 1
