"""A checkpoint: what its file holds; written whole or not at all, and read as data, never as code."""

import copy
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Literal,
    NotRequired,
    TypedDict,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import torch
from torch import Tensor

from tinygpt_pl.gpt import GPT, GPTConfig, parameter_count
from tinygpt_pl.system.files import replacing
from tinygpt_pl.text.tokenizer import Tokenizer, tokenizer_from

FORMAT = 1
"""Counts up when files of the version before can no longer be read."""


class Text(TypedDict):
    """The corpus that a run is trained on."""

    name: str
    sha256: str


class Settings(TypedDict):
    """The arguments of a TinyGPT, as plain mappings."""

    gpt: dict[str, Any]
    optim: dict[str, Any]
    tokenizer: dict[str, Any]


class Content(TypedDict):
    """What the file of a run's checkpoint holds; the rest is Lightning's."""

    state_dict: dict[str, Tensor]
    hyper_parameters: Settings
    global_step: int  # optimizer steps
    loops: dict[str, Any]  # Lightning's counters
    optimizer_states: list[Any]
    lr_schedulers: list[Any]
    callbacks: dict[str, Any]
    config: str  # all settings, as YAML
    corpus: Text
    windows_per_step: int
    evaluated: int  # the optimizer step of the latest evaluation, -1 before the first
    val_loss: float  # of that evaluation, in nats per token
    events: dict[str, int]  # length of each file of the curve, in bytes
    machine: NotRequired[dict[str, Any]]  # what rounding depends on; older files lack it
    module: NotRequired[str]  # name of its class, unless that is TinyGPT
    data: NotRequired[str]  # name of its class, unless that is TextDataModule


UNRECORDED: dict[str, Any] = {
    "optimizer_states": [],
    "lr_schedulers": [],
    "callbacks": {},
    "config": "",
    "corpus": {"name": "", "sha256": ""},
    "windows_per_step": 0,
    "evaluated": -1,
    "val_loss": math.nan,
    "events": {},
}
"""Values for the content that a checkpoint lacks if its Trainer had no callbacks of the recipe."""


class DamagedCheckpoint(ValueError):
    """A file that is not as it was written, or was never a checkpoint."""


@dataclass
class Checkpoint:
    """A checkpoint that has been read and checked: its model as objects, the rest as in its file."""

    path: Path
    written: int
    """When the file was written, in nanoseconds, as it was when it was read."""
    content: Content
    gpt: GPTConfig
    tokenizer: Tokenizer
    lacking: tuple[str, ...] = ()
    """Content that the file lacks; a run cannot resume without it."""

    @property
    def iteration(self) -> int:
        """Optimizer steps taken."""
        return self.content["global_step"]

    @property
    def untrained(self) -> bool:
        """Whether it holds weights to start from and no run to resume, as one that was imported."""
        return not self.content["optimizer_states"] and self.iteration == 0

    def hand_over(self) -> dict[str, Any]:
        """Give away all that the file held, and keep none of what takes memory."""
        content: dict[str, Any] = {**self.content}
        kept = {name: content[name] for name in get_type_hints(Content) if name in content}
        self.content = cast(Content, kept | {"state_dict": {}, "optimizer_states": []})
        return content


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place, flush it to the disk, and put it there.

    Raises:
        OSError: if it cannot be written; what was at `path` is then still there.
    """
    with replacing(path) as file:
        try:
            torch.save(_in_main_memory(dict(content)), file)
        except RuntimeError as error:  # torch's own complaint that something stopped a write: a full disk, a signal
            raise error.__context__ or error from None


def _in_main_memory(value: Any) -> Any:
    """A nested value with its tensors on the CPU, so that a machine without this one's device reads the file."""
    if isinstance(value, dict):
        moved = copy.copy(value)  # which keeps what a state dict notes of its modules
        moved.update((name, _in_main_memory(part)) for name, part in value.items())
        return moved
    if type(value) in (list, tuple):
        return type(value)(map(_in_main_memory, value))
    return value.cpu() if isinstance(value, Tensor) else value


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint of this project, after a look at its check sums; no code in it is ever run.

    Raises:
        DamagedCheckpoint: if it is not as it was written, or no checkpoint at all.
        ValueError: if it is of another project, or of another version's format.
        OSError: if it cannot be opened.
    """
    with path.open("rb") as file:
        written = os.fstat(file.fileno()).st_mtime_ns  # of this very file, should another take its place meanwhile
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # torch's own reader looks at no check sum
            if damaged:
                raise DamagedCheckpoint(f"{path} is damaged: the check sum of {damaged} does not fit")
            file.seek(0)
            content = _load(file)
        except (DamagedCheckpoint, MemoryError):
            raise
        except Exception:  # these readers trip over bytes that are no checkpoint in any way they like
            raise DamagedCheckpoint(f"{path} is damaged or no checkpoint") from None
    lacking = _check_origin(path, content)
    content |= {name: copy.copy(UNRECORDED[name]) for name in lacking}
    _check_types(path, content, Content)
    if min([content["global_step"], *content["events"].values()]) < 0:
        raise DamagedCheckpoint(f"{path} is damaged: it counts less than nothing")
    return Checkpoint(path, written, content, *_stored_model(content["hyper_parameters"]), lacking)


def _load(file: BinaryIO | Path, *, mmap: bool = False) -> Any:
    """The one place where a pickle is read, by torch's restricted reader."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def _check_origin(path: Path, content: Any) -> tuple[str, ...]:
    """Check that a file is a checkpoint of a TinyGPT, in a format that this version reads.

    Returns:
        The content that it lacks, if its Trainer had no callbacks of the recipe.
    """
    foreign = ValueError(f"{path} was not written by tinygpt_pl")
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise foreign
    if "config" in content:
        version = content.get("format", 0)
        if not isinstance(version, int) or version != FORMAT:
            raise ValueError(
                f"{path} has format {version}, but this version of tinygpt_pl reads format {FORMAT} alone; "
                "use the version that wrote it"
            )
        return ()
    arguments = content["hyper_parameters"]
    if not isinstance(arguments, dict) or not {"gpt", "tokenizer"} <= arguments.keys():
        raise foreign
    if arguments["tokenizer"] is None:
        raise ValueError(f"{path} has no vocabulary; build the model with TinyGPT.for_data(data)")
    return tuple(name for name in UNRECORDED if name not in content)


