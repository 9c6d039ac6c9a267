"""near_duplicates and duplicate_groups: no pair missing, none twice, groups as union-find makes them."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    cast,
    column,
    func,
    insert,
    select,
    text,
)

from pgembed import HNSW
from pgembed.columns.types import VectorType
from pgembed.queries import duplicate_groups, near_duplicates
from pgembed.queries.duplicates import pairs
from pgembed.queries.duplicates.components import components
from tests.integration.queries.conftest import store, with_twins


def table_of(dimensions, *indexes, storage="vector", name="item"):
    return Table(
        name,
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("kind", Integer),
        Column("vector", VectorType(dimensions, storage)),
        *indexes,
    )


def kinds(key):
    return {"kind": key % 3}


def near(vectors, least, keep=lambda key: True):
    exact = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    left, right = np.nonzero(np.triu(exact @ exact.T >= least, 1))
    return {(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True) if keep(a) and keep(b)}


def keys(rows):
    found = [(row.left_key, row.right_key) for row in rows]
    assert len(set(found)) == len(found), "a pair came twice"
    assert all(left < right for left, right in found)
    return set(found)


def union_find(edges):
    root = {}

    def find(vertex):
        root.setdefault(vertex, vertex)
        while root[vertex] != vertex:
            vertex = root[vertex]
        return vertex

    for a, b in edges:
        low, high = sorted((find(a), find(b)))
        root[high] = low
    groups = defaultdict(list)
    for vertex in sorted(root):
        groups[find(vertex)].append(vertex)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]))


def test_every_pair_once_best_first(engine):
    table = table_of(16)
    vectors = with_twins(300, 16)
    vectors[7] = vectors[8] = 0
    vectors[50:55] = vectors[50]
    store(engine, table, vectors, kinds)
    with engine.begin() as connection:
        connection.execute(insert(table), [{"id": 1000, "vector": None}, {"id": 1001, "vector": None}])
        rows = connection.execute(near_duplicates(table.c.vector, min_score=0.8)).all()
    assert keys(rows) == near(vectors, 0.8)
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    assert all(row.score >= 0.8 for row in rows)
    assert rows[0].score == 1


def test_filters_apply_to_both_rows(engine):
    table = table_of(16)
    vectors = with_twins(300, 16)
    store(engine, table, vectors, kinds)
    with engine.connect() as connection:
        rows = connection.execute(
            near_duplicates(table.c.vector, min_score=0.5, where=table.c.kind == 1)
        ).all()
    assert keys(rows) == near(vectors, 0.5, lambda key: key % 3 == 1)
    assert rows


@pytest.mark.parametrize(
    ("metric", "least", "score"),
    [
        ("l2", 0.4, lambda a, b: 1 / (1 + np.linalg.norm(a - b))),
        ("inner_product", 12, lambda a, b: a @ b),
    ],
)
@pytest.mark.parametrize("storage", ["vector", "halfvec"])
def test_other_metrics_and_types(engine, metric, least, score, storage):
    table = table_of(8, storage=storage)
    vectors = with_twins(150, 8).astype(np.float16).astype(np.float32)
    store(engine, table, vectors, kinds)
    with engine.connect() as connection:
        rows = connection.execute(near_duplicates(table.c.vector, min_score=least, metric=metric)).all()
    exact = vectors.astype(np.float64)
    expected = {(a, b) for a in range(150) for b in range(a + 1, 150) if score(exact[a], exact[b]) >= least}
    assert keys(rows) == expected
    assert rows
    assert [row.score for row in rows] == pytest.approx(
        [score(exact[row.left_key], exact[row.right_key]) for row in rows], rel=1e-5
    )


def test_composite_keys_are_json_arrays(engine):
    table = Table(
        "part",
        MetaData(),
        Column("document", String, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("vector", VectorType(2)),
        HNSW("vector"),
    )
    table.metadata.create_all(engine)
    rows = [("b", 1, [1, 0]), ("a", 2, [1, 0.01]), ("a", 10, [0, 1]), ("c", 1, [0.01, 1])]
    with engine.begin() as connection:
        connection.execute(insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in rows])
        for mode in ("auto", "approximate", "exact"):
            pairs = connection.execute(near_duplicates(table.c.vector, min_score=0.9, mode=mode)).all()
            assert {(tuple(left), tuple(right)) for left, right, _ in pairs} == {
                (("a", 2), ("b", 1)),
                (("a", 10), ("c", 1)),
            }
        groups = connection.execute(duplicate_groups(table.c.vector, min_score=0.9)).all()
        assert groups == [(1, ["a", 2]), (1, ["b", 1]), (2, ["a", 10]), (2, ["c", 1])]


@pytest.fixture
def indexed(engine):
    """1,000 rows in 16 dimensions behind an HNSW index, with 60 equal rows and two of zeros."""
    table = table_of(16, HNSW("vector", build="immediate"))
    vectors = with_twins(1000, 16)
    vectors[500:560] = vectors[500]
    vectors[7] = vectors[9] = 0
    store(engine, table, vectors, kinds)
    return table, vectors


def test_the_index_is_used_and_crowded_rows_lose_no_pair(engine, indexed, explain):
    table, vectors = indexed
    statement = near_duplicates(table.c.vector, min_score=0.9, mode="approximate", ef_search=200)
    with engine.connect() as connection:
        assert "Index Scan using ix_item_vector_hnsw" in explain(connection, statement)
        assert keys(connection.execute(statement)) == near(vectors, 0.9)
        few = near_duplicates(table.c.vector, min_score=0.9, mode="approximate", k=1)
        assert keys(connection.execute(few)) == near(vectors, 0.9)


def test_an_index_scan_that_gives_up_loses_no_pair(engine, indexed, explain):
    """The rows of the filter are far from each other: the scans end before they meet the others."""
    table, vectors = indexed
    statement = near_duplicates(
        table.c.vector, min_score=-1, mode="approximate", where=table.c.id % 200 == 3, ef_search=10
    )
    with engine.connect() as connection:
        connection.execute(text("SELECT '[1]'::vector"))
        connection.execute(text("SET LOCAL hnsw.max_scan_tuples = 50"))
        connection.execute(text("SET LOCAL enable_sort = off"))
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        assert "Index Scan using ix_item_vector_hnsw" in explain(connection, statement)
        found = keys(connection.execute(statement))
    assert found == near(vectors, -1, lambda key: key % 200 == 3)
    assert len(found) == 10


def test_auto_looks_into_the_index_only_if_it_is_built_and_pays(engine, indexed, explain, monkeypatch):
    table, vectors = indexed
    scan = "Index Scan using ix_item_vector_hnsw on item item_1 (actual"
    with engine.begin() as connection:
        small = near_duplicates(table.c.vector, min_score=0.9)
        assert scan not in explain(connection, small)
        assert keys(connection.execute(small)) == near(vectors, 0.9)
        monkeypatch.setattr(pairs, "EXACT_UP_TO", 500)
        large = near_duplicates(table.c.vector, min_score=0.9)
        assert scan in explain(connection, large)
        assert keys(connection.execute(large)) == near(vectors, 0.9)
        connection.execute(text("DROP INDEX ix_item_vector_hnsw"))
        plan = explain(connection, large)
        assert "Sort Key: ((item_1.vector <=> pgembed_numbered_1_4.vector))" in plan
        assert "Seq Scan on item item_1 (never executed)" in plan
        assert keys(connection.execute(large)) == near(vectors, 0.9)


def test_four_thousand_rows_of_384_dimensions_take_seconds(engine):
    """Vectors are in TOAST here: 384 dimensions beside a text of 1,500 characters."""
    table = Table(
        "page",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("body", String),
        Column("vector", VectorType(384)),
    )
    table.metadata.create_all(engine)
    vectors = with_twins(4000, 384)
    rng = np.random.default_rng(1)
    with engine.begin() as connection:
        connection.execute(
            insert(table),
            [{"id": n, "body": rng.bytes(750).hex(), "vector": vector} for n, vector in enumerate(vectors)],
        )
        start = time.perf_counter()
        rows = connection.execute(near_duplicates(table.c.vector, min_score=0.9)).all()
        seconds = time.perf_counter() - start
    assert keys(rows) == near(vectors, 0.9)
    assert seconds < 60


def test_groups_are_numbered_by_size_and_hold_chains(engine):
    """0 - 10 - 20 degrees: the ends are not alike, the chain joins them."""
    table = table_of(2)
    angles = np.radians([0, 10, 20, 90, 95, 180, 270, 275])
    store(engine, table, np.stack([np.cos(angles), np.sin(angles)], axis=1), kinds)
    with engine.connect() as connection:
        rows = connection.execute(duplicate_groups(table.c.vector, min_score=0.98)).all()
    assert rows == [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4), (3, 6), (3, 7)]
    assert rows[0]._fields == ("group_id", "key")


def test_groups_of_an_empty_table_and_without_duplicates(engine):
    table = table_of(2)
    store(engine, table, np.eye(2), kinds)
    with engine.begin() as connection:
        assert connection.execute(duplicate_groups(table.c.vector, min_score=0.9)).all() == []
        connection.execute(table.delete())
        assert connection.execute(duplicate_groups(table.c.vector, min_score=0.9)).all() == []


def test_groups_agree_with_the_pairs(engine):
    table = table_of(16)
    vectors = with_twins(400, 16)
    store(engine, table, vectors, kinds)
    with engine.connect() as connection:
        rows = connection.execute(duplicate_groups(table.c.vector, min_score=0.6)).all()
    expected = union_find(near(vectors, 0.6))
    assert rows == [(n, key) for n, group in enumerate(expected, 1) for key in group]


def components_of(connection, edges):
    ends = func.unnest(*(cast([edge[end] for edge in edges], ARRAY(Integer)) for end in (0, 1)))
    listed = ends.table_valued(column("a", Integer), column("b", Integer)).render_derived()
    found = components(select(listed.c.a, listed.c.b).cte())
    groups = defaultdict(list)
    for vertex, root in connection.execute(select(found.c.n, found.c.root).order_by(found.c.n)):
        groups[root].append(vertex)
    assert all(root == group[0] for root, group in groups.items())
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]))


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_long_chain_is_one_component_in_a_moment(engine, shuffled):
    chain = np.arange(2000)
    if shuffled:
        np.random.default_rng(0).shuffle(chain)
    edges = [(int(min(pair)), int(max(pair))) for pair in pairwise(chain)]
    with engine.connect() as connection:
        components_of(connection, [(1, 2)])
        start = time.perf_counter()
        groups = components_of(connection, edges)
        seconds = time.perf_counter() - start
    assert groups == [list(range(2000))]
    assert seconds < 60


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.tuples(st.integers(0, 25), st.integers(0, 25)).filter(lambda edge: edge[0] < edge[1])))
def test_components_are_those_of_union_find(corpus, edges):
    with corpus.engine.connect() as connection:
        assert components_of(connection, sorted(edges)) == union_find(edges)
