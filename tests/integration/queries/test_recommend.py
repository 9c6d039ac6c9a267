"""recommend and vector_of: rows like some examples and unlike others, by Qdrant's two definitions."""

from __future__ import annotations

import asyncio
import json

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
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgembed.columns.types import VectorType
from pgembed.exc import DimensionMismatchError, LateClauseError, QueryError
from pgembed.queries import hybrid_search, knn_classify, recommend, semantic_search, vector_of

ROWS, DIMENSIONS = 40, 4
TABLE = Table(
    "thing", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType(DIMENSIONS))
)
VECTORS = np.random.default_rng(7).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)


def similarity(metric, left, right):
    left, right = left.astype(np.float64), right.astype(np.float64)
    if metric == "cosine":
        return left @ right / np.linalg.norm(left) / np.linalg.norm(right)
    return left @ right if metric == "inner_product" else 1 / (1 + np.linalg.norm(left - right))


def oracle(strategy, metric, positive, negative, excluded, weights=None):
    """The score of each row that is recommended, by Qdrant's definitions."""
    scores = {}
    if strategy == "average":
        query = np.average(positive, axis=0, weights=weights)
        if len(negative):
            query = query + query - np.mean(negative, axis=0)
    for key, vector in enumerate(VECTORS):
        if key in excluded:
            continue
        if strategy == "average":
            scores[key] = similarity(metric, query, vector)
            continue
        s = max((similarity(metric, vector, each) for each in positive), default=-np.inf)
        n = max((similarity(metric, vector, each) for each in negative), default=-np.inf)
        scores[key] = s if s > n else -n * n
    return scores


def check(rows, scores, limit):
    """The rows are the best, and their scores those of the oracle."""
    found = [score for _, score in rows]
    assert len(rows) == min(limit, len(scores))
    # Weights and sums of vectors are float32.
    assert found == pytest.approx([scores[key] for key, _ in rows], rel=1e-5, abs=1e-5)
    assert found == pytest.approx(sorted(scores.values(), reverse=True)[: len(rows)], rel=1e-5, abs=1e-5)


keys = st.lists(st.integers(0, ROWS - 1), max_size=3, unique=True)
vectors = st.lists(st.integers(0, 10**6), max_size=2).map(
    lambda seeds: [np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32) for seed in seeds]
)


@settings(max_examples=60, deadline=None)
@given(
    keys,
    vectors,
    keys,
    vectors,
    st.sampled_from(["average", "best"]),
    st.sampled_from(["cosine", "l2", "inner_product"]),
    st.integers(1, ROWS),
)
def test_random_examples_equal_the_definitions(
    things, liked, liked_too, disliked, disliked_too, strategy, metric, limit
):
    positive, negative = [*liked, *liked_too], [*disliked, *disliked_too]
    if not positive and (strategy == "average" or not negative):
        return
    scores = oracle(
        strategy,
        metric,
        [*VECTORS[liked], *liked_too],
        [*VECTORS[disliked], *disliked_too],
        {*liked, *disliked},
    )
    statement = recommend(TABLE.c.v, positive, negative, strategy=strategy, metric=metric, limit=limit)
    with things.connect() as connection:
        rows = connection.execute(statement).all()
    check([(row.id, row.score) for row in rows], scores, limit)


