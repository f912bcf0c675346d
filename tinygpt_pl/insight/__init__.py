"""A run's curve: its history, the findings of its diagnosis, and a page with charts.

It imports `optim` and `guards` of the recipe; never Lightning, never `training`.
"""

from tinygpt_pl.insight.diagnosis import Diagnosis, diagnose
from tinygpt_pl.insight.evidence import Finding
from tinygpt_pl.insight.history import History, read_history

__all__ = ["Diagnosis", "Finding", "History", "diagnose", "read_history"]
