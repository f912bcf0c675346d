"""Where runs and their checkpoints lie, and how a checkpoint is read: as data, never as code."""

import os
import re
from pathlib import Path
from typing import Any

import torch

LOGS = Path("lightning_logs")
"""Where runs are kept that are given no other folder."""

OURS = {"state_dict", "hyper_parameters", "global_step", "config", "val_loss"}
"""What every checkpoint of a run holds."""


def _versions() -> list[tuple[int, Path]]:
    found = ((re.fullmatch(r"version_(\d+)", path.name), path) for path in LOGS.glob("version_*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def new_run_dir() -> Path:
    """The next free lightning_logs/version_N; it is not created."""
    versions = _versions()
    return LOGS / f"version_{versions[-1][0] + 1 if versions else 0}"


def run_of(path: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, or None for a file that was moved out of one."""
    folder = path.absolute().parent
    return Path(os.path.relpath(folder.parent)) if folder.name == "checkpoints" else None


def find_checkpoint(ckpt_path: str, run_dir: Path | None = None) -> Path:
    """Turn `last`, `best` or a path into the path of a checkpoint that exists.

    Args:
        ckpt_path: `last` and `best` are those of `run_dir`; anything else is a path.
        run_dir: the newest run in lightning_logs if left out.

    Raises:
        ValueError: if there is no such checkpoint.
    """
    if ckpt_path not in ("last", "best"):
        path = Path(ckpt_path).expanduser()
        if not path.is_file():
            raise ValueError(f"no checkpoint {ckpt_path!r}: it has to be last, best or the path of a file")
        return path
    versions = _versions()
    if run_dir is None and not versions:
        raise ValueError(f"no {ckpt_path} checkpoint: there is no run in {LOGS.resolve()}; fit makes one")
    run = run_dir or versions[-1][1]
    path = run / "checkpoints" / f"{ckpt_path}.ckpt"
    if not path.is_file():
        others = [version for _, version in versions if (version / "checkpoints" / path.name).is_file()]
        way_out = f"the newest that has one is --run_dir {others[-1]}" if others else "give the path of one"
        raise ValueError(f"no {ckpt_path} checkpoint in {run}; {way_out}")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of this project; no code in it is ever run.

    Raises:
        ValueError: if it is none, or is damaged.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # torch's readers trip over bytes that are no checkpoint in any way they like
            raise ValueError(f"{path} is damaged or no checkpoint") from None
    if not isinstance(checkpoint, dict) or not OURS <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of a run of tinygpt_pl")
    return checkpoint


def check_same_network(checkpoint: dict[str, Any], gpt: dict[str, Any], characters: str) -> None:
    """Compare the network and the vocabulary that are asked for with those of a checkpoint; dropout may differ.

    Raises:
        ValueError: naming each difference.
    """
    stored = checkpoint["hyper_parameters"]
    differences = [
        f"{name} is {stored['gpt'][name]} in the checkpoint and {value} here"
        for name, value in gpt.items()
        if name != "dropout" and stored["gpt"][name] != value
    ]
    if not differences and stored["tokenizer"]["characters"] != characters:
        differences = ["the checkpoint was trained on a text with other characters"]
    if differences:
        raise ValueError("the checkpoint does not fit: " + "; ".join(differences))
