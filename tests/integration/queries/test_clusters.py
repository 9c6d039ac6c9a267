"""cluster and topics: what community_detection and class-based tf-idf give, computed by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, select, text
from sqlalchemy.exc import DBAPIError

from pgembed import HNSW
from pgembed.columns.types import VectorType
from pgembed.exc import QueryError
from pgembed.queries import cluster, topics
from tests.integration.queries.conftest import store
from tests.integration.queries.test_copies_and_tables import cosines
from tests.integration.queries.test_duplicates import kinds, table_of


def communities(scores, least, min_size):
    """sentence-transformers' util.community_detection."""
    found = [
        sorted(np.flatnonzero(row >= least).tolist(), key=lambda other, row=row: -row[other])
        for row in scores
    ]
    ordered = sorted(
        ((center, near) for center, near in enumerate(found) if len(near) >= min_size),
        key=lambda each: -len(each[1]),
    )
    taken, unique = set(), []
    for center, near in ordered:
        free = [other for other in near if other not in taken]
        if len(free) >= min_size:
            unique.append((center, free))
            taken.update(free)
    return sorted(unique, key=lambda each: (-len(each[1]), each[0]))


@pytest.fixture(params=[False, True], ids=["exact", "index"])
def clouds(request, engine):
    """300 rows about twelve points, with copies and zeros."""
    rng = np.random.default_rng(6)
    points = rng.standard_normal((12, 8))
    vectors = points[rng.integers(0, 12, 300) ** 2 // 12] + 0.6 * rng.standard_normal((300, 8))
    vectors[50:60] = vectors[50]
    vectors[70] = vectors[71] = 0
    vectors = vectors.astype(np.float32)
    table = table_of(8, *([HNSW("vector", build="immediate")] if request.param else []))
    store(engine, table, vectors, kinds)
    return table, cosines(vectors, vectors), "approximate" if request.param else "auto"


@pytest.mark.parametrize(("least", "min_size"), [(0.8, 5), (0.7, 10), (0.9, 1), (0.95, 40)])
def test_clusters_are_those_of_community_detection(engine, clouds, least, min_size):
    table, scores, mode = clouds
    statement = cluster(table.c.vector, min_score=least, min_size=min_size, mode=mode)
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
        sql = text("SELECT cluster, key, score FROM pgembed.cluster('item', 'vector', :least, :size)")
        same = connection.execute(sql, {"least": least, "size": min_size}).all()
    expected = communities(scores, least, min_size)
    found = {}
    for row in rows:
        found.setdefault(row.cluster, []).append(row)
    assert list(found) == list(range(1, len(expected) + 1))
    assert (least > 0.9) == (not expected)
    for members, (center, wanted) in zip(found.values(), expected, strict=True):
        assert {row.key for row in members} == set(wanted)
        assert [row.score for row in members] == pytest.approx(
            sorted((scores[center, other] for other in wanted), reverse=True), abs=1e-6
        )
    assert [(row.cluster, row.key["id"]) for row in same] == [(row.cluster, row.key) for row in rows]
    assert [row.score for row in same] == pytest.approx([row.score for row in rows])


def test_clusters_under_conditions(engine, clouds):
    table, scores, _ = clouds
    statement = cluster(table.c.vector, min_score=0.8, min_size=3, where=table.c.kind == 1)
    with engine.connect() as connection:
        found = {row.key for row in connection.execute(statement)}
    some = np.arange(1, 300, 3)
    expected = communities(scores[np.ix_(some, some)], 0.8, 3)
    assert found == {int(some[other]) for _, near in expected for other in near}


TEXTS = {
    1: ["printers jam often", "the printer is jammed", "a printer on fire"],
    2: ["reset my password", "passwords, passwords", "forgot the password of mine"],
    3: ["", None],
}
NO_CLUSTER = ["printer printer printer", "a password of a printer"]


@pytest.fixture
def labelled(engine):
    table = Table(
        "page",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("label", Integer),
        Column("body", Text),
        Column("vector", VectorType(2)),
    )
    table.create(engine)
    rng = np.random.default_rng(0)
    rows = [
        {"id": 10 * label + n, "label": label, "body": words, "vector": rng.standard_normal(2) + 3 * label}
        for label, texts in TEXTS.items()
        for n, words in enumerate(texts)
    ]
    rows += [
        {"id": n, "label": None, "body": words, "vector": np.ones(2)} for n, words in enumerate(NO_CLUSTER)
    ]
    with engine.begin() as connection:
        connection.execute(table.insert(), rows)
    return table, rows


def test_topics_are_what_stands_out(engine, labelled):
    table, rows = labelled
    labels = select(table.c.label.label("cluster"), table.c.id.label("key"))
    statement = topics(table.c.vector, labels, text=table.c.body, words=3, rows=2)
    with engine.connect() as connection:
        found = connection.execute(statement).all()
        lexemes = {
            label: Counter(
                lexeme
                for words in texts
                if words
                for lexeme, count in connection.execute(
                    text("SELECT lexeme, cardinality(positions) FROM unnest(to_tsvector('english', :w))"),
                    {"w": words},
                )
                for _ in range(count)
            )
            for label, texts in TEXTS.items()
        }
    everywhere = sum(lexemes.values(), Counter())
    mean = sum(everywhere.values()) / 2  # of the clusters that have words
    assert [(row.cluster, row.size) for row in found] == [(1, 3), (2, 3), (3, 2)]
    for row in found:
        weights = {
            lexeme: count * math.log(1 + mean / everywhere[lexeme])
            for lexeme, count in lexemes[row.cluster].items()
        }
        assert row.words == sorted(weights, key=lambda lexeme: (-weights[lexeme], lexeme))[:3]
        members = [each for each in rows if each["label"] == row.cluster]
        center = np.mean([each["vector"] for each in members], axis=0)
        near = sorted(members, key=lambda each: -cosines(each["vector"][None], center[None])[0, 0])
        assert row.keys == [each["id"] for each in near[:2]]
    assert found[0].words[0] == "printer"
    assert found[2].words == []


def test_topics_of_clusters(engine, clouds):
    table, _, _ = clouds
    found = cluster(table.c.vector, min_score=0.8, min_size=5)
    with engine.connect() as connection:
        sizes = Counter(row.cluster for row in connection.execute(found))
        rows = connection.execute(topics(table.c.vector, found, text=table.c.kind)).all()
    assert {row.cluster: row.size for row in rows} == sizes
    assert all(set(row.words) <= {"0", "1", "2"} for row in rows)


def test_what_cannot_be_clustered(engine, clouds):
    table, _, _ = clouds
    for build, message in (
        (lambda: cluster(table.c.vector, min_score=0.9, min_size=0), "min_size=0"),
        (lambda: cluster(table.c.vector, min_score=2), "min_score=2"),
        (lambda: topics(table.c.vector, table, text=table.c.kind), "columns cluster and key"),
        (lambda: topics(table.c.vector, 5, text=table.c.kind), "clusters=5"),
        (lambda: topics(table.c.vector, _labels(table), text="kind"), "text='kind'"),
        (lambda: topics(table.c.vector, _labels(table), text=table.c.kind, words=0), "words=0"),
        (
            lambda: topics(table.c.vector, _labels(table), text=table.c.kind, config="no one"),
            "config='no one'",
        ),
    ):
        with pytest.raises(QueryError, match=message):
            build()
    with engine.connect() as connection, pytest.raises(DBAPIError, match="min_size is 0"):
        connection.execute(text("SELECT * FROM pgembed.cluster('item', 'vector', 0.9, 0)"))


def _labels(table):
    return select(table.c.kind.label("cluster"), table.c.id.label("key"))
