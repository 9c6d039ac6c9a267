"""Filling embedding columns: backfills and the worker.

========================  ===========================================================================
file                      what it is for
========================  ===========================================================================
backfill, worker          the two that fill what no session's hook saw: once, and continuously
targets, registry         the columns to fill, from models or from the database's registry
cycle, channel            claim, encode, write: three threads, and what joins them
claims, leases            the rows of a cycle and its counts; the claims that other workers see
statements                all SQL of the cycle
bisection, pace           a bad row is found by bisection; batches are sized by time
writes, failures          short writes under the digest's guard; the rows that are set aside
listener                  being woken by NOTIFY
heartbeat                 what a health check reads: who is alive, and what waits
cuts                      how many texts are longer than their encoder's limit, from a sample
transactions, tables      transactions that outlive a restart of the server; the tables in ``pgembed``
arrays                    many vectors as one parameter
========================  ===========================================================================
"""

from pgembed.filling.backfill import Estimate, backfill, estimate
from pgembed.filling.claims import Counts
from pgembed.filling.cycle import Settings
from pgembed.filling.worker import Worker

__all__ = ["Counts", "Estimate", "Settings", "Worker", "backfill", "estimate"]
