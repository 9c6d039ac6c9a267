"""boost= and decay(): scores that are made of more than distances."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Date,
    DateTime,
    Float,
    Integer,
    MetaData,
    Table,
    func,
    insert,
    literal,
    null,
    select,
)

from pgembed.exc import QueryError
from pgembed.queries import decay, semantic_search

QUERY = "w5 v17 u120"
DAY = datetime.timedelta(days=1)
KINDS = ("exponential", "gaussian", "linear")


def defined(kind: str, distance: Any, scale: float, offset: float, left: float) -> Any:
    """Elasticsearch's functions as its reference has them: with lambda, sigma and s."""
    beyond = np.maximum(0, np.abs(distance) - offset)
    if kind == "exponential":
        return np.exp(np.log(left) / scale * beyond)
    if kind == "gaussian":
        variance = -(scale**2) / (2 * np.log(left))
        return np.exp(-(beyond**2) / (2 * variance))
    s = scale / (1 - left)
    return np.maximum((s - beyond) / s, 0)


def test_decay_equals_its_definition_in_1200_random_cases(engine):
    random = np.random.default_rng(5)
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("number", Float(53)),
        Column("moment", DateTime(timezone=True)),
        Column("local", DateTime),
        Column("day", Date),
        prefixes=["TEMPORARY"],
    )
    start = datetime.datetime(2025, 3, 1, tzinfo=datetime.UTC)
    seconds = random.normal(scale=3e6, size=20)
    numbers = random.normal(scale=50, size=20)
    with engine.connect() as connection:
        table.create(connection)
        moments = [start + datetime.timedelta(seconds=value) for value in seconds]
        connection.execute(
            insert(table),
            [
                {
                    "id": n,
                    "number": number,
                    "moment": moment,
                    "local": moment.replace(tzinfo=None),
                    "day": moment,
                }
                for n, (number, moment) in enumerate(zip(numbers, moments, strict=True))
            ],
        )
        expressions, expected = [], []
        for case in range(60):
            kind, left = KINDS[case % 3], float(random.uniform(0.05, 0.95))
            scale, offset = float(random.uniform(1, 40)), float(random.uniform(0, 20)) * (case % 2)
            of_column = case % 4
            if of_column == 0:
                origin = float(random.normal())
                given = decay(
                    table.c.number, scale=scale, origin=origin, offset=offset, decay=left, kind=kind
                )
                distances = numbers - origin
            else:
                column = (table.c.moment, table.c.local, table.c.day)[of_column - 1]
                naive = start.replace(tzinfo=None)
                origin = (start, naive, start.date())[of_column - 1]
                given = decay(
                    column, scale=scale * DAY, origin=origin, offset=offset * DAY, decay=left, kind=kind
                )
                distances = seconds / 86400
                if column is table.c.day:
                    distances = np.array([(moment.date() - start.date()).days for moment in moments])
            expressions.append(given.label(f"case_{case}"))
            expected.append(defined(kind, distances, scale, offset, left))
        rows = connection.execute(select(*expressions).order_by(table.c.id)).all()
    assert np.allclose(np.array(rows, dtype=float).T, expected, rtol=1e-9, atol=1e-12)


def test_decay_from_now_far_away_and_of_null(session):
    def value(*args, **options):
        return session.scalar(select(decay(*args, **options)))

    hour = func.now() - datetime.timedelta(hours=1)
    assert value(hour, scale=datetime.timedelta(hours=1)) == pytest.approx(0.5)
    assert value(hour, scale=datetime.timedelta(hours=1), origin=hour) == 1
    local = func.localtimestamp(type_=DateTime) - datetime.timedelta(hours=3)
    assert value(
        local, scale=datetime.timedelta(hours=1), offset=datetime.timedelta(hours=2)
    ) == pytest.approx(0.5)
    for kind in KINDS:  # exp() of less than -745 is an error in Postgres
        assert value(literal(1e9), scale=1, origin=0, kind=kind) == pytest.approx(0, abs=1e-300)
        assert value(null().cast(Float), scale=1, origin=0, kind=kind) == 1


def boosts_of(corpus):
    """A boost as SQL, and as numbers: of every tenth row it is NULL."""
    article = corpus.article
    value = func.nullif(article.id % 10, 0) / 10.0
    return value, {row["id"]: row["id"] % 10 / 10 or None for row in corpus.rows}


