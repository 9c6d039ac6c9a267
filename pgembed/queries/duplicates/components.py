"""Connected components of a graph in one recursive query."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, Integer, cast, column, func, literal_column, select, true, union
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, FromClause, LateralFromClause, Subquery

from pgembed.queries.core.statement import materialized

_NUMBERS = ARRAY(Integer)
_NONE: ColumnElement[Any] = literal_column("'{}'::integer[]", _NUMBERS)
#: How often the pointers of a round are followed: paths to smaller numbers are short where those are random.
_JUMPS = 3


def components(edges: FromClause) -> Subquery:
    """The connected components of the graph with the edges ``(a, b)``, given once each.

    The graph is contracted by Borůvka's steps: vertices have numbers at random, each points at the smallest
    number among its neighbours and itself, pointers are followed, and what points at one vertex becomes one;
    the edges within are gone. Each round leaves a part of the vertices, so that there are as many rounds as
    the logarithm of the graph, the later ones over few edges; following the edges in a recursive query takes
    as many as its longest path. The recursive query has one row: where each vertex has gone, and the edges
    that are left, as arrays::

        steps(labels, us, vs) AS (
            SELECT array_agg(i ORDER BY i), us, vs FROM vertices, edges
            UNION ALL
            SELECT next.labels, next.us, next.vs FROM steps CROSS JOIN LATERAL (<p: where each points>)
            CROSS JOIN LATERAL (SELECT array_agg(p[label] ORDER BY i) FROM unnest(steps.labels))
            CROSS JOIN LATERAL (SELECT DISTINCT p[u], p[v] FROM unnest(steps.us, steps.vs) WHERE p[u] <> p[v])
            WHERE cardinality(steps.us) > 0)

    :returns: rows ``(n, root)``, the vertices that have an edge, and the smallest vertex of their component.
    """
    ends = union(select(edges.c.a.label("n")), select(edges.c.b)).subquery()
    at_random = (func.hashint4(ends.c.n), ends.c.n)
    numbered = select(ends.c.n, cast(func.row_number().over(order_by=at_random), Integer).label("i"))
    vertices = materialized(numbered, "vertices")
    steps = _steps(vertices, edges)
    end = select(steps.c.labels).where(func.cardinality(steps.c.us) == 0).subquery()
    label = _listed(end.c.labels, "label")
    root = func.min(vertices.c.n).over(partition_by=label.c.label)
    return (
        select(vertices.c.n, root.label("root"))
        .select_from(end.join(label, true()))
        .join(vertices, vertices.c.i == label.c.i)
        .subquery()
    )


def _listed(array: ColumnElement[Any], name: str) -> Any:
    """The elements of an array under a name, and their places as ``i``."""
    return func.unnest(array).table_valued(column(name, Integer), with_ordinality="i").render_derived()


def _steps(vertices: CTE, edges: FromClause) -> CTE:
    a, b = vertices.alias(), vertices.alias()
    there = (
        select(a.c.i.label("u"), b.c.i.label("v"))
        .select_from(edges)
        .join(a, a.c.n == edges.c.a)
        .join(b, b.c.n == edges.c.b)
        .subquery()
    )
    places = select(func.array_agg(aggregate_order_by(vertices.c.i, vertices.c.i), type_=_NUMBERS))
    start = select(
        places.scalar_subquery().label("labels"),
        func.array_agg(there.c.u, type_=_NUMBERS).label("us"),
        func.array_agg(there.c.v, type_=_NUMBERS).label("vs"),
    )
    steps = start.cte(recursive=True)
    pointers = _pointers(steps)
    jumps = [pointers]
    for _ in range(_JUMPS):
        jumps.append(_followed(jumps[-1]))
    p = jumps[-1].c.p
    label = _listed(steps.c.labels, "label")
    labels = (
        select(
            func.array_agg(aggregate_order_by(p[label.c.label], label.c.i), type_=_NUMBERS).label("labels")
        )
        .correlate(steps, jumps[-1])
        .lateral()
    )
    edge = func.unnest(steps.c.us, steps.c.vs).table_valued(column("u", Integer), column("v", Integer))
    edge = edge.render_derived()
    u, v = p[edge.c.u], p[edge.c.v]
    left = (
        select(func.least(u, v).label("u"), func.greatest(u, v).label("v"))
        .where(u != v)
        .distinct()
        .correlate(steps, jumps[-1])
        .subquery()
    )
    rest = (
        select(
            func.coalesce(func.array_agg(left.c.u), _NONE, type_=_NUMBERS).label("us"),
            func.coalesce(func.array_agg(left.c.v), _NONE, type_=_NUMBERS).label("vs"),
        )
        .correlate(steps, jumps[-1])
        .lateral()
    )
    following: Any = steps
    for each in (*jumps, labels, rest):
        following = following.join(each, true())
    return steps.union_all(
        select(labels.c.labels, rest.c.us, rest.c.vs)
        .select_from(following)
        .where(func.cardinality(steps.c.us) > 0)
    )


def _pointers(steps: CTE) -> LateralFromClause:
    """Where each vertex points, as the array ``p``: at the smallest of its neighbours and itself."""
    ends = func.array_cat(steps.c.us, steps.c.vs), func.array_cat(steps.c.vs, steps.c.us)
    met = func.unnest(*ends).table_valued(column("i", Integer), column("other", Integer)).render_derived()
    # The aggregates are in subqueries: Postgres allows none over the recursive reference itself.
    hook = (
        select(met.c.i, func.least(met.c.i, func.min(met.c.other)).label("least"))
        .group_by(met.c.i)
        .correlate(steps)
        .subquery()
    )
    place = func.generate_series(1, func.cardinality(steps.c.labels)).table_valued(column("i", Integer))
    place = place.render_derived()
    least = func.coalesce(hook.c.least, place.c.i)
    return (
        select(func.array_agg(aggregate_order_by(least, place.c.i), type_=_NUMBERS).label("p"))
        .select_from(place.outerjoin(hook, hook.c.i == place.c.i))
        .correlate(steps)
        .lateral()
    )


def _followed(pointers: LateralFromClause) -> LateralFromClause:
    each = _listed(pointers.c.p, "at")
    further = func.array_agg(aggregate_order_by(pointers.c.p[each.c.at], each.c.i), type_=_NUMBERS)
    return select(further.label("p")).correlate(pointers).lateral()
