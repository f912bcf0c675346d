"""Runs on disk: folders, checkpoints, and how a run starts.

It imports the recipe, `text` and `system`; it starts without Lightning.
"""

from tinygpt_pl.runs.checkpoint import Checkpoint
from tinygpt_pl.runs.folder import RunFolder, find_checkpoint, newest_run
from tinygpt_pl.runs.start import Start

__all__ = ["Checkpoint", "RunFolder", "Start", "find_checkpoint", "newest_run"]
