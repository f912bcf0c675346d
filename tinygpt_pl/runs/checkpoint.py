"""How a checkpoint is written, whole or not at all, and read: as data, never as code."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from tinygpt_pl.gpt import GPT, GPTConfig, parameter_count
from tinygpt_pl.system.files import replacing
from tinygpt_pl.text.tokenizer import Tokenizer, tokenizer_from

FORMAT = 1
"""Counts up when files of the version before can no longer be read."""

OURS: dict[str, type] = {
    "state_dict": dict,  # weights
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,  # Lightning's counters
    "callbacks": dict,
    "hyper_parameters": dict,  # network, optimizer and vocabulary, as plain mappings
    "global_step": int,  # optimizer steps
    "config": str,  # all settings, as YAML
    "corpus": dict,  # name and SHA-256 of the text
    "windows_per_step": int,
    "evaluated": int,  # the optimizer step of the latest evaluation, -1 before the first
    "val_loss": float,  # of that evaluation, in nats per token
    "events": dict,  # length of each file of the curve, in bytes
}
"""What every checkpoint of a run holds, with its type; the rest is Lightning's."""

SETTINGS: dict[str, type] = {"gpt": dict, "optim": dict, "tokenizer": dict}
TEXT: dict[str, type] = {"name": str, "sha256": str}
"""The same of its hyper_parameters and its corpus."""


KINDS = get_type_hints(GPTConfig)
"""The types of a network's settings; what is one of several words has been checked by GPTConfig itself."""


ADAM, MUON = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)
"""What the two optimizers keep of each parameter, of its shape."""


class DamagedCheckpoint(ValueError):
    """A file that is not as it was written, or was never a checkpoint."""


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place, flush it to the disk, and put it there.

    Raises:
        OSError: if it cannot be written; what was at `path` is then still there.
    """
    with replacing(path) as file:
        try:
            torch.save(dict(checkpoint), file)
        except RuntimeError as error:  # torch's own complaint that something stopped a write: a full disk, a signal
            raise error.__context__ or error from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of this project; no code in it is ever run.

    Raises:
        DamagedCheckpoint: if its check sums do not fit, or it is no checkpoint at all.
        ValueError: if it is of another project, or of another version's format.
        OSError: if it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # torch's own reader looks at no check sum
            if damaged:
                raise DamagedCheckpoint(f"{path} is damaged: the check sum of {damaged} does not fit")
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except (DamagedCheckpoint, MemoryError):
            raise
        except Exception:  # these readers trip over bytes that are no checkpoint in any way they like
            raise DamagedCheckpoint(f"{path} is damaged or no checkpoint") from None
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters", "config"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of a run of tinygpt_pl")
    version = checkpoint.get("format", 0)
    if not isinstance(version, int) or version != FORMAT:
        raise ValueError(
            f"{path} has format {version}, but this version of tinygpt_pl reads format {FORMAT} alone; "
            "use the version that wrote it"
        )
    for where, kinds in ((), OURS), (("hyper_parameters",), SETTINGS), (("corpus",), TEXT):
        _check_types(path, where, kinds, checkpoint)
    _check_types(path, ("state_dict",), dict.fromkeys(checkpoint["state_dict"], Tensor), checkpoint)
    _check_types(path, ("events",), dict.fromkeys(checkpoint["events"], int), checkpoint)
    if min([checkpoint["global_step"], *checkpoint["events"].values()]) < 0:
        raise DamagedCheckpoint(f"{path} is damaged: it counts less than nothing")
    return checkpoint


def _check_types(path: Path, where: tuple[str, ...], kinds: Mapping[str, type], checkpoint: dict[str, Any]) -> None:
    found = checkpoint[where[0]] if where else checkpoint
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise DamagedCheckpoint(f"{path} is damaged: its {'.'.join((*where, str(name)))} is no {kind.__name__}")


def iteration_of(path: Path) -> int:
    """Optimizer steps of a checkpoint; -1 if it cannot be read."""
    try:
        return int(read_checkpoint(path)["global_step"])
    except (ValueError, OSError):
        return -1


def newest_sound(folder: Path) -> tuple[int, Path] | None:
    """The checkpoint in a folder with the most optimizer steps among those that can be read, and their number."""
    found = max(((iteration_of(path), path) for path in folder.glob("*.ckpt") if path.is_file()), default=(-1, folder))
    return found if found[0] >= 0 else None


def read_or_point(path: Path) -> dict[str, Any]:
    """`read_checkpoint` that names the newest sound checkpoint beside a damaged one.

    Raises:
        ValueError: as it does.
        OSError: as it does.
    """
    try:
        return read_checkpoint(path)
    except DamagedCheckpoint as error:
        sound = newest_sound(path.parent)
        way_out = f"; the newest sound one beside it is {sound[1]}, of iteration {sound[0]}" if sound else ""
        raise ValueError(f"{error}{way_out}") from None


def is_untrained(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds weights to start from and no run to go on with: one that was imported."""
    return not checkpoint["optimizer_states"] and checkpoint["global_step"] == 0


