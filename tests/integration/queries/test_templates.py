"""A statement of a shape that was built before is executed unbuilt, and is equal to one that is built."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import pickle
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Integer,
    MetaData,
    and_,
    bindparam,
    create_engine,
    event,
    exists,
    func,
    inspect,
    literal,
    literal_column,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    selectinload,
    with_loader_criteria,
)
from sqlalchemy.sql.visitors import cloned_traverse

from pgembed import HNSW, Vector, embedding_column, semantic_search
from pgembed.exc import LateClauseError, QueryError
from pgembed.queries.core import templates
from pgembed.queries.core.statement import SearchSelect
from pgembed.queries.core.subject import Subject
from pgembed.queries.core.templates import Unbuilt
from pgembed.testing import HashEncoder

DIALECT: Any = postgresql.dialect()


@pytest.fixture
def searching(corpus: Any) -> Iterator[Session]:
    with Session(corpus.engine) as session:
        yield session


def is_unbuilt(statement: Any) -> bool:
    return type(statement) is Unbuilt


def fresh(*args: Any, **options: Any) -> Any:
    """What the helper builds where there is no template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates._Templates, "of", classmethod(lambda _cls, _column: None))
        statement = semantic_search(*args, **options)
    assert not is_unbuilt(statement)
    return statement


def again(*args: Any, **options: Any) -> Any:
    """What the helper returns when it has built the same before."""
    for _ in range(2):  # a select that was looked at once has another cache key in SQLAlchemy
        semantic_search(*args, **options)
    statement = semantic_search(*args, **options)
    assert is_unbuilt(statement)
    return statement


def printed(statement: Any) -> tuple[str, list[str]]:
    compiled = statement.compile(dialect=DIALECT)
    return compiled.string, [f"{value!r}" for value in compiled.params.values()]


def rows(session: Session, statement: Any) -> list[tuple[Any, ...]]:
    return list(map(tuple, session.execute(statement).all()))


def vector(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=32).astype(np.float32)


#: Arguments of searches, in which ``n`` is a value that changes from call to call.
CALLS: dict[str, Callable[[Any, Any, int], dict[str, Any]]] = {
    "plain": lambda article, author, n: {},
    "where": lambda article, author, n: {"where": article.section == ("help", "news")[n % 2]},
    "list": lambda article, author, n: {"where": [article.id > n, article.hidden.is_(False)]},
    "none": lambda article, author, n: {"where": article.section == (None if n % 2 else "help")},
    "in": lambda article, author, n: {"where": article.id.in_(range(1, n * 3))},
    "expanding": lambda article, author, n: {"where": article.id.in_(bindparam("ids", [n, 7]))},
    "named": lambda article, author, n: {"where": article.id > bindparam("least", n)},
    "callable": lambda article, author, n: {
        "where": article.id > bindparam("least", type_=Integer, callable_=lambda: n)
    },
    "text": lambda article, author, n: {"where": text("article.id % 7 = :rest").bindparams(rest=n)},
    "twice": lambda article, author, n: shared(article, literal(n)),
    "subquery": lambda article, author, n: {
        "where": exists().where(author.id == article.author_id, author.name == ("Ada", "Bob")[n % 2])
    },
    "correlated": lambda article, author, n: {
        "where": select(func.count() + n).where(author.id == article.author_id).scalar_subquery() > 2
    },
    "cte": lambda article, author, n: {
        "where": article.author_id.in_(select(select(author.id).where(author.id > n % 2).cte().c.id))
    },
    "itself": lambda article, author, n: neighbours(article, aliased(article), n),
    "relationship": lambda article, author, n: {"where": article.author.has(author.id > n % 2)},
    "attribute": lambda article, author, n: {"where": article.hidden},
    "function": lambda article, author, n: {"where": func.length(article.title) > n},
    "distance": lambda article, author, n: {"max_distance": 0.5 + n / 10, "where": article.id > n},
    "page": lambda article, author, n: {"limit": 3, "offset": 2},
    "exact": lambda article, author, n: {"mode": "exact", "where": article.id > 300 * n},
    "fresh": lambda article, author, n: {"stale": "exclude", "where": article.id > 300 * n},
    "thorough": lambda article, author, n: {"ef_search": 77},
    "base": lambda article, author, n: {
        "base": select(article.id, (article.id + n).label("more")),
        "where": article.id > n,
    },
    "joined": lambda article, author, n: {
        "base": select(article.id, author.name).outerjoin(
            author, and_(author.id == article.author_id, author.id > n % 2)
        )
    },
}


