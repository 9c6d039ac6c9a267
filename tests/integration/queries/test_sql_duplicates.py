"""Duplicates in SQL: what the Python helpers give, copies included."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pgembed import HNSW
from pgembed.queries import (
    duplicate_groups,
    duplicates_of,
    hard_negatives,
    keep_list,
    match,
    mine_pairs,
    near_duplicates,
    suggest_threshold,
)
from tests.integration.queries.conftest import store
from tests.integration.queries.test_copies_and_tables import copied
from tests.integration.queries.test_duplicates import kinds, table_of


@pytest.fixture(params=[False, True], ids=["exact", "index"])
def crowd(request, engine, monkeypatch):
    """300 rows with copies and zeros, and one without a vector; with an index, pairs are looked up in it."""
    if request.param:
        from pgembed import constants
        from pgembed.database import install

        monkeypatch.setattr(constants, "EXACT_UP_TO", 100)
        with engine.begin() as connection:
            install(connection)
    table = table_of(16, *([HNSW("vector", build="immediate")] if request.param else []))
    vectors = copied(300, 16)
    store(engine, table, vectors, kinds)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 300, "kind": 0, "vector": None}])
        yield connection, table, vectors


def rows_of(connection, sql, **parameters):
    return [tuple(row) for row in connection.execute(text(sql), parameters)]


def test_pairs_and_groups_of_copies(crowd):
    connection, table, _ = crowd
    rows = rows_of(connection, "SELECT * FROM pgembed.near_duplicates('item', 'vector', 0.8)")
    found = connection.execute(near_duplicates(table.c.vector, min_score=0.8)).all()
    assert sorted((left["id"], right["id"]) for left, right, _ in rows) == sorted(row[:2] for row in found)
    assert [row[2] for row in rows] == pytest.approx([row.score for row in found])
    assert len(rows) > 700
    rows = rows_of(connection, "SELECT * FROM pgembed.duplicate_groups('item', 'vector', 0.8)")
    found = connection.execute(duplicate_groups(table.c.vector, min_score=0.8)).all()
    assert [(group, key["id"]) for group, key in rows] == found


@pytest.mark.parametrize(
    ("arguments", "keep"),
    [
        ("", lambda table: None),
        (", keep => 'kind'", lambda table: table.c.kind),
        (", keep => 'kind', descending => true", lambda table: table.c.kind.desc()),
    ],
)
def test_keep_lists_agree(crowd, arguments, keep):
    connection, table, _ = crowd
    rows = rows_of(connection, f"SELECT * FROM pgembed.keep_list('item', 'vector', 0.6{arguments})")
    found = connection.execute(keep_list(table.c.vector, min_score=0.6, keep=keep(table))).all()
    assert [(key["id"], kept, other and other["id"]) for key, kept, other, _ in rows] == [
        row[:3] for row in found
    ]
    assert [row[3] for row in rows if row[3] is not None] == pytest.approx(
        [row.score for row in found if row.score is not None]
    )
    assert len(rows) == 301
    assert not all(row[1] for row in rows)


def test_what_a_vector_would_repeat(crowd):
    connection, table, vectors = crowd
    query = "[" + ",".join(map(str, vectors[60].tolist())) + "]"
    rows = rows_of(
        connection,
        "SELECT * FROM pgembed.duplicates_of('item', 'vector', CAST(:q AS vector), 0.8)",
        q=query,
    )
    found = connection.execute(duplicates_of(table.c.vector, vectors[60], min_score=0.8)).all()
    assert [row[0]["id"] for row in rows] == [row.id for row in found]
    assert [row[2] for row in rows] == pytest.approx([row.score for row in found])
    assert 1 < len(rows) < 10
    with pytest.raises(DBAPIError, match="min_score is 2, which is not a score"):
        rows_of(
            connection,
            "SELECT * FROM pgembed.duplicates_of('item', 'vector', CAST(:q AS vector), 2)",
            q=query,
        )


@pytest.mark.parametrize("wished", [None, 0.7, 0.85])
def test_thresholds_agree(crowd, wished):
    connection, table, _ = crowd
    rng = np.random.default_rng(2)
    pairs = connection.execute(near_duplicates(table.c.vector, min_score=0.4)).all()
    labelled = [
        (row.left_key, row.right_key, bool(row.score + 0.2 * rng.standard_normal() > 0.75))
        for row in pairs
        if row.score < 0.9999
    ]
    scores = {(row.left_key, row.right_key): row.score for row in pairs}
    found = suggest_threshold(connection, table.c.vector, labelled, precision=wished)
    (row,) = rows_of(
        connection,
        "SELECT * FROM pgembed.suggest_threshold(CAST(:scores AS float8[]), :same, :wished)",
        scores=[scores[a, b] for a, b, _ in labelled],
        same=[same for *_, same in labelled],
        wished=wished,
    )
    assert row == pytest.approx((found.min_score, found.precision, found.recall, found.f1))


def test_a_column_that_is_not_there(crowd):
    connection, _, _ = crowd
    with pytest.raises(DBAPIError, match=r"table public\.item has no column created"):
        rows_of(connection, "SELECT * FROM pgembed.keep_list('item', 'vector', 0.9, keep => 'created')")


@pytest.mark.parametrize("limit", [1, 30, 300, 50_000])
def test_the_best_pairs_agree(crowd, limit):
    connection, table, _ = crowd
    rows = rows_of(connection, "SELECT * FROM pgembed.mine_pairs('item', 'vector', :limit)", limit=limit)
    found = connection.execute(mine_pairs(table.c.vector, limit=limit, mode="exact")).all()
    assert len({(left["id"], right["id"]) for left, right, _ in rows}) == len(rows) == len(found)
    assert [row[2] for row in rows] == pytest.approx([row.score for row in found])


@pytest.fixture
def others(crowd):
    """90 rows of another table, near some of the first or copies of each other."""
    connection, _, vectors = crowd
    other = table_of(16, name="other")
    rng = np.random.default_rng(4)
    near = vectors[60:240:2] + 0.3 * rng.standard_normal((90, 16))
    near[40:44] = vectors[0]
    near[50] = 0
    other.create(connection)
    connection.execute(
        other.insert(), [{"id": n, "kind": 60 + 2 * n, "vector": vector} for n, vector in enumerate(near)]
    )
    return other


def test_pairs_of_two_tables(crowd, others):
    connection, table, _ = crowd
    rows = rows_of(
        connection,
        "SELECT * FROM pgembed.near_duplicates('item', 'vector', 0.8, max_score => 0.97, other => 'other', "
        "other_column => 'vector')",
    )
    found = connection.execute(
        near_duplicates(table.c.vector, others.c.vector, min_score=0.8, max_score=0.97, mode="exact")
    ).all()
    assert {(left["id"], right["id"]) for left, right, _ in rows} == {row[:2] for row in found}
    assert [row[2] for row in rows] == pytest.approx([row.score for row in found])
    assert len(rows) > 80


def test_hard_negatives_agree(crowd, others):
    connection, table, _ = crowd
    rows = rows_of(
        connection,
        "SELECT * FROM pgembed.hard_negatives('other', 'vector', 'item', 'vector', '{kind}', margin => 0.1)",
    )
    found = connection.execute(
        hard_negatives(
            others.c.vector, table.c.vector, positive=others.c.kind == table.c.id, margin=0.1, mode="exact"
        )
    ).all()
    assert [(left["id"], right["id"]) for left, right, *_ in rows] == [row[:2] for row in found]
    assert [row[2:] for row in rows] == [pytest.approx(row[2:], abs=1e-6) for row in found]
    assert len(rows) > 300


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("", {}),
        (", min_score => 0.8, k => 2", {"min_score": 0.8, "k": 2}),
        (", margin => 1.1", {"margin": 1.1}),
        (", one_to_one => false", {"one_to_one": False}),
    ],
)
def test_matches_agree(crowd, arguments, options):
    connection, table, vectors = crowd
    other = table_of(16, name="other")
    rng = np.random.default_rng(4)
    near = vectors[60:150:2] + 0.3 * rng.standard_normal((45, 16))
    other.create(connection)
    connection.execute(other.insert(), [{"id": n, "vector": vector} for n, vector in enumerate(near)])
    rows = rows_of(connection, f"SELECT * FROM pgembed.match('item', 'vector', 'other', 'vector'{arguments})")
    found = connection.execute(match(table.c.vector, other.c.vector, mode="exact", **options)).all()
    assert {(left["id"], right["id"]) for left, right, *_ in rows} == {row[:2] for row in found}
    assert [row[2:] for row in rows] == [pytest.approx(row[2:], abs=1e-6) for row in found]
    assert len(rows) > 10