def _check_types(path: Path, found: Mapping[str, Any], layout: Any, where: str = "") -> None:
    """See that a mapping has what its layout names, with the types that it names."""
    for name, kind in get_type_hints(layout).items():
        if name not in found and name in layout.__optional_keys__:
            continue
        if is_typeddict(kind) and isinstance(found.get(name), dict):
            _check_types(path, found[name], kind, f"{where}{name}.")
        elif is_typeddict(kind) or not _fits(found.get(name), kind):
            raise DamagedCheckpoint(f"{path} is damaged: its {where}{name} is missing or of another type")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value has a type as annotations name it."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if origin is list:
        return isinstance(value, list)
    if origin is not None:
        return any(_fits(value, part) for part in parts)
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)  # a whole number serves as a float


def _stored_model(settings: Settings) -> tuple[GPTConfig, Tokenizer]:
    """The shape of the model and its tokenizer.

    Raises:
        DamagedCheckpoint: if there are none, or one does not fit the other.
    """
    try:
        config, tokenizer = GPTConfig(**settings["gpt"]), tokenizer_from(settings["tokenizer"])
        kinds = get_type_hints(GPTConfig)
        sound = all(_fits(value, kinds[name]) for name, value in asdict(config).items())
        size = tokenizer.vocab_size
    except (TypeError, AttributeError, KeyError):
        sound, size = False, -1
    if not sound or config.vocab_size != size:
        raise DamagedCheckpoint("the checkpoint is damaged: its hyper_parameters are no network with its vocabulary")
    return config, tokenizer


def peek(path: Path) -> tuple[int, float]:
    """Iteration and validation loss of a checkpoint, without reading its weights and so without their check sums.

    Raises:
        DamagedCheckpoint: if it is truncated or no checkpoint.
    """
    try:
        content = _load(path, mmap=True)  # weights stay on the disk
        return int(content["global_step"]), float(content["val_loss"])
    except MemoryError:
        raise
    except Exception:  # as in read_checkpoint: the readers trip over such bytes in any way they like
        raise DamagedCheckpoint(f"{path} is damaged or no checkpoint") from None


def iteration_of(path: Path) -> int:
    """Optimizer steps of a checkpoint; -1 if there is none that can be read."""
    try:
        return peek(path)[0]
    except DamagedCheckpoint:
        return -1


def newest_sound(folder: Path) -> tuple[int, Path] | None:
    """The checkpoint in a folder with the most optimizer steps among those that are not damaged, and their number."""
    sound = []
    for path in filter(Path.is_file, folder.glob("*.ckpt")):
        try:
            sound.append((read_checkpoint(path).iteration, path))
        except (ValueError, OSError):
            continue
    return max(sound, default=None)


def read_or_point(path: Path) -> Checkpoint:
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


def load_network(checkpoint: Checkpoint) -> tuple[GPT, Tokenizer]:
    """The model of a checkpoint in float32 and eval mode, and its tokenizer.

    Raises:
        DamagedCheckpoint: if the weights are not those of such a model.
    """
    state = checkpoint.content["state_dict"]
    weights = {name.removeprefix("gpt."): state[name] for name in state if name.startswith("gpt.")}
    asked, stored = parameter_count(checkpoint.gpt), sum(tensor.numel() for tensor in weights.values())
    if asked > 2 * stored:  # before memory is taken for it
        raise DamagedCheckpoint(
            f"the checkpoint is damaged: a network like it has {asked:,} parameters, not {stored:,}"
        )
    gpt = GPT(checkpoint.gpt)
    check_weights(weights, gpt.state_dict())
    gpt.load_state_dict(weights)
    return gpt.eval(), checkpoint.tokenizer


TRAINING_ONLY = {"dropout", "attn_dropout", "train_temperature"}
"""Settings of a model that change nothing in evaluation."""


def check_same_network(checkpoint: Checkpoint, gpt: GPTConfig) -> None:
    """Compare the model that is asked for with that of a checkpoint; what is for training alone may differ.

    Raises:
        ValueError: naming each difference.
    """
    stored = asdict(checkpoint.gpt)
    differences = [
        f"{name} is {stored[name]} in the checkpoint and {value} here"
        for name, value in asdict(gpt).items()
        if name not in TRAINING_ONLY and stored[name] != value
    ]
    if differences:
        raise ValueError("the checkpoint does not fit: " + "; ".join(differences))


def check_weights(stored: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> None:
    """Compare the names and shapes of a checkpoint's weights with those of the model that is to take them.

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