def shared(article: Any, number: Any) -> dict[str, Any]:
    return {
        "where": [article.id > number, article.id + 1 > number],
        "base": select(article.id, (article.id + number).label("more")),
    }


def neighbours(article: Any, other: Any, n: int) -> dict[str, Any]:
    return {"where": exists().where(other.id == article.id + n, other.hidden)}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("query", ["a text", vector(1)], ids=["text", "vector"])
def test_it_prints_as_if_it_were_built(corpus: Any, query: Any, call: Any) -> None:
    article, author = corpus.article, corpus.author
    again(article.embedding, query, **call(article, author, 1))
    statement = semantic_search(article.embedding, query, **call(article, author, 2))
    assert is_unbuilt(statement)
    assert isinstance(statement, SearchSelect)
    assert printed(statement) == printed(fresh(article.embedding, query, **call(article, author, 2)))
    assert type(statement) is SearchSelect


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_it_is_executed_unbuilt(searching: Session, corpus: Any, call: Any) -> None:
    """With the values of each call, in whatever order the calls are made and executed."""
    article, author = corpus.article, corpus.author
    calls = {n: {"query": vector(n), **call(article, author, n)} for n in (1, 2, 3)}
    expected = {n: rows(searching, fresh(article.embedding, **calls[n])) for n in calls}
    again(article.embedding, **calls[1])
    statements = {n: semantic_search(article.embedding, **calls[n]) for n in calls}
    for n in (3, 1, 2, 3):
        assert is_unbuilt(statements[n])
        assert rows(searching, statements[n]) == expected[n]
    for n in (2, 3, 1):
        assert printed(statements[n]) == printed(fresh(article.embedding, **calls[n]))
        assert rows(searching, statements[n]) == expected[n]  # built now


def test_it_is_executed_unbuilt_by_connections_too(searching: Session, corpus: Any) -> None:
    article = corpus.article
    table = article.__table__
    expected = searching.connection().execute(fresh(table.c.embedding, vector(2))).all()
    statement = again(table.c.embedding, vector(2))
    result = searching.connection().execute(statement)
    assert is_unbuilt(statement)
    rows = result.all()
    assert [(row.id, row.distance) for row in rows] == [(row.id, row.distance) for row in expected]
    assert rows[0]._mapping[statement.selected_columns.distance] == rows[0].distance
    assert rows[0]._mapping[table.c.id] == rows[0].id


def test_columns_of_the_statement_find_values_in_rows_read_before(searching: Session, corpus: Any) -> None:
    article = corpus.article
    base = select(article.id, func.lower(article.title).label("low"))
    for options in ({}, {"base": base}):
        statement = again(article.embedding, vector(2), **options)
        row = searching.execute(statement).first()
        assert is_unbuilt(statement)
        columns = statement.selected_columns
        assert row._mapping[columns.score] == row.score
        assert row._mapping[columns.distance] == row.distance
    assert row._mapping[base.selected_columns.low] == row.low


def test_an_async_session_executes_it_unbuilt(corpus: Any) -> None:
    article = corpus.article

    async def work() -> None:
        engine = create_async_engine(corpus.url)
        async with AsyncSession(engine) as session:
            await session.execute(again(article.embedding, "some words"))
            statement = again(article.embedding, "some words")
            assert (await session.execute(statement)).first() is not None
            assert is_unbuilt(statement)
        await engine.dispose()

    asyncio.run(work())


