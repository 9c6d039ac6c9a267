"""``label_issues``, ``outliers``, ``representatives``: what the nearest neighbours of each row tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    Float,
    FromClause,
    Integer,
    SelectBase,
    SQLColumnExpression,
    and_,
    cast,
    func,
    inspect,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import Mapped
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE

from pgembed.queries.classification.votes import Classified, Election, Limits, Weights, keys_of_queries
from pgembed.queries.core.arguments import comparable, real, whole
from pgembed.queries.core.asked import asked_by
from pgembed.queries.core.nearest import Mode, Nearest, Stale
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import Entity, materialized
from pgembed.queries.core.subject import Subject, VectorColumn, key_of, resolve
from pgembed.queries.duplicates.edges import score, selectable_of

_T = TypeVar("_T")


def label_issues(
    column: VectorColumn,
    *,
    label: SQLColumnExpression[_T] | Mapped[_T],
    k: int = 15,
    weights: Weights = "distance",
    apart: float | SQLColumnExpression[Any] | Mapped[Any] | SelectBase | FromClause | type | None = None,
    where: Any = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Classified[Entity, _T, _T, float, float]:
    """Rows whose neighbours have another label: rows ``(key, label, suggested, share, suggested_share)``.

    ::

        session.execute(label_issues(Article.embedding, label=Article.section).limit(20)).all()

    Each labelled row gets the label that its ``k`` nearest labelled rows elect, itself left out, as by
    :func:`~pgembed.queries.knn_classify_many`. It is listed where ``suggested`` is not its own ``label``,
    whose share of the votes is ``share``. The surest contradictions come first: the greatest
    ``suggested_share - share``, and of equal ones the smaller key.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param label: the attribute to check, or any expression over the entity.
    :param apart: rows that are copies of each other confirm each other's mistakes. A score: rows that are as
        near as that do not vote for each other. An expression over the entity: nor do rows with equal values.
        A statement of :func:`~pgembed.queries.duplicate_groups`, or a table or select with the columns
        ``group_id`` and ``key``: nor do rows of one group, though a chain of others may be between them.
    :param where: which rows are checked, and vote.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    given = subject.over(comparable("label", label, "Article.section"), "label=")
    labelled = [given.is_not(None), *subject.conditions(where, stale)]
    asked, found = neighbours(subject, labelled, k, mode, SearchSettings(ef_search, probes), given, apart)
    election = Election(subject.metric, weights, Limits.of(None, None, None))
    votes = election.votes(found, found.c.payload_1)
    won = election.winners(votes)
    own = (
        select(votes.c.n, func.sum(votes.c.weight, type_=Float(53)).label("weight"))
        .select_from(votes.join(asked, and_(asked.c.n == votes.c.n, asked.c.also_1 == votes.c.label)))
        .group_by(votes.c.n)
        .subquery()
    )
    every = (
        select(votes.c.n, func.sum(votes.c.weight, type_=Float(53)).label("weight"))
        .group_by(votes.c.n)
        .subquery()
    )
    share = (func.coalesce(own.c.weight, 0) / every.c.weight).label("share")
    joined = asked.join(won, won.c.n == asked.c.n).join(every, every.c.n == asked.c.n)
    issues = select(
        *keys_of_queries(asked),
        asked.c.also_1.label("label"),
        won.c.label.label("suggested"),
        share,
        won.c.share.label("suggested_share"),
    ).select_from(joined.outerjoin(own, own.c.n == asked.c.n))
    return Classified.of(
        issues.where(won.c.label != asked.c.also_1).order_by((won.c.share - share).desc(), asked.c.n),
        "label_issues",
    )