def test_a_thousand_random_cases_in_sql_equal_the_definitions(things):
    random = np.random.default_rng(11)
    cases = []
    for number in range(1000):
        liked, disliked = random.integers(0, ROWS, (2, 2))
        liked, disliked = liked[: 1 + number % 2], disliked[: number % 3]
        more = random.normal(size=DIMENSIONS).astype(np.float32)
        cases.append((liked, disliked, more, ("average", "best")[number % 2]))
    with things.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT c.n, r.* FROM unnest(CAST(:cases AS jsonb[])) WITH ORDINALITY AS c (asked, n)"
                " CROSS JOIN LATERAL pgembed.recommend('thing', 'v',"
                " ARRAY(SELECT jsonb_array_elements(c.asked -> 'positive')),"
                " ARRAY(SELECT jsonb_array_elements(c.asked -> 'negative')), 3, c.asked ->> 'strategy') AS r"
            ),
            {
                "cases": [
                    json.dumps(
                        {
                            "positive": [*({"id": int(key)} for key in liked), more.tolist()],
                            "negative": [{"id": int(key)} for key in disliked],
                            "strategy": strategy,
                        }
                    )
                    for liked, disliked, more, strategy in cases
                ]
            },
        ).all()
    found = {}
    for row in rows:
        found.setdefault(row.n, []).append((row.key["id"], row.score))
    for number, (liked, disliked, more, strategy) in enumerate(cases, 1):
        scores = oracle(
            strategy,
            "cosine",
            [*VECTORS[liked], more],
            VECTORS[disliked],
            {*liked.tolist(), *disliked.tolist()},
        )
        check(found[number], scores, 3)


def test_weights(things):
    scores = oracle("average", "l2", VECTORS[[3, 5]], VECTORS[[8]], {3, 5, 8}, weights=[2, 0.5])
    statement = recommend(
        TABLE.c.v, [3, 5], [8], positive_weights=[2, 0.5], negative_weights=[7], metric="l2", limit=ROWS
    )
    with things.connect() as connection:
        rows = connection.execute(statement).all()
    check([(row.id, row.score) for row in rows], scores, ROWS)


@pytest.mark.parametrize("strategy", ["average", "best"])
def test_entities_keys_and_texts_in_one_batch(corpus, session, strategy):
    article = corpus.article
    liked = session.get(article, 2)
    statement = recommend(
        article.embedding,
        [liked, 3, "w1 v2 u3"],
        ["w5 v6 u7", 11, 500],  # a vector of zeros, and none
        strategy=strategy,
        where=article.section == "help",
        ef_search=800,
    )
    corpus.encoder.calls.clear()
    rows = session.execute(statement).all()
    assert session.execute(statement).all() == rows
    assert corpus.encoder.calls == [("w1 v2 u3", "w5 v6 u7")]
    assert len(rows) == 10
    assert {row[0].section for row in rows} == {"help"}
    assert not {row[0].id for row in rows} & {2, 3}
    exact = recommend(
        article.embedding,
        [liked, 3, "w1 v2 u3"],
        ["w5 v6 u7", 11, 500],
        strategy=strategy,
        where=article.section == "help",
        mode="exact",
    )
    assert [row.score for row in session.execute(exact)] == pytest.approx(
        [row.score for row in rows], abs=1e-6
    )


@pytest.mark.parametrize("strategy", ["average", "best"])
def test_it_uses_the_index_and_scans_no_table(corpus, session, strategy, explain):
    examples = {"positive": [2, 3], "negative": ["w5 v6 u7"], "strategy": strategy, "limit": 5}
    plan = explain(session.connection(), recommend(corpus.article.embedding, **examples))
    assert "Index Scan using ix_article_embedding_hnsw" in plan
    assert all("never executed" in line for line in plan.splitlines() if "Seq Scan on article" in line)
    exact = explain(session.connection(), recommend(corpus.article.embedding, mode="exact", **examples))
    assert "hnsw" not in exact


@pytest.mark.parametrize("strategy", ["average", "best"])
def test_pages_other_columns_and_async(corpus, session, strategy):
    article = corpus.article
    base = select(article.id, article.title)
    whole = recommend(article.embedding, [2], [4], strategy=strategy, limit=20, base=base, mode="exact")
    page = recommend(
        article.embedding, [2], [4], strategy=strategy, limit=5, offset=10, base=base, mode="exact"
    )
    rows = session.execute(whole).all()
    assert session.execute(page).all() == rows[10:15]
    most = sorted(row.distance for row in rows)[4]
    near = recommend(
        article.embedding, [2], [4], strategy=strategy, limit=20, base=base, mode="exact", max_distance=most
    )
    assert {row.id for row in session.execute(near)} >= {row.id for row in rows if row.distance <= most}
    with pytest.raises(LateClauseError, match=r"where= to recommend\(\)"):
        whole.where(article.id > 1)

    async def work():
        engine = create_async_engine(corpus.url.set(drivername="postgresql+asyncpg"))
        async with AsyncSession(engine) as asynchronous:
            found = (await asynchronous.execute(page)).all()
        await engine.dispose()
        return found

    assert asyncio.run(work()) == rows[10:15]