def stored_settings(checkpoint: Mapping[str, Any]) -> tuple[GPTConfig, Tokenizer]:
    """The network's shape and the tokenizer of a checkpoint.

    Raises:
        DamagedCheckpoint: if there are none, or one does not fit the other.
    """
    settings = checkpoint["hyper_parameters"]
    try:
        config, tokenizer = GPTConfig(**settings["gpt"]), tokenizer_from(settings["tokenizer"])
        sound = all(_fits(value, KINDS[name]) for name, value in asdict(config).items())
        size = tokenizer.vocab_size
    except (TypeError, AttributeError, KeyError):
        sound, size = False, -1
    if not sound or config.vocab_size != size:
        raise DamagedCheckpoint("the checkpoint is damaged: its hyper_parameters are no network with its vocabulary")
    return config, tokenizer


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    whole = int if float in (kind, *get_args(kind)) else kind  # a whole number is as good as one with a point
    return isinstance(value, kind | whole) and (kind is bool or not isinstance(value, bool))


def load_network(checkpoint: Mapping[str, Any]) -> tuple[GPT, Tokenizer]:
    """The network of a checkpoint in float32 and eval mode, and its tokenizer.

    Raises:
        DamagedCheckpoint: if the weights are not those of such a network.
    """
    config, tokenizer = stored_settings(checkpoint)
    weights = {str(name).removeprefix("gpt."): tensor for name, tensor in checkpoint["state_dict"].items()}
    asked, stored = parameter_count(config), sum(tensor.numel() for tensor in weights.values())
    if asked > 2 * stored:  # before memory is taken for it
        raise DamagedCheckpoint(
            f"the checkpoint is damaged: a network like it has {asked:,} parameters, not {stored:,}"
        )
    gpt = GPT(config)
    check_weights(weights, gpt.state_dict())
    gpt.load_state_dict(weights)
    return gpt.eval(), tokenizer


def check_same_network(checkpoint: Mapping[str, Any], gpt: GPTConfig) -> None:
    """Compare the network that is asked for with that of a checkpoint; dropout may differ.

    Raises:
        ValueError: naming each difference.
    """
    stored = asdict(stored_settings(checkpoint)[0])
    differences = [
        f"{name} is {stored[name]} in the checkpoint and {value} here"
        for name, value in asdict(gpt).items()
        if name not in ("dropout", "attn_dropout") and stored[name] != value
    ]
    if differences:
        raise ValueError("the checkpoint does not fit: " + "; ".join(differences))


def check_weights(stored: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> None:
    """Compare the names and shapes of a checkpoint's weights with those of the network that is to take them.

    Raises:
        DamagedCheckpoint: naming the first that differs, or holds something that is no number.
    """
    for name in sorted(stored.keys() | fresh.keys(), key=str):
        shapes = [list(weights[name].shape) if name in weights else None for weights in (stored, fresh)]
        if shapes[0] != shapes[1]:
            raise DamagedCheckpoint(
                f"the checkpoint is damaged: {name} has shape {shapes[0]} in it and {shapes[1]} in the network"
            )
        plain = stored[name].layout is torch.strided and not stored[name].is_meta
        if not (plain and stored[name].is_floating_point() and stored[name].isfinite().all()):
            raise DamagedCheckpoint(f"the checkpoint is damaged: {name} holds something that is no number")


def check_average(checkpoint: Mapping[str, Any], fresh: Mapping[str, Tensor]) -> None:
    """See that a checkpoint whose weights are an average has those that training goes on from, too.

    Raises:
        DamagedCheckpoint: if it has not.
    """
    weights, state = checkpoint.get("current_model_state"), checkpoint.get("averaging_state")
    count = state.get("n_averaged") if isinstance(state, dict) and len(state) == 1 else None
    counted = isinstance(count, Tensor) and not count.shape and count.dtype is torch.int64 and count.item() >= 0
    if not counted or not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise DamagedCheckpoint("the checkpoint is damaged: it lacks the weights beside their average")
    check_weights(weights, fresh)


def check_training_state(checkpoint: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """See that what a checkpoint holds besides the weights is of the same step, and of their shapes.

    A fused optimizer would read beyond the end of a state that is too small.

    Args:
        checkpoint: as it was read.
        groups: of the parameters, as the optimizer has them.

    Raises:
        DamagedCheckpoint: if it is not.
    """
    counter = "epoch_loop.automatic_optimization.optim_progress"
    try:
        (optimizer,), (schedule,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
        steps = checkpoint["loops"]["fit_loop"][counter]["optimizer"]["step"]["total"]["completed"]
        sound = bool(steps == schedule["last_epoch"] == checkpoint["global_step"])
        moments = [MUON if "rows" in group else ADAM for group in groups for _ in group["params"]]
        shapes = [p.shape for group in groups for p in group["params"]]
        for index in range(len(shapes) if sound and steps else 0):
            for name in moments[index]:
                moment = optimizer["state"][index][name]
                fits = moment.shape == shapes[index] and moment.is_floating_point()
                sound = sound and fits and bool(moment.isfinite().all())
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise DamagedCheckpoint("the checkpoint is damaged: its optimizer, schedule and counters do not fit together")
