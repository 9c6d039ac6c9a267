"""explain_search: what it says of a search is what Postgres has done, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import json
import pickle
from datetime import UTC, datetime

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Table,
    bindparam,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, aliased, scoped_session, sessionmaker, with_loader_criteria

from pgembed import (
    HNSW,
    IVFFlat,
    Words,
    aexplain_search,
    diversify,
    explain_search,
    facets,
    hybrid_search,
    keyword_search,
    knn_classify,
    recommend,
    search_many,
    semantic_search,
)
from pgembed.columns.types import VectorType
from pgembed.exc import QueryError
from pgembed.filling import refresh_words
from pgembed.indexes import create
from pgembed.indexes.measurement import Measurement
from pgembed.measuring import recall
from pgembed.queries import SearchExplanation, SearchLeg
from pgembed.testing import HashEncoder
from tests.tables import library

QUERY = "w5 v17 u120"
INDEX = "ix_article_embedding_hnsw"


def settings_of(session):
    names = ("hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples")
    return {name: session.scalar(select(func.current_setting(name))) for name in names}


def test_through_the_index(corpus, session):
    statement = semantic_search(corpus.article.embedding, QUERY, limit=7)
    found = explain_search(session, statement)
    assert (found.helper, found.rows) == ("semantic_search", 7)
    (leg,) = found.legs
    assert (leg.column, leg.by, leg.index, leg.method) == ("article.embedding", "vector", INDEX, "hnsw")
    assert (leg.queries, leg.taken_over, leg.compared, leg.why) == (1, 0, 0, ())
    assert 7 <= leg.candidates <= 40
    assert leg.measured is None
    assert found.settings == {"hnsw.ef_search": "40", "hnsw.iterative_scan": "strict_order"}
    assert found.milliseconds > 0
    lines = str(found).splitlines()
    assert lines[0].startswith("semantic_search: 7 rows in ")
    assert lines[1] == f"article.embedding: through {INDEX} (hnsw), {leg.candidates} candidates"
    assert lines[2:] == [
        f"  {leg.pending} rows pending",
        "  recall not measured: run `pgembed index recall article embedding`",
        "settings: hnsw.ef_search = 40, hnsw.iterative_scan = strict_order",
    ]
    assert explain_search(session, semantic_search(corpus.article.embedding, QUERY, ef_search=77)).settings[
        "hnsw.ef_search"
    ] == "77"  # fmt: skip


def test_nothing_is_left_in_the_transaction(corpus, session):
    session.execute(text("SELECT '[1]'::vector"))  # loads the library
    session.execute(text("SET LOCAL hnsw.ef_search = 33"))
    before = settings_of(session)
    under = semantic_search(
        corpus.article.embedding, QUERY, limit=30, where=corpus.article.id > 3
    ).with_for_update()
    found = explain_search(session, under)
    assert found.settings["hnsw.ef_search"] == "60"
    assert found.settings["hnsw.iterative_scan"] == "relaxed_order"
    assert settings_of(session) == before
    with Session(corpus.engine) as other:  # nobody's rows are locked
        assert len(other.execute(under).all()) == 30
        assert settings_of(other) == found.settings  # what the search itself leaves


def test_in_autocommit_and_on_connections(corpus):
    autocommit = corpus.engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        connection.execute(text("SELECT '[1]'::vector"))
        before = settings_of(connection)
        found = explain_search(connection, semantic_search(corpus.article.embedding, QUERY, limit=100))
        assert found.legs[0].index == INDEX
        assert found.settings["hnsw.ef_search"] == "200"
        assert settings_of(connection) == before
        assert connection.scalar(text("SELECT now() = statement_timestamp()"))  # in no transaction
    with Session(corpus.engine) as session:
        one = explain_search(
            session.connection(), semantic_search(corpus.article.__table__.c.embedding, QUERY)
        )
        assert one.legs[0].index == INDEX
        scoped = scoped_session(sessionmaker(corpus.engine))
        assert explain_search(scoped, keyword_search(corpus.article.embedding, QUERY)).rows == 10
        scoped.remove()


def test_exact_searches_say_why(corpus, session):
    article = corpus.article
    compared = len(corpus.vectors)
    for statement, why in (
        (semantic_search(article.embedding, QUERY, mode="exact"), 'mode="exact"'),
        (semantic_search(article.embedding, QUERY, metric="l2"), "none is declared that serves l2"),
    ):
        found = explain_search(session, statement)
        (leg,) = found.legs
        assert (leg.index, leg.candidates, leg.taken_over, found.settings) == (None, compared, 0, {})
        assert leg.why[0].startswith(why)
        assert f"article.embedding: exact, {compared:,} rows compared\n  no index: {why}" in str(found)
    few = explain_search(
        session, semantic_search(article.embedding, QUERY, mode="exact", where=article.id < 5)
    )
    assert (few.rows, few.legs[0].candidates) == (4, 4)


def test_indexes_that_are_not_there_or_not_taken(corpus, session):
    statement = semantic_search(corpus.article.embedding, QUERY)
    session.execute(text("SET LOCAL enable_indexscan = off"))
    (leg,) = explain_search(session, statement).legs
    assert leg.index is None
    assert leg.why == (f"{INDEX}: enable_indexscan is off in this session",)
    session.execute(text(f"DROP INDEX {INDEX}"))
    (leg,) = explain_search(session, statement).legs
    assert leg.why == (f"{INDEX} is not built: run `pgembed index create`",)
    assert leg.candidates >= len(corpus.vectors) - 2
    assert leg.measured is None
    session.rollback()
    table = corpus.article.__table__.to_metadata(type(corpus.article.metadata)())
    table.indexes = {index for index in table.indexes if "hnsw" not in str(index.name)}
    session.execute(text("SELECT 1"))
    (leg,) = explain_search(session, semantic_search(table.c.embedding, QUERY)).legs
    assert leg.why == (
        "none is declared that serves cosine",
        f'{INDEX} is in the database: declare it, or pass mode="approximate"',
    )
    found = explain_search(session, semantic_search(table.c.embedding, QUERY, mode="approximate"))
    assert found.legs[0].index == INDEX


def test_the_exact_form_takes_over(corpus, session):
    """Two vectors of zeros are in no index by cosine: a search for all others finds less than it asks for."""
    with_direction = len(corpus.vectors) - 2
    session.execute(text("SET LOCAL enable_sort = off"))
    session.execute(text("SET LOCAL enable_seqscan = off"))
    statement = semantic_search(corpus.article.embedding, QUERY, limit=with_direction + 1)
    found = explain_search(session, statement)
    (leg,) = found.legs
    assert (found.rows, leg.index, leg.taken_over) == (with_direction, INDEX, 1)
    assert leg.candidates <= with_direction
    assert leg.compared == len(corpus.vectors)
    assert f"not enough: the exact form took over, {leg.compared:,} rows compared" in str(found)


def test_many_queries(corpus, session):
    article = corpus.article
    queries = [QUERY, "w1", "v2 v3"]
    found = explain_search(session, search_many(article.embedding, queries, limit=4))
    (leg,) = found.legs
    assert (found.rows, leg.queries, leg.index, leg.taken_over) == (12, 3, INDEX, 0)
    assert 12 <= leg.candidates <= 120
    assert f"{leg.candidates} candidates for 3 queries" in str(found)
    # Of two sections, one is rare among the rows that the index gives.
    asked = aliased(article)
    rows = select(asked.id, asked.embedding, asked.section).where(asked.id.in_([1, 2, 4]))
    session.execute(text("SET LOCAL enable_sort = off"))
    session.execute(text("SET LOCAL enable_bitmapscan = off"))
    session.execute(text("SELECT '[1]'::vector"))
    session.execute(text("SET LOCAL hnsw.max_scan_tuples = 1"))
    rare = (article.section == asked.section) & ((asked.id != 2) | (article.id.in_([17, 2021])))
    statement = search_many(article.embedding, rows, limit=2, where=rare)
    found = explain_search(session, statement)
    (leg,) = found.legs
    assert (found.rows, leg.queries, leg.index, leg.taken_over) == (6, 3, INDEX, 1)
    assert leg.compared == 2
    assert "the exact form took over for 1 query, 2 rows compared" in str(found)
    exact = explain_search(session, search_many(article.embedding, queries, mode="exact"))
    assert exact.legs[0].candidates == 3 * len(corpus.vectors)


def test_by_words_and_by_both(corpus, session):
    article = corpus.article
    matching = session.scalar(
        text("SELECT count(*) FROM article WHERE to_tsvector('english', title) @@ 'w5 | v17 | u120'::tsquery")
    )
    alone = explain_search(session, keyword_search(article.embedding, QUERY, limit=3))
    (words,) = alone.legs
    assert (words.by, words.index, words.candidates, words.pending) == ("words", None, matching, None)
    assert f"article.embedding by words: without an index, {matching} rows matched" in str(alone)
    session.execute(text("CREATE INDEX by_words ON article USING gin (to_tsvector('english', title))"))
    session.execute(text("SET LOCAL enable_seqscan = off"))
    found = explain_search(session, hybrid_search(article.embedding, QUERY, text=article.title, limit=3))
    vector, words = found.legs
    assert (found.helper, found.rows) == ("hybrid_search", 3)
    assert (vector.by, vector.index, vector.taken_over) == ("vector", INDEX, 0)
    assert vector.candidates >= 50
    assert (words.by, words.index, words.method, words.candidates) == ("words", "by_words", "gin", matching)
    assert f"by words: through by_words (gin), {matching} candidates" in str(found)


def test_words_that_are_declared_and_several_columns(engine):
    Base, _, Article = library(
        HashEncoder(8), "title", index=HNSW(build="immediate"), words=Words("title", "body")
    )
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Article(title=f"printer {n % 7} of {n}", body=f"word{n % 5}") for n in range(300))
        session.flush()
        refresh_words(session.connection(), Article.embedding)
        session.execute(text("SET LOCAL enable_seqscan = off"))
        found = explain_search(session, keyword_search(Article.embedding, "word3", limit=5))
        (words,) = found.legs
        assert (words.index, words.method, words.candidates) == ("ix_article_embedding_words", "gin", 60)
        fused = hybrid_search([Article.embedding, Article.embedding], "word3 printer", limit=5)
        assert [leg.by for leg in explain_search(session, fused).legs] == ["vector", "vector", "words"]


def test_helpers_that_are_made_of_searches(corpus, session):
    article = corpus.article
    search = semantic_search(article.embedding, QUERY, limit=5)
    for statement, rows, queries in (
        (diversify(search), 5, 1),
        (recommend(article.embedding, [1, 2], limit=3), 3, 1),
        (recommend(article.embedding, [1, 2], [3], strategy="best", limit=3), 3, 2),
        (semantic_search(article.embedding, QUERY, limit=3, boost=article.id), 3, 1),
    ):
        session.execute(text("SET LOCAL enable_sort = off"))
        found = explain_search(session, statement)
        (leg,) = found.legs
        assert (found.helper, found.rows) == (statement.helper, rows)
        assert (leg.index, leg.queries, leg.taken_over) == (INDEX, queries, 0)
        assert leg.candidates >= rows
    session.rollback()
    compared = len(corpus.vectors)
    for statement, candidates in (
        (diversify(semantic_search(article.embedding, QUERY, mode="exact")), compared),
        (recommend(article.embedding, [1, 2], mode="exact"), compared - 2),
        (recommend(article.embedding, [1, 2], [3], strategy="best", mode="exact"), compared - 3),
        (semantic_search(article.embedding, QUERY, boost=article.id, mode="exact"), compared),
    ):
        (leg,) = explain_search(session, statement).legs
        assert (leg.index, leg.candidates, leg.why) == (None, candidates, ('mode="exact"',))


def test_groups(corpus, session):
    article = corpus.article
    of_section = sum(1 for row in corpus.rows if row["section"] and row["id"] in corpus.vectors)
    exact = semantic_search(article.embedding, QUERY, per=article.section, best=2, limit=3, mode="exact")
    assert explain_search(session, exact).legs[0].candidates == of_section
    session.execute(text("SET LOCAL enable_sort = off"))
    few = semantic_search(article.embedding, QUERY, per=article.section, best=2, limit=3)
    found = explain_search(session, few)
    assert (found.rows, found.legs[0].index, found.legs[0].taken_over) == (6, INDEX, 0)
    # Rows of groups that the candidates hold a part of are looked up: the index has given groups enough.
    partly = semantic_search(article.embedding, QUERY, per=article.id % 500, best=4, limit=10)
    (leg,) = explain_search(session, partly).legs
    assert (leg.index, leg.taken_over, leg.compared) == (INDEX, 0, 0)
    # There are no ten sections, so that all rows are looked at in the end.
    many = semantic_search(article.embedding, QUERY, per=article.section, best=2, limit=10)
    (leg,) = explain_search(session, many).legs
    assert (leg.index, leg.taken_over) == (INDEX, 1)
    assert leg.compared >= of_section


@pytest.mark.parametrize(
    ("index", "query", "candidates"),
    [
        (HNSW("the.V", metric="l2", name="ix"), {}, 6),
        (HNSW("the.V", metric="l2", name="ix", quantize="half"), {}, 10),
        (HNSW("the.V", metric="l2", name="ix", quantize="bit"), {}, 50),
        (HNSW("the.V", metric="l2", name="ix", where='"id" < 200'), {"where": text('"id" < 200')}, 6),
        (IVFFlat("the.V", metric="l2", name="ix", lists=4), {"probes": 4}, 6),
    ],
    ids=["whole", "half", "bit", "partial", "ivfflat"],
)
def test_forms_of_indexes_and_names_that_need_quotes(engine, index, query, candidates):
    table = Table(
        'My "Table"',
        MetaData(schema="Other One"),
        Column("id", Integer, primary_key=True),
        Column("the.V", VectorType(8)),
        index,
    )
    with engine.connect() as connection:
        connection.execute(text('CREATE SCHEMA "Other One"'))
        table.create(connection)
        vectors = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
        connection.execute(insert(table), [{"id": n, "the.V": vector} for n, vector in enumerate(vectors)])
        create(connection, index)
        connection.execute(text('ANALYZE "Other One"."My ""Table"""'))
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL enable_sort = off"))
        connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        statement = semantic_search(table.c["the.V"], vectors[3], limit=5, **query)
        found = explain_search(connection, statement)
        (leg,) = found.legs
        assert (leg.column, leg.index) == ('"Other One"."My ""Table""".the.V', "ix")
        assert leg.method == ("ivfflat" if isinstance(index, IVFFlat) else "hnsw")
        assert candidates - 1 <= leg.candidates < 2 * candidates  # with ties, of which bits have many
        assert (found.rows, leg.taken_over, leg.why) == (5, 0, ())
        exact = explain_search(connection, semantic_search(table.c["the.V"], vectors[3], mode="exact"))
        assert exact.legs[0].candidates == 400


