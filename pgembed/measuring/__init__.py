"""What an index finds, and how fast: measured in the database.

========  =======================================================
file      what it is for
========  =======================================================
accuracy  ``recall``: a setting, measured against exact scans
tuning    ``tune``: the cheapest setting that reaches a recall
curve     ``sweep`` and ``plot``: recall against latency
sample    the queries to measure with: rows, vectors or texts
========  =======================================================
"""

from pgembed.measuring.accuracy import Latency, Recall, recall
from pgembed.measuring.curve import plot, sweep
from pgembed.measuring.tuning import Tuning, tune

__all__ = ["Latency", "Recall", "Tuning", "plot", "recall", "sweep", "tune"]
