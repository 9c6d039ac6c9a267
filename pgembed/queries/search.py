"""``semantic_search``: the rows nearest to a text, a vector or a row."""

from __future__ import annotations

from typing import Any, TypeVarTuple, overload

from sqlalchemy import ColumnElement, Float, Select, bindparam
from sqlalchemy.orm import Mapped

from pgembed.queries.arguments import real
from pgembed.queries.nearest import Mode, Nearest, Stale
from pgembed.queries.settings import SearchSettings
from pgembed.queries.statement import Entity, SearchSelect, selecting
from pgembed.queries.subject import VectorColumn, resolve
from pgembed.queries.templates import templated
from pgembed.queries.vectors import Query, query_sql

_Ts = TypeVarTuple("_Ts")


@overload
def semantic_search(
    column: Mapped[Any],
    query: Query,
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
) -> SearchSelect[Entity, float, float]: ...


@overload
def semantic_search(
    column: ColumnElement[Any],
    query: Query,
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
) -> SearchSelect[*tuple[Any, ...]]: ...


@overload
def semantic_search(
    column: VectorColumn,
    query: Query,
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
) -> SearchSelect[*_Ts, float, float]: ...


def semantic_search(
    column: VectorColumn,
    query: Query,
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
) -> SearchSelect[*tuple[Any, ...]]:
    """The rows whose vectors are nearest to ``query``: rows ``(Entity, distance, score)``, as a statement.

    ::

        session.execute(semantic_search(Article.embedding, "reset my password", limit=10,
                                        where=Article.section == "help")).all()

    The nearest come first, equal distances in the order of the primary key; ``distance`` and ``score`` are
    those of the column's metric (see :mod:`pgembed.metrics`). Rows without a vector are not found. There are
    never fewer rows than asked for as long as the table has them, whatever the index and ``where``.

    A text is encoded when the statement is executed, once for a statement object, and outside of the event
    loop under an ``AsyncSession``. The SQL emitted is the one at
    :meth:`pgembed.queries.nearest.Nearest.subquery`, joined back to the entity by its primary key.

    :param column: a mapped attribute (``Article.embedding``, that of an alias too), or a column of a Core
        table; then rows are the table's columns with distance and score. Columns of pgvector-python's types
        serve as well.
    :param query: a text (for columns with an encoder); a vector; ``bindparam("q")``, with a text or a vector
        given at execution; an entity, whose stored vector is used and which is not found itself; a scalar
        subquery, for example over ``avg(embedding)``.
    :param limit: how many rows of the entity at most.
    :param offset: how many to skip.
    :param where: a condition, or several, over the entity alone; other tables go into EXISTS.
    :param max_distance: rows that are farther away are left out.
    :param base: what to select in place of the entity, as in
        ``select(Article.id, Author.name).join(Article.author)``; ``distance`` and ``score`` are added. Its
        joins happen after the search, so that an inner join can drop rows and one to many repeats them.
    :param mode: ``"auto"`` uses the approximate index that is declared on the column, if there is one;
        ``"exact"`` none; ``"approximate"`` one that is in the database without being declared.
    :param ef_search: HNSW's candidates, 1 to 1000; left out, twice the rows asked for and at least 40.
    :param probes: IVFFlat's lists to look into, 1 to 32768; left out, the square root of all.
    :param stale: ``"exclude"`` leaves out rows whose text has changed since they were embedded.
    :param metric: how to measure, for columns that do not say; another metric than the index's is exact.
    :raises QueryError: at construction, for whatever cannot give the right rows; at execution, for a text
        that is bound to a column without an encoder.
    :raises DimensionMismatchError: the vector is of other dimensions than the column.
    """
    where = [] if where is None else list(where) if isinstance(where, list | tuple) else [where]
    most = None
    if max_distance is not None:
        most = bindparam("max_distance", real("max_distance", max_distance), Float, unique=True)

    def build(query: Query) -> SearchSelect[*tuple[Any, ...]]:
        subject = resolve(column, metric)
        vector, conditions = query_sql(subject, query)
        nearest = Nearest(
            subject,
            vector,
            [*subject.conditions(where, stale), *conditions],
            limit,
            offset,
            most,
            mode,
            SearchSettings(ef_search, probes),
        )
        hits = nearest.subquery()
        distance = hits.c.distance
        statement = selecting(subject, base, hits, helper="semantic_search")
        return SearchSelect.sealing(
            statement.order_by(distance, *subject.keys),
            subject.entity,
            distance=distance,
            score=subject.metric.score(distance),
        )

    return templated(
        build,
        column,
        query,
        (limit, offset, mode, ef_search, probes, stale),
        metric=metric,
        base=base,
        expressions=[most, *where],
    )
