"""semantic_search on a real server: the right rows, through the index, never too few."""

from __future__ import annotations

import asyncio
import pickle
import re
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import bindparam, exists, func, select, text
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, aliased, selectinload, with_loader_criteria

from pgembed.exc import DimensionMismatchError, QueryError
from pgembed.queries import hybrid_search, semantic_search

QUERY = "w5 v17 u120"
ROWS = 3000
INDEX = "Index Scan using ix_article_embedding_hnsw"


def keys_and_distances(rows):
    return [(row[0].id, row.distance) for row in rows]


def test_finds_the_nearest_rows_with_distances_and_scores(corpus, session):
    rows = session.execute(semantic_search(corpus.article.embedding, QUERY, limit=20)).all()
    vector = corpus.encoder.encode_queries([QUERY])[0]
    assert keys_and_distances(rows) == corpus.nearest(vector, 20)
    assert isinstance(rows[0].Article, corpus.article)
    assert [row.score for row in rows] == pytest.approx([1 - row.distance for row in rows])


def test_pages_join_seamlessly(corpus, session):
    column = corpus.article.embedding
    whole = session.execute(semantic_search(column, QUERY, limit=30)).all()
    pages = [
        row
        for offset in (0, 10, 20)
        for row in session.execute(semantic_search(column, QUERY, limit=10, offset=offset))
    ]
    assert [row[0].id for row in pages] == [row[0].id for row in whole]


def test_a_statement_uses_the_index_and_leaves_the_exact_branch_alone(corpus, session, explain):
    statement = semantic_search(corpus.article.embedding, QUERY)
    plan = explain(session.connection(), statement)
    assert INDEX in plan
    assert "Seq Scan on article article_1 (never executed)" in plan


def test_a_filter_stays_inside_of_the_index_scan(corpus, session, explain):
    article = corpus.article
    statement = semantic_search(article.embedding, QUERY, where=article.section == "help")
    # The planner would rather read so small a table than look into its index under conditions.
    session.execute(text("SET LOCAL enable_sort = off"))
    plan = explain(session.connection(), statement)
    assert INDEX in plan
    assert "never executed" in plan
    vector = corpus.encoder.encode_queries([QUERY])[0]
    assert keys_and_distances(session.execute(statement)) == corpus.nearest(
        vector, 10, lambda row: row["section"] == "help"
    )


def test_several_conditions_and_exists_over_other_tables(corpus, session):
    article, author = corpus.article, corpus.author
    vector = corpus.encoder.encode_queries([QUERY])[0]
    expected = corpus.nearest(vector, 10, lambda row: row["author_id"] == 1 and not row["hidden"])
    for condition in (
        article.author.has(author.name == "Ada"),
        exists().where(author.id == article.author_id, author.name == "Ada"),
    ):
        statement = semantic_search(article.embedding, QUERY, where=[condition, ~article.hidden])
        assert keys_and_distances(session.execute(statement)) == expected


def test_never_fewer_rows_than_there_are(corpus, session, explain):
    """All rows of the filter are far from the query: an index scan alone gives up before it meets them."""
    article = corpus.article
    vector = corpus.encoder.encode_queries([QUERY])[0]
    far = [key for key, _ in corpus.nearest(vector, 5000)[-15:]]
    session.execute(text("SELECT '[1]'::vector"))
    session.execute(text("SET LOCAL hnsw.max_scan_tuples = 100"))
    statement = semantic_search(article.embedding, QUERY, limit=12, where=article.id.in_(far))
    # Without the primary key's index, which would make the ANN leg exact by itself.
    session.execute(text("SET LOCAL enable_bitmapscan = off"))
    session.execute(text("SET LOCAL enable_sort = off"))
    plan = explain(session.connection(), statement)
    rows = session.execute(statement).all()
    assert keys_and_distances(rows) == corpus.nearest(vector, 12, lambda row: row["id"] in far)
    assert INDEX in plan


def test_more_rows_than_the_candidate_list_can_hold(corpus, session):
    rows = session.execute(semantic_search(corpus.article.embedding, QUERY, limit=1500)).all()
    assert len({row[0].id for row in rows}) == 1500
    assert [row.distance for row in rows] == sorted(row.distance for row in rows)