def test_partitions(engine):
    with engine.connect() as connection:
        connection.execute(
            text("CREATE TABLE item (id integer PRIMARY KEY, v vector(8)) PARTITION BY HASH (id)")
        )
        for part in (0, 1):
            of = f"FOR VALUES WITH (MODULUS 2, REMAINDER {part})"
            connection.execute(text(f"CREATE TABLE item_{part} PARTITION OF item {of}"))
        table = Table("item", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType(8)))
        index = HNSW(table.c.v, metric="l2", name="ix_item")
        vectors = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
        connection.execute(insert(table), [{"id": n, "v": vector} for n, vector in enumerate(vectors)])
        create(connection, index)
        connection.execute(text("ANALYZE item"))
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL enable_sort = off"))
        found = explain_search(connection, semantic_search(table.c.v, vectors[3], limit=5))
        assert (found.rows, found.legs[0].index, found.legs[0].taken_over) == (5, "ix_item", 0)
        assert 5 <= found.legs[0].candidates <= 12
        exact = explain_search(connection, semantic_search(table.c.v, vectors[3], mode="exact"))
        assert exact.legs[0].candidates == 400


def test_criteria_of_the_session_pending_flushes_and_parameters(corpus, session):
    article = corpus.article
    statement = semantic_search(article.embedding, bindparam("q"), mode="exact")
    visible = sum(1 for row in corpus.rows if not row["hidden"] and row["id"] in corpus.vectors)

    @event.listens_for(session, "do_orm_execute")
    def hide(state):
        if state.is_select and state.bind_mapper is article.__mapper__:
            assert session.scalar(select(func.count(corpus.author.id))) == 2
            state.statement = state.statement.options(
                with_loader_criteria(article, article.hidden.is_(False))
            )

    assert explain_search(session, statement, {"q": QUERY}).legs[0].candidates == visible
    session.add(article(id=5001, title="one more", hidden=False))
    found = explain_search(session, statement, {"q": QUERY})
    assert found.legs[0].candidates == visible + 1
    assert session.scalar(select(func.count()).where(article.id == 5001)) == 1


