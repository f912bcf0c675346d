"""Settings that are left to the machine: what each becomes here, beside what it was in the run before."""

from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import Namespace

from tinygpt_pl.system.machine import device_type
from tinygpt_pl.training.trainer import choose_precision

NAMES = ("trainer.accelerator", "trainer.devices", "trainer.precision", "compile")
"""Settings that may be `auto`, each after those that it depends on."""


def settle(
    config: Namespace, names: Sequence[str], words: Sequence[str], source: Namespace, device: str | None, kind: str
) -> list[str]:
    """Put what this machine makes of it in the place of each `auto`, and the names of those into `config.auto`.

    What it was before stays where this machine does it natively. A run that resumes or is scored on another device is
    not bound to it.

    Args:
        config: the settings, changed in place.
        names: of those that matter, out of NAMES.
        words: of the command line; what is given there is no longer left to the machine.
        source: the settings of the run before, or those of a config.yaml that is run again.
        device: the kind of device that the run had so far; None if it is run again from its beginning.
        kind: the kind of device that `trainer.accelerator` is, if it is not left to the machine.

    Returns:
        A note for each that is another than before, or that this machine cannot do.
    """
    before = {name: source[name] for name in names if name in (source.auto or ()) and source[name] != "auto"}
    given = {word.split("=")[0].removeprefix("--") for word in words}
    left, notes = [], []
    for name in names:
        old = before.get(name)
        if config[name] != "auto" and not (name in (config.auto or ()) and name not in given and config[name] == old):
            continue
        left.append(name)
        here = _choice(name, kind)
        bound = device is None or (device == kind and name != "trainer.accelerator")
        keeps = old is not None and bound and _is_native(name, old, here, kind)
        config[name] = value = old if keeps else here
        kind = str(value) if name == "trainer.accelerator" else kind
        if old is None:
            notes.append(_missing(name, value, kind))
        elif value != old:
            notes.append(f"NOTE: {name} is left to the machine: {value} here, {old} in the run before")
        elif value != here:
            notes.append(f"NOTE: {name} is {value}, as in the run before; --{name} auto takes {here}")
    config.auto = left or None
    return notes


def _choice(name: str, kind: str) -> Any:
    """What a setting becomes on a kind of device."""
    if name == "trainer.accelerator":
        return device_type("auto")
    if name == "trainer.devices":
        return torch.cuda.device_count() if kind == "cuda" else 1
    return choose_precision("auto", kind) if name == "trainer.precision" else kind == "cuda"


def _is_native(name: str, old: Any, here: Any, kind: str) -> bool:
    """Whether this machine does what a setting was before as fast as anything; `here` is what it would become."""
    if name == "trainer.devices":
        return isinstance(old, int) and old <= here
    return old in (here, "cpu", "32-true", False) or (old == "16-mixed" and kind == "cuda")


def _missing(name: str, value: Any, kind: str) -> str:
    """What is to be said of a new run, if this machine lacks what `auto` stands for."""
    if name == "trainer.precision" and value != "bf16-mixed":
        words = "float16" if value == "16-mixed" else "float32"
        return f"NOTE: {words}, since this {kind} has no instructions for bfloat16"
    return f"NOTE: not compiled, since that does not pay on a {kind}" if name == "compile" and not value else ""
