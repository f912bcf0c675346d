"""The text of config.yaml, for runs started from Python."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import yaml

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.module import TinyGPT
from tinygpt_pl.runs.folder import MARK


def written_down(run: Mapping[str, Any], module: TinyGPT, data: TextDataModule, trainer: Mapping[str, Any]) -> str:
    """Write all settings of a run started from Python as YAML; objects such as callbacks become null.

    Args:
        run: the fields of RunConfig.
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
    """Keep plain values, and replace others by None."""
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain_value(part) for part in value]
    return value if isinstance(value, str | int | float | None) else None


def heading(notice: str) -> str:
    """The first lines of config.yaml: the versions that wrote it, and a notice if there is one."""
    versions = "".join(f", {name} {version(name)}" for name in ("torch", "lightning"))
    return f"{MARK}{version('tinygpt_pl')}{versions}\n" + (f"# {notice}\n" if notice else "")
