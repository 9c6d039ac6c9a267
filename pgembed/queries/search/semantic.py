"""``semantic_search``: the rows nearest to a text, a vector or a row."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypeVar, TypeVarTuple, overload

from sqlalchemy import ColumnElement, Float, Select, bindparam
from sqlalchemy.orm import Mapped

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import choice, comparable, real
from pgembed.queries.core.nearest import Mode, Nearest, Stale
from pgembed.queries.core.owners import is_relationship
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import Entity, SearchSelect, selecting
from pgembed.queries.core.subject import VectorColumn, resolve
from pgembed.queries.core.templates import templated
from pgembed.queries.core.vectors import Query, query_sql
from pgembed.queries.search.boosts import Boosting, boosted
from pgembed.queries.search.groups import grouped
from pgembed.queries.search.surroundings import text_around

_Ts = TypeVarTuple("_Ts")
_Part = TypeVar("_Part")

#: What of parts is found: the best ones of each row that has them, or each by itself.
Parts: TypeAlias = Literal["best", "all"]


@overload
def semantic_search(
    column: Mapped[list[_Part]],
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
    per: Any = ...,
    best: int = ...,
    parts: Parts = ...,
    boost: Any = ...,
    boosting: Boosting = ...,
    candidates: int | None = ...,
    total: Literal[False] = ...,
) -> SearchSelect[Entity, _Part, float, float]: ...


@overload
def semantic_search(
    column: Mapped[list[_Part]],
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
    per: Any = ...,
    best: int = ...,
    parts: Parts = ...,
    neighbours: int,
    boost: Any = ...,
    boosting: Boosting = ...,
    candidates: int | None = ...,
    total: Literal[False] = ...,
) -> SearchSelect[Entity, _Part, float, float, str | None]: ...


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
    per: Any = ...,
    best: int = ...,
    parts: Parts = ...,
    boost: Any = ...,
    boosting: Boosting = ...,
    candidates: int | None = ...,
    total: Literal[False] = ...,
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
    per: Any = ...,
    best: int = ...,
    parts: Parts = ...,
    boost: Any = ...,
    boosting: Boosting = ...,
    candidates: int | None = ...,
    total: Literal[False] = ...,
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
    per: Any = ...,
    best: int = ...,
    parts: Parts = ...,
    boost: Any = ...,
    boosting: Boosting = ...,
    candidates: int | None = ...,
    total: Literal[False] = ...,
) -> SearchSelect[*_Ts, float, float]: ...


@overload
def semantic_search(
    column: VectorColumn,
    query: Query,
    *,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    max_distance: float | None = ...,
    base: Any = ...,
    mode: Mode = ...,
    stale: Stale = ...,
    metric: str | None = ...,
    total: Literal[True],
) -> SearchSelect[*tuple[Any, ...]]: ...


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
    per: Any = None,
    best: int = 1,
    parts: Parts = "best",
    neighbours: int | None = None,
    boost: Any = None,
    boosting: Boosting = "multiply",
    candidates: int | None = None,
    total: bool = False,
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
    :meth:`pgembed.queries.core.nearest.Nearest.subquery`, joined back to the entity by its primary key.

    Of a relationship to parts with a vector, such as ``Article.parts``, rows are ``(Article, Part, distance,
    score)``: each article once, by its nearest part, however many parts of other articles are nearer.

    :param column: a mapped attribute (``Article.embedding``, that of an alias too), or a column of a Core
        table; then rows are the table's columns with distance and score. Columns of pgvector-python's types
        serve as well.
    :param query: a text (for columns with an encoder); a vector; ``bindparam("q")``, with a text or a vector
        given at execution; an entity, whose stored vector is used and which is not found itself; a scalar
        subquery, for example over ``avg(embedding)``.
    :param limit: how many rows of the entity at most.
    :param offset: how many to skip.
    :param where: a condition, or several, over the entity alone; other tables go into EXISTS. Of parts, over
        the parts and the rows that have them.
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
    :param per: an expression over the entity, such as ``Article.author_id``: the rows are the ``best``
        nearest of each group of equal values, one group after the other, the nearest group first; ``limit``
        and ``offset`` count groups (see :func:`pgembed.queries.search.groups.grouped`). Rows where it is
        NULL are in no group.
    :param best: how many rows of each group at most; of parts, how many of each row that has them.
    :param parts: of a relationship to parts: ``"best"``, or ``"all"``, each part by itself; ``limit`` and
        ``offset`` then count parts.
    :param neighbours: add a column ``text``, the text of the part with as many parts before and after it: of
        those stored, or else of the source, and NULL where that has changed since.
    :param boost: an SQL expression over the entity, such as ``Article.likes`` or
        :func:`~pgembed.queries.decay`, that the score is multiplied by, or that is added to it; where it is
        NULL, the score stays. The best score comes first.
    :param boosting: ``"multiply"`` or ``"add"``.
    :param candidates: how many of the nearest rows are scored with ``boost``; left out, four times the rows
        asked for and at least 50. ``mode="exact"`` scores all rows.
    :param total: add a column ``total``, how many rows there are on all pages. For exact searches, which see
        all rows anyway.
    :raises QueryError: at construction, for whatever cannot give the right rows; at execution, for a text
        that is bound to a column without an encoder.
    :raises DimensionMismatchError: the vector is of other dimensions than the column.
    """
    choice("parts", parts, ("best", "all"))
    of_parts = is_relationship(column)
    chosen = per if per is not None or not of_parts or parts == "all" else column
    _check_chosen(chosen, best, boost, boosting, candidates, total)
    if parts == "all" and not of_parts:
        raise QueryError(f'parts="all" has no effect on {column}; expected a relationship to parts')
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
        if chosen is not None:
            if subject.owner is not None and per is None:
                hits = grouped(nearest, subject.owner.keys, best)
            else:
                group = comparable("per", per, "Article.author_id")
                hits = grouped(nearest, [subject.over(group, "per=")], best)
            order: list[ColumnElement[Any]] = [hits.c.group_rank, hits.c.rank]
        elif boost is not None:
            hits = boosted(nearest, boost, boosting, candidates)
            order = [hits.c.score.desc(), hits.c.distance, *subject.keys]
        else:
            hits = nearest.subquery(*([nearest.total] if total else []))
            order = [hits.c.distance, *subject.keys]
        own = {
            "distance": hits.c.distance,
            "score": subject.metric.score(hits.c.distance) if boost is None else hits.c.score,
        }
        if neighbours is not None:
            own["text"] = text_around(subject, neighbours)
        if total:
            own["total"] = hits.c.payload_1
        statement = selecting(subject, base, hits, helper="semantic_search")
        page = (nearest, base) if chosen is None and boost is None and not total else None
        return SearchSelect.sealing(
            statement.order_by(*order), subject.entity, legs=[nearest], page=page, **own
        )

    if chosen is not None or boost is not None or total or of_parts or neighbours is not None:
        return build(query)
    return templated(
        build,
        column,
        query,
        (limit, offset, mode, ef_search, probes, stale),
        metric=metric,
        base=base,
        expressions=[most, *where],
    )


def _check_chosen(per: Any, best: Any, boost: Any, boosting: Any, candidates: Any, total: Any) -> None:
    """:raises QueryError: options without the one that they belong to, or two that exclude each other."""
    by_parts = is_relationship(per)
    names = ('parts="best"' if by_parts else "per=", "boost=")
    given = [name for name, value in zip(names, (per, boost), strict=True) if value is not None]
    given += ["total="] if total else []
    if not isinstance(total, bool):
        raise QueryError(f"total={total!r}; expected True or False")
    if len(given) > 1:
        instead = 'parts="all"' if by_parts else "one of them"
        raise QueryError(f"{given[0]} and {given[1]} cannot be combined: pass {instead}")
    if per is None and best != 1:
        raise QueryError(f"best={best!r} has no effect without per=")
    if boost is None and (candidates is not None or boosting != "multiply"):
        name, value = ("candidates", candidates) if candidates is not None else ("boosting", boosting)
        raise QueryError(f"{name}={value!r} has no effect without boost=")
