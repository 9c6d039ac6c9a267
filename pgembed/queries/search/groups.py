"""The best rows of each group, such as the articles of an author."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Column, and_, exists, func, or_, select, tuple_, union_all
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, Select, Subquery

from pgembed.constants import GROUPS_WIDER
from pgembed.queries.core.arguments import MOST, candidates_for, whole
from pgembed.queries.core.nearest import Nearest
from pgembed.queries.core.statement import materialized
from pgembed.queries.core.subject import Subject, keys_of


def grouped(page: Nearest, per: Sequence[Any], best: Any) -> Subquery:
    """The ``best`` nearest rows of each of the nearest groups, those of equal values of ``per``: ``key_1``,
    ..., ``distance``, ``group_rank``, ``rank`` (both count from 1).

    ``page.limit`` and ``page.offset`` count groups. Without an index, one scan ranks all rows within their
    groups. With one, candidates are looked at, and ten times as many where they are of too few groups, and
    all rows where those are of too few groups still; of the groups found that way, those that have fewer than
    ``best`` rows among the candidates are looked up by ``per``, in the same statement.

    :raises QueryError: ``best`` is not a whole number.
    """
    best = whole("best", best, 1)
    page = replace(page, conditions=[*page.conditions, *map(_present, filter(_nullable, per))])
    if not page.approximate:
        pool = _ranked(page, page.all(*per), "ranked")
        return _best_of(page, pool, pool, best).subquery()

    wanted = candidates_for(page.rows * best, None)
    gate: list[ColumnElement[bool]] = []
    stages: list[Select[Any]] = []
    for rows in (wanted, min(GROUPS_WIDER * wanted, MOST)):
        candidates = replace(page, limit=rows, offset=0, conditions=[*page.conditions, *gate])
        ranked = _ranked(page, candidates.subquery(*per), "candidates")
        groups = func.count().filter(ranked.c.place == 1)
        enough = select(or_(groups >= page.rows, func.count() < rows)).select_from(ranked).scalar_subquery()
        stages.append(select(*ranked.c).where(*gate, enough))
        gate = [*gate, ~enough]
    exact = replace(page, mode="exact", settings=replace(page.settings, ef_search=None, probes=None))
    everything = _ranked(page, replace(exact, conditions=[*page.conditions, *gate]).all(*per), "ranked")
    pool = materialized(union_all(*stages, select(*everything.c)), "pool")
    if best == 1:
        return _best_of(page, pool, pool, best).subquery()

    # Of groups that candidates may hold a part of, the rest is looked up. (The exact form holds them whole.)
    of_page = (
        select(*_groups(pool))
        .where(pool.c.place == 1)
        .order_by(pool.c.distance, *keys_of(page.subject, pool))
        .limit(page.rows)
    )
    partly = select(*_groups(pool)).where(~and_(*gate), _together(_groups(pool)).in_(of_page))
    short = materialized(partly.group_by(*_groups(pool)).having(func.count() < best), "short")
    of_short = select(*short.c)
    lookup = replace(exact, conditions=[*page.conditions, exists(of_short), _together(per).in_(of_short)])
    looked_up = _ranked(page, lookup.all(*per), "looked_up")
    others = select(*pool.c).where(_together(_groups(pool)).not_in(of_short))
    return _best_of(page, pool, union_all(others, select(*looked_up.c)).subquery(), best).subquery()


def best_parts(subject: Subject, found: Subquery, order: Sequence[ColumnElement[Any]]) -> Subquery:
    """Of the parts found, the first one of each owner, with its key in the columns ``owner_1``, ..."""
    assert subject.owner is not None
    owner = [key.label(f"owner_{n}") for n, key in enumerate(subject.owner.keys, 1)]
    place = func.row_number().over(partition_by=subject.owner.keys, order_by=order).label("place")
    same = and_(*(key == other for key, other in zip(subject.keys, keys_of(subject, found), strict=True)))
    placed = select(*found.c, *owner, place).join_from(found, subject.entity, same).subquery()
    kept = (column for column in placed.c if column.key != "place")
    return select(*kept).where(placed.c.place == 1).subquery()


def owners_of(found: Any) -> list[ColumnElement[Any]]:
    """The columns of a result that hold the key of the owner of parts."""
    return [column for column in found.c if column.key.startswith("owner_")]


def _nullable(per: Any) -> bool:
    """Whether it may be NULL: a condition more makes a search through an index harder."""
    column = getattr(getattr(per, "property", None), "columns", [per])[0]
    return not isinstance(column, Column) or bool(column.nullable)


def _present(per: Any) -> ColumnElement[bool]:
    found: ColumnElement[bool] = per.is_not(None)
    return found


def _groups(rows: Any) -> list[ColumnElement[Any]]:
    return [column for column in rows.c if column.key.startswith("payload_")]


def _together(columns: Sequence[Any]) -> Any:
    return columns[0] if len(columns) == 1 else tuple_(*columns)


def _ranked(page: Nearest, rows: Subquery, name: str) -> CTE:
    """The rows with their ``place`` in the group."""
    order = (rows.c.distance, *keys_of(page.subject, rows))
    place = func.row_number().over(partition_by=_groups(rows), order_by=order)
    return materialized(select(*rows.c, place.label("place")), name)


def _best_of(page: Nearest, firsts: CTE, rows: Any, best: int) -> Select[Any]:
    """The best rows of the page of groups whose nearest rows are among ``firsts``."""
    order: Sequence[ColumnElement[Any]] = (firsts.c.distance, *keys_of(page.subject, firsts))
    group_rank = func.row_number().over(order_by=order).label("group_rank")
    groups = select(*_groups(firsts), group_rank).where(firsts.c.place == 1).subquery()
    same = and_(*(one == other for one, other in zip(_groups(groups), _groups(rows), strict=True)))
    return (
        select(*keys_of(page.subject, rows), rows.c.distance, groups.c.group_rank, rows.c.place.label("rank"))
        .select_from(rows.join(groups, same))
        .where(groups.c.group_rank.between(page.offset + 1, page.rows), rows.c.place <= best)
    )
