"""What the curve of a run tells: its history, findings, and the page about it.

It imports `optim` and `guards` of the recipe; never Lightning, never `training`.
"""

from tinygpt_pl.insight.diagnosis import Diagnosis, diagnose
from tinygpt_pl.insight.evidence import Finding
from tinygpt_pl.insight.history import History, read_history

__all__ = ["Diagnosis", "Finding", "History", "diagnose", "read_history"]
