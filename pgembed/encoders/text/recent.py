"""The vectors of recent queries, because people search for the same things."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from pgembed.encoders.backend import Counts, Vectors

Encode = Callable[[list[str]], tuple[Vectors, Counts]]


class RecentVectors:
    """A small memory of text to vector that forgets what was not asked for the longest.

    :param size: how many texts are remembered.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Vectors, int]] = OrderedDict()

    def through(self, texts: list[str], encode: Encode, dimensions: int) -> tuple[Vectors, Counts]:
        """Vectors of ``texts`` and their numbers of tokens; only the unknown ones go to ``encode``.

        :returns: float32 of shape (texts, dimensions) and int64 of shape (texts), the caller's own.
        """
        if not self._size:
            return encode(texts)
        vectors = np.empty((len(texts), dimensions), dtype=np.float32)
        counts = np.empty(len(texts), dtype=np.int64)
        missing = []
        with self._lock:
            for index, text in enumerate(texts):
                known = self._known.get(text)
                if known is None:
                    missing.append(index)
                else:
                    self._known.move_to_end(text)
                    vectors[index], counts[index] = known
        if missing:
            vectors[missing], counts[missing] = encode([texts[index] for index in missing])
            with self._lock:
                for index in missing[-self._size :]:
                    self._known[texts[index]] = vectors[index].copy(), int(counts[index])
                while len(self._known) > self._size:
                    self._known.popitem(last=False)
        return vectors, counts