def test_it_is_never_short(corpus, session):
    article = corpus.article
    for strategy in ("average", "best"):
        statement = recommend(
            article.embedding, [2, 3], [4], strategy=strategy, where=article.id.in_([5, 6, 7])
        )
        assert {row[0].id for row in session.execute(statement)} == {5, 6, 7}
    rows = session.execute(recommend(article.embedding, negative=["w1 v2 u3"], strategy="best")).all()
    assert len(rows) == 10
    assert [row.distance for row in rows] == [None] * 10


def test_keys_of_numpy_by_another_driver(corpus, session):
    statement = recommend(corpus.article.embedding, [np.int64(2)], ["w1 v1"], limit=3, mode="exact")
    engine = create_engine(corpus.url.set(drivername="postgresql+psycopg2"))
    with Session(engine) as other:
        found = [row[0].id for row in other.execute(statement)]
    engine.dispose()
    assert found == [row[0].id for row in session.execute(statement)]
    assert 2 not in found


def test_composite_keys_that_are_texts(engine):
    table = Table(
        "t",
        MetaData(),
        Column("a", String, primary_key=True),
        Column("b", Integer, primary_key=True),
        Column("v", VectorType(2, "halfvec")),
    )
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(table), [{"a": "x", "b": n, "v": [n, 1]} for n in range(5)])
        for strategy in ("average", "best"):
            rows = connection.execute(recommend(table.c.v, [("x", 2)], strategy=strategy, metric="l2")).all()
            assert [row.b for row in rows] == [1, 3, 0, 4]
        found = connection.execute(
            text("SELECT key FROM pgembed.recommend('t', 'v', CAST(:keys AS jsonb[]), metric => 'l2')"),
            {"keys": ['{"a": "x", "b": 2}']},
        ).scalars()
        assert [key["b"] for key in found] == [1, 3, 0, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there are no examples"),
        ({"positive": []}, "there are no examples"),
        ({"negative": [1]}, "no positive examples to average"),
        ({"positive": "text"}, "positive= is of the type str; expected a list"),
        ({"positive": 5}, "positive= is of the type int; expected a list"),
        ({"positive": [None]}, "positive= holds None"),
        ({"positive": [True]}, "positive= holds True"),
        ({"positive": [1.5]}, "positive= holds 1.5"),
        ({"positive": [(1, 2)]}, r"positive= holds \(1, 2\)"),
        ({"positive": [" "]}, "the text is ' '"),
        ({"positive": [[0.0] * 32]}, "zeros"),
        ({"positive": [1], "strategy": "worst"}, "strategy='worst'"),
        ({"positive": [1], "positive_weights": [1, 2]}, "has 2 numbers, and positive= 1 examples"),
        ({"positive": [1], "positive_weights": [float("nan")]}, "positive_weights=nan"),
        ({"positive": [1], "positive_weights": [-1]}, "expected numbers above 0"),
        ({"positive": [1], "positive_weights": 2}, "expected a list of numbers"),
        ({"positive": [1], "positive_weights": [2], "strategy": "best"}, "weights have no effect"),
        ({"positive": [1], "candidates": 5, "strategy": "best"}, "candidates=5; expected at least"),
        ({"positive": [1], "candidates": 50}, "candidates= has no effect"),
        ({"positive": [1], "limit": 0}, "limit=0"),
    ],
)
def test_what_is_no_example_is_refused(corpus, options, message):
    with pytest.raises(QueryError, match=message):
        recommend(corpus.article.embedding, **options)


