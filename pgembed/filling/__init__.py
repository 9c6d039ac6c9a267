"""Filling embedding columns: the hooks of flushes and of bulk statements."""

from pgembed.filling import bulk as _bulk  # noqa: F401  (listens on import)
from pgembed.filling import flush as _flush  # noqa: F401  (listens on import)
