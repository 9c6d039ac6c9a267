"""What the threads of a cycle share: rows with texts and vectors, their number, counts, queues."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from pgembed.columns import Array
from pgembed.parts import Cut

_T = TypeVar("_T")


class Row(NamedTuple):
    """A claimed row: its key, the text to encode, and the digest of its sources.

    ``digest`` is ``None`` where there is no text, and so no vector; ``failed_before`` says that this text has
    failed before, ``bare`` that the row has no vector, not even a stale one. A row with parts has the
    ``texts`` of its sources instead, and once they are split ``cuts``, the parts that it should have.
    """

    key: str
    digest: str | None
    text: str
    failed_before: bool = False
    bare: bool = True
    texts: tuple[str | None, ...] = ()
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class EncodedRows:
    """Rows and their vectors, float32 ``(len(rows), d)``; of rows with parts those that were encoded, by the
    digest of the part."""

    rows: list[Row]
    vectors: Array


@dataclass(frozen=True)
class Counts:
    """What a cycle has done so far.

    :ivar claimed: rows that were claimed.
    :ivar encoded: texts that were turned into vectors.
    :ivar written: rows that became fresh, those without a text included.
    :ivar left: rows whose text changed meanwhile, that are gone, or that stayed locked.
    :ivar failed: rows that were set aside with an error.
    """

    claimed: int = 0
    encoded: int = 0
    written: int = 0
    left: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        """Rows that are no longer claimed."""
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


class Pace:
    """How many rows make a piece of work of about ``seconds``.

    It is measured, because neither encoders nor indexes tell their speed.

    :param seconds: what one piece should take.
    :param start: rows of the first piece.
    :param largest: rows of a piece at most.
    :param growth: how many times larger the next piece may be; it can shrink to a fifth.
    """

    def __init__(self, seconds: float, *, start: int, largest: int, growth: float = 2.0) -> None:
        self._seconds = seconds
        self._largest = largest
        self._growth = growth
        self.rows = min(start, largest)

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a piece of work that is done."""
        factor = min(max(self._seconds / max(seconds, 1e-6), 0.2), self._growth)
        # A piece much smaller than allowed says little about large ones.
        if factor < 1 or rows * 2 > self.rows:
            self.rows = min(max(int(rows * factor), 1), self._largest)


class Closed(Exception):  # noqa: N818  (no error: the other end has nothing more, or wants nothing more)
    """The channel is closed, and for a reader empty as well."""


class Channel(Generic[_T]):
    """A queue between two threads that either end can close; at most ``size`` items wait in it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[_T] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: _T) -> None:
        """Hand over an item, once there is room.

        :raises Closed: the reader has closed the channel.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> _T | None:
        """The next item, or ``None`` when none came within ``timeout`` seconds.

        :raises Closed: there are no more.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._items:
                if self._closed:
                    raise Closed
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, *, discard: bool = False) -> None:
        """Let writers stop now, and readers once it is empty; ``discard`` empties it."""
        with self._changed:
            self._closed = True
            if discard:
                self._items.clear()
            self._changed.notify_all()