def test_examples_of_other_dimensions_are_refused(corpus):
    with pytest.raises(DimensionMismatchError):
        recommend(corpus.article.embedding, [[1.0, 2.0]])


def test_sql_examples_are_checked(things):
    for arguments, message in (
        ("ARRAY[]::jsonb[]", "no positive examples"),
        ("ARRAY['5']::jsonb[]", "an example is 5"),
        ("ARRAY['[1,2,3,4]']::jsonb[], strategy => 'worst'", "the strategy is 'worst'"),
        ("ARRAY['[1,2,3,4]']::jsonb[], k => 0", "the number of rows is 0"),
        ("ARRAY['[1,2]']::jsonb[]", "has 2 dimensions"),
    ):
        with things.connect() as connection, pytest.raises(DBAPIError, match=message):
            connection.execute(
                text(f"SELECT * FROM pgembed.recommend('thing', 'v', {arguments})".replace("::", "\\:\\:"))
            )


def test_sums_of_vectors(corpus, session):
    article, encoder = corpus.article, corpus.encoder
    king, man, woman = encoder.encode_queries(["w1 v1", "w2 v2", "w3 v3"])
    query = vector_of("w1 v1") - "w2 v2" + vector_of("w3 v3")
    corpus.encoder.calls.clear()
    rows = session.execute(semantic_search(article.embedding, query, mode="exact")).all()
    assert corpus.encoder.calls == [("w1 v1", "w2 v2", "w3 v3")]
    assert [(row[0].id, row.distance) for row in rows] == corpus.nearest(king - man + woman, 10)

    entity = session.get(article, 2)
    mixed = (0.5 * vector_of(entity) + king) / 2
    rows = session.execute(semantic_search(article.embedding, mixed, mode="exact")).all()
    expected = corpus.nearest(0.5 * corpus.vectors[2] + king, 10, lambda row: row["id"] != 2)
    assert [(row[0].id, row.distance) for row in rows] == expected

    stored = select(article.embedding).where(article.id == 3)
    bound = vector_of(bindparam("q")) - stored
    rows = session.execute(semantic_search(article.embedding, bound, mode="exact"), {"q": "w1 v1"}).all()
    assert [(row[0].id, row.distance) for row in rows] == corpus.nearest(king - corpus.vectors[3], 10)
    negated = man - vector_of(king)
    rows = session.execute(semantic_search(article.embedding, negated, mode="exact")).all()
    assert [(row[0].id, row.distance) for row in rows] == corpus.nearest(man - king, 10)


def test_sums_are_queries_of_every_helper(corpus, session, explain):
    article = corpus.article
    total = vector_of("w1 v1") + 0.2 * vector_of(session.get(article, 2))
    session.execute(text("SET LOCAL enable_sort = off"))  # as for larger tables
    for statement in (
        semantic_search(article.embedding, total),
        knn_classify(article.embedding, total, label=article.section),
        hybrid_search(article.embedding, total, text=article.title, terms="w1"),
    ):
        assert session.execute(statement).all()
        assert "Index Scan using ix_article_embedding_hnsw" in explain(session.connection(), statement)


def test_sums_that_are_no_query_are_refused(corpus):
    article = corpus.article
    for wrong in (float("nan"), "2", None):
        with pytest.raises(QueryError, match="the weight of a vector"):
            vector_of("text") * wrong
    with pytest.raises(QueryError, match="the divisor of a vector is 0"):
        vector_of("text") / 0
    with pytest.raises(QueryError, match="the text is ''"):
        semantic_search(article.embedding, vector_of("") + "text")
    with pytest.raises(DimensionMismatchError):
        semantic_search(article.embedding, vector_of([1.0]) + "text")
    bits = Table("b", MetaData(), Column("id", Integer, primary_key=True), Column("v", BIT(4)))
    with pytest.raises(QueryError, match="whose values have no sum"):
        semantic_search(bits.c.v, vector_of("0000") + "1111")
    with pytest.raises(QueryError, match="the query is None"):
        semantic_search(article.embedding, vector_of(None) + "text")
