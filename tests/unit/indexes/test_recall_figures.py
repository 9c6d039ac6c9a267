"""The arithmetic of recall: shares, ties, intervals."""

from __future__ import annotations

import numpy as np
import pytest

from pgembed.exc import QueryError
from pgembed.measuring.accuracy import interval, share_found


def test_shares() -> None:
    assert share_found([0.1, 0.2, 0.5], [0.1, 0.2, 0.3]) == pytest.approx(2 / 3)
    assert share_found([], [0.1]) == 0


def test_of_equally_far_rows_any_will_do() -> None:
    assert share_found([0.1, 0.3, 0.3], [0.1, 0.3, 0.3]) == 1
    assert share_found([0.3, 0.3, 0.3], [0.1, 0.2, 0.3]) == 1
    assert share_found([0.1, 0.3 + 1e-9], [0.1, 0.3]) == 1
    assert share_found([0.1, 0.3 + 1e-5], [0.1, 0.3]) == 0.5


def test_a_perfect_result_is_no_certainty() -> None:
    mean, low, high = interval([1.0] * 50, 10)
    assert (mean, high) == (1.0, pytest.approx(1.0))
    assert low == pytest.approx(0.9287, abs=1e-3)  # Wilson's interval of 50 out of 50


def test_the_mean_lies_in_its_interval() -> None:
    for queries in range(1, 300):
        for share in (0.0, 1.0):
            mean, low, high = interval([share] * queries, 10)
            assert low <= mean == share <= high


def test_independent_answers_give_wilsons_interval() -> None:
    """With one neighbour a query, each answer is independent: 80 of 100 is 0.711 to 0.867."""
    mean, low, high = interval([1.0] * 80 + [0.0] * 20, 1)
    assert (round(mean, 3), round(low, 3), round(high, 3)) == (0.8, 0.711, 0.867)


def test_neighbours_that_are_missed_together_widen_the_interval() -> None:
    together = interval([1.0] * 80 + [0.0] * 20, 10)
    apart = interval([0.8] * 99 + [0.79], 10)
    assert together[2] - together[1] > 2 * (apart[2] - apart[1])


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        chances = random.beta(18, 2, size=60)  # queries differ in difficulty; the mean is 0.9
        _, low, high = interval(list(random.binomial(10, chances) / 10), 10)
        held += low <= 0.9 <= high
    assert 0.91 <= held / 400 <= 0.99


def test_no_answers() -> None:
    with pytest.raises(QueryError, match="fewer than two vectors"):
        interval([], 10)
