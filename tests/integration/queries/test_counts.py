"""count_within and facets equal counting by brute force; rows become records of plain values."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, bindparam, cast, func, select
from sqlalchemy.orm import Session

from pgembed.exc import LateClauseError, QueryError
from pgembed.queries import (
    count_within,
    diversify,
    facets,
    hybrid_search,
    knn_classify,
    near_duplicates,
    recommend,
    search_many,
    semantic_search,
)

QUERY = "w5 v17 u120"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 2.1), st.sampled_from(["help", None]))
def test_counts_equal_brute_force(corpus, seed, most, section):
    article = corpus.article
    query = np.random.default_rng(seed).normal(size=32)
    found = [
        distance for _, distance in corpus.nearest(query, 5000, lambda row: section in (None, row["section"]))
    ]
    if np.abs(np.array(found) - most).min() < 1e-5:
        return  # rounding would decide
    where = None if section is None else article.section == section
    with Session(corpus.engine) as session:
        assert session.scalar(count_within(article.embedding, query, most, where=where)) == sum(
            distance <= most for distance in found
        )


def test_counts_of_texts_entities_and_bound_queries(corpus, session):
    article = corpus.article
    everything = float("inf")
    assert session.scalar(count_within(article.embedding, QUERY, everything)) == len(corpus.vectors) - 2
    entity = session.get(article, 2)
    assert session.scalar(count_within(article.embedding, entity, everything)) == len(corpus.vectors) - 3
    bound = count_within(article.embedding, bindparam("q"), 0.9)
    assert session.scalar(bound, {"q": QUERY}) == session.scalar(count_within(article.embedding, QUERY, 0.9))
    assert session.execute(bound, {"q": QUERY}).one()._fields == ("count",)
    with pytest.raises(LateClauseError, match=r"pass where= to count_within\(\)"):
        bound.where(article.id == 1)
    for most in (float("nan"), None, "1", True):
        with pytest.raises(QueryError, match="max_distance="):
            count_within(article.embedding, QUERY, most)


def test_facets_count_the_rows_of_every_search(corpus, session):
    article, author = corpus.article, corpus.author
    base = select(article).outerjoin(article.author)
    for statement, by in (
        (semantic_search(article.embedding, QUERY, limit=50), article.section),
        (semantic_search(article.embedding, QUERY, limit=50, base=base), author.name),
        (semantic_search(article.embedding, QUERY, limit=9, per=article.id % 61, best=2), article.section),
        (hybrid_search(article.embedding, QUERY, text=article.title, limit=30), article.section),
        (recommend(article.embedding, [2, 3], strategy="best", limit=30), article.author_id),
        (search_many(article.embedding, [QUERY, "w1 v1"], limit=20), article.section),
        (diversify(semantic_search(article.embedding, QUERY, limit=20)), article.hidden),
    ):
        name = {author.name: lambda row: row[0].author and row[0].author.name}.get(by)
        rows = session.execute(statement).all()
        place = rows[0]._fields.index("Article")
        values = [name(row) if name else getattr(row[place], by.key) for row in rows]
        counted = session.execute(facets(statement, by)).all()
        assert dict(map(tuple, counted)) == collections.Counter(values)
        assert [row.count for row in counted] == sorted((row.count for row in counted), reverse=True)
        assert session.execute(facets(statement, by).limit(1)).all() == counted[:1]


def test_facets_of_tables_and_expressions(corpus, session):
    table = corpus.article.__table__
    statement = semantic_search(table.c.embedding, QUERY, limit=40)
    rows = session.execute(statement).all()
    counted = session.execute(facets(statement, func.coalesce(table.c.section, "none"))).all()
    assert dict(map(tuple, counted)) == collections.Counter(row.section or "none" for row in rows)
    again = [semantic_search(table.c.embedding, QUERY, limit=40) for _ in range(3)][-1]
    assert session.execute(facets(again, table.c.section)).all()


def test_facets_use_the_index_of_the_search(corpus, session, explain):
    article = corpus.article
    plan = explain(session.connection(), facets(semantic_search(article.embedding, QUERY), article.section))
    assert "Index Scan using ix_article_embedding_hnsw" in plan
    assert all("never executed" in line for line in plan.splitlines() if "Seq Scan on article" in line)


def test_what_cannot_be_counted_is_refused(corpus):
    article = corpus.article
    found = semantic_search(article.embedding, QUERY)
    for statement in (
        select(article),
        None,
        knn_classify(article.embedding, QUERY, label=article.section),
        near_duplicates(article.embedding, min_score=0.9),
        facets(found, article.section),
    ):
        with pytest.raises(QueryError, match=r"facets\(\) takes the statement of a search"):
            facets(statement, article.section)
    for by in ("section", None, 5, article.author):
        with pytest.raises(QueryError, match="by="):
            facets(found, by)
    with pytest.raises(QueryError, match=r"by=.* is not a column of the rows of semantic_search\(\)"):
        facets(found, corpus.author.name)
    with pytest.raises(QueryError, match="no equality"):
        facets(found, cast(article.title, JSON))
    with pytest.raises(LateClauseError, match="pass where= to the search"):
        facets(found, article.section).where(article.id == 1)


def test_rows_of_columns_are_records_of_plain_values(corpus, session):
    article = corpus.article
    statement = semantic_search(article.embedding, QUERY, base=select(article.id, article.title), limit=3)
    records = [row._asdict() for row in session.execute(statement)]
    assert records == list(map(dict, session.execute(statement).mappings()))
    for record in records:
        assert {name: type(value) for name, value in record.items()} == {
            "id": int,
            "title": str,
            "distance": float,
            "score": float,
        }
