"""``search_many``: the rows nearest to each of many queries, in one statement."""

from __future__ import annotations

from typing import Any, TypeVarTuple, overload

from sqlalchemy import ColumnElement, Select
from sqlalchemy.orm import Mapped

from pgembed.queries.core.arguments import real
from pgembed.queries.core.asked import Queries, asked_by
from pgembed.queries.core.nearest import Mode, Nearest, Stale
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import Entity, SearchSelect, selecting
from pgembed.queries.core.subject import VectorColumn, resolve

_Ts = TypeVarTuple("_Ts")


class Searches(SearchSelect[*_Ts]):
    """The statement of ``search_many``."""

    inherit_cache = True
    helper = "search_many"


@overload
def search_many(
    column: Mapped[Any] | ColumnElement[Any],
    queries: Queries,
    *,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    max_distance: float | None = ...,
    base: None = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Searches[*tuple[Any, ...]]: ...


@overload
def search_many(
    column: VectorColumn,
    queries: Queries,
    *,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    max_distance: float | None = ...,
    base: Select[*_Ts],
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Searches[Entity, *_Ts, float, float, int]: ...


def search_many(
    column: VectorColumn,
    queries: Queries,
    *,
    limit: int = 10,
    offset: int = 0,
    where: Any = None,
    max_distance: float | None = None,
    base: Any = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Searches[*tuple[Any, ...]]:
    """The rows nearest to each of many queries: rows ``(query, Entity, distance, score, rank)``.

    ::

        session.execute(search_many(Article.embedding, ["reset my password", "printer on fire"])).all()
        session.execute(search_many(Article.embedding, select(Question.id, Question.embedding),
                                    where=Article.language == Question.language)).all()

    For each query the rows are those of :func:`~pgembed.queries.semantic_search`: never fewer than asked for
    as long as the table has them, whatever the index and ``where``. They come by query, then by ``rank``,
    which counts from 1. Of a list, ``query`` is the position, from 0. Of a select, its first column is the
    key and the second the vector; queries without a vector find nothing. Where there are more columns before
    the vector, as of a composite key, all of them come first in the rows: ``query_1``, ``query_2``, ...

    The texts of a list are encoded when the statement is executed, in one batch. Where a select's keys are
    the primary key of the table that is searched, the rows' neighbours are found, without themselves::

        search_many(Article.embedding, select(Article.id, Article.embedding), limit=5)

    The SQL is that of :meth:`pgembed.queries.core.nearest.Nearest.subquery`, with the search in a LATERAL
    subquery that each query runs by itself.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param queries: a list of texts and vectors, ``bindparam("queries")`` with such a list at execution, or a
        select (or a subquery) of keys, vectors, and whatever ``where`` needs.
    :param limit: how many rows for each query at most; ``offset`` skips as many of each.
    :param where: may refer to the columns of the queries' select too. To relate rows of one table, select the
        queries from ``aliased(Article)``.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: vectors of other dimensions than the column.
    """
    subject = resolve(column, metric)
    asked, conditions = asked_by(subject, queries)
    nearest = Nearest(
        subject,
        asked.c.vector,
        [*subject.conditions(where, stale, asked), *conditions],
        limit,
        offset,
        None if max_distance is None else real("max_distance", max_distance),
        mode,
        SearchSettings(ef_search, probes),
        asked,
    )
    hits = nearest.subquery()
    keys = [key for key in hits.c if key.key.startswith("query_")]
    named = [key.label("query") for key in keys] if len(keys) == 1 else keys
    statement = selecting(subject, base, hits, helper="search_many", first=named)
    return Searches.sealing(
        statement.order_by(hits.c.n, hits.c.rank),
        subject.entity,
        legs=[nearest],
        distance=hits.c.distance,
        score=subject.metric.score(hits.c.distance),
        rank=hits.c.rank,
    )
