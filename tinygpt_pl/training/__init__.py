"""The Trainer of the recipe and its callbacks.

It imports everything but `exchange` and `commands`.
"""

from tinygpt_pl.training.recipe import RunConfig, recipe_callbacks
from tinygpt_pl.training.trainer import make_trainer

__all__ = ["RunConfig", "make_trainer", "recipe_callbacks"]
