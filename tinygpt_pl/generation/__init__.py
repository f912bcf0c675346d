"""Text drawn from a model, one token after another.

It imports `gpt` of the recipe; never `text`: it draws token ids, and whoever wants text hands in `decode`.
"""

from tinygpt_pl.generation.ensemble import Ensemble
from tinygpt_pl.generation.sampling import SamplingConfig, generate, stream

__all__ = ["Ensemble", "SamplingConfig", "generate", "stream"]
