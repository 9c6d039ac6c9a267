"""Batches of texts of nearly the same length, under a budget of tokens.

Padding is wasted work, so texts are sorted by their number of tokens and a batch ends where lengths begin to
differ. The budget bounds the memory of a batch, whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]


def batches(lengths: Lengths, *, budget: int, slack: float) -> Iterator[npt.NDArray[np.intp]]:
    """Indices into ``lengths``, batch by batch, the longest texts first.

    Longest first, so that memory is asked for once and reused by all that follows.

    :param budget: tokens of a batch, padding included; a single longer text is a batch of its own.
    :param slack: share of a batch's tokens that may be padding, 0 for equal lengths only.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        end = start + max(budget // longest, 1)
        shortest = longest * (1.0 - slack)
        # `order` falls, so the texts that are long enough are a prefix of what is left.
        enough = np.searchsorted(-lengths[order[start:end]], -shortest, side="right")
        size = max(int(enough), 1)
        yield order[start : start + size]
        start += size
