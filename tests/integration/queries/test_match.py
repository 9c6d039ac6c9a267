"""match: mutual nearest neighbours of two lists and their margins, as brute force finds them."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import text

from pgembed import HNSW
from pgembed.exc import DimensionMismatchError, QueryError
from pgembed.queries import match
from tests.integration.queries.conftest import store
from tests.integration.queries.test_copies_and_tables import cosines
from tests.integration.queries.test_duplicates import kinds, table_of


@pytest.fixture(params=[False, True], ids=["compared", "index"])
def lists(request, engine):
    """150 and 130 rows, of which 100 are the same things; zeros on both sides, and a row near to many."""
    rng = np.random.default_rng(11)
    left = rng.standard_normal((150, 16)).astype(np.float32)
    right = rng.standard_normal((130, 16)).astype(np.float32)
    right[:100] = left[99::-1] + 0.5 * rng.standard_normal((100, 16))
    right[120] = left[:100].mean(axis=0)
    left[140] = right[125] = 0
    tables = [
        table_of(16, *([HNSW("vector", build="immediate")] if request.param else []), name=name)
        for name in ("one", "two")
    ]
    for table, vectors in zip(tables, (left, right), strict=True):
        store(engine, table, vectors, kinds)
    return tables, cosines(left, right)


def best_of(scores, k, value, keep_left, keep_right):
    """The best of each row and of each column, and the scores and margins of all pairs."""
    rows = [n for n in range(scores.shape[0]) if keep_left(n) and not np.isnan(scores[n]).all()]
    columns = [n for n in range(scores.shape[1]) if keep_right(n) and not np.isnan(scores[:, n]).all()]
    scores = scores[np.ix_(rows, columns)]
    mean = np.sort(scores, axis=1)[:, -k:].mean(axis=1)[:, None] + np.sort(scores, axis=0)[-k:].mean(axis=0)
    margins = scores / (mean / 2)
    candidates = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(candidates, np.argsort(-scores, axis=1)[:, :k], True, axis=1)
    np.put_along_axis(candidates, np.argsort(-scores, axis=0)[:k], True, axis=0)
    worth = np.where(candidates, margins if value == "margin" else scores, -np.inf)
    found = {}
    for place, row in enumerate(rows):
        column = int(worth[place].argmax())
        mutual = int(worth[:, column].argmax()) == place
        found[row, columns[column]] = (mutual, scores[place, column], margins[place, column])
    return found


@pytest.mark.parametrize("one_to_one", [True, False])
@pytest.mark.parametrize("margin", [None, 1.2])
def test_matches_are_the_best_of_each_other(engine, lists, one_to_one, margin):
    (one, two), scores = lists
    with engine.connect() as connection:
        rows = connection.execute(
            match(one.c.vector, two.c.vector, one_to_one=one_to_one, min_score=0.4, margin=margin)
        ).all()
    expected = {
        pair: (score, ratio)
        for pair, (mutual, score, ratio) in best_of(
            scores, 4, "margin" if margin else "score", lambda _: True, lambda _: True
        ).items()
        if (mutual or not one_to_one) and score >= 0.4 and (margin is None or ratio >= margin)
    }
    assert {(row.left_key, row.right_key) for row in rows} == set(expected)
    assert len(rows) == len(expected) > 50
    for row in rows:
        assert (row.score, row.margin) == pytest.approx(expected[row.left_key, row.right_key], abs=1e-5)
    order = [row.margin if margin else row.score for row in rows]
    assert order == sorted(order, reverse=True)
    if one_to_one:
        assert len({row.left_key for row in rows}) == len({row.right_key for row in rows}) == len(rows)
    right = [row for row in rows if row.left_key + row.right_key == 99]
    assert len(right) > 0.9 * len([row for row in rows if row.left_key < 100])


def test_each_list_has_its_own_conditions(engine, lists):
    (one, two), scores = lists
    with engine.connect() as connection:
        rows = connection.execute(
            match(one.c.vector, two.c.vector, k=2, where=one.c.kind != 1, right_where=two.c.id < 90)
        ).all()
    expected = best_of(scores, 2, "score", lambda n: n % 3 != 1, lambda n: n < 90)
    assert {(row.left_key, row.right_key) for row in rows} == {
        pair for pair, (mutual, *_) in expected.items() if mutual
    }


@pytest.mark.parametrize("lists", [True], indirect=True)
def test_the_indexes_of_both_lists_are_asked(engine, lists, explain):
    (one, two), _ = lists
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL enable_sort = off"))
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = explain(connection, match(one.c.vector, two.c.vector))
    assert "Index Scan using ix_one_vector_hnsw" in plan
    assert "Index Scan using ix_two_vector_hnsw" in plan


def test_the_smaller_key_wins_among_copies(engine):
    one, two = table_of(2, name="one"), table_of(2, name="two")
    store(engine, one, np.array([[1, 0], [1, 0], [0, 1]]), kinds)
    store(engine, two, np.array([[0, 1], [1, 0], [1, 0]]), kinds)
    with engine.connect() as connection:
        rows = connection.execute(match(one.c.vector, two.c.vector)).all()
        assert [row[:3] for row in rows] == [(0, 1, 1), (2, 0, 1)]
        rows = connection.execute(match(one.c.vector, two.c.vector, one_to_one=False)).all()
        assert [row[:2] for row in rows] == [(0, 1), (1, 1), (2, 0)]


def test_an_empty_list_has_no_match(engine):
    one, two = table_of(2, name="one"), table_of(2, name="two")
    store(engine, one, np.eye(2), kinds)
    two.metadata.create_all(engine)
    with engine.connect() as connection:
        assert connection.execute(match(one.c.vector, two.c.vector)).all() == []
        assert connection.execute(match(two.c.vector, one.c.vector, margin=1)).all() == []


def test_what_cannot_be_matched():
    one, two = table_of(16, name="one"), table_of(8, name="two")
    with pytest.raises(DimensionMismatchError, match=r"8 dimensions, one\.vector has 16"):
        match(one.c.vector, two.c.vector)
    for options, message in (
        ({"k": 0}, "k=0"),
        ({"one_to_one": 1}, "one_to_one=1; expected True or False"),
        ({"min_score": 2}, "min_score=2"),
        ({"margin": "1"}, "margin='1'"),
        ({"mode": "fast"}, "mode='fast'"),
        ({"ef_search": 100}, "no index declared"),
    ):
        with pytest.raises(QueryError, match=message):
            match(one.c.vector, one.alias().c.vector, **options)
