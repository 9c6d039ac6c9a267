"""search_many: the rows of semantic_search for each of many queries, in one statement."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    func,
    insert,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, aliased

from pgembed.columns.types import VectorType
from pgembed.exc import DimensionMismatchError, LateClauseError, QueryError, VectorValueError
from pgembed.queries import search_many, semantic_search
from pgembed.queries.core import nearest

TEXTS = ["w5 v17 u120", "w1 v2 u3", "w40 v41 u42"]


def of_each(rows, keys=1):
    """``{query: [(id, distance)]}``"""
    found = {}
    for row in rows:
        key = row[0] if keys == 1 else tuple(row[:keys])
        found.setdefault(key, []).append((row[keys].id, row.distance))
    return found


@pytest.mark.parametrize("mode", ["auto", "exact"])
def test_texts_find_what_each_would_find_alone(corpus, session, mode):
    rows = session.execute(search_many(corpus.article.embedding, TEXTS, limit=7, mode=mode)).all()
    assert [(row.query, row.rank) for row in rows] == list(itertools.product(range(3), range(1, 8)))
    vectors = corpus.encoder.encode_queries(TEXTS)
    assert of_each(rows) == {n: corpus.nearest(vector, 7) for n, vector in enumerate(vectors)}
    assert [row.score for row in rows] == pytest.approx([1 - row.distance for row in rows])
    assert isinstance(rows[0].Article, corpus.article)


def test_texts_are_encoded_in_one_batch_once_for_a_statement(corpus, session):
    statement = search_many(corpus.article.embedding, [*TEXTS, corpus.vectors[1]], limit=2)
    corpus.encoder.calls.clear()
    first = session.execute(statement).all()
    assert session.execute(statement).all() == first
    assert corpus.encoder.calls == [tuple(TEXTS)]
    assert first[-2].Article.id == 1

    constant = search_many(corpus.article.embedding, bindparam("queries"), limit=2)
    corpus.encoder.calls.clear()
    assert session.execute(constant, {"queries": [*TEXTS, corpus.vectors[1]]}).all() == first
    assert corpus.encoder.calls == [tuple(TEXTS)]
    assert len(session.execute(constant, {"queries": corpus.encoder.encode_queries(TEXTS[:2])}).all()) == 4


def test_each_query_uses_the_index_and_no_table_is_scanned(corpus, session, explain):
    plan = explain(session.connection(), search_many(corpus.article.embedding, TEXTS))
    index = next(line for line in plan.splitlines() if "Index Scan using ix_article_embedding_hnsw" in line)
    assert "loops=3" in index
    assert all("never executed" in line for line in plan.splitlines() if "Seq Scan on article" in line)


@pytest.mark.parametrize("rows", [3000, 1500, 300])
def test_few_rows_under_a_condition_are_read_as_those_of_one_query_are(corpus, session, explain, rows):
    """An index is not scanned to its bound for each query where reading the table costs less."""
    article = corpus.article

    def uses_index(statement):
        return "Index Scan using ix_article_embedding_hnsw" in explain(session.connection(), statement)

    where = article.id <= rows
    many = uses_index(search_many(article.embedding, TEXTS, where=where))
    assert many == uses_index(semantic_search(article.embedding, TEXTS[0], where=where))
    assert many == (rows == 3000)


def test_where_refers_to_the_queries(corpus, session):
    article, asked = corpus.article, aliased(corpus.article)
    queries = select(asked.id, asked.embedding, asked.section).where(asked.id.in_([7, 8, 9, 11, 500]))
    for given in (queries, queries.subquery()):
        section = asked.section if given is queries else given.c.section
        rows = session.execute(search_many(article.embedding, given, where=article.section == section)).all()
        expected = {
            key: corpus.nearest(
                corpus.vectors[key],
                10,
                lambda row, key=key: (
                    row["id"] != key and row["section"] == corpus.rows[key - 1]["section"] is not None
                ),
            )
            for key in (7, 8, 9)
        }
        assert of_each(rows) == expected  # 11 has a vector of zeros, 500 none
    unselected = select(asked.id, asked.embedding)
    with pytest.raises(QueryError, match=r"where= refers to article.*add them to it, behind the vector"):
        search_many(article.embedding, unselected, where=article.section == asked.section)


def test_conditions_on_queries_are_none_on_rows(corpus, session):
    """Of a table that is searched for its own rows, a condition that names it is about the rows found."""
    article = corpus.article
    queries = select(article.id, article.embedding, article.section).where(article.id == 1)
    rows = session.execute(search_many(article.embedding, queries, where=article.section == "help")).all()
    expected = corpus.nearest(corpus.vectors[1], 10, lambda row: row["section"] == "help" and row["id"] != 1)
    assert of_each(rows) == {1: expected}


def test_neighbours_of_every_row_are_without_the_row(corpus, session):
    article = corpus.article
    queries = select(article.id, article.embedding).where(article.id <= 14)
    rows = session.execute(search_many(article.embedding, queries, limit=3)).all()
    keys = [key for key in range(1, 15) if key not in (11, 12)]
    assert of_each(rows) == {
        key: corpus.nearest(corpus.vectors[key], 3, lambda row, key=key: row["id"] != key) for key in keys
    }
    assert [row.query for row in rows] == [key for key in keys for _ in range(3)]
    backwards = session.execute(
        search_many(article.embedding, queries.order_by(article.id.desc()), limit=3)
    ).all()
    assert [row.query for row in backwards] == [key for key in reversed(keys) for _ in range(3)]


@pytest.mark.parametrize(
    ("options", "in_blocks"),
    [
        ({"limit": 7}, True),
        ({"limit": 1, "offset": 40}, True),
        ({"limit": 5, "where": "section"}, True),
        ({"limit": 5, "where": "another"}, False),
        ({"limit": 65}, False),
    ],
)
def test_many_queries_meet_the_rows_in_blocks(corpus, session, explain, monkeypatch, options, in_blocks):
    """Rows, ties and order are those of a scan for each query; conditions over both are left to that."""
    article, asked = corpus.article, aliased(corpus.article)
    queries = select(asked.id, asked.embedding, asked.section).where(asked.id <= 40)
    if options.get("where") == "section":
        options = options | {"where": article.section == "help"}
    elif options.get("where") == "another":
        options = options | {"where": article.section != asked.section}
    monkeypatch.setattr(nearest, "BLOCK_ROWS", 2000)
    monkeypatch.setattr(nearest, "BLOCK", 2)
    found = []
    for least in (32, 41):
        monkeypatch.setattr(nearest, "QUERIES_TOGETHER", least)
        statement = search_many(article.embedding, queries, mode="exact", **options)
        rows = session.execute(statement).all()
        found.append([(row.query, row.rank, row.Article.id, row.distance) for row in rows])
        plan = explain(session.connection(), statement).splitlines()
        read = [
            line for line in plan if "CTE Scan on pgembed_blocks" in line and "never executed" not in line
        ]
        assert bool(read) == (in_blocks and least == 32)
    assert found[0] == found[1]
    assert len(found[0]) >= 38 * options["limit"] * ("where" not in options)
    assert all(query != key for query, _, key, _ in found[0])


def test_it_is_never_short(corpus, session, explain):
    """Under a rare condition, the exact form takes over for the queries that need it."""
    article, asked = corpus.article, aliased(corpus.article)
    session.execute(text("SELECT '[1]'::vector"))
    session.execute(text("SET LOCAL hnsw.max_scan_tuples = 1"))
    queries = select(asked.id, asked.embedding, asked.id.label("most")).where(asked.id.in_([1, 2999]))
    statement = search_many(
        article.embedding, queries, limit=10, where=article.id < queries.selected_columns.most
    )
    assert list(map(len, of_each(session.execute(statement)).values())) == [10]
    statement = search_many(article.embedding, TEXTS, limit=10, where=article.id.in_([5, 6, 7]))
    assert of_each(session.execute(statement)) == {
        n: corpus.nearest(vector, 10, lambda row: row["id"] in (5, 6, 7))
        for n, vector in enumerate(corpus.encoder.encode_queries(TEXTS))
    }
    everything = session.execute(search_many(article.embedding, TEXTS, limit=5000)).all()
    assert len(everything) == 3 * (len(corpus.vectors) - 2)


def test_pages_and_distances(corpus, session):
    article = corpus.article
    whole = session.execute(search_many(article.embedding, TEXTS, limit=20, ef_search=100)).all()
    page = session.execute(search_many(article.embedding, TEXTS, limit=5, offset=15, ef_search=100)).all()
    assert [tuple(row) for row in page] == [tuple(row) for row in whole if row.rank > 15]
    most = whole[4].distance
    near = session.execute(search_many(article.embedding, TEXTS, limit=20, max_distance=most)).all()
    assert [tuple(row) for row in near] == [tuple(row) for row in whole if row.distance <= most]


def test_other_columns_and_late_clauses(corpus, session):
    article, author = corpus.article, corpus.author
    base = select(article.id, author.name).outerjoin(article.author)
    statement = search_many(article.embedding, TEXTS, limit=2, base=base)
    row = session.execute(statement).first()
    assert row._fields == ("query", "id", "name", "distance", "score", "rank")
    inner = statement.subquery()
    counted = select(inner.c.query, func.count()).group_by(inner.c.query).order_by(inner.c.query)
    assert session.execute(counted).all() == [(0, 2), (1, 2), (2, 2)]
    with pytest.raises(LateClauseError, match=r"search_many\(\)"):
        statement.where(article.id == 1)


def test_composite_keys_and_bits_of_core_tables(engine):
    table = Table(
        "t",
        MetaData(),
        Column("a", Integer, primary_key=True),
        Column("b", String, primary_key=True),
        Column("v", VectorType(2)),
        Column("bits", BIT(4)),
    )
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [{"a": n // 2, "b": "xy"[n % 2], "v": [n, 1], "bits": f"{n:04b}"} for n in range(6)]
        connection.execute(insert(table), rows)
        near = search_many(table.c.v, select(table.c.a, table.c.b, table.c.v), limit=1, metric="l2")
        found = connection.execute(near).all()
        assert [tuple(row)[:2] for row in found] == [(row["a"], row["b"]) for row in rows]
        assert found[0]._fields[:2] == ("query_1", "query_2")
        assert [(row.a, row.b) for row in found][:2] == [(0, "y"), (0, "x")]
        bits = connection.execute(search_many(table.c.bits, ["0000", "0101"], limit=1)).all()
        assert [(row.query, row.bits, row.distance) for row in bits] == [(0, "0000", 0), (1, "0101", 0)]


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg", "psycopg_async"])
def test_other_drivers(corpus, driver):
    statement = search_many(corpus.article.embedding, [TEXTS[0], corpus.vectors[1]], limit=3)
    with Session(corpus.engine) as session:
        expected = of_each(session.execute(statement))
    if driver == "psycopg2":
        engine = create_engine(corpus.url.set(drivername="postgresql+psycopg2"))
        with Session(engine) as session:
            assert of_each(session.execute(statement)) == expected
        engine.dispose()
        return

    async def work() -> Any:
        engine = create_async_engine(corpus.url.set(drivername=f"postgresql+{driver}"))
        async with AsyncSession(engine) as session:
            found = of_each(await session.execute(statement))
        await engine.dispose()
        return found

    assert asyncio.run(work()) == expected


def test_a_thousand_random_queries_equal_brute_force(corpus, session):
    """Random vectors, each with a condition of its own, in one statement."""
    random = np.random.default_rng(3)
    asked = random.normal(size=(1000, 32)).astype(np.float32)
    moduli = random.integers(1, 40, size=1000)
    columns = Column("n", Integer), Column("v", VectorType(32)), Column("m", Integer)
    table = Table("asked", MetaData(), *columns, prefixes=["TEMPORARY"])
    connection = session.connection()
    table.create(connection)
    connection.execute(
        insert(table),
        [{"n": n, "v": v, "m": int(m)} for n, (v, m) in enumerate(zip(asked, moduli, strict=True))],
    )
    article = corpus.article
    base = select(article.id)
    statement = search_many(
        article.embedding,
        select(table.c.n, table.c.v, table.c.m),
        limit=3,
        where=article.id % table.c.m == 0,
        base=base,
        mode="exact",
    )
    found = np.array([row.distance for row in session.execute(statement)]).reshape(1000, 3)
    keys = np.array([key for key, vector in corpus.vectors.items() if np.any(vector)])
    stored = np.array([corpus.vectors[key] for key in keys], dtype=np.float64)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    distances = 1 - unit @ (asked / np.linalg.norm(asked, axis=1, keepdims=True)).T.astype(np.float64)
    distances[keys[:, None] % moduli[None, :] != 0] = np.inf
    assert np.allclose(found, np.sort(distances, axis=0)[:3].T, atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "error", "message"),
    [
        ([], QueryError, "list of queries is empty"),
        ("text", QueryError, "the queries are of the type str; expected a list"),
        (None, QueryError, "the queries are of the type NoneType"),
        ({"a": "b"}, QueryError, "the queries are of the type dict"),
        ([1.0, 2.0], VectorValueError, "the queries are one vector"),
        (["text", " "], QueryError, "the text is ' '"),
        (["text", None], QueryError, "one of the queries is None"),
        ([[1.0] * 32, [1.0]], DimensionMismatchError, "has 1 dimensions"),
        ([[0.0] * 32], QueryError, "zeros"),
        ([[float("nan")] * 32], VectorValueError, "NaN"),
    ],
)
def test_what_is_no_list_of_queries_is_refused(corpus, queries, error, message):
    with pytest.raises(error, match=message):
        search_many(corpus.article.embedding, queries)


def test_keys_and_vectors_of_expressions(corpus, session):
    """Of such, SQLAlchemy knows no type: the second column is the vector."""
    article = corpus.article
    first = article.id.in_([1, 2])
    untyped = select(article.id + 0, literal_column("embedding")).where(first)
    rows = session.execute(search_many(article.embedding, untyped, limit=2)).all()
    assert of_each(rows) == {key: corpus.nearest(corpus.vectors[key], 2) for key in (1, 2)}
    means = select(article.section, func.avg(article.embedding)).where(first).group_by(article.section)
    rows = session.execute(search_many(article.embedding, means, limit=2)).all()
    sections = {corpus.rows[key - 1]["section"]: corpus.vectors[key] for key in (1, 2)}
    assert of_each(rows) == {name: corpus.nearest(vector, 2) for name, vector in sections.items()}


def test_selects_without_keys_or_of_other_dimensions_are_refused(corpus):
    article = corpus.article
    for queries in (select(article.embedding), select(article.embedding, article.id), select(article.id)):
        with pytest.raises(QueryError, match="expected keys and then a vector"):
            search_many(article.embedding, queries)
    other = Table("o", MetaData(), Column("id", Integer), Column("v", VectorType(3)))
    with pytest.raises(DimensionMismatchError):
        search_many(article.embedding, select(other.c.id, other.c.v))


def test_the_sql_function_agrees(corpus, session):
    vectors = corpus.encoder.encode_queries(TEXTS)
    written = ["[" + ",".join(map(str, vector.tolist())) + "]" for vector in vectors]
    expected = [
        (n, row[0].id, pytest.approx(row.distance, abs=1e-6), pytest.approx(row.score, abs=1e-6), rank)
        for n, vector in enumerate(vectors, 1)
        for rank, row in enumerate(
            session.execute(semantic_search(corpus.article.embedding, vector, limit=4)), 1
        )
    ]
    for kind in ("vector[]", "halfvec[]", "text[]"):
        rows = session.execute(
            text(f"SELECT * FROM pgembed.search_many('article', 'embedding', CAST(:q AS {kind}), 4)"),
            {"q": written},
        ).all()
        if kind == "halfvec[]":
            assert [row.query for row in rows] == [n for n, *_ in expected]
        else:
            assert [(row[0], row[1]["id"], *row[2:]) for row in rows] == expected
    none = session.execute(
        text("SELECT * FROM pgembed.search_many('article', 'embedding', '{}'::vector[])")
    ).all()
    assert none == []