def test_a_text_is_encoded_once_for_a_statement(searching: Session, corpus: Any) -> None:
    article = corpus.article
    again(article.embedding, "other words")
    statement = again(article.embedding, "words of one statement")
    corpus.encoder.calls.clear()
    for _ in range(2):
        searching.execute(statement).all()
    str(statement)
    searching.execute(statement).all()
    assert len(corpus.encoder.calls) == 1


queries = st.integers(0, 30)
sections = st.sampled_from(["help", "news", None])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(queries, sections, st.floats(0.2, 2)), min_size=2, max_size=6))
def test_values_never_meet(corpus: Any, drawn: list[tuple[int, Any, float]]) -> None:
    """Interleaved and in threads, each statement gives what one that is built for it gives."""
    article = corpus.article

    def arguments(query: int, section: Any, most: float) -> dict[str, Any]:
        either = or_(article.section == section, article.id < query * 50)
        return {"query": vector(query), "where": either, "max_distance": most}

    def found(statement: Any) -> list[Any]:
        with Session(corpus.engine) as session:
            return [(row[0].id, row.distance) for row in session.execute(statement)]

    expected = [found(fresh(article.embedding, **arguments(*each))) for each in drawn]
    statements = [semantic_search(article.embedding, **arguments(*each)) for each in drawn]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(found, statements)) == expected
        both = list(pool.map(found, itertools.chain(statements, reversed(statements))))
    assert both == expected + expected[::-1]
    # One that is built in one thread while others execute it.
    statement = semantic_search(article.embedding, **arguments(*drawn[0]))
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(found, statement) for _ in range(2)]
        pool.submit(str, statement).result()
        assert [each.result() for each in running] == [expected[0]] * 2


def test_aliases_are_told_apart(corpus: Any) -> None:
    article = corpus.article
    first, other = aliased(article), aliased(article)
    again(first.embedding, vector(1), where=first.section == "help")
    with pytest.raises(QueryError, match="refers to"):
        semantic_search(first.embedding, vector(1), where=other.section == "help")
    statement = again(other.embedding, vector(1), where=other.section == "help")
    assert printed(statement) == printed(fresh(other.embedding, vector(1), where=other.section == "help"))


def test_equal_values_of_another_type_are_refused_as_ever(corpus: Any) -> None:
    article = corpus.article
    again(article.embedding, vector(1), limit=1)
    for limit in (True, 1.0):
        with pytest.raises(QueryError, match="limit"):
            semantic_search(article.embedding, vector(1), limit=limit)
    with pytest.raises(QueryError, match="text is"):
        semantic_search(article.embedding, " ", limit=1)


def test_late_clauses_are_refused(corpus: Any) -> None:
    article = corpus.article
    for late in (
        lambda found: found.where(article.id == 1),
        lambda found: found.limit(1),
        lambda found: found.order_by(article.id),
    ):
        with pytest.raises(LateClauseError):
            late(again(article.embedding, vector(1)))


@pytest.mark.parametrize(
    "used",
    [
        lambda found, article, author: select(found.subquery()),
        lambda found, article, author: select(found.cte().c.id),
        lambda found, article, author: union_all(found, found),
        lambda found, article, author: select(exists(found)),
        lambda found, article, author: found.options(joinedload(article.author)),
        lambda found, article, author: found.options(selectinload(article.author)),
        lambda found, article, author: found.options(with_loader_criteria(author, author.name == "Ada")),
        lambda found, article, author: found.execution_options(a=1),
        lambda found, article, author: found.add_columns(article.title),
        lambda found, article, author: found.with_for_update(),
        lambda found, article, author: copy.copy(found),
        lambda found, article, author: found.params({}),
    ],
)
def test_it_composes_as_if_it_were_built(corpus: Any, used: Any) -> None:
    article, author = corpus.article, corpus.author
    statement = again(article.embedding, vector(1), where=article.section == "help")
    built = fresh(article.embedding, vector(1), where=article.section == "help")
    assert printed(used(statement, article, author)) == printed(used(built, article, author))