def test_pending_rows(corpus, session):
    article = corpus.article
    (leg,) = explain_search(session, semantic_search(article.embedding, QUERY)).legs
    pending = session.scalar(text("SELECT pending FROM pgembed.status WHERE relation = 'article'::regclass"))
    assert leg.pending == pending >= 3
    session.execute(text("UPDATE article SET title = title || 'x' WHERE id <= 10"))
    (leg,) = explain_search(session, semantic_search(article.embedding, QUERY)).legs
    assert leg.pending == pending + 10


def test_a_role_that_may_not_read_the_sources(corpus, session):
    session.execute(text("CREATE ROLE explaining"))
    session.execute(text("GRANT SELECT (id, embedding) ON article TO explaining"))
    session.execute(text("SET LOCAL ROLE explaining"))
    table = corpus.article.__table__
    found = explain_search(session, semantic_search(table.c.embedding, QUERY, base=select(table.c.id)))
    assert (found.rows, found.legs[0].index, found.legs[0].pending) == (10, INDEX, None)
    assert "pending" not in str(found)


def test_the_recall_that_was_measured_last(corpus, session):
    article = corpus.article
    session.execute(text("SET LOCAL enable_sort = off"))
    before = datetime.now(UTC).replace(microsecond=0)
    recall(session.connection(), article.embedding, queries=5, k=3, ef_search=11)
    last = recall(session.connection(), article.embedding, queries=8, k=4)
    found = explain_search(session, semantic_search(article.embedding, QUERY))
    measured = found.legs[0].measured
    assert measured is not None
    assert (measured.k, measured.queries, measured.setting, measured.value) == (4, 8, "ef_search", 40)
    shares = (last.recall, last.low, last.high)
    assert (measured.recall, measured.low, measured.high) == pytest.approx(shares, abs=1e-4)
    assert before <= measured.measured_at <= datetime.now(UTC)
    assert f"\n  recall@4 {measured.recall:.4f} (" in str(found)
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["legs"][0]["measured"]["measured_at"] == measured.measured_at.isoformat()
    assert plain["settings"] == found.settings
    assert "plan" not in plain


