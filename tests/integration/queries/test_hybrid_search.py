"""hybrid_search: the ranks of both searches, fused as the formula says."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import (
    Column,
    Computed,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import Session, aliased

from pgembed.columns.types import VectorType
from pgembed.queries import hybrid_search, semantic_search

QUERY = "w5 v17 u120"


@pytest.fixture
def session(corpus):
    with Session(corpus.engine) as session:
        yield session


def by_words(session, terms, limit, condition="true"):
    words = " | ".join(terms.split())
    sql = (
        "SELECT id FROM article, to_tsquery('english', :words) AS q WHERE to_tsvector('english', title) @@ q "
        f"AND {condition} ORDER BY ts_rank_cd(to_tsvector('english', title), q) DESC, id LIMIT :limit"
    )
    return list(session.scalars(text(sql), {"words": words, "limit": limit}))


def fuse(vector_keys, text_keys, k=60.0, weights=(1.0, 1.0)):
    near = {key: rank for rank, key in enumerate(vector_keys, 1)}
    match = {key: rank for rank, key in enumerate(text_keys, 1)}
    rows = []
    for key in near.keys() | match.keys():
        score = sum(
            weight / (k + ranks[key])
            for weight, ranks in zip(weights, (near, match), strict=True)
            if key in ranks
        )
        rows.append((key, score, near.get(key), match.get(key)))
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def as_rows(result):
    return [(row[0].id, row.score, row.vector_rank, row.text_rank) for row in result]


def same(found, expected):
    assert [(key, near, match) for key, _, near, match in found] == [
        (key, near, match) for key, _, near, match in expected
    ]
    assert [score for _, score, _, _ in found] == pytest.approx([score for _, score, _, _ in expected])


@pytest.mark.parametrize(("k", "weights"), [(60, (1, 1)), (5, (0.3, 0.7))])
def test_scores_are_those_of_reciprocal_rank_fusion(corpus, session, k, weights):
    article = corpus.article
    near = session.scalars(semantic_search(article.embedding, QUERY, limit=80, base=select(article.id))).all()
    expected = fuse(near, by_words(session, QUERY, 80), k, weights)
    statement = hybrid_search(
        article.embedding, QUERY, text=article.title, limit=20, candidates=80, k=k, weights=weights
    )
    same(as_rows(session.execute(statement)), expected[:20])
    page = hybrid_search(
        article.embedding, QUERY, text=article.title, limit=7, offset=13, candidates=80, k=k, weights=weights
    )
    same(as_rows(session.execute(page)), expected[13:20])


def test_filters_are_inside_of_both_searches(corpus, session):
    article = corpus.article
    where = article.section == "help"
    near = session.scalars(
        semantic_search(article.embedding, QUERY, limit=50, where=where, base=select(article.id))
    ).all()
    expected = fuse(near, by_words(session, QUERY, 50, "section = 'help'"))
    rows = session.execute(hybrid_search(article.embedding, QUERY, text=article.title, where=where)).all()
    same(as_rows(rows), expected[:10])
    assert all(row.Article.section == "help" for row in rows)


def test_words_that_stand_nowhere_leave_the_vectors(corpus, session):
    """Stop words, signs and unknown words: the text search finds nothing, and says nothing."""
    article = corpus.article
    for query in ("the of and", "& | ! ' :* <->", "zzz"):
        rows = as_rows(session.execute(hybrid_search(article.embedding, query, text=article.title)))
        assert [rank for _, _, rank, _ in rows] == list(range(1, 11))
        assert {match for _, _, _, match in rows} == {None}


def test_a_vector_or_a_bound_parameter_with_terms(corpus, session):
    article = corpus.article
    expected = as_rows(session.execute(hybrid_search(article.embedding, QUERY, text=article.title)))
    vector = corpus.encoder.encode_queries([QUERY])[0]
    statement = hybrid_search(article.embedding, vector, text=article.title, terms=QUERY)
    same(as_rows(session.execute(statement)), expected)
    statement = hybrid_search(article.embedding, bindparam("q"), text=article.title, terms=bindparam("terms"))
    same(as_rows(session.execute(statement, {"q": QUERY, "terms": QUERY})), expected)


def test_a_row_looks_for_others(corpus, session):
    article = corpus.article
    row = session.get(article, 100)
    rows = session.execute(hybrid_search(article.embedding, row, text=article.title, terms=row.title)).all()
    assert len(rows) == 10
    assert 100 not in {found.Article.id for found in rows}


def test_base_and_joins(corpus, session):
    article, author = corpus.article, corpus.author
    statement = hybrid_search(
        article.embedding,
        QUERY,
        text=article.title,
        base=select(article.id, author.name).outerjoin(article.author),
    )
    rows = session.execute(statement).all()
    assert rows[0]._fields == ("id", "name", "score", "vector_rank", "text_rank")
    assert len(rows) == 10


@pytest.fixture
def documents(engine):
    """Documents with their words indexed as a column and as expressions; some have no vector."""
    table = Table(
        "document",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("title", String),
        Column("body", String),
        Column("words", TSVECTOR, Computed("to_tsvector('english', title)", persisted=True)),
        Column("vector", VectorType(2)),
    )
    table.metadata.create_all(engine)
    rows = [
        {"id": n, "title": f"number{n} common", "body": None, "vector": [1, n / 1000] if n % 2 else None}
        for n in range(1, 2001)
    ]
    with engine.begin() as connection:
        connection.execute(insert(table), rows)
        connection.execute(text("CREATE INDEX of_column ON document USING gin (words)"))
        connection.execute(
            text("CREATE INDEX of_title ON document USING gin (to_tsvector('english', title))")
        )
        connection.execute(
            text(
                "CREATE INDEX of_both ON document USING gin "
                "(to_tsvector('english', coalesce(title, '') || ' ' || coalesce(body, '')))"
            )
        )
        connection.execute(text("ANALYZE"))
    return table


def test_indexes_on_the_words_are_used(engine, documents, explain):
    c = documents.c
    for searched, index in ((c.words, "of_column"), (c.title, "of_title"), ([c.title, c.body], "of_both")):
        statement = hybrid_search(c.vector, [1, 0], text=searched, terms="number8 number9", limit=3)
        with engine.connect() as connection:
            rows = connection.execute(statement).all()
            assert f"Bitmap Index Scan on {index}" in explain(connection, statement)
        assert {row.id for row in rows if row.text_rank} == {8, 9}


def test_a_row_without_a_vector_is_found_by_its_words(engine, documents):
    c = documents.c
    statement = hybrid_search(c.vector, [1, 0], text=c.words, terms="number8", limit=1, weights=(1, 2))
    with engine.connect() as connection:
        row = connection.execute(statement).one()
    assert (row.id, row.vector_rank, row.text_rank) == (8, None, 1)
    assert row.score == pytest.approx(2 / 61)


class Trimmed(TypeDecorator[str]):
    impl = String
    cache_ok = True


DENSE = {
    "short words": lambda: " ".join(f"{n:05x}" for n in range(200_000)),
    "in parts": lambda: " ".join(f"{n % 999:03x}-{n // 999:03x}" for n in range(150_000)),
    "beyond ASCII": lambda: " ".join(
        f"{chr(0xAC00 + n % 11000)}-{chr(0xAC00 + n // 110 % 11000)}" for n in range(40_000)
    ),
    "of four bytes": lambda: " ".join(
        f"{chr(0x20000 + n % 40000)}-{chr(0x20000 + n * 7 % 40000)}" for n in range(40_000)
    ),
    "just whole": lambda: " ".join(f"{n % 999:03x}-{n // 999:03x}" for n in range(31_000)),
}


@pytest.mark.parametrize("kind", DENSE)
def test_texts_of_any_length_are_searched_by_their_first_words(engine, kind):
    """More words than a tsvector holds, at one, two, three and four bytes a letter; several columns."""
    table = Table(
        "book",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("title", Trimmed),
        Column("body", Text),
        Column("vector", VectorType(2)),
    )
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(
            insert(table),
            [
                {"id": 1, "title": "short beginning", "body": None, "vector": [1, 0]},
                {"id": 2, "title": "beginning " + DENSE[kind](), "body": "ending", "vector": [0, 1]},
                {"id": 3, "title": None, "body": "beginning " + DENSE[kind](), "vector": None},
                {"id": 4, "title": "other", "body": "beginning", "vector": [0, 1]},
            ],
        )
        for text_columns, expected in (
            (table.c.title, {1, 2}),
            ([table.c.body, table.c.title], {1, 2, 3, 4}),
        ):
            rows = connection.execute(
                hybrid_search(table.c.vector, [1, 0], text=text_columns, terms="beginning")
            ).all()
            assert {row.id for row in rows if row.text_rank} == expected


def test_a_long_text_in_an_index_is_found_by_all_of_its_words(engine, documents, explain):
    """What an index holds has fitted, so that it may be read whole; the other leg is not executed."""
    c = documents.c
    long = "number8 " * 40_000 + "lastword"
    with engine.begin() as connection:
        connection.execute(insert(documents).values(id=5000, title=long, vector=[1, 0]))
        connection.execute(text("DROP INDEX of_column"))
        for searched in (c.title, [c.title, c.body], aliased(documents).c.title):
            vector = searched.table.c.vector if not isinstance(searched, list) else c.vector
            statement = hybrid_search(vector, [1, 0], text=searched, terms="lastword")
            (row,) = (row for row in connection.execute(statement) if row.text_rank)
            assert row.id == 5000
            plan = explain(connection, statement)
            assert "Bitmap Index Scan on of_" in plan
            assert re.search(r"Seq Scan on document \w+ \(never executed\)\n.*130000", plan)
