"""A bounded queue between two threads that either end can close."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Closed(Exception):  # noqa: N818  (no error: the other end has nothing more, or wants nothing more)
    """The channel is closed, and for a reader also empty."""


class Channel(Generic[_T]):
    """At most ``size`` items wait in it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[_T] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: _T) -> None:
        """Hand over an item, once there is room.

        :raises Closed: nobody will take it.
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
