"""``keyword_search``: the rows that match a question best by its words."""

from __future__ import annotations

from typing import Any, TypeVarTuple, overload

from sqlalchemy import Select, select
from sqlalchemy.orm import Mapped
from sqlalchemy.sql.elements import ColumnElement

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import whole
from pgembed.queries.core.statement import Entity, SearchSelect, selecting
from pgembed.queries.core.subject import VectorColumn, resolve
from pgembed.queries.core.templates import templated
from pgembed.queries.words.fulltext import QuestionType, TextColumns, asked, matching

_Ts = TypeVarTuple("_Ts")
_QUESTION = QuestionType()


class Keywords(SearchSelect[*_Ts]):
    """The statement of ``keyword_search``."""

    inherit_cache = True
    helper = "keyword_search"


@overload
def keyword_search(
    column: Mapped[Any],
    query: str | ColumnElement[Any],
    *,
    text: TextColumns | None = ...,
    config: str | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: None = ...,
) -> Keywords[Entity, float]: ...


@overload
def keyword_search(
    column: ColumnElement[Any],
    query: str | ColumnElement[Any],
    *,
    text: TextColumns | None = ...,
    config: str | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: None = ...,
) -> Keywords[*tuple[Any, ...]]: ...


@overload
def keyword_search(
    column: VectorColumn,
    query: str | ColumnElement[Any],
    *,
    text: TextColumns | None = ...,
    config: str | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: Select[*_Ts],
) -> Keywords[*_Ts, float]: ...


def keyword_search(
    column: VectorColumn,
    query: str | ColumnElement[Any],
    *,
    text: TextColumns | None = None,
    config: str | None = None,
    limit: int = 10,
    offset: int = 0,
    where: Any = None,
    base: Any = None,
) -> Keywords[*tuple[Any, ...]]:
    """The rows that share words with ``query``, best first: rows ``(Entity, score)``, as a statement.

    ::

        session.execute(keyword_search(Article.embedding, "error E1234 after reset", limit=10)).all()

    Nothing is encoded. A row matches when it has any word of the query. Where the column has ``words=``, the
    score is BM25, as :mod:`pgembed.queries.words.bm25` says: any number from 0 up, higher is better. Without,
    matches rank by ``ts_rank(<text>, <query>, 1)``, which knows neither how rare a word is nor how long texts
    are on average, and finds less. Equal scores come in the order of the primary key.

    :param column: an embedding column, or any vector column with ``text=``; it says what is searched.
    :param query: a text, of which the first 2,000 characters count; ``bindparam("q")``; or an SQL expression.
        Stop words, signs and quotes find nothing and are no mistake.
    :param text: columns to search instead of the words declared, as for
        :func:`~pgembed.queries.hybrid_search`.
    :param config: the text search configuration of ``text=``; ``"english"`` if left out.
    :param limit: how many rows at most; ``offset`` skips some.
    :param where: a condition, or several, over the entity alone; other tables go into EXISTS.
    :param base: what to select instead of the entity, as for :func:`~pgembed.queries.semantic_search`.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    where = [] if where is None else list(where) if isinstance(where, list | tuple) else [where]
    texts = [] if text is None else list(text) if isinstance(text, list | tuple) else [text]
    if not isinstance(query, str | ColumnElement):
        raise QueryError(f"query={query!r}; expected a str, or bindparam(...)")
    given = asked("query", query) if isinstance(query, str) else query
    limit, offset = whole("limit", limit, 1), whole("offset", offset, 0)
    rows = whole("limit + offset", limit + offset, 1)

    def build(query: Any) -> Keywords[*tuple[Any, ...]]:
        subject = resolve(column)
        found = matching(subject, text, query, config, subject.conditions(where, "include"), rows)
        if offset:
            found = select(found).where(found.c.text_rank > offset).subquery()
        statement = selecting(subject, base, found, helper="keyword_search").order_by(found.c.text_rank)
        return Keywords.sealing(statement, subject.entity, legs=[subject], score=found.c.text_score)

    options = (limit, offset, config)
    return templated(build, column, given, options, base=base, expressions=[*texts, *where], kind=_QUESTION)