def test_all_rows_with_a_direction_are_found_and_no_others(corpus, session):
    for mode in ("auto", "exact"):
        rows = session.execute(semantic_search(corpus.article.embedding, QUERY, limit=5000, mode=mode)).all()
        assert {row[0].id for row in rows} == set(corpus.vectors) - {11, 12}


def test_exact_mode_uses_no_index_and_no_settings(corpus, session, explain):
    statement = semantic_search(corpus.article.embedding, QUERY, mode="exact")
    plan = explain(session.connection(), statement)
    assert "hnsw" not in plan
    assert "set_config" not in str(statement.compile(corpus.engine))
    vector = corpus.encoder.encode_queries([QUERY])[0]
    assert keys_and_distances(session.execute(statement)) == corpus.nearest(vector, 10)


def test_settings_end_with_the_transaction(corpus):
    show = text("SELECT current_setting('hnsw.ef_search', true)")
    statement = semantic_search(corpus.article.embedding, QUERY, ef_search=333)
    with corpus.engine.connect() as connection:
        connection.execute(text("SELECT '[1]'::vector"))
        before = connection.scalar(show)
        connection.execute(statement)
        assert connection.scalar(show) == "333"
        connection.commit()
        assert connection.scalar(show) == before
    autocommit = corpus.engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        connection.execute(statement)
        assert connection.scalar(show) == before


def test_settings_are_made_before_the_scan(corpus, session, explain):
    """The scan waits for them; with one candidate and no iteration, it would find one row only."""
    session.execute(text("SELECT '[1]'::vector"))
    session.execute(text("SET LOCAL hnsw.ef_search = 1"))
    session.execute(text("SET LOCAL hnsw.iterative_scan = off"))
    plan = explain(session.connection(), semantic_search(corpus.article.embedding, QUERY, limit=40))
    assert re.search(r"One-Time Filter: \(pgembed_settings_1.applied IS NOT NULL\)\n +-> +" + INDEX, plan)
    assert "Seq Scan on article article_1 (never executed)" in plan


def test_a_higher_setting_of_the_session_is_kept(corpus, session):
    session.execute(text("SELECT '[1]'::vector"))
    session.execute(text("SET LOCAL hnsw.ef_search = 500"))
    session.execute(semantic_search(corpus.article.embedding, QUERY))
    assert session.scalar(text("SELECT current_setting('hnsw.ef_search')")) == "500"
    session.execute(semantic_search(corpus.article.embedding, QUERY, limit=400))
    assert session.scalar(text("SELECT current_setting('hnsw.ef_search')")) == "800"


def test_a_row_finds_its_neighbours_and_not_itself(corpus, session, explain):
    article = session.get(corpus.article, 100)
    statement = semantic_search(corpus.article.embedding, article)
    expected = corpus.nearest(corpus.vectors[100], 10, lambda row: row["id"] != 100)
    assert keys_and_distances(session.execute(statement)) == expected
    session.execute(text("SET LOCAL enable_sort = off"))
    plan = explain(session.connection(), statement)
    assert INDEX in plan
    assert "Seq Scan on article article_1 (never executed)" in plan


def test_a_row_without_a_vector_or_with_zeros_has_no_neighbours(corpus, session):
    for key in (500, 11):
        article = session.get(corpus.article, key)
        for mode in ("auto", "exact"):
            statement = semantic_search(corpus.article.embedding, article, mode=mode)
            assert session.execute(statement).all() == []


def test_a_bound_parameter_takes_text_and_vectors(corpus, session):
    statement = semantic_search(corpus.article.embedding, bindparam("q"), limit=5)
    vector = corpus.encoder.encode_queries([QUERY])[0]
    expected = corpus.nearest(vector, 5)
    for value in (QUERY, vector, vector.tolist()):
        assert keys_and_distances(session.execute(statement, {"q": value})) == expected
    other = corpus.encoder.encode_queries(["w1 v1"])[0]
    assert keys_and_distances(session.execute(statement, {"q": "w1 v1"})) == corpus.nearest(other, 5)


