"""Filling embedding columns: the hooks of flushes and of bulk statements, backfills and the worker."""

from pgembed.filling import bulk as _bulk  # noqa: F401  (listens on import)
from pgembed.filling import flush as _flush  # noqa: F401  (listens on import)
from pgembed.filling.backfill import Estimate, backfill, estimate
from pgembed.filling.batches import Counts
from pgembed.filling.cycle import Settings
from pgembed.filling.worker import Worker

__all__ = ["Counts", "Estimate", "Settings", "Worker", "backfill", "estimate"]
