"""The settings of a run as its config.yaml has them, also of one that a script has put together."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import yaml

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.runs.folder import MARK


def written_down(run: Mapping[str, Any], module: TinyGPT, data: TextDataModule, trainer: Mapping[str, Any]) -> str:
    """The config.yaml of a run that a script has put together; an object, such as a callback, is null in it.

    Args:
        run: those of the run as a whole.
        module: the model.
        data: the text, set up.
        trainer: the arguments of `make_trainer`.
    """
    gpt = asdict(module.gpt.config)
    gpt.pop("vocab_size")
    own = {name: value for name, value in module.hparams.items() if name not in ("gpt", "optim", "tokenizer")}
    text = {name: value for name, value in data.arguments.items() if name not in ("block_size", "seed", "known")}
    settings = {
        **run,
        "init_from": None,
        "model": {**_plain(own), "gpt": gpt, "optim": _plain(asdict(module.optim))},
        "data": {**_plain(text), "corpus": data.corpus_place},
        "trainer": _plain(trainer),
    }
    return heading(data.offline_notice) + yaml.safe_dump(settings, sort_keys=False)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that YAML has words for, and null for any other."""
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain_value(part) for part in value]
    return value if isinstance(value, str | int | float | None) else None


def heading(notice: str) -> str:
    """The first lines of a config.yaml: which versions wrote it, and a notice if there is one."""
    versions = "".join(f", {name} {version(name)}" for name in ("torch", "lightning"))
    return f"{MARK}{version('tinygpt_pl')}{versions}\n" + (f"# {notice}\n" if notice else "")
