"""Where checkpoints are looked for, and that a file is never run."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from tinygpt_pl.checkpoint import OURS, check_same_network, find_checkpoint, new_run_dir, read_checkpoint


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_runs_are_numbered() -> None:
    assert new_run_dir() == Path("lightning_logs/version_0")
    make("lightning_logs/version_9/config.yaml", "lightning_logs/version_10/config.yaml", "lightning_logs/version_x/a")
    assert new_run_dir() == Path("lightning_logs/version_11")


def test_last_and_best_are_those_of_the_newest_run() -> None:
    make(*(f"lightning_logs/version_{n}/checkpoints/{name}.ckpt" for n in (9, 10) for name in ("last", "best")))
    assert find_checkpoint("last") == Path("lightning_logs/version_10/checkpoints/last.ckpt")
    assert find_checkpoint("best") == Path("lightning_logs/version_10/checkpoints/best.ckpt")
    nine = Path("lightning_logs/version_9")
    assert find_checkpoint("last", nine) == nine / "checkpoints/last.ckpt"
    path = nine / "checkpoints/best.ckpt"
    assert find_checkpoint(str(path)) == path


def test_a_missing_checkpoint_is_never_a_start_from_scratch() -> None:
    with pytest.raises(ValueError, match="no last checkpoint: there is no run in"):
        find_checkpoint("last")
    make("lightning_logs/version_3/config.yaml")
    with pytest.raises(ValueError, match="no best checkpoint in lightning_logs/version_3; give the path of one"):
        find_checkpoint("best")
    make("lightning_logs/version_2/checkpoints/best.ckpt")
    with pytest.raises(ValueError, match="the newest that has one is --run_dir lightning_logs/version_2"):
        find_checkpoint("best")
    with pytest.raises(ValueError, match=r"no checkpoint 'x\.ckpt'"):
        find_checkpoint("x.ckpt")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_code_in_a_checkpoint_is_not_run() -> None:
    Path("bomb.ckpt").write_bytes(pickle.dumps(Bomb()))
    torch.save({**dict.fromkeys(OURS, ""), "config": Bomb()}, "zipped.ckpt")
    for name in ("bomb.ckpt", "zipped.ckpt"):
        with pytest.raises(ValueError, match="is damaged or no checkpoint"):
            read_checkpoint(Path(name))
    assert not Path("exploded").exists()
    os.system("touch exploded")
    assert Path("exploded").exists(), "the bomb would not have gone off anyway"


@pytest.mark.parametrize("length", [0, 1, 300, -1])
def test_a_damaged_checkpoint_is_named(length: int) -> None:
    torch.save(dict.fromkeys(OURS, ""), "whole.ckpt")
    assert read_checkpoint(Path("whole.ckpt"))["config"] == ""
    Path("part.ckpt").write_bytes(Path("whole.ckpt").read_bytes()[:length])
    with pytest.raises(ValueError, match=r"part\.ckpt is damaged or no checkpoint"):
        read_checkpoint(Path("part.ckpt"))


def test_a_checkpoint_of_another_project_is_refused() -> None:
    torch.save({"model": {}}, "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is no checkpoint of a run of tinygpt_pl"):
        read_checkpoint(Path("other.ckpt"))


def test_networks_are_compared_but_for_dropout() -> None:
    stored = {"hyper_parameters": {"gpt": {"n_layer": 2, "dropout": 0.1}, "tokenizer": {"characters": "ab"}}}
    check_same_network(stored, {"n_layer": 2, "dropout": 0.3}, "ab")
    with pytest.raises(ValueError, match="n_layer is 2 in the checkpoint and 3 here"):
        check_same_network(stored, {"n_layer": 3, "dropout": 0.1}, "ab")
    with pytest.raises(ValueError, match="a text with other characters"):
        check_same_network(stored, {"n_layer": 2, "dropout": 0.1}, "ac")
