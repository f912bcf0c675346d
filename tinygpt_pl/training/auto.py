"""Settings that are left to the machine: what each becomes here, beside what it was in the run before."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jsonargparse import Namespace

from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.system.machine import device_type, keep_freed_memory
from tinygpt_pl.training.trainer import choose_precision

NAMES = ("trainer.accelerator", "trainer.devices", "trainer.precision", "compile")
"""Settings that may be `auto`, each after those that it depends on."""

LARGE = 512
"""Channels from which on products are most of a step, so that there is nothing to measure."""

WIDE = 256
"""Channels from which on a network is compiled on a processor: with 384 a step gained a quarter, with 128 nothing."""


def settle(
    config: Namespace,
    gpt: GPTConfig,
    names: Sequence[str],
    words: Sequence[str],
    source: Namespace,
    device: str | None,
    kind: str,
) -> list[str]:
    """Put what this machine makes of it in the place of each `auto`, and the names of those into `config.auto`.

    What it was before stays where this machine does it natively. A run that resumes or is scored on another device is
    not bound to it.

    Args:
        config: the settings, changed in place.
        gpt: the shape of the network among them.
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
        bound = device is None or (device == kind and name != "trainer.accelerator")
        keeps = old is not None and bound and _is_native(name, old, kind, config)
        config[name] = value = old if keeps else _choice(name, kind, config, gpt)
        kind = str(value) if name == "trainer.accelerator" else kind
        if old is None:
            notes.append(_missing(name, value, kind))
        elif value != old:
            notes.append(f"NOTE: {name} is left to the machine: {value} here, {old} in the run before")
        elif value != _native(name, kind, config) and value != (here := _choice(name, kind, config, gpt)):
            notes.append(f"NOTE: {name} is {value}, as in the run before; --{name} auto takes {here}")
    config.auto = left or None
    return notes


def _native(name: str, kind: str, config: Namespace) -> Any:
    """What a kind of device does as fast as anything, whatever the network; the settings before `name` are settled."""
    if name == "trainer.accelerator":
        return device_type("auto")
    if name == "trainer.devices":
        return torch.cuda.device_count() if kind == "cuda" else 1
    if name == "trainer.precision":
        return choose_precision("auto", kind)
    # On a CPU, float32 products leave too little of a step to all else, and with dropout in attention a compiled step
    # was no faster than a plain one (docs/speed.md).
    gpt = config.model.gpt
    dropped = gpt.dropout if gpt.attn_dropout is None else gpt.attn_dropout
    pays = config.trainer.precision == "bf16-mixed" and gpt.n_embd >= WIDE and not dropped
    return kind == "cuda" or (kind == "cpu" and pays)


def _choice(name: str, kind: str, config: Namespace, gpt: GPTConfig) -> Any:
    """What a setting becomes on a kind of device."""
    native = _native(name, kind, config)
    if (native, kind) == ("bf16-mixed", "cpu") and not bfloat16_pays(gpt, config.data.batch_size):
        return "32-true"
    return native


def _is_native(name: str, old: Any, kind: str, config: Namespace) -> bool:
    """Whether this machine does what a setting was before as fast as anything."""
    native = _native(name, kind, config)
    if name == "trainer.devices":
        return isinstance(old, int) and old <= native
    return old in (native, "cpu", "32-true", False) or (old == "16-mixed" and kind == "cuda")


def bfloat16_pays(gpt: GPTConfig, windows: int) -> bool:
    """Whether a block of this shape trains faster in bfloat16 than in float32 on this processor, by a tenth or more.

    Products are faster where there are instructions for bfloat16; but in a small network turning numbers into bfloat16
    and back takes longer than that saves. Both take turns on at most 2048 tokens, a second or two in all.
    """
    if gpt.n_embd >= LARGE:
        return True
    T = min(gpt.block_size, 1024)
    keep_freed_memory()  # as the run will
    with torch.random.fork_rng(devices=[]):
        network = GPT(replace(gpt, n_layer=1, vocab_size=2, block_size=T)).train()
        idx = torch.zeros(max(1, min(windows, 2048 // T)), T, dtype=torch.int64)  # (B, T)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(5):
            for half in seconds:
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    _, loss = network(idx, idx)
                loss.backward()
                seconds[half].append(time.perf_counter() - start)
    return min(seconds[True]) < 0.9 * min(seconds[False])


def _missing(name: str, value: Any, kind: str) -> str:
    """What is to be said of a new run, if this machine lacks what `auto` stands for."""
    if name == "trainer.precision" and value != "bf16-mixed":
        words = "float16" if value == "16-mixed" else "float32"
        if choose_precision("auto", kind) == "bf16-mixed":
            return f"NOTE: {words}, since a network of this size is no faster in bfloat16 on this {kind}"
        return f"NOTE: {words}, since this {kind} has no instructions for bfloat16"
    if name == "compile" and not value:
        where = f" in float32, with fewer than {WIDE} channels or with dropout in attention" if kind == "cpu" else ""
        return f"NOTE: not compiled, since that does not pay on a {kind}{where}"
    return ""
