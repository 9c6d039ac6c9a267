"""Batches of similar lengths under a budget."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pgembed.encoders.onnx.feeds import batches


@given(st.lists(st.integers(0, 300), max_size=200), st.integers(1, 2000), st.sampled_from([0, 16, 5000]))
def test_every_text_once_within_budget(lengths: list[int], budget: int, overhead: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    found = list(batches(sizes, budget=budget, overhead=overhead))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    longest = [int(sizes[batch].max()) for batch in found]
    assert longest == sorted(longest, reverse=True)
    for batch in found:
        assert len(batch) == 1 or sizes[batch].max() * len(batch) <= budget


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.sampled_from([0, 3, 16, 100]))
def test_no_cheaper_division(lengths: list[int], overhead: int) -> None:
    """All ways to divide the sorted texts, against the one that was chosen."""
    falling = sorted(lengths, reverse=True)
    found = batches(np.array(lengths, dtype=np.int64), budget=10_000, overhead=overhead)
    cost = sum(overhead + max(lengths[index] for index in batch) * len(batch) for batch in found)
    possible = []
    for cuts in itertools.product([False, True], repeat=len(falling) - 1):
        starts = [0, *(index + 1 for index, cut in enumerate(cuts) if cut), len(falling)]
        possible.append(sum(overhead + falling[a] * (b - a) for a, b in itertools.pairwise(starts)))
    assert cost == min(possible)


def test_equal_lengths_fill_the_budget() -> None:
    assert [len(batch) for batch in batches(np.full(10, 100), budget=400, overhead=16)] == [4, 4, 2]
