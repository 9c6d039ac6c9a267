"""``keep_list``: which rows to keep so that no two of them are near-duplicates."""

from __future__ import annotations

from typing import Any

from sqlalchemy import case, func, select, union_all
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE

from pgembed.queries.core.arguments import expression
from pgembed.queries.core.nearest import Mode, Stale
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import DuplicatePairs, Entity, materialized
from pgembed.queries.core.subject import VectorColumn, resolve
from pgembed.queries.duplicates.edges import edges_of


class KeepList(DuplicatePairs[Entity, bool, Entity, float | None]):
    """The statement of ``keep_list``."""

    inherit_cache = True
    helper = "keep_list"


def keep_list(
    column: VectorColumn,
    *,
    min_score: float,
    keep: Any = None,
    where: Any = None,
    pairs: Any = None,
    k: int = 10,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> KeepList:
    """Which rows to keep so that no two of them are near-duplicates: rows ``(key, keep, kept_key, score)``.

    ::

        kept = keep_list(Article.embedding, min_score=0.92, keep=Article.created.asc()).subquery()
        session.execute(delete(Article).where(Article.id.in_(select(kept.c.key).where(~kept.c.keep))))

    Rows are gone through in the order of ``keep``: one is kept unless a row that is kept before it is at
    least ``min_score`` alike. So every dropped row names the most alike of the kept rows before it,
    ``kept_key``, with their score, and no row is dropped for a chain of others, as groups would have it. All
    rows that fulfil ``where`` come, in that order; those without a vector are kept.

    The arguments are those of :func:`near_duplicates` and of :func:`duplicate_groups`. It needs pgembed's SQL
    objects in the database (``pgembed init``).

    :param keep: what comes first is kept, such as ``Article.created.asc()`` or ``func.length(Article.body)
        .desc()``, or a list of such; by default and at last, the primary key decides.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    order = [] if keep is None else list(keep) if isinstance(keep, list | tuple) else [keep]
    for each in order:
        subject.check_own(expression("keep", each, "Article.created.asc()"), "keep=")
    edges = edges_of(
        subject,
        min_score,
        where,
        stale,
        k=k,
        mode=mode,
        settings=SearchSettings(ef_search, probes),
        stored=pairs,
        order=order,
    )
    rows, found = edges.rows, edges.pairs
    dropped = materialized(select(func.unnest(_dropped(found)).label("n")), "dropped")
    numbers = select(dropped.c.n)
    ends = union_all(
        select(found.c.a.label("kept"), found.c.b.label("first"), found.c.distance),
        select(found.c.b, found.c.a, found.c.distance),
    ).subquery()
    # A copy may come behind kept rows that are nearer than those before the first of its kind.
    copy = rows.copies.alias()
    place = func.row_number().over(partition_by=copy.c.n, order_by=(ends.c.distance, ends.c.kept))
    near = (
        select(copy.c.n, ends.c.kept, ends.c.distance, place.label("place"))
        .join(ends, (ends.c.first == copy.c.first) & (ends.c.kept < copy.c.n))
        .where(ends.c.first.in_(numbers), ends.c.kept.not_in(numbers))
        .subquery()
    )
    keeper = select(*near.c).where(near.c.place == 1).subquery()
    copies, kept = rows.copies, rows.numbered.alias()
    is_copy = copies.c.first != copies.c.n
    instead = case((keeper.c.n.is_not(None), keeper.c.kept), (is_copy, copies.c.first))
    distance = case((keeper.c.n.is_not(None), keeper.c.distance), (is_copy, copies.c.own))
    return KeepList.sealing(
        select(
            rows.key().label("key"),
            kept.c.n.is_(None).label("keep"),
            case((kept.c.n.is_not(None), rows.key(kept))).label("kept_key"),
            subject.metric.score(distance).label("score"),
        )
        .select_from(rows.numbered)
        .join(copies, copies.c.n == rows.numbered.c.n)
        .outerjoin(keeper, keeper.c.n == copies.c.n)
        .outerjoin(kept, kept.c.n == instead)
        .order_by(rows.numbered.c.n),
        subject.entity,
    )


def _dropped(pairs: CTE) -> ColumnElement[Any]:
    """The numbers that are dropped, as an array: ``pgembed.dropped`` goes through the pairs once."""
    order = (pairs.c.a, pairs.c.b)
    ends = (func.array_agg(aggregate_order_by(end, *order)) for end in order)
    return select(func.pgembed.dropped(*ends)).scalar_subquery()