@pytest.mark.parametrize("boosting", ["multiply", "add"])
@pytest.mark.parametrize("mode", ["auto", "exact"])
def test_the_best_scores_of_candidates_or_of_all_rows(corpus, session, boosting, mode):
    boost, numbers = boosts_of(corpus)
    candidates = 60 if mode == "auto" else None
    nearest = corpus.nearest(corpus.encoder.encode_queries([QUERY])[0], candidates or 5000)
    scores = {
        key: (1 - distance) * (1 if numbers[key] is None else numbers[key])
        if boosting == "multiply"
        else 1 - distance + (numbers[key] or 0)
        for key, distance in nearest
    }
    statement = semantic_search(
        corpus.article.embedding,
        QUERY,
        boost=boost,
        boosting=boosting,
        candidates=candidates,
        mode=mode,
        limit=12,
        offset=3,
    )
    rows = session.execute(statement).all()
    assert [row.score for row in rows] == pytest.approx(sorted(scores.values(), reverse=True)[3:15], abs=1e-5)
    assert [row.score for row in rows] == pytest.approx([scores[row[0].id] for row in rows], abs=1e-5)
    distances = dict(nearest)
    assert [row.distance for row in rows] == pytest.approx([distances[row[0].id] for row in rows], abs=1e-5)


def test_candidates_are_found_through_the_index(corpus, session, explain):
    boost, _ = boosts_of(corpus)
    plan = explain(session.connection(), semantic_search(corpus.article.embedding, QUERY, boost=boost))
    assert "Index Scan using ix_article_embedding_hnsw" in plan
    assert all("never executed" in line for line in plan.splitlines() if "Seq Scan on article" in line)


def test_it_is_never_short_and_keeps_to_conditions(corpus, session):
    article = corpus.article
    for mode in ("auto", "exact"):
        statement = semantic_search(
            article.embedding,
            QUERY,
            boost=article.id,
            where=article.id.in_([4, 9, 11, 500, 600, 700]),
            mode=mode,
        )
        assert [row[0].id for row in session.execute(statement)].count(4) == 1
        assert {row[0].id for row in session.execute(statement)} == {4, 9, 600, 700} - {500}
    most = (
        session.execute(semantic_search(article.embedding, QUERY, limit=5, mode="exact")).all()[-1].distance
    )
    near = semantic_search(article.embedding, QUERY, boost=article.id, max_distance=most, mode="exact")
    assert len(session.execute(near).all()) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boost": 2.0}, "boost=2.0 is not a column"),
        ({"boost": "likes"}, "boost='likes' is not a column"),
        ({"candidates": 50}, "candidates=50 has no effect without boost="),
        ({"boosting": "add"}, "boosting='add' has no effect without boost="),
        ({"boosting": "max", "boost": literal(1.0)}, "boosting='max'"),
        ({"candidates": 5, "boost": literal(1.0)}, r"candidates=5; expected at least limit \+ offset = 10"),
        ({"candidates": float("nan"), "boost": literal(1.0)}, "candidates=nan"),
        ({"candidates": 50, "boost": literal(1.0), "mode": "exact"}, "scores all rows"),
        ({"per": literal(1.0), "boost": literal(1.0)}, "per= and boost= cannot be combined"),
    ],
)
def test_what_is_no_boost_is_refused(corpus, options, message):
    with pytest.raises(QueryError, match=message):
        semantic_search(corpus.article.embedding, QUERY, **options)


def test_a_boost_of_another_table_is_refused(corpus):
    with pytest.raises(QueryError, match="boost= refers to author"):
        semantic_search(corpus.article.embedding, QUERY, boost=corpus.author.id)


MOMENT, NUMBER = Column("m", DateTime), Column("n", Float)


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (NUMBER, {"scale": 0, "origin": 1}, "expected a scale above 0"),
        (NUMBER, {"scale": -1, "origin": 1}, "expected a scale above 0"),
        (NUMBER, {"scale": float("nan"), "origin": 1}, "scale=nan"),
        (NUMBER, {"scale": "1", "origin": 1}, "scale='1'"),
        (NUMBER, {"scale": 1, "origin": float("nan")}, "origin=nan"),
        (NUMBER, {"scale": 1}, "origin= is left out"),
        (NUMBER, {"scale": 1, "origin": 1, "offset": -1}, "an offset that is not negative"),
        (NUMBER, {"scale": 1, "origin": 1, "offset": DAY}, "expected a number, as scale= is one"),
        (NUMBER, {"scale": 1, "origin": 1, "decay": 1}, "a decay between 0 and 1"),
        (NUMBER, {"scale": 1, "origin": 1, "decay": 0}, "a decay between 0 and 1"),
        (NUMBER, {"scale": 1, "origin": 1, "kind": "cubic"}, "kind='cubic'"),
        (NUMBER, {"scale": DAY}, "holds numbers"),
        (MOMENT, {"scale": 3}, "holds dates"),
        (MOMENT, {"scale": DAY, "offset": 3}, "expected a timedelta"),
        (MOMENT, {"scale": DAY, "origin": 3}, "expected a date"),
        ("m", {"scale": DAY}, "column='m' is not a column"),
    ],
)
def test_what_is_no_decay_is_refused(column, options, message):
    with pytest.raises(QueryError, match=message):
        decay(column, **options)