def outliers(
    column: VectorColumn,
    *,
    k: int = 10,
    where: Any = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Classified[Entity, float]:
    """All rows by how far they are from others: rows ``(key, distance)``, the farthest first.

    ::

        session.execute(outliers(Article.embedding).limit(20)).all()

    ``distance`` is the mean of those to the ``k`` nearest other rows. Of equal ones, the smaller key comes
    first.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param where: which rows are listed, and compared with.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    settings = SearchSettings(ef_search, probes)
    asked, found = neighbours(subject, subject.conditions(where, stale), k, mode, settings)
    far = _mean_distances(found)
    statement = select(*keys_of_queries(asked), far.c.distance).select_from(
        asked.join(far, far.c.n == asked.c.n)
    )
    return Classified.of(statement.order_by(far.c.distance.desc(), asked.c.n), "outliers")


def representatives(
    column: VectorColumn,
    *,
    k: int = 10,
    where: Any = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Classified[Entity, float]:
    """One row for each dense region: rows ``(key, distance)``, that of the densest region first.

    ::

        session.execute(representatives(Article.embedding, k=20)).all()

    A row stands for its region if none of its ``k`` nearest rows is nearer to its own: if its mean distance
    to them, ``distance``, is the smallest among theirs (of equal ones, the smaller key). The more neighbours,
    the larger the regions, and the fewer rows.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param where: which rows are compared.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    settings = SearchSettings(ef_search, probes)
    asked, found = neighbours(subject, subject.conditions(where, stale), k, mode, settings)
    own = _mean_distances(found)
    other_row, other = asked.alias(), own.alias()
    keys = range(1, len(subject.keys) + 1)
    is_other = and_(*(other_row.c[f"query_{key}"] == found.c[f"key_{key}"] for key in keys))
    first = (own.c.distance < other.c.distance) | (
        (own.c.distance == other.c.distance) & (own.c.n < other.c.n)
    )
    dense = (
        select(own.c.n, own.c.distance)
        .select_from(
            own.join(found, found.c.n == own.c.n)
            .join(other_row, is_other)
            .join(other, other.c.n == other_row.c.n)
        )
        .group_by(own.c.n, own.c.distance)
        .having(func.bool_and(first))
        .subquery()
    )
    statement = select(*keys_of_queries(asked), dense.c.distance).select_from(
        asked.join(dense, dense.c.n == asked.c.n)
    )
    return Classified.of(statement.order_by(dense.c.distance, asked.c.n), "representatives")


def neighbours(
    subject: Subject,
    conditions: Sequence[ColumnElement[bool]],
    k: int,
    mode: Mode,
    settings: SearchSettings,
    label: Any = None,
    apart: Any = None,
    asked_where: Sequence[ColumnElement[bool]] | None = None,
) -> tuple[CTE, CTE]:
    """Rows, and the ``k`` nearest others of each: ``(n, query_1, ..., also_1)`` and ``(n, key_1, ...,
    payload_1, distance, rank)``, where ``also_1`` and ``payload_1`` are their labels.

    :param conditions: which rows are neighbours.
    :param apart: see :func:`label_issues`.
    :param asked_where: which rows have neighbours; left out, the same.
    :raises QueryError: ``k`` is not a number of rows, or ``apart`` is nothing that keeps rows apart.
    """
    k = whole("k", k, 1)
    also = [] if label is None else [label]
    by_value = hasattr(apart, "is_not")
    groups = None if by_value or inspect(apart, raiseerr=False) is None else _groups(apart)
    key = key_of(subject.keys)
    if groups is not None:
        also.append(func.coalesce(groups.c.number, 0))
    elif by_value:
        apart = subject.over(comparable("apart", apart, "Article.group_id"), "apart=")
        also.append(apart)
    chosen = and_(true(), *(conditions if asked_where is None else asked_where))
    beside = None if groups is None else (groups, groups.c.key == key)
    asked, others = asked_by(subject, chosen, *also, beside=beside)
    if groups is not None:
        row = tuple_(asked.c[f"also_{len(also)}"], key)
        others = [*others, row.not_in(select(groups.c.number, groups.c.key))]
    elif by_value:
        group: ColumnElement[Any] = asked.c[f"also_{len(also)}"]
        others = [*others, func.coalesce(apart != group, true())]
    elif apart is not None:
        real("apart", apart, "a score, an expression or a select of groups", finite=True)
        least = score(subject.metric, apart, "apart")
        others = [*others, subject.distance(asked.c.vector) > subject.metric.distance(least)]
    near = Nearest(subject, asked.c.vector, [*conditions, *others], k, 0, None, mode, settings, asked)
    found = near.subquery(*also[:1])
    return asked, materialized(select(*found.c), "neighbours")


def _groups(apart: Any) -> CTE:
    """``number, key``: from 1, so that 0 is the group of no row.

    :raises QueryError: ``apart`` is not a table or a select with the columns ``group_id`` and ``key``.
    """
    given = selectable_of(apart, "apart", ("group_id", "key"))
    number = cast(func.dense_rank().over(order_by=given.c.group_id), Integer).label("number")
    there = (given.c.group_id.is_not(None), given.c.key.is_not(None))  # NOT IN would find none beside a NULL
    numbered = select(number, given.c.key).where(*there).subquery()
    first = select(func.min(numbered.c.number).label("number"), numbered.c.key).group_by(numbered.c.key)
    return materialized(first, "groups")


def _mean_distances(found: CTE) -> CTE:
    mean = cast(func.avg(found.c.distance), Float(53)).label("distance")
    return materialized(select(found.c.n, mean).group_by(found.c.n), "means")
