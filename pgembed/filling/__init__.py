"""Filling embedding columns: the flush hook."""

from pgembed.filling import flush as _flush  # noqa: F401  (listens on import)