def test_the_index_serves_a_generic_plan(corpus):
    """A prepared statement whose plan is made without knowing any parameter."""
    vector = corpus.encoder.encode_queries([QUERY])[0]
    statement = semantic_search(
        corpus.article.embedding, vector, limit=7, where=corpus.article.section == "help"
    )
    compiled = statement.compile(dialect=asyncpg.dialect(), compile_kwargs={"render_postcompile": True})
    parameters = {**compiled.params, "query_1": str(vector.tolist())}
    values = [parameters[name] for name in compiled.positiontup]
    with corpus.engine.connect() as connection:
        connection.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        connection.execute(text("SET LOCAL enable_sort = off"))
        cursor = connection.connection.cursor()
        cursor.execute(f"PREPARE search AS {compiled}".encode())
        literals = sql.SQL(", ").join(map(sql.Literal, values))
        cursor.execute(sql.SQL("EXPLAIN (ANALYZE, COSTS OFF) EXECUTE search({})").format(literals))
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Order By: (embedding <=> ($" in plan  # generic: the vector is still a parameter
    assert INDEX in plan
    assert re.search(r"Seq Scan on article article_1 \(never executed\)", plan)


def test_a_subquery_as_the_query(corpus, session, explain):
    article = corpus.article
    average = select(func.avg(article.embedding)).where(article.id.in_([5, 8, 14]))
    statement = semantic_search(article.embedding, average)
    centre = np.mean([corpus.vectors[key].astype(np.float64) for key in (5, 8, 14)], axis=0)
    assert keys_and_distances(session.execute(statement)) == corpus.nearest(centre, 10)
    assert INDEX in explain(session.connection(), statement)


def test_max_distance_cuts_without_a_second_scan(corpus, session, explain):
    vector = corpus.encoder.encode_queries([QUERY])[0]
    nearest = corpus.nearest(vector, 10)
    limit = (nearest[4][1] + nearest[5][1]) / 2
    statement = semantic_search(corpus.article.embedding, QUERY, max_distance=limit)
    assert keys_and_distances(session.execute(statement)) == corpus.nearest(vector, 5)
    assert "Seq Scan on article article_1 (never executed)" in explain(session.connection(), statement)


def test_base_replaces_what_is_selected(corpus, session):
    article, author = corpus.article, corpus.author
    base = select(article.id, author.name).outerjoin(article.author)
    rows = session.execute(semantic_search(article.embedding, QUERY, base=base)).all()
    vector = corpus.encoder.encode_queries([QUERY])[0]
    assert [(row.id, row.distance) for row in rows] == corpus.nearest(vector, 10)
    names = {None: None, 1: "Ada", 2: "Bob"}
    assert [row.name for row in rows] == [names[corpus.rows[row.id - 1]["author_id"]] for row in rows]
    assert rows[0]._fields == ("id", "name", "distance", "score")


def test_an_alias_is_searched_as_the_alias(corpus, session, explain):
    other = aliased(corpus.article)
    statement = semantic_search(other.embedding, QUERY, where=other.section == "news", base=select(other))
    vector = corpus.encoder.encode_queries([QUERY])[0]
    assert keys_and_distances(session.execute(statement)) == corpus.nearest(
        vector, 10, lambda row: row["section"] == "news"
    )
    session.execute(text("SET LOCAL enable_sort = off"))
    assert INDEX in explain(session.connection(), statement)


def test_core_tables_and_their_aliases(corpus, explain):
    vector = corpus.encoder.encode_queries([QUERY])[0]
    expected = corpus.nearest(vector, 10, lambda row: row["section"] == "news")
    table = corpus.article.__table__
    for searched in (table, table.alias()):
        statement = semantic_search(searched.c.embedding, vector, where=searched.c.section == "news")
        with corpus.engine.connect() as connection:
            rows = connection.execute(statement).all()
            assert [(row.id, row.distance) for row in rows] == expected
            assert rows[0]._fields == (*table.c.keys(), "distance", "score")
            connection.execute(text("SET LOCAL enable_sort = off"))
            assert INDEX in explain(connection, statement)


def test_stale_rows_can_be_left_out(corpus, session):
    article = corpus.article
    some = article.id.between(20, 25)
    included = session.execute(semantic_search(article.embedding, QUERY, where=some)).all()
    fresh = session.execute(semantic_search(article.embedding, QUERY, where=some, stale="exclude")).all()
    assert {row[0].id for row in included} == {20, 21, 22, 23, 24, 25}
    assert {row[0].id for row in fresh} == {20, 24, 25}
    other = aliased(article)
    fresh = session.execute(
        semantic_search(other.embedding, QUERY, where=other.id.between(20, 25), stale="exclude")
    ).all()
    assert {row[0].id for row in fresh} == {20, 24, 25}


def test_criteria_of_the_session_act_inside_of_the_search(corpus, session, explain):
    """A soft delete by with_loader_criteria must not leave fewer rows than asked for."""
    article = corpus.article
    statement = semantic_search(article.embedding, QUERY, limit=50).options(
        with_loader_criteria(article, article.hidden.is_(False))
    )
    vector = corpus.encoder.encode_queries([QUERY])[0]
    assert keys_and_distances(session.execute(statement)) == corpus.nearest(
        vector, 50, lambda row: not row["hidden"]
    )


def test_it_composes_with_joins_options_and_subqueries(corpus, session):
    article, author = corpus.article, corpus.author
    statement = semantic_search(article.embedding, QUERY, where=article.author_id.is_not(None))
    joined = statement.join(article.author).add_columns(author.name).options(selectinload(article.author))
    rows = session.execute(joined).all()
    assert len(rows) == 10
    assert all(row.Article.author.name == row.name for row in rows)
    found = statement.subquery()
    assert session.scalar(select(func.count()).where(found.c.section == "help")) == sum(
        row[0].section == "help" for row in rows
    )
    union = select(statement.subquery().c.id).union(
        select(semantic_search(article.embedding, "w1 v1 u1").subquery().c.id)
    )
    assert 10 < len(session.execute(union).all()) <= 20


@pytest.mark.parametrize("options", [{}, {"skip_locked": True, "key_share": True}, {"read": True}])
def test_the_rows_found_can_be_locked(corpus, session, options):
    """Those of the entity: not the subquery that has found them, nor what it is joined to."""
    article, author, table = corpus.article, corpus.author, corpus.article.__table__
    other = aliased(article)
    base = select(article.id, author.name).outerjoin(article.author)
    for statement in (
        semantic_search(article.embedding, QUERY, limit=3),
        semantic_search(article.embedding, QUERY, limit=3, mode="exact").outerjoin(article.author),
        semantic_search(article.embedding, QUERY, limit=3, base=base),
        semantic_search(other.embedding, QUERY, limit=3),
        semantic_search(table.c.embedding, corpus.vectors[1], limit=3),
        hybrid_search(article.embedding, QUERY, text=article.title, limit=3),
    ):
        locking = statement.with_for_update(**options)
        assert " OF article" in str(locking.compile(corpus.engine))
        assert len(session.execute(locking).all()) == 3
        session.rollback()


def test_a_locked_row_is_locked(corpus, session):
    article = corpus.article
    statement = semantic_search(article.embedding, QUERY, limit=1).with_only_columns(article.id)
    found = session.scalar(statement.with_for_update())
    waiting = statement.with_for_update(nowait=True)
    with Session(corpus.engine) as other, pytest.raises(OperationalError, match="could not obtain lock"):
        other.scalar(waiting)
    session.rollback()
    assert session.scalar(waiting) == found


def test_it_stands_where_other_selects_stand(corpus, session):
    article = corpus.article
    first, second = (semantic_search(article.embedding, text, limit=3) for text in (QUERY, "w1 v1 u1"))
    ids = [statement.with_only_columns(article.id) for statement in (first, second)]
    united = session.scalars(ids[0].union(ids[1])).all()
    assert set(united) == {row[0].id for each in (first, second) for row in session.execute(each)}
    assert session.scalars(
        select(article.id).where(article.id.in_(ids[0])).order_by(article.id)
    ).all() == sorted(row[0].id for row in session.execute(first))
    one = semantic_search(article.embedding, QUERY, limit=1).with_only_columns(article.id)
    assert session.scalar(select(one.scalar_subquery())) == session.scalar(one)
    assert session.scalar(select(first.exists()))
    assert session.scalar(select(func.count()).select_from(first.subquery())) == 3
    numbered = first.add_columns(func.count().over().label("total"))
    assert [row.total for row in session.execute(numbered)] == [3, 3, 3]


def test_a_text_is_encoded_once_for_a_statement_and_only_when_executed(corpus, session):
    statement = semantic_search(corpus.article.embedding, "w2 v3 u4 once")
    str(statement)
    statement.compile(corpus.engine)
    calls = corpus.encoder.calls
    assert ("w2 v3 u4 once",) not in calls
    first = session.execute(statement).all()
    again = session.execute(statement).all()
    assert calls.count(("w2 v3 u4 once",)) == 1
    assert [row[0].id for row in first] == [row[0].id for row in again]


def test_the_compiled_cache_does_not_mix_texts(corpus, session):
    column = corpus.article.embedding
    for query in ("w1 v1 u1", "w2 v2 u2", "w3 v3 u3"):
        vector = corpus.encoder.encode_queries([query])[0]
        rows = session.execute(semantic_search(column, query, limit=3)).all()
        assert keys_and_distances(rows) == corpus.nearest(vector, 3)


def test_limits_of_all_sizes_share_the_cache_and_keep_their_size(corpus, session):
    for limit in (1, 3, 2, 10):
        assert (
            len(session.execute(semantic_search(corpus.article.embedding, QUERY, limit=limit)).all()) == limit
        )


def test_errors_at_execution(corpus, session):
    statement = semantic_search(corpus.article.embedding, bindparam("q"))
    with pytest.raises(DimensionMismatchError):
        session.execute(statement, {"q": [1.0, 2.0]})
    with pytest.raises(QueryError, match="zeros"):
        session.execute(statement, {"q": np.zeros(32)})
    with pytest.raises(QueryError, match="the text is ''"):
        session.execute(statement, {"q": ""})


async def test_the_event_loop_goes_on_while_a_text_is_encoded(corpus, monkeypatch):
    encoding, released = threading.Event(), threading.Event()
    encode = corpus.encoder.encode_queries

    def waiting(texts):
        encoding.set()
        assert released.wait(60)  # until the event loop says so
        return encode(texts)

    async def release():
        while not encoding.is_set():
            await asyncio.sleep(0.01)
        released.set()

    monkeypatch.setattr(corpus.encoder, "encode_queries", waiting)
    engine = create_async_engine(corpus.url)
    releasing = asyncio.create_task(release())
    async with AsyncSession(engine) as session:
        rows = (await session.execute(semantic_search(corpus.article.embedding, QUERY))).all()
    await releasing
    await engine.dispose()
    assert keys_and_distances(rows) == corpus.nearest(encode([QUERY])[0], 10)


async def test_asyncpg(corpus):
    pytest.importorskip("asyncpg")
    url = corpus.url.set(drivername="postgresql+asyncpg")
    if host := url.query.get("host"):  # asyncpg wants a socket folder as its own argument
        engine = create_async_engine(url.set(query={}), connect_args={"host": host})
    else:
        engine = create_async_engine(url)
    vector = corpus.encoder.encode_queries([QUERY])[0]
    async with AsyncSession(engine) as session:
        for statement in (
            semantic_search(corpus.article.embedding, QUERY, limit=5),
            semantic_search(corpus.article.embedding, vector, limit=5, mode="exact"),
            semantic_search(corpus.article.embedding, vector, limit=5, ef_search=100),
        ):
            assert keys_and_distances((await session.execute(statement)).all()) == corpus.nearest(vector, 5)
    await engine.dispose()


def test_statements_can_be_pickled_with_their_text(corpus):
    from pgembed.queries.core.parameters import QueryText

    copy = pickle.loads(pickle.dumps(QueryText("a text")))
    assert copy.text == "a text"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.tuples(st.integers(0, 46), st.integers(0, 60)),
    limit=st.integers(1, 60),
    offset=st.integers(0, 40),
    section=st.sampled_from([None, "help", "news", "nothing"]),
    mode=st.sampled_from(["auto", "exact", "approximate"]),
)
def test_the_same_rows_as_brute_force(corpus, words, limit, offset, section, mode):
    article = corpus.article
    query = "w{} v{}".format(*words)
    where = None if section is None else article.section == section
    vector = corpus.encoder.encode_queries([query])[0]
    expected = corpus.nearest(vector, limit + offset, lambda row: section in (None, row["section"]))[offset:]
    with Session(corpus.engine) as session:
        statement = semantic_search(
            article.embedding,
            query,
            limit=limit,
            offset=offset,
            where=where,
            mode=mode,
            ef_search=None if mode == "exact" else 400,
        )
        rows = keys_and_distances(session.execute(statement))
    distances = dict(corpus.nearest(vector, ROWS))
    assert [distance for _, distance in rows] == pytest.approx([found for _, found in expected], abs=3e-6)
    assert all(distance == pytest.approx(distances[key], abs=3e-6) for key, distance in rows)
    assert len({key for key, _ in rows}) == len(rows)
