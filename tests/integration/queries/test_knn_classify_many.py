"""knn_classify_many: a label for each of many rows, compared with votes counted by numpy."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    ARRAY,
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    func,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, aliased

from pgembed.columns.types import VectorType
from pgembed.exc import LateClauseError, QueryError
from pgembed.queries import keep_list, knn_classify, knn_classify_many, softmax
from tests.integration.queries.conftest import store

TEXTS = ["w5 v17 u120", "w1 v2 u3", "w40 v41 u42"]
WEIGHTS: dict[str, tuple[Any, Any]] = {
    "distance": ("distance", lambda distance: 1 / (max(distance, 0) + 1e-6)),
    "uniform": ("uniform", lambda _: 1.0),
    "softmax": (softmax(0.07), lambda distance: np.exp(-distance / 0.07)),
}


def elected(neighbours, weight, sizes=None):
    """``(label, share, votes, margin, nearest)`` of neighbours ``(label, distance)``, nearest first."""
    weights, votes = defaultdict(float), Counter()
    for label, distance in neighbours:
        weights[label] += weight(distance) / (sizes[label] if sizes else 1)
        votes[label] += 1
    total = sum(weights.values())
    (first, most), *others = sorted(weights.items(), key=lambda each: -each[1])
    second = others[0][1] if others else 0
    return first, most / total, votes[first], (most - second) / total, neighbours[0][1]


def of_corpus(corpus, vector, k, keep=lambda row: True):
    nearest = corpus.nearest(vector, k, lambda row: row["section"] is not None and keep(row))
    return [(corpus.rows[key - 1]["section"], distance) for key, distance in nearest]


def same(row, expected):
    label, *figures = expected
    assert row.label == label
    found = (row.share, row.votes, row.margin, row.nearest_distance)
    assert found == pytest.approx(tuple(figures), rel=2e-3, abs=5e-6)


@pytest.mark.parametrize("mode", ["auto", "exact"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_row_of_a_condition_gets_the_label_of_its_neighbours(corpus, session, weights, mode):
    article = corpus.article
    given, weight = WEIGHTS[weights]
    statement = knn_classify_many(
        article.embedding,
        queries=article.id.between(2, 60),
        label=article.section,
        k=9,
        weights=given,
        where=~article.hidden,
        mode=mode,
    )
    rows = session.execute(statement).all()
    assert [row.key for row in rows] == list(range(2, 61))
    for row in rows:
        if row.key in (11, 12):  # zeros
            assert tuple(row)[1:] == (None, None, 0, None, None, "too few neighbours")
            continue

        def keep(found, key=row.key):
            return found["id"] != key and not found["hidden"]

        neighbours = of_corpus(corpus, corpus.vectors[row.key], 9, keep)
        same(row, elected(neighbours, weight))
        assert row.reason is None
    assert rows[0]._fields == ("key", "label", "share", "votes", "margin", "nearest_distance", "reason")


def test_texts_are_encoded_in_one_batch_and_agree_with_one_by_one(corpus, session):
    article = corpus.article
    statement = knn_classify_many(
        article.embedding, queries=bindparam("queries"), label=func.coalesce(article.section, "none"), k=30
    )
    corpus.encoder.calls.clear()
    rows = session.execute(statement, {"queries": [*TEXTS, corpus.vectors[1]]}).all()
    assert corpus.encoder.calls == [tuple(TEXTS)]
    assert [row.key for row in rows] == [0, 1, 2, 3]
    for row, text in zip(rows, [*TEXTS, corpus.vectors[1]], strict=True):
        one = session.execute(
            knn_classify(article.embedding, text, label=func.coalesce(article.section, "none"), k=30)
        ).all()
        assert (row.label, row.votes) == (one[0].label, one[0].votes)
        assert row.share == pytest.approx(one[0].share)
        assert row.margin == pytest.approx(one[0].share - one[1].share)


def test_each_row_uses_the_index(corpus, session, explain):
    article = corpus.article
    statement = knn_classify_many(article.embedding, queries=TEXTS, label=article.section)
    plan = explain(session.connection(), statement)
    index = next(line for line in plan.splitlines() if "Index Scan using ix_article_embedding_hnsw" in line)
    assert "loops=3" in index
    assert all("never executed" in line for line in plan.splitlines() if "Seq Scan on article" in line)


def test_a_balanced_prior_divides_votes_by_the_rows_of_a_label(corpus, session):
    article = corpus.article

    def keep(row):
        return row["section"] == "help" or row["id"] % 10 == 1

    options = {
        "queries": TEXTS,
        "label": article.section,
        "k": 40,
        "where": (article.section == "help") | (article.id % 10 == 1),
        "mode": "exact",
    }
    training = [row for row in corpus.rows if row["section"] and keep(row) and row["id"] in corpus.vectors]
    sizes = Counter(row["section"] for row in training)
    plain = session.execute(knn_classify_many(article.embedding, **options)).all()
    balanced = session.execute(knn_classify_many(article.embedding, prior="balanced", **options)).all()
    for text, row, before in zip(TEXTS, balanced, plain, strict=True):
        neighbours = of_corpus(corpus, corpus.encoder.encode_queries([text])[0], 40, keep)
        same(row, elected(neighbours, WEIGHTS["distance"][1], sizes))
        same(before, elected(neighbours, WEIGHTS["distance"][1]))
    assert [row.label for row in balanced] != [row.label for row in plain]


METADATA = MetaData()
POINTS = Table(
    "point",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("label", String),
    Column("tags", ARRAY(String)),
    Column("price", Float),
    Column("stars", Integer),
    Column("vector", VectorType(2)),
)
QUESTIONS = Table(
    "question",
    METADATA,
    Column("a", Integer, primary_key=True),
    Column("b", String, primary_key=True),
    Column("vector", VectorType(2)),
    Column("answer", String),
)
ANSWERS = Table("answer", METADATA, Column("key", Integer, primary_key=True), Column("label", String))


@pytest.fixture
def points(engine):
    """Fill ``point`` on a line: the position is the place in the list."""

    def fill(**values):
        count = len(next(iter(values.values())))
        store(
            engine,
            POINTS,
            [[n, 0] for n in range(count)],
            lambda n: {name: given[n] for name, given in values.items()},
        )
        return Session(engine)

    return fill


def classified(session, at, **options):
    options = {"label": POINTS.c.label, "k": 3, "metric": "l2"} | options
    return session.execute(knn_classify_many(POINTS.c.vector, queries=at, **options)).all()


def test_what_is_not_sure_enough_gets_no_label_and_a_reason(points):
    with points(label=["a", "a", "b", "b", "b", None]) as session:

        def reasons(at, **options):
            return [(row.label, row.reason) for row in classified(session, at, weights="uniform", **options)]

        at = [[0, 0], [2, 0], [100, 0]]
        assert reasons(at) == [("a", None), ("b", None), ("b", None)]
        assert reasons(at, min_share=0.7) == [(None, "low share"), (None, "low share"), ("b", None)]
        assert reasons(at, min_margin=0.5) == [(None, "low margin"), (None, "low margin"), ("b", None)]
        assert reasons(at, max_distance=1.5) == [("a", None), ("b", None), (None, "too far")]
        assert reasons(at, max_distance=1.5, min_neighbours=3) == [
            (None, "too few neighbours"),
            ("b", None),
            (None, "too far"),
        ]
        assert reasons(at, k=6) == [(None, "too few neighbours")] * 3
        assert reasons(at, k=6, min_neighbours=5) == [("b", None)] * 3
        unsure, far = classified(session, [[0, 0], [100, 0]], min_share=0.99, max_distance=5)
        assert tuple(unsure)[:1] + tuple(unsure)[3:4] == (0, 2)
        assert unsure.share > 0.9
        assert tuple(far)[1:] == (None, None, 0, None, 96, "too far")


def test_a_sole_label_has_all_votes(points):
    """Exactly: divided as numeric, they would be 0.9999999999999996 or so of themselves."""
    with points(label=["a"] * 30) as session:
        rows = classified(session, [[n + 0.1 * n, n] for n in range(30)], k=7, min_share=1)
        assert {(row.label, row.share, row.margin) for row in rows} == {("a", 1, 1)}


def test_rows_without_a_vector_are_reported(points):
    with points(label=["a", "a", "b"]) as session:
        session.execute(insert(POINTS), [{"id": 9, "vector": None}])
        for mode in ("auto", "approximate"):
            rows = classified(session, POINTS.c.label.is_(None), k=2, mode=mode)
            assert [tuple(row) for row in rows] == [(9, None, None, 0, None, None, "no vector")]


def test_ties_go_to_the_nearest_row_then_to_the_smaller_label(points):
    with points(label=["x", "b", "a", "b", "a", "x"]) as session:
        tied = {"weights": "uniform", "where": POINTS.c.label != "x", "k": 4}
        assert [row.label for row in classified(session, [[1.4, 0], [1.6, 0], [2.5, 0]], **tied)] == [*"baa"]
        assert [row.margin for row in classified(session, [[2.5, 0]], **tied)] == [0]
        weighed = classified(session, [[2.5, 0]], where=POINTS.c.label != "x", k=4)
        assert [(row.label, row.margin) for row in weighed] == [("a", 0)]


def test_arrays_are_sets_of_labels(points):
    tags = [["red", "big"], ["red"], ["big", "old", "old"], [], None]
    with points(tags=tags) as session:
        options = {"label": POINTS.c.tags, "weights": "uniform"}
        rows = classified(session, [[0, 0], [3, 0]], **options)
        assert [tuple(row)[1:5] for row in rows] == [
            (["big", "red"], pytest.approx(2 / 3), 2, pytest.approx(1 / 3)),
            ([], None, 0, None),
        ]
        assert [row.label for row in classified(session, [[3, 0]], min_share=0.3, **options)] == [
            ["big", "old", "red"]
        ]
        assert [row.label for row in classified(session, [[1, 0]], min_margin=0.5, **options)] == [None]


def test_numbers_are_averaged(points):
    with points(price=[10.0, 20.0, 60.0, 5.0], stars=[1, 1, 3, 2], label=[*"abab"]) as session:
        row = classified(session, [[0, 0]], label=POINTS.c.price, weights=softmax(1))[0]
        weights = np.exp([0.0, -1, -2])
        assert row.label == pytest.approx(weights @ [10, 20, 60] / weights.sum())
        assert tuple(row)[2:] == (None, 3, None, 0, None)
        uniform = {"weights": "uniform"}
        assert classified(session, [[0, 0]], label=POINTS.c.stars, **uniform)[0].label == 1
        averaged = classified(session, [[0, 0]], label=POINTS.c.stars, regression=True, **uniform)
        assert averaged[0].label == pytest.approx(5 / 3)
        far = classified(session, [[9, 0]], label=POINTS.c.price, max_distance=2)[0]
        assert tuple(far)[1:] == (None, None, 0, None, 6, "too far")
        as_classes = classified(session, [[0, 0]], label=POINTS.c.price, regression=False, **uniform)
        assert as_classes[0].label == 10


def test_it_feeds_insert_and_update(points):
    with points(label=["a", "a", None, "b", "b", None]) as session:
        statement = knn_classify_many(
            POINTS.c.vector, queries=POINTS.c.label.is_(None), label=POINTS.c.label, k=2, metric="l2"
        )
        found = statement.subquery()
        session.execute(insert(ANSWERS).from_select(["key", "label"], select(found.c.key, found.c.label)))
        assert session.execute(select(ANSWERS).order_by(ANSWERS.c.key)).all() == [(2, "a"), (5, "b")]
        session.execute(
            update(POINTS)
            .where(POINTS.c.id == found.c.key, found.c.reason.is_(None))
            .values(label=func.upper(found.c.label))
        )
        labels = session.scalars(select(POINTS.c.label).order_by(POINTS.c.id)).all()
        assert labels == [*"aaAbbB"]


def test_questions_of_another_table_and_composite_keys(points):
    with points(label=["a", "a", "b", "b"]) as session:
        rows = [{"a": n // 2, "b": "xy"[n % 2], "vector": None if n == 3 else [n, 1]} for n in range(4)]
        session.execute(insert(QUESTIONS), rows)
        options = {"label": POINTS.c.label, "k": 1, "metric": "l2"}
        found = session.execute(
            knn_classify_many(POINTS.c.vector, queries=QUESTIONS.c.vector, **options)
        ).all()
        assert [tuple(row)[:3] for row in found] == [
            (0, "x", "a"),
            (0, "y", "a"),
            (1, "x", "b"),
            (1, "y", None),
        ]
        assert len(found[0]) == 8
        asked = select(QUESTIONS.c.b, QUESTIONS.c.vector, QUESTIONS.c.a).where(QUESTIONS.c.a == 0)
        own = knn_classify_many(
            POINTS.c.vector, queries=asked, where=POINTS.c.id > 2 + QUESTIONS.c.a, **options
        )
        assert [tuple(row)[:2] for row in session.execute(own)] == [("x", "b"), ("y", "b")]
        with pytest.raises(QueryError, match="where= refers to the queries"):
            knn_classify_many(
                POINTS.c.vector, queries=asked, where=POINTS.c.id > QUESTIONS.c.a, prior="balanced", **options
            )


def test_conditions_with_subqueries_over_the_table_itself(corpus, session):
    """They mean the whole table, not the row that votes."""
    article = corpus.article
    options = {"queries": article.id < 20, "label": article.section, "k": 3}

    def labels(where):
        found = session.execute(knn_classify_many(article.embedding, where=where, **options))
        return [tuple(row) for row in found]

    of_some = labels(article.id.between(500, 600))
    assert labels(article.id.in_(select(article.id).where(article.id.between(500, 600)))) == of_some
    some = article.id.between(500, 600)
    kept = keep_list(article.embedding, min_score=0.2, where=some, mode="approximate").subquery()
    keys = [row.key for row in session.execute(select(kept.c.key).where(kept.c.keep))]
    assert 1 < len(keys) < 101
    assert labels(article.id.in_(select(kept.c.key).where(kept.c.keep))) == labels(article.id.in_(keys))


def test_aliases_and_all_rows(corpus, session):
    """Every row without itself: leave-one-out."""
    article = aliased(corpus.article)
    statement = knn_classify_many(article.embedding, queries=true(), label=article.section, k=1)
    found = statement.subquery()
    wrong = select(func.count()).where(found.c.nearest_distance == 0)
    some = select(found).where(found.c.key.in_([3, 500, 1001]))
    rows = session.execute(some.order_by(found.c.key)).all()
    assert [row.reason for row in rows] == [None, "no vector", None]
    for row in (rows[0], rows[2]):
        same(
            row,
            elected(
                of_corpus(corpus, corpus.vectors[row.key], 1, lambda each, key=row.key: each["id"] != key),
                WEIGHTS["distance"][1],
            ),
        )
    assert session.scalar(wrong) == 0


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_other_drivers(corpus, driver):
    article = corpus.article
    statement = knn_classify_many(
        article.embedding, queries=TEXTS, label=article.section, k=5, weights=softmax(0.1), min_share=0.2
    )
    with Session(corpus.engine) as session:
        expected = session.execute(statement).all()
    url = corpus.url.set(drivername=f"postgresql+{driver}")

    async def run() -> Any:
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session:
            rows = (await session.execute(statement)).all()
        await engine.dispose()
        return rows

    if driver == "asyncpg":
        assert asyncio.run(run()) == expected
        return
    engine = create_engine(url)
    with Session(engine) as session:
        assert session.execute(statement).all() == expected
    engine.dispose()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"weights": "fast"}, r'expected "distance", "uniform" or softmax'),
        ({"prior": "flat"}, "prior='flat'; expected \"balanced\""),
        ({"prior": "balanced", "label": POINTS.c.tags}, "labels that are classes"),
        ({"min_share": 1.5}, "min_share=1.5; expected a number from 0 to 1"),
        ({"min_margin": "high"}, "min_margin='high'"),
        ({"max_distance": "near"}, "max_distance='near'"),
        ({"min_neighbours": 16}, "min_neighbours=16; expected a whole number from 1 to 15"),
        ({"label": POINTS.c.price, "min_share": 0.5}, "min_share=0.5 has no effect"),
        ({"regression": True}, "expected numbers"),
        ({"queries": POINTS.c.label}, "expected a list of texts or vectors"),
        ({"queries": QUESTIONS.c.a == 1}, "queries= refers to question"),
        ({"where": QUESTIONS.c.a == 1}, "where= refers to question"),
        ({"label": QUESTIONS.c.answer}, "label= refers to question"),
    ],
)
def test_what_cannot_give_the_right_labels_is_refused(options, message):
    options = {"queries": [[1, 2]], "label": POINTS.c.label} | options
    with pytest.raises(QueryError, match=message):
        knn_classify_many(POINTS.c.vector, **options)


def test_statements_are_cached_and_refuse_late_conditions():
    made = [
        knn_classify_many(POINTS.c.vector, queries=[[n, 2]], label=POINTS.c.label, k=n, weights=softmax(n))
        for n in (1, 2)
    ]
    keys = [statement._generate_cache_key() for statement in made]
    assert keys[0] == keys[1] is not None
    with pytest.raises(LateClauseError, match=r"knn_classify_many\(\)"):
        made[0].where(POINTS.c.id == 1)
    assert "LIMIT" in str(made[0].limit(1))
    with pytest.raises(QueryError, match="temperature=0; expected a number above 0"):
        softmax(0)
