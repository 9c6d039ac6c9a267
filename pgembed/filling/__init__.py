"""Filling embedding columns: the hooks of sessions, backfills and the worker.

=======================  ============================================================================
file                     what it is for
=======================  ============================================================================
flush, bulk, legacy      the hooks: objects of a flush, statements of the ORM, its old bulk methods
mapped, batch            what all hooks need: attributes of a class, one encoder batch
backfill, worker         the two that fill what no hook saw: once, and for ever
targets, registry        the columns to fill, from models or from the database's registry
cycle, channel           claim, encode, write: three threads, and what joins them
leases, statements       the claims, and all SQL of the cycle
encoding, batches, pace  batches sized by time; a bad row is found by bisection
writing, failures        short writes under the digest's guard; the rows that are set aside
listening                being woken by NOTIFY
heartbeat                what a health check reads: who is alive, and what waits
reembedding_plan         what a change of encoder will take
reembedding              where one stands, and whether searches may switch
cuts                     how many texts are longer than their encoder's limit, from a sample
transactions, tables     transactions that outlive a restart of the server; the tables in ``pgembed``
arrays                   many vectors as one parameter
=======================  ============================================================================
"""

from pgembed.filling import bulk as _bulk  # noqa: F401  (listens on import)
from pgembed.filling import flush as _flush  # noqa: F401  (listens on import)
from pgembed.filling import legacy as _legacy  # noqa: F401  (listens on import)
from pgembed.filling.backfill import Estimate, backfill, estimate
from pgembed.filling.batches import Counts
from pgembed.filling.cycle import Settings
from pgembed.filling.worker import Worker

__all__ = ["Counts", "Estimate", "Settings", "Worker", "backfill", "estimate"]
