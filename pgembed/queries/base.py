"""The rows found by a search, joined back to what the caller selects."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, and_, select
from sqlalchemy.sql.selectable import FromClause, Join

from pgembed.exc import QueryError
from pgembed.queries.nearest import keys_of
from pgembed.queries.target import Target


def selecting(target: Target, base: Select[Any] | None, found: FromClause, *, helper: str) -> Select[Any]:
    """``base``, or a select of the entity, of the rows whose keys are in ``found``.

    :raises QueryError: the base filters or sorts by itself, or does not select from the entity.
    """
    same = and_(*(key == other for key, other in zip(target.keys, keys_of(target, found), strict=True)))
    selected = select(target.entity) if base is None else _checked(target, base, helper)
    return selected.join_from(target.entity, found, same)


def _checked(target: Target, base: Select[Any], helper: str) -> Select[Any]:
    """:raises QueryError: not a select, filters or sorts by itself, or does not select from the entity."""
    if not isinstance(base, Select):
        raise QueryError(f"base={base!r}; expected a select, as in select(Article.id, Article.title)")
    clauses = {
        "WHERE": (base._where_criteria, f"pass where= to {helper}()"),
        "GROUP BY": (base._group_by_clauses, "group a select from the search's .subquery()"),
        "HAVING": (base._having_criteria, "group a select from the search's .subquery()"),
        "DISTINCT": (base._distinct, "select from the search's .subquery()"),
        "ORDER BY": (base._order_by_clauses, "rows come in the order of the search"),
        "LIMIT": (base._limit_clause is not None or base._fetch_clause is not None, "pass limit= instead"),
        "OFFSET": (base._offset_clause is not None, "pass offset= instead"),
        "FOR UPDATE": (base._for_update_arg is not None, "call .with_for_update() on the search"),
    }
    for clause, (present, instead) in clauses.items():
        if present:
            raise QueryError(f"base= has a {clause} of its own, which would act on the rows found: {instead}")
    froms = {table for found in base.get_final_froms() for table in _tables(found)}
    if not froms & set(_tables(target.selectable)):
        raise QueryError(
            f"base= does not select from {target.selectable}, whose rows are searched: start it with "
            "select(...) of the searched entity, or .select_from() it"
        )
    return base


def _tables(found: FromClause) -> list[FromClause]:
    return [*_tables(found.left), *_tables(found.right)] if isinstance(found, Join) else [found]
