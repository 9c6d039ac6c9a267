"""diversify: maximal marginal relevance, step by step that of an oracle over the same candidates."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import defer

from pgembed.columns.types import VectorType
from pgembed.exc import LateClauseError, QueryError
from pgembed.queries import diversify, hybrid_search, knn_classify, recommend, search_many, semantic_search

QUERY = "w5 v17 u120"
ROWS, DIMENSIONS = 40, 4
TABLE = Table(
    "thing", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType(DIMENSIONS))
)
VECTORS = np.random.default_rng(7).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
VECTORS[::5] = VECTORS[1::5] + 0.01  # some that say nearly the same


def cosine(left, right):
    left, right = np.atleast_2d(left).astype(np.float64), np.atleast_2d(right).astype(np.float64)
    return left @ right.T / np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))


def check(chosen, candidates, vectors, query, weight):
    """Each row was the best of those left, given the ones before; rounding may decide between equal ones."""
    relevance = dict(zip(candidates, cosine(query, vectors)[0], strict=True))
    similar = cosine(vectors, vectors)
    places = {key: place for place, key in enumerate(candidates)}
    assert len(set(chosen)) == len(chosen)
    for step, key in enumerate(chosen):
        if step == 0:
            margins = relevance
        else:
            before = [places[other] for other in chosen[:step]]
            margins = {
                other: weight * relevance[other] - (1 - weight) * similar[places[other], before].max()
                for other in candidates
                if other not in chosen[:step]
            }
        assert margins[key] >= max(margins.values()) - 1e-5


def nearest(query, metric, limit):
    distances = (
        1 - cosine(query, VECTORS)[0] if metric == "cosine" else np.linalg.norm(VECTORS - query, axis=1)
    )
    return np.argsort(distances, kind="stable")[:limit].tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0, 0.1, 0.5, 0.77, 1]),
    st.integers(1, 12),
    st.integers(0, 3),
    st.integers(0, 40),
    st.sampled_from(["cosine", "l2"]),
)
def test_random_cases_equal_the_oracle(things, seed, weight, limit, offset, more, metric):
    query = np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)
    search = semantic_search(TABLE.c.v, query, limit=limit, offset=offset, metric=metric)
    whole = semantic_search(TABLE.c.v, query, limit=limit + offset, metric=metric)
    candidates = nearest(query, metric, limit + offset + more)
    with things.connect() as connection:
        rows = connection.execute(diversify(search, lambda_=weight, candidates=limit + offset + more)).all()
        all_rows = connection.execute(
            diversify(whole, lambda_=weight, candidates=limit + offset + more)
        ).all()
    assert len(all_rows) == min(limit + offset, ROWS)
    check([row.id for row in all_rows], candidates, VECTORS[candidates], query, weight)
    assert [(row.id, row.rank) for row in rows] == [(row.id, row.rank) for row in all_rows[offset:]]
    assert [row.rank for row in all_rows] == list(range(1, len(all_rows) + 1))


def test_a_thousand_random_cases_in_sql_equal_the_oracle(things):
    random = np.random.default_rng(13)
    queries = random.normal(size=(1000, DIMENSIONS)).astype(np.float32)
    weights = random.choice([0, 0.25, 0.5, 0.9, 1], size=1000)
    with things.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT q.n, array_agg(CAST(d.key ->> 'id' AS integer) ORDER BY d.rank)"
                " FROM unnest(CAST(:queries AS vector[]), CAST(:weights AS float8[]))"
                " WITH ORDINALITY AS q (vector, weight, n)"
                " CROSS JOIN LATERAL pgembed.diversify('thing', 'v', q.vector, 4, q.weight, 12) AS d"
                " GROUP BY q.n ORDER BY q.n"
            ),
            {"queries": [str(query.tolist()) for query in queries], "weights": weights.tolist()},
        ).all()
    assert len(rows) == 1000
    for (_, chosen), query, weight in zip(rows, queries, weights, strict=True):
        assert len(chosen) == 4
        candidates = nearest(query, "cosine", 12)
        check(chosen, candidates, VECTORS[candidates], query, weight)


def test_candidates_are_found_through_the_index(corpus, session, explain):
    statement = diversify(semantic_search(corpus.article.embedding, QUERY, limit=5))
    plan = explain(session.connection(), statement)
    assert "Index Scan using ix_article_embedding_hnsw" in plan
    assert all("never executed" in line for line in plan.splitlines() if "Seq Scan on article" in line)


def test_it_keeps_what_the_search_has(corpus, session):
    """Conditions, other columns, options, a bound query, one batch for a text; a text is encoded once."""
    article, author = corpus.article, corpus.author
    base = select(article.id, author.name).outerjoin(article.author)
    search = semantic_search(
        article.embedding, QUERY, base=base, where=article.section == "help", mode="exact", limit=6
    )
    corpus.encoder.calls.clear()
    rows = session.execute(diversify(search, candidates=20)).all()
    assert len(corpus.encoder.calls) == 1
    assert rows[0]._fields == ("id", "name", "distance", "score", "rank")
    query = corpus.encoder.encode_queries([QUERY])[0]
    candidates = [key for key, _ in corpus.nearest(query, 20, lambda row: row["section"] == "help")]
    check([row.id for row in rows], candidates, [corpus.vectors[key] for key in candidates], query, 0.5)

    bound = diversify(semantic_search(article.embedding, bindparam("q"), mode="exact", limit=6))
    assert len(session.execute(bound, {"q": QUERY}).all()) == 6
    lazily = diversify(semantic_search(article.embedding, QUERY).options(defer(article.title)))
    assert "title" not in vars(session.execute(lazily).first()[0])
    liked = diversify(recommend(article.embedding, [2, 3], ["w1 v1 u1"], limit=5), lambda_=0.3)
    assert len(session.execute(liked).all()) == 5
    few = diversify(semantic_search(article.embedding, QUERY, where=article.id.in_([5, 6, 7])))
    assert {row[0].id for row in session.execute(few)} == {5, 6, 7}
    none = diversify(semantic_search(article.embedding, QUERY, where=article.id == 500))
    assert session.execute(none).all() == []
    again = [semantic_search(article.embedding, QUERY, mode="exact", limit=6) for _ in range(3)][-1]
    assert len(session.execute(diversify(again)).all()) == 6


def test_lambda_one_is_the_search(corpus, session):
    search = semantic_search(corpus.article.embedding, QUERY, mode="exact", limit=20)
    rows = session.execute(diversify(search, lambda_=1)).all()
    assert [row.distance for row in rows] == pytest.approx([row.distance for row in session.execute(search)])


def test_bits_and_composite_keys(engine):
    table = Table(
        "t",
        MetaData(),
        Column("a", String, primary_key=True),
        Column("b", Integer, primary_key=True),
        Column("bits", BIT(4)),
    )
    table.metadata.create_all(engine)
    bits = ["0000", "0001", "0001", "1100"]
    with engine.begin() as connection:
        connection.execute(insert(table), [{"a": "x", "b": n, "bits": each} for n, each in enumerate(bits)])
        rows = connection.execute(
            diversify(semantic_search(table.c.bits, "0001", limit=3), lambda_=0.3)
        ).all()
    assert [row.b for row in rows] == [1, 3, 0]


@pytest.mark.parametrize("lambda_", [-0.01, 1.01, float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_lambda_is_from_0_to_1(corpus, lambda_):
    with pytest.raises(QueryError, match="lambda_="):
        diversify(semantic_search(corpus.article.embedding, QUERY), lambda_=lambda_)


def test_what_it_cannot_diversify_is_refused(corpus):
    article = corpus.article
    search = semantic_search(article.embedding, QUERY)
    for candidates in (0, 9, -1, float("nan"), True):
        with pytest.raises(QueryError, match="candidates="):
            diversify(search, candidates=candidates)
    for statement in (
        select(article),
        semantic_search(article.embedding, QUERY, per=article.author_id),
        semantic_search(article.embedding, QUERY, boost=article.id),
        hybrid_search(article.embedding, QUERY, text=article.title),
        knn_classify(article.embedding, QUERY, label=article.section),
        search_many(article.embedding, [QUERY]),
        recommend(article.embedding, [1], strategy="best"),
        diversify(search),
        None,
    ):
        with pytest.raises(QueryError, match=r"diversify\(\) takes a statement of semantic_search\(\)"):
            diversify(statement)
    with pytest.raises(LateClauseError, match=r"to diversify\(\)"):
        diversify(search).where(article.id > 1)


def test_searches_are_pickled_without_their_recipe():
    copy = pickle.loads(pickle.dumps(semantic_search(TABLE.c.v, [1.0] * DIMENSIONS)))
    with pytest.raises(QueryError, match="as that helper returns it"):
        diversify(copy)


def test_sql_arguments_are_checked(things):
    for arguments, message in (
        ("lambda => 1.5", "lambda is 1.5"),
        ("lambda => 'NaN'", "lambda is NaN"),
        ("lambda => NULL", "lambda is NULL"),
        ("k => 0", "k is 0 of 50"),
        ("k => 60", "k is 60 of 50"),
        ("candidates => NULL", "NULL candidates"),
    ):
        with things.connect() as connection, pytest.raises(DBAPIError, match=message):
            connection.execute(
                text(
                    f"SELECT * FROM pgembed.diversify('thing', 'v', CAST('[1,2,3,4]' AS vector), {arguments})"
                )
            )
