"""Checkpoints as folders of Hugging Face transformers, and back.

It imports `gpt` of the recipe, `text`, `runs` and `system`; never `training`.
"""

from tinygpt_pl.exchange.huggingface import export_folder, import_folder

__all__ = ["export_folder", "import_folder"]