def test_tables_with_templates_are_pickled(corpus: Any) -> None:
    article = corpus.article
    table = article.__table__.to_metadata(MetaData())
    semantic_search(table.c.embedding, vector(1))
    assert templates._PLACE in vars(table)
    templates_of = pickle.loads(pickle.dumps(vars(table)[templates._PLACE]))
    assert len(templates_of) == 0


def test_a_statement_without_a_cache_is_executed(searching: Session, corpus: Any) -> None:
    article = corpus.article
    options = {"compiled_cache": None}
    expected = searching.execute(fresh(article.embedding, vector(4))).all()
    again(article.embedding, vector(5))
    found = searching.execute(again(article.embedding, vector(4)), execution_options=options).all()
    assert [tuple(row) for row in found] == [tuple(row) for row in expected]


def test_what_sessions_change_is_changed(corpus: Any) -> None:
    article = corpus.article

    def criteria(state: Any) -> None:
        state.statement = state.statement.options(
            with_loader_criteria(article, article.id % 2 == 0, include_aliases=True)
        )

    with Session(corpus.engine) as session:
        event.listen(session, "do_orm_execute", criteria)
        found = session.scalars(again(article.embedding, vector(4), limit=20)).all()
        assert found
        assert all(article.id % 2 == 0 for article in found)


def classes(**index: Any) -> Any:
    class Base(DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        embedding: Mapped[Vector | None] = embedding_column(
            "title", encoder=HashEncoder(8), index=HNSW(**index) if index else None
        )

    return Note


def test_a_partial_index_is_chosen_by_the_values() -> None:
    note = classes(where="title = 'a'")
    query = np.ones(8)
    for title, keys in itertools.product("abab", ([1, 2], [3], None)):
        where = [note.title == title, *([] if keys is None else [note.id.in_(keys)])]
        assert printed(semantic_search(note.embedding, query, where=where)) == printed(
            fresh(note.embedding, query, where=where)
        )
    assert is_unbuilt(semantic_search(note.embedding, query, where=note.title == "a"))


def test_an_index_that_is_declared_later_is_used() -> None:
    note = classes()
    query = np.ones(8)
    assert "hnsw" not in str(printed(again(note.embedding, query)))
    HNSW(note.__table__.c.embedding)
    assert "hnsw" in str(printed(semantic_search(note.embedding, query)))


def test_copies_of_parameters_make_no_template(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that copies a condition once would go on searching for the first value."""
    conditions = Subject.conditions

    def doubled(self: Subject, where: Any, stale: str) -> list[Any]:
        found = conditions(self, where, stale)
        return [*found, *(cloned_traverse(each, {}, {}) for each in found)]

    monkeypatch.setattr(Subject, "conditions", doubled)
    article = aliased(corpus.article)
    for number in (1, 2, 3):
        statement = semantic_search(article.embedding, vector(1), where=article.id > number)
        assert not is_unbuilt(statement)


def test_templates_are_few_and_go_with_the_class() -> None:
    note = classes(m=8)
    for number in range(1, 400):
        semantic_search(note.embedding, np.ones(8), limit=number)
        semantic_search(note.embedding, np.ones(8), where=note.id + literal_column(str(number)) > 1)
    assert len(vars(inspect(note))[templates._PLACE]) <= 150
    left = weakref.ref(note)
    note.registry.dispose()
    del note
    gc.collect()
    assert left() is None


def test_limits_share_one_compiled_statement(corpus: Any) -> None:
    article = corpus.article
    cache: dict[Any, Any] = {}
    engine = create_engine(corpus.url).execution_options(compiled_cache=cache)
    with Session(engine) as session:
        for number in (5, 6, 7, 5, 6, 7):
            assert (
                len(session.execute(semantic_search(article.embedding, vector(1), limit=number)).all())
                == number
            )
    engine.dispose()
    assert len(cache) == 1
