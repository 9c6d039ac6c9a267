"""Pairs with copies among the rows, pairs of two tables, and the best pairs, as brute force finds them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, text

from pgembed import HNSW
from pgembed.columns.types import VectorType
from pgembed.exc import DimensionMismatchError, QueryError
from pgembed.queries import duplicate_groups, mine_pairs, near_duplicates
from pgembed.queries.core.numbering import Rows
from pgembed.queries.core.subject import resolve
from pgembed.queries.duplicates import pairs
from tests.integration.queries.conftest import store, with_twins
from tests.integration.queries.test_duplicates import keys, kinds, near, table_of, union_find


def cosines(left, right):
    left, right = (each.astype(np.float64) for each in (left, right))
    with np.errstate(invalid="ignore", divide="ignore"):
        left /= np.linalg.norm(left, axis=1, keepdims=True)
        right /= np.linalg.norm(right, axis=1, keepdims=True)
    return left @ right.T


def copied(rows, dimensions):
    """Vectors with twins, many copies of two of them, of two twins of each other, and zeros."""
    vectors = with_twins(rows, dimensions)
    vectors[100:140] = vectors[0]
    vectors[140:150] = vectors[1]
    vectors[150:155] = vectors[60]
    vectors[7] = vectors[8] = vectors[9] = 0
    return vectors


@pytest.fixture(params=[False, True], ids=["exact", "index"])
def crowd(request, engine):
    table = table_of(16, *([HNSW("vector", build="immediate")] if request.param else []))
    vectors = copied(400, 16)
    store(engine, table, vectors, kinds)
    return table, vectors, "approximate" if request.param else "auto"


def test_copies_lose_no_pair_and_no_group(engine, crowd):
    table, vectors, mode = crowd
    with engine.connect() as connection:
        rows = connection.execute(near_duplicates(table.c.vector, min_score=0.9, mode=mode)).all()
        groups = connection.execute(duplicate_groups(table.c.vector, min_score=0.9, mode=mode)).all()
    expected = near(vectors, 0.9)
    assert keys(rows) == expected
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    joined = union_find(expected)
    assert groups == [(n, key) for n, group in enumerate(joined, 1) for key in group]


@pytest.mark.parametrize("storage", ["halfvec", "sparsevec", "bit"])
def test_copies_of_other_types(engine, storage):
    from pgvector.sqlalchemy import BIT, SPARSEVEC

    kind = {"halfvec": VectorType(8, "halfvec"), "sparsevec": SPARSEVEC(8), "bit": BIT(8)}[storage]
    table = Table("item", MetaData(), Column("id", Integer, primary_key=True), Column("vector", kind))
    table.metadata.create_all(engine)
    written = {
        "halfvec": ["[1,0,0,0,0,0,0,0]", "[0,1,0,0,0,0,0,0]"],
        "sparsevec": ["{1:1}/8", "{2:1}/8"],
        "bit": ["10000000", "01000000"],
    }[storage]
    with engine.begin() as connection:
        for key in range(6):
            connection.execute(text(f"INSERT INTO item VALUES ({key}, '{written[key % 2]}')"))
        rows = connection.execute(near_duplicates(table.c.vector, min_score=0.99)).all()
    assert keys(rows) == {(0, 2), (0, 4), (2, 4), (1, 3), (1, 5), (3, 5)}


def test_a_thousand_copies_cost_one_search(engine, explain):
    table = table_of(16, HNSW("vector", build="immediate"))
    vectors = with_twins(1200, 16)
    vectors[200:] = vectors[0]
    store(engine, table, vectors, kinds)
    with engine.connect() as connection:
        statement = duplicate_groups(table.c.vector, min_score=0.9, mode="approximate")
        plan = explain(connection, statement)
        (scan,) = (line for line in plan.splitlines() if "Index Scan using ix_item_vector_hnsw" in line)
        assert "loops=200)" in scan
        groups = connection.execute(statement).all()
    assert groups[:2] == [(1, 0), (1, 1)]
    assert len([key for group, key in groups if group == 1]) == 1002


@pytest.fixture
def libraries(engine):
    """Two tables of 300 and 90 rows; the latter are near rows of the former, copies of them, or strangers."""
    rng = np.random.default_rng(3)
    left = copied(300, 16)
    right = rng.standard_normal((90, 16)).astype(np.float32)
    right[:30] = left[:60:2] + 0.2 * rng.standard_normal((30, 16))
    right[30:36] = left[0]
    right[40] = 0
    tables = [table_of(16, HNSW("vector", build="immediate"), name="one"), table_of(16, name="two")]
    for table, vectors in zip(tables, (left, right), strict=True):
        store(engine, table, vectors, kinds)
    return tables, cosines(left, right)


@pytest.mark.parametrize("mode", ["auto", "exact", "approximate"])
def test_pairs_of_two_tables(engine, libraries, explain, mode, monkeypatch):
    (one, two), scores = libraries
    if mode == "auto":
        monkeypatch.setattr(pairs, "EXACT_UP_TO", 50)
    statement = near_duplicates(one.c.vector, two.c.vector, min_score=0.9, mode=mode)
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
        connection.execute(text("SET LOCAL enable_sort = off"))  # the planner's other way for few rows
        plan = explain(connection, statement)
        scanned = re.search(r"Index Scan using ix_one_vector_hnsw on one( one_1)? \(actual", plan)
    assert bool(scanned) == (mode != "exact")
    found = [(row.left_key, row.right_key) for row in rows]
    assert len(set(found)) == len(found)
    assert set(found) == set(zip(*(each.tolist() for each in np.nonzero(scores >= 0.9)), strict=True))
    assert [row.score for row in rows] == pytest.approx([scores[pair] for pair in found], abs=1e-6)


def test_each_table_has_its_own_conditions(engine, libraries):
    (one, two), scores = libraries
    statement = near_duplicates(
        one.c.vector, two.c.vector, min_score=0.9, where=one.c.kind == 1, other_where=two.c.id < 40
    )
    with engine.connect() as connection:
        found = {(row.left_key, row.right_key) for row in connection.execute(statement)}
    wanted = zip(*(each.tolist() for each in np.nonzero(scores >= 0.9)), strict=True)
    assert found == {(a, b) for a, b in wanted if a % 3 == 1 and b < 40}
    assert found


def test_two_aliases_of_one_table_are_two_tables(engine, libraries):
    (one, _two), _scores = libraries
    test = one.alias()
    statement = near_duplicates(
        one.c.vector, test.c.vector, min_score=0.9, where=one.c.kind != 0, other_where=test.c.kind == 0
    )
    with engine.connect() as connection:
        found = {(row.left_key, row.right_key) for row in connection.execute(statement)}
        every = keys(connection.execute(near_duplicates(one.c.vector, min_score=0.9)))
    expected = {(a, b) for pair in every for a, b in (pair, pair[::-1]) if a % 3 and not b % 3}
    assert found == expected
    assert found


def test_pairs_about_a_threshold(engine, libraries):
    (one, _two), _scores = libraries
    with engine.connect() as connection:
        rows = connection.execute(near_duplicates(one.c.vector, min_score=0.6, max_score=0.9)).all()
        every = keys(connection.execute(near_duplicates(one.c.vector, min_score=0.6)))
        higher = keys(connection.execute(near_duplicates(one.c.vector, min_score=0.9)))
    assert keys(rows) == every - higher
    assert rows


def test_what_two_tables_must_have_in_common():
    one, two = table_of(16, name="one"), table_of(8, name="two")
    with pytest.raises(DimensionMismatchError, match=r"8 dimensions, one\.vector has 16"):
        near_duplicates(one.c.vector, two.c.vector, min_score=0.9)
    half = table_of(16, name="half", storage="halfvec")
    with pytest.raises(QueryError, match=r"one\.vector is a vector column and half\.vector a halfvec column"):
        near_duplicates(one.c.vector, half.c.vector, min_score=0.9)
    with pytest.raises(QueryError, match="other_where= is for pairs of two tables"):
        near_duplicates(one.c.vector, min_score=0.9, other_where=one.c.id > 1)
    with pytest.raises(QueryError, match=r"max_score=0\.5 is below min_score=0\.9"):
        near_duplicates(one.c.vector, min_score=0.9, max_score=0.5)


@pytest.mark.parametrize("limit", [1, 20, 200, 90_000])
def test_the_best_pairs(engine, crowd, limit):
    table, vectors, mode = crowd
    with engine.connect() as connection:
        rows = connection.execute(mine_pairs(table.c.vector, limit=limit, mode=mode, k=5)).all()
    scores = cosines(vectors, vectors)[np.triu_indices(len(vectors), 1)]
    best = np.sort(scores[~np.isnan(scores)])[::-1][:limit]
    assert len(keys(rows)) == len(best)
    assert [row.score for row in rows] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("mode", ["exact", "approximate"])
def test_the_best_pairs_of_two_tables(engine, libraries, mode):
    (one, two), scores = libraries
    with engine.connect() as connection:
        rows = connection.execute(mine_pairs(one.c.vector, two.c.vector, limit=100, mode=mode)).all()
    best = np.sort(scores[~np.isnan(scores)])[::-1][:100]
    assert [row.score for row in rows] == pytest.approx(best, abs=1e-6)
    assert [scores[row.left_key, row.right_key] for row in rows] == pytest.approx(best, abs=1e-6)


def test_copies_are_found_by_their_vectors(engine):
    table = table_of(2)
    store(engine, table, np.array([[1, 0], [0, 1], [1, 0], [0, 0], [0, 0], [1, 0]]), kinds)
    rows = Rows.of(resolve(table.c.vector), [], 0.1)
    with engine.connect() as connection:
        connection.execute(insert(table), [{"id": 6, "vector": None}, {"id": 7, "vector": None}])
        found = connection.execute(
            select(rows.copies.c.n, rows.copies.c.first).order_by(rows.copies.c.n)
        ).all()
    assert found == [(1, 1), (2, 2), (3, 1), (4, 4), (5, 5), (6, 1), (7, 7), (8, 8)]
