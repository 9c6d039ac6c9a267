"""Filling embedding columns: backfills and the worker.

========================  ===========================================================================
file                      what it is for
========================  ===========================================================================
backfill, worker          the two that fill what no session's hook saw: once, and continuously
targets, registry         the columns to fill, from models or from the database's registry
named_models              models by name, as in ``app.models:Base``
cycle, flow               claim, encode, write: three threads, and what flows between them
leases                    the claims that other workers see
statements, sql           all SQL of the cycle; the tables in ``pgembed`` and expressions it is written with
bisection                 a bad row is found by bisection
parts, parts_statements   the same of parts of texts: split, encoded where their vector is not there
writes, failures          short writes under the digest's guard; the rows that are set aside
listener                  being woken by NOTIFY
heartbeat                 what a health check reads: who is alive, and what waits
frequencies               the statistics that searches by words rank by
cuts                      how many texts are longer than their encoder's limit, from a sample
transactions              transactions that outlive a restart of the server
========================  ===========================================================================
"""

from pgembed.filling.backfill import Estimate, backfill, estimate
from pgembed.filling.cycle import Settings
from pgembed.filling.flow import Counts
from pgembed.filling.frequencies import WordStatistics, refresh_words
from pgembed.filling.worker import Worker

__all__ = [
    "Counts",
    "Estimate",
    "Settings",
    "WordStatistics",
    "Worker",
    "backfill",
    "estimate",
    "refresh_words",
]
