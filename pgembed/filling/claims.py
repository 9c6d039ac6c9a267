"""What travels through the cycle: rows with their texts, then rows with their vectors."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import NamedTuple

from pgembed.columns import Array


class Row(NamedTuple):
    """A row in hand: its key, the text to encode, and the digest of what the text was made of.

    ``digest`` is ``None`` where there is no text, and so no vector; ``failed_before`` says that the text, as
    it stands, has failed before, ``bare`` that the row has no vector, not even an older one.
    """

    key: str
    digest: str | None
    text: str
    failed_before: bool = False
    bare: bool = True


@dataclass(frozen=True)
class Encoded:
    """Rows and their vectors, float32 ``(len(rows), d)``."""

    rows: list[Row]
    vectors: Array


@dataclass(frozen=True)
class Counts:
    """What a cycle has done so far.

    :ivar claimed: rows taken in hand.
    :ivar encoded: texts that were turned into vectors.
    :ivar written: rows that became fresh, those without a text included.
    :ivar left: rows whose text changed meanwhile, that are gone, or that somebody had locked for long.
    :ivar failed: rows that were set aside with an error.
    """

    claimed: int = 0
    encoded: int = 0
    written: int = 0
    left: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        """Rows that are no longer in hand."""
        return self.written + self.left + self.failed


class Counter:
    """Counts that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()

    def add(self, **numbers: int) -> Counts:
        """Add to the fields of that name; returns the new counts."""
        with self._lock:
            new = {name: getattr(self._counts, name) + number for name, number in numbers.items()}
            self._counts = replace(self._counts, **new)
            return self._counts

    @property
    def counts(self) -> Counts:
        """The counts now."""
        return self._counts