def test_a_measurement_and_its_comment():
    moment = datetime(2026, 11, 29, 6, 55, tzinfo=UTC)
    given = Measurement(0.983, 0.9752, 1.0, 10, "probes", 8, 200, moment)
    comment = "pgembed: recall@10 0.9830 (0.9752 to 1.0000), probes 8, 200 queries, 2026-11-29 06:55:00 UTC"
    assert f"pgembed: {given}" == comment
    assert Measurement.read(comment) == given
    for other in (None, "", "for searches", comment + "!", comment.replace("probes", "lists")):
        assert Measurement.read(other) is None


def test_under_asyncio(corpus):
    statement = semantic_search(corpus.article.embedding, QUERY)

    async def asked():
        engine = create_async_engine(corpus.url)
        async with AsyncSession(engine) as session:
            found = await aexplain_search(session, statement)
            with pytest.raises(QueryError, match=r"AsyncSession.*: use `await aexplain_search\(...\)`"):
                explain_search(session, statement)
            with pytest.raises(QueryError, match=r": use explain_search\(...\)"):
                await aexplain_search(session.sync_session, statement)
        async with engine.connect() as connection:
            core = await aexplain_search(connection, statement)
        scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        again = await aexplain_search(scoped, statement)
        await scoped.remove()
        await engine.dispose()
        return found, core, again

    for found in asyncio.run(asked()):
        assert isinstance(found, SearchExplanation)
        assert (found.rows, found.legs[0].index) == (10, INDEX)


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_with_other_drivers(corpus, driver):
    url = corpus.url.set(drivername=f"postgresql+{driver}")
    statement = semantic_search(corpus.article.embedding, QUERY)
    if driver == "psycopg2":
        engine = create_engine(url)
        with Session(engine) as session:
            found = explain_search(session, statement)
        engine.dispose()
    else:

        async def asked():
            engine = create_async_engine(url)
            async with AsyncSession(engine) as session:
                explained = await aexplain_search(session, statement)
            await engine.dispose()
            return explained

        found = asyncio.run(asked())
    assert (found.rows, found.legs[0].index, found.settings["hnsw.ef_search"]) == (10, INDEX, "40")


def test_what_is_not_a_search(corpus, session):
    article = corpus.article
    search = semantic_search(article.embedding, QUERY)
    plain = Table("plain", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType(3)))
    of_table = semantic_search(plain.c.v, [1, 2, 3])
    for wrong, found in (
        (select(article), "found <sqlalchemy"),
        ("SELECT 1", "found 'SELECT 1'"),
        (knn_classify(article.embedding, QUERY, label=article.section), r"found one of knn_classify\(\)"),
        (facets(search, article.section), r"found one of facets\(\)"),
        (search.subquery().select(), "found <sqlalchemy"),
        (pickle.loads(pickle.dumps(of_table)), r"found one of semantic_search\(\)"),
    ):
        with pytest.raises(QueryError, match=rf"explain_search\(\) takes a statement of .*{found}"):
            explain_search(session, wrong)


def test_values_are_frozen(corpus, session):
    found = explain_search(session, keyword_search(corpus.article.embedding, QUERY))
    assert isinstance(found.legs[0], SearchLeg)
    with pytest.raises(AttributeError):
        found.rows = 3
    with pytest.raises(AttributeError):
        found.legs[0].candidates = 3
