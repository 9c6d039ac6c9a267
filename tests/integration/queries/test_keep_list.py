"""keep_list, stored pairs and the inner scores of groups, as brute force finds them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    text,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB, array

from pgembed import HNSW
from pgembed.columns.types import VectorType
from pgembed.exc import QueryError
from pgembed.queries import duplicate_groups, keep_list, near_duplicates, rethreshold
from pgembed.queries.duplicates import edges
from tests.integration.queries.conftest import store
from tests.integration.queries.test_copies_and_tables import copied, cosines
from tests.integration.queries.test_duplicates import kinds, table_of, union_find


def greedy(order, near):
    """Keys that are kept, and for each dropped one the kept ones before it that it is near."""
    kept, dropped = [], {}
    for key in order:
        before = [other for other in kept if near(other, key)]
        if before:
            dropped[key] = before
        else:
            kept.append(key)
    return kept, dropped


def check(rows, order, scores, least):
    kept, dropped = greedy(order, lambda one, other: scores[one, other] >= least)
    assert [row.key for row in rows] == list(order)
    assert [row.key for row in rows if row.keep] == kept
    assert dropped
    for row in rows:
        if row.keep:
            assert (row.kept_key, row.score) == (None, None)
        else:
            best = max(scores[other, row.key] for other in dropped[row.key])
            assert row.kept_key in dropped[row.key]
            assert row.score == pytest.approx(best, abs=1e-6)
            assert scores[row.kept_key, row.key] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("order", ["key", "kind and key", "newest"])
def test_every_dropped_row_names_a_kept_row_before_it(engine, index, order):
    table = table_of(16, *([HNSW("vector", build="immediate")] if index else []))
    vectors = copied(300, 16)
    store(engine, table, vectors, kinds)
    keep, expected = {
        "key": (None, list(range(300))),
        "kind and key": ([table.c.kind.desc()], sorted(range(300), key=lambda key: (-(key % 3), key))),
        "newest": (table.c.id.desc(), list(range(299, -1, -1))),
    }[order]
    with engine.connect() as connection:
        rows = connection.execute(
            keep_list(table.c.vector, min_score=0.6, keep=keep, mode="approximate" if index else "auto")
        ).all()
    check(rows, expected, cosines(vectors, vectors), 0.6)


def test_a_copy_names_a_kept_row_that_its_first_does_not(engine):
    """0 is kept, 30 degrees dropped, 50 kept, and another 30 is nearer to 50 than to 0."""
    table = table_of(2)
    angles = np.radians([0, 30, 50, 30])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    store(engine, table, vectors, kinds)
    with engine.connect() as connection:
        rows = connection.execute(keep_list(table.c.vector, min_score=0.8)).all()
        found = connection.execute(text("SELECT * FROM pgembed.keep_list('item', 'vector', 0.8)")).all()
    check(rows, range(4), cosines(vectors, vectors), 0.8)
    assert [row.kept_key for row in rows] == [None, 0, None, 2]
    assert [row.kept_key and row.kept_key["id"] for row in found] == [None, 0, None, 2]
    assert [row.score for row in found] == [row.score for row in rows]


def test_a_chain_drops_every_other_row(engine):
    """0 - 10 - 20 - 30 degrees: a group of four, of which two are kept."""
    table = table_of(2)
    angles = np.radians([0, 10, 20, 30, 90])
    store(engine, table, np.stack([np.cos(angles), np.sin(angles)], axis=1), kinds)
    with engine.begin() as connection:
        connection.execute(insert(table), [{"id": 9, "vector": None}, {"id": 10, "vector": [0, 0]}])
        rows = connection.execute(keep_list(table.c.vector, min_score=0.98)).all()
    assert [(row.key, row.keep, row.kept_key) for row in rows] == [
        (0, True, None),
        (1, False, 0),
        (2, True, None),
        (3, False, 2),
        (4, True, None),
        (9, True, None),
        (10, True, None),
    ]
    assert rows[0]._fields == ("key", "keep", "kept_key", "score")


def test_dropped_rows_are_deleted_by_one_statement(engine):
    table = table_of(16)
    vectors = copied(200, 16)
    store(engine, table, vectors, kinds)
    dropped = keep_list(table.c.vector, min_score=0.9, where=table.c.kind < 2).subquery()
    with engine.begin() as connection:
        connection.execute(delete(table).where(table.c.id.in_(select(dropped.c.key).where(~dropped.c.keep))))
        left = set(connection.scalars(select(table.c.id)))
    scores = cosines(vectors, vectors)
    taking_part = [key for key in range(200) if key % 3 < 2]
    kept, _ = greedy(taking_part, lambda one, other: scores[one, other] >= 0.9)
    assert left == {*kept, *range(2, 200, 3)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.tuples(st.integers(1, 15), st.integers(1, 15)).filter(lambda edge: edge[0] < edge[1])))
def test_what_is_dropped_is_what_a_greedy_walk_drops(corpus, pairs):
    ordered = sorted(pairs)
    with corpus.engine.connect() as connection:
        found = connection.scalar(
            text("SELECT pgembed.dropped(CAST(:lefts AS integer[]), CAST(:rights AS integer[]))"),
            {"lefts": [a for a, _ in ordered], "rights": [b for _, b in ordered]},
        )
    _, dropped = greedy(range(1, 16), lambda one, other: (one, other) in pairs)
    assert found == sorted(dropped)


def test_nothing_to_drop(engine):
    table = table_of(2)
    store(engine, table, np.eye(2), kinds)
    with engine.begin() as connection:
        rows = connection.execute(keep_list(table.c.vector, min_score=0.9)).all()
        assert rows == [(0, True, None, None), (1, True, None, None)]
        connection.execute(delete(table))
        assert connection.execute(keep_list(table.c.vector, min_score=0.9)).all() == []


@pytest.fixture
def stored(engine):
    """A table, its pairs of a score of 0.5 and above in another one, and all scores."""
    table = table_of(16)
    vectors = copied(200, 16)
    store(engine, table, vectors, kinds)
    kept = Table(
        "pair",
        table.metadata,
        Column("left_key", Integer, primary_key=True),
        Column("right_key", Integer, primary_key=True),
        Column("score", Float(53)),
    )
    kept.create(engine)
    found = near_duplicates(table.c.vector, min_score=0.5)
    with engine.begin() as connection:
        connection.execute(insert(kept).from_select(["left_key", "right_key", "score"], found))
    return table, kept, cosines(vectors, vectors)


def test_stored_pairs_under_another_threshold(engine, stored):
    table, kept, scores = stored
    again = rethreshold(kept, min_score=0.8, searched_with=0.5)
    with engine.connect() as connection:
        searched = connection.execute(near_duplicates(table.c.vector, min_score=0.8)).all()
        assert sorted(connection.execute(again)) == sorted(searched)
        groups = connection.execute(duplicate_groups(table.c.vector, min_score=0.8)).all()
        for pairs in (kept, again, select(kept)):
            statement = duplicate_groups(table.c.vector, min_score=0.8, pairs=pairs)
            assert connection.execute(statement).all() == groups
        rows = connection.execute(
            keep_list(table.c.vector, min_score=0.8, pairs=kept, keep=table.c.id.desc())
        ).all()
    check(rows, range(199, -1, -1), scores, 0.8)


def test_stored_pairs_may_come_twice_and_turned_around(engine, stored):
    table, kept, scores = stored
    turned = select(
        kept.c.right_key.label("left_key"), kept.c.left_key.label("right_key"), kept.c.score - 0.1
    )
    twice = union_all(select(kept), turned)
    with engine.connect() as connection:
        groups, again = (
            connection.execute(duplicate_groups(table.c.vector, min_score=0.8, pairs=pairs)).all()
            for pairs in (kept, twice)
        )
        rows = connection.execute(keep_list(table.c.vector, min_score=0.8, pairs=twice)).all()
    assert groups == again != []
    check(rows, range(200), scores, 0.8)


def test_stored_pairs_are_not_searched_again(engine, stored, explain):
    table, kept, _ = stored
    with engine.connect() as connection:
        for statement in (
            duplicate_groups(table.c.vector, min_score=0.8, pairs=kept),
            keep_list(table.c.vector, min_score=0.8, pairs=kept),
        ):
            assert "<=>" not in str(statement)
            assert len(connection.execute(statement).all()) > 50


def test_a_lower_threshold_than_the_stored_one_is_refused(stored):
    table, kept, _ = stored
    with pytest.raises(QueryError, match=r"min_score=0\.4 is below searched_with=0\.5"):
        rethreshold(kept, min_score=0.4, searched_with=0.5)
    with pytest.raises(QueryError, match="columns left_key, right_key and score"):
        rethreshold(table, min_score=0.6, searched_with=0.5)
    with pytest.raises(QueryError, match="pairs=3; expected a table or a select"):
        keep_list(table.c.vector, min_score=0.6, pairs=3)


def test_composite_keys(engine):
    table = Table(
        "part",
        MetaData(),
        Column("document", String, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("vector", VectorType(2)),
    )
    table.metadata.create_all(engine)
    rows = [("b", 1, [1, 0]), ("a", 2, [1, 0.01]), ("a", 10, [0, 1]), ("c", 1, [0.01, 1])]
    with engine.begin() as connection:
        connection.execute(insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in rows])
        kept = connection.execute(keep_list(table.c.vector, min_score=0.9)).all()
        assert [(row.key, row.kept_key) for row in kept] == [
            (["a", 2], None),
            (["a", 10], None),
            (["b", 1], ["a", 2]),
            (["c", 1], ["a", 10]),
        ]
        pair = select(
            func.jsonb_build_array("c", 1, type_=JSONB).label("left_key"),
            func.jsonb_build_array("a", 2, type_=JSONB).label("right_key"),
            func.unnest(array([0.95, 0.97])).label("score"),
        )
        groups = connection.execute(duplicate_groups(table.c.vector, min_score=0.9, pairs=pair)).all()
        assert groups == [(1, ["a", 2]), (1, ["c", 1])]


def least_of(group, scores):
    return min(scores[a, b] for a in group for b in group if a != b)


@pytest.mark.parametrize("from_stored", [False, True])
def test_groups_with_their_least_score(engine, stored, from_stored):
    table, kept, scores = stored
    statement = duplicate_groups(
        table.c.vector, min_score=0.6, inner=True, pairs=kept if from_stored else None
    )
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    groups = union_find(zip(*(each.tolist() for each in np.nonzero(np.triu(scores >= 0.6, 1))), strict=True))
    assert [(row.group_id, row.key, row.size) for row in rows] == [
        (n, key, len(group)) for n, group in enumerate(groups, 1) for key in group
    ]
    least = {row.group_id: row.least_score for row in rows}
    assert list(least.values()) == pytest.approx([least_of(group, scores) for group in groups], abs=1e-6)
    assert min(least.values()) < 0.6, "no chain among them"


def test_the_least_score_of_large_groups_is_not_computed(engine, stored, monkeypatch):
    table, _, scores = stored
    monkeypatch.setattr(edges, "INNER_UP_TO", 2)
    with engine.connect() as connection:
        rows = connection.execute(duplicate_groups(table.c.vector, min_score=0.9, inner=True)).all()
    sizes = {}
    for row in rows:
        sizes.setdefault(row.group_id, []).append(row)
    for members in sizes.values():
        # Copies have the same scores, and count once.
        different = {tuple(np.nan_to_num(scores[row.key]).round(4)) for row in members}
        assert (members[0].least_score is None) == (len(different) > 2)
