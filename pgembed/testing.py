"""For the tests of applications: an encoder without weights, and tables on databases without vectors.

::

    from pgembed.testing import HashEncoder

    encoder = HashEncoder(dimensions=16)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pgembed.columns import Array
from pgembed.columns.types import TEXT_DIALECTS


def allow_dialect(name: str) -> None:
    """Let ``create_all`` create embedding columns on another database than Postgres, for this process.

    Tests that only need all tables to exist can so go on using SQLite. Flushes fill the columns as they do
    on Postgres, and vectors, stored as text, load as arrays; there are no pending indexes, and searches are
    refused.

    :param name: what SQLAlchemy calls the dialect, such as ``"sqlite"``.
    """
    TEXT_DIALECTS.add(name)


class HashEncoder:
    """A deterministic encoder: every word has a pseudo-random direction, a text is their normalised sum.

    Texts that share words are near each other, equal texts are equal, and nothing is read from disk.
    ``calls`` holds the batches that were asked for, as tuples of texts.

    :param dimensions: length of the vectors.
    :param name: what statements and ``pgembed.status`` call it; part of the fingerprint.
    """

    def __init__(self, dimensions: int = 8, name: str = "hash") -> None:
        self.name = name
        self.dimensions = dimensions
        self.fingerprint = hashlib.sha256(f"{name}/{dimensions}".encode()).hexdigest()
        self.calls: list[tuple[str, ...]] = []

    def __repr__(self) -> str:
        return f"HashEncoder(dimensions={self.dimensions}, name={self.name!r})"

    def encode_documents(self, texts: Sequence[str]) -> Array:
        """Vectors of the texts, float32 ``(n, dimensions)`` of length one."""
        self.calls.append(tuple(texts))
        return np.array([self._vector(text) for text in texts], dtype=np.float32).reshape(-1, self.dimensions)

    def encode_queries(self, texts: Sequence[str]) -> Array:
        """The same as :meth:`encode_documents`: queries and documents share one space."""
        return self.encode_documents(texts)

    def _vector(self, text: str) -> Array:
        total = np.zeros(self.dimensions)
        for word in text.lower().split() or [text]:
            seed = int.from_bytes(hashlib.blake2b(f"{self.name} {word}".encode(), digest_size=8).digest())
            total += np.random.default_rng(seed).standard_normal(self.dimensions)
        return (total / np.linalg.norm(total)).astype(np.float32)
