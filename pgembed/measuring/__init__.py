"""What an index finds, and how fast, and how good labels by neighbours are: measured in the database.

==========  =======================================================
file        what it is for
==========  =======================================================
accuracy    ``recall``: a setting, measured against exact scans
tuning      ``tune``: the cheapest setting that reaches a recall
curve       ``sweep`` and ``plot``: recall against latency
evaluation  ``evaluate``: labels compared with those that are known
sample      the queries to measure with: rows, vectors or texts
==========  =======================================================
"""

from pgembed.measuring.accuracy import Latency, Recall, recall
from pgembed.measuring.curve import plot, sweep
from pgembed.measuring.evaluation import Evaluation, evaluate
from pgembed.measuring.tuning import Tuning, tune

__all__ = ["Evaluation", "Latency", "Recall", "Tuning", "evaluate", "plot", "recall", "sweep", "tune"]
