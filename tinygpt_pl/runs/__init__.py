"""Runs on disk: folders, checkpoints, and how a run starts.

It imports the recipe, `text` and `system`; it starts without Lightning.
"""

from tinygpt_pl.runs.folder import RunFolder, find_checkpoint, newest_run

__all__ = ["RunFolder", "find_checkpoint", "newest_run"]
