"""per= and total=: the best rows of each group, and how many rows there are on all pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, cast, func, select, text
from sqlalchemy.orm import Session

from pgembed.exc import QueryError
from pgembed.queries import semantic_search

QUERY = "w5 v17 u120"


def expected_groups(corpus, query, group_of, best, keep=lambda row: True):
    """``[(group, [(key, distance), ...]), ...]`` by brute force, the nearest group first."""
    groups = {}
    for key, distance in corpus.nearest(query, 5000, keep):
        group = group_of(corpus.rows[key - 1])
        if group is not None:
            groups.setdefault(group, []).append((key, distance))
    return [rows[:best] for rows in groups.values()]


def distances(groups):
    return [distance for rows in groups for _, distance in rows]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 7, 61, 997]),
    st.integers(1, 4),
    st.integers(1, 30),
    st.sampled_from([0, 1, 9]),
    st.sampled_from(["exact", "auto"]),
    st.booleans(),
)
def test_groups_equal_brute_force(corpus, seed, groups, best, limit, offset, mode, filtered):
    article = corpus.article
    query = np.random.default_rng(seed).normal(size=32)
    statement = semantic_search(
        article.embedding,
        query,
        per=article.id % groups,
        best=best,
        limit=limit,
        offset=offset,
        where=article.section == "help" if filtered else None,
        mode=mode,
        ef_search=1000 if mode == "auto" else None,
    )
    expected = expected_groups(
        corpus,
        query,
        lambda row: row["id"] % groups,
        best,
        lambda row: not filtered or row["section"] == "help",
    )[offset : offset + limit]
    with Session(corpus.engine) as session:
        rows = session.execute(statement).all()
    assert [row.distance for row in rows] == pytest.approx(distances(expected), abs=1e-5)
    assert len({row[0].id for row in rows}) == len(rows)


def test_there_are_as_many_groups_as_asked_for(corpus, session):
    """Of nearly all rows being of one group, neither the candidates nor ten times as many are of two."""
    article = corpus.article
    query = corpus.encoder.encode_queries([QUERY])[0]
    far = {key for key, _ in corpus.nearest(query, 5000)[-3:]}
    per = func.greatest(0, *(article.id * cast(article.id == key, article.id.type) for key in far))
    statement = semantic_search(article.embedding, QUERY, per=per, limit=4, best=2)
    rows = session.execute(statement).all()
    assert len(rows) == 5  # two of the large group, and each of the three
    assert {row[0].id for row in rows[2:]} == far


def test_rows_without_a_group_are_left_out(corpus, session):
    article = corpus.article
    rows = session.execute(semantic_search(article.embedding, QUERY, per=article.author_id, best=3)).all()
    assert [row[0].author_id for row in rows] in ([1] * 3 + [2] * 3, [2] * 3 + [1] * 3)
    assert rows[0].distance <= rows[3].distance


def test_pages_of_groups_and_other_columns(corpus, session):
    article = corpus.article
    options = {"per": article.id % 61, "best": 2, "base": select(article.id), "ef_search": 400}
    whole = session.execute(semantic_search(article.embedding, QUERY, limit=20, **options)).all()
    page = session.execute(semantic_search(article.embedding, QUERY, limit=5, offset=15, **options)).all()
    assert page == whole[30:]
    near = semantic_search(article.embedding, QUERY, limit=20, max_distance=whole[0].distance, **options)
    assert session.execute(near).all() == whole[:1]


def test_groups_are_found_through_the_index(corpus, session, explain):
    """One row of each group is asked for, so that the candidates say all."""
    article = corpus.article
    statement = semantic_search(article.embedding, QUERY, per=article.id % 61)
    session.execute(text("SET LOCAL enable_sort = off"))  # as for larger tables
    plan = explain(session.connection(), statement)
    assert "Index Scan using ix_article_embedding_hnsw" in plan
    assert all("never executed" in line for line in plan.splitlines() if "Seq Scan on article" in line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": 2}, "best=2 has no effect without per="),
        ({"per": "author_id"}, "per='author_id' is not a column"),
        ({"per": 5}, "per=5 is not a column"),
    ],
)
def test_what_is_no_group_is_refused(corpus, options, message):
    with pytest.raises(QueryError, match=message):
        semantic_search(corpus.article.embedding, QUERY, **options)


def test_bad_options_of_groups_are_refused(corpus):
    article = corpus.article
    for best in (0, -1, 1.5, float("nan"), True, None):
        with pytest.raises(QueryError, match="best="):
            semantic_search(article.embedding, QUERY, per=article.author_id, best=best)
    with pytest.raises(QueryError, match="per= refers to author"):
        semantic_search(article.embedding, QUERY, per=corpus.author.id)
    with pytest.raises(QueryError, match=r"per=.*no equality"):
        semantic_search(article.embedding, QUERY, per=cast(article.title, JSON))
    with pytest.raises(QueryError, match="per= and total= cannot be combined"):
        semantic_search(article.embedding, QUERY, per=article.author_id, total=True)


def test_totals(corpus, session):
    article = corpus.article
    help_only = article.section == "help"
    rows = session.execute(
        semantic_search(
            article.embedding, QUERY, limit=5, offset=5, where=help_only, mode="exact", total=True
        )
    ).all()
    nearest = corpus.nearest(
        corpus.encoder.encode_queries([QUERY])[0], 5000, lambda row: row["section"] == "help"
    )
    assert {row.total for row in rows} == {len(nearest)}
    most = nearest[19][1] + 1e-6
    row = session.execute(
        semantic_search(
            article.embedding, QUERY, limit=1, where=help_only, mode="exact", total=True, max_distance=most
        )
    ).one()
    assert row.total == 20
    assert row._asdict().keys() == {"Article", "distance", "score", "total"}
    with pytest.raises(QueryError, match=r'total=True needs a search that sees all rows.*mode="exact"'):
        semantic_search(article.embedding, QUERY, total=True)
    with pytest.raises(QueryError, match="total=1; expected True or False"):
        semantic_search(article.embedding, QUERY, total=1)
