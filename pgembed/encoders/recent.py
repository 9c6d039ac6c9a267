"""The vectors of recent queries, because people search for the same things."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from pgembed.encoders.runtime import Vectors


class RecentVectors:
    """A small memory of text to vector that forgets what was not asked for the longest.

    :param size: how many texts are remembered.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._vectors: OrderedDict[str, Vectors] = OrderedDict()

    def through(self, texts: list[str], encode: Callable[[list[str]], Vectors], dimensions: int) -> Vectors:
        """Vectors of ``texts``, of which only the unknown ones go to ``encode``.

        :returns: float32 of shape (texts, dimensions), the caller's own.
        """
        if not self._size:
            return encode(texts)
        result = np.empty((len(texts), dimensions), dtype=np.float32)
        missing = []
        with self._lock:
            for index, text in enumerate(texts):
                known = self._vectors.get(text)
                if known is None:
                    missing.append(index)
                else:
                    self._vectors.move_to_end(text)
                    result[index] = known
        if missing:
            result[missing] = encode([texts[index] for index in missing])
            with self._lock:
                for index in missing[-self._size :]:
                    self._vectors[texts[index]] = result[index].copy()
                while len(self._vectors) > self._size:
                    self._vectors.popitem(last=False)
        return result
