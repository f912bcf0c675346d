"""A small GPT, trained as the field does it, on PyTorch Lightning."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinygpt_pl.data import TextDataModule as TextDataModule
    from tinygpt_pl.generation.ensemble import Ensemble as Ensemble
    from tinygpt_pl.generation.sampling import generate as generate
    from tinygpt_pl.gpt import GPT as GPT
    from tinygpt_pl.gpt import GPTConfig as GPTConfig
    from tinygpt_pl.module import TinyGPT as TinyGPT
    from tinygpt_pl.optim import OptimConfig as OptimConfig
    from tinygpt_pl.optim import warmup_cosine as warmup_cosine
    from tinygpt_pl.text.tokenizer import CharTokenizer as CharTokenizer
    from tinygpt_pl.training.recipe import RunConfig as RunConfig
    from tinygpt_pl.training.recipe import recipe_callbacks as recipe_callbacks
    from tinygpt_pl.training.trainer import make_trainer as make_trainer

__version__ = version("tinygpt_pl")

_MODULES = {
    "CharTokenizer": "text.tokenizer",
    "Ensemble": "generation.ensemble",
    "GPT": "gpt",
    "GPTConfig": "gpt",
    "OptimConfig": "optim",
    "RunConfig": "training.recipe",
    "TextDataModule": "data",
    "TinyGPT": "module",
    "generate": "generation.sampling",
    "make_trainer": "training.trainer",
    "recipe_callbacks": "training.recipe",
    "warmup_cosine": "optim",
}
__all__ = list(_MODULES)  # each public name is written once


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the model alone starts without Lightning."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, those that have not been imported yet as well."""
    return sorted(["__version__", *_MODULES])
