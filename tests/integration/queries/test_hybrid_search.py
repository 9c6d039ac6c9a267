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
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from pgembed import Vector, Words, embedding_column
from pgembed.columns.types import VectorType
from pgembed.exc import QueryError
from pgembed.queries import hybrid_search, keyword_search, semantic_search
from pgembed.testing import HashEncoder

QUERY = "w5 v17 u120"
OWN = ("score", "vector_rank", "text_rank", "vector_score", "text_score")


def by_words(session, terms, limit, condition="true"):
    words = " | ".join(terms.split())
    sql = (
        "SELECT id FROM article, to_tsquery('english', :words) AS q WHERE to_tsvector('english', title) @@ q "
        f"AND {condition} ORDER BY ts_rank(to_tsvector('english', title), q, 1) DESC, id LIMIT :limit"
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
    assert rows[0]._fields == ("id", "name", *OWN)
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
        connection.execute(text("ANALYZE document"))
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


class Base(DeclarativeBase):
    pass


class Paper(Base):
    """Two vectors and the words of a text; the last ones have no vectors."""

    __tablename__ = "paper"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str]
    heading: Mapped[Vector | None] = embedding_column("title", encoder=HashEncoder(16), fill="worker")
    content: Mapped[Vector | None] = embedding_column(
        "body", encoder=HashEncoder(16), fill="worker", words=Words("title", "body")
    )


@pytest.fixture
def papers(engine):
    Base.metadata.create_all(engine)
    encoder = HashEncoder(16)
    with Session(engine) as session:
        for n in range(1, 201):
            title, body = f"t{n % 11} u{n % 7}", " ".join(f"v{n % 13} w{n % 29}" for _ in range(1 + n % 4))
            vectors = encoder.encode_documents([title, body]) if n <= 190 else (None, None)
            session.add(Paper(id=n, title=title, body=body, heading=vectors[0], content=vectors[1]))
        session.flush()
        yield session


def scaled(hits):
    lowest, highest = min(hits.values()), max(hits.values())
    return {key: (score - lowest) / (highest - lowest) for key, score in hits.items()}


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
def test_declared_words_and_several_vectors_are_fused(papers, fusion):
    """Each search alone gives what the fusion says of it; and the score is that of the formula."""
    query, weights = "t5 u3 v7 w11", (0.5, 2, 1.5)
    alone = [
        {row[0]: row.score for row in papers.execute(statement)}
        for statement in (
            semantic_search(Paper.heading, query, limit=50, base=select(Paper.id)),
            semantic_search(Paper.content, query, limit=50, base=select(Paper.id)),
            keyword_search(Paper.content, query, limit=50, base=select(Paper.id)),
        )
    ]
    shares = [
        scaled(hits) if fusion == "weighted" else {key: 1 / (60 + n) for n, key in enumerate(hits, 1)}
        for hits in alone
    ]
    expected = {
        key: sum(weight * share.get(key, 0) for weight, share in zip(weights, shares, strict=True))
        for key in {key for hits in alone for key in hits}
    }
    statement = hybrid_search(
        [Paper.heading, Paper.content], query, limit=50, candidates=50, fusion=fusion, weights=weights
    )
    rows = papers.execute(statement).all()
    best = sorted(expected.items(), key=lambda hit: (-round(hit[1], 12), hit[0]))[:50]
    assert [row.Paper.id for row in rows] == [key for key, _ in best]
    assert [row.score for row in rows] == pytest.approx([score for _, score in best])
    names = ("heading_score", "content_score", "text_score")
    for row in rows:
        found = [getattr(row, name) for name in names]
        assert found == [
            pytest.approx(hits[row.Paper.id]) if row.Paper.id in hits else None for hits in alone
        ]
        ranks = [list(hits).index(row.Paper.id) + 1 if row.Paper.id in hits else None for hits in alone]
        assert [row.heading_rank, row.content_rank, row.text_rank] == ranks
    assert any(row.heading_rank is None and row.text_rank for row in rows)


def test_columns_are_of_one_entity_and_each_has_a_weight(corpus, session):
    with pytest.raises(QueryError, match="columns of one entity"):
        hybrid_search([corpus.article.embedding, Paper.content], QUERY)
    with pytest.raises(QueryError, match="expected 3 numbers: of each vector, and of the text"):
        hybrid_search([Paper.heading, Paper.content], QUERY, weights=(1, 2))
    with pytest.raises(QueryError, match="pass the columns of text as text="):
        hybrid_search(
            Table(
                "bare", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType(2))
            ).c.v,
            [1, 0],
            terms="x",
        )
