"""Batches of texts of like length, under a budget of tokens.

Padding is wasted work, and so is every further batch: it reads all weights again and wakes all threads. What
a batch costs beyond its tokens is stated in tokens, and texts, sorted by length, are divided where that makes
the sum of both least. The budget bounds the memory of a batch, whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]


def batches(lengths: Lengths, *, budget: int, overhead: int) -> Iterator[npt.NDArray[np.intp]]:
    """Indices into ``lengths``, batch by batch, the longest texts first.

    Longest first, so that memory is asked for once and reused by all that follows.

    :param budget: tokens of a batch, padding included; a single longer text is a batch of its own.
    :param overhead: what a batch costs beyond its tokens, as a number of tokens.
    """
    if len(lengths) == 1:  # a query, whose time counts
        yield np.zeros(1, dtype=np.intp)
        return
    order = np.argsort(-lengths, kind="stable")
    falling = np.maximum(lengths[order], 1)
    for start, end in _groups(falling, budget, overhead):
        rows = max(budget // int(falling[start]), 1)
        for first in range(start, end, rows):
            yield order[first : min(first + rows, end)]


def _groups(falling: Lengths, budget: int, overhead: int) -> list[tuple[int, int]]:
    """Where to divide: the cheapest way to pad the texts of each group to its first.

    The cheapest way for all texts is the cheapest way for the longer ones, and one group more.
    """
    borders = np.flatnonzero(np.diff(falling, prepend=0, append=0))
    longest = falling[borders[:-1]]
    least = np.zeros(len(borders))
    last = np.zeros(len(borders), dtype=np.intp)
    for end in range(1, len(borders)):
        tokens = longest[:end] * (borders[end] - borders[:end])
        cost = least[:end] + tokens + overhead * -(-tokens // budget)
        last[end] = cost.argmin()
        least[end] = cost[last[end]]
    groups = []
    end = len(borders) - 1
    while end > 0:
        groups.append((int(borders[last[end]]), int(borders[end])))
        end = int(last[end])
    return groups[::-1]
