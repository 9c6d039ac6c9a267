"""Connected components of a graph in one recursive query."""

from __future__ import annotations

from sqlalchemy import Integer, cast, column, func, select, true, union, union_all
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, array
from sqlalchemy.sql.selectable import CTE, FromClause, Subquery

from pgembed.queries.statement import materialized

_POINTERS = ARRAY(Integer)


def components(edges: FromClause) -> Subquery:
    """The connected components of the graph with the edges ``(a, b)``, given once each.

    The algorithm is FastSV (Zhang, Azad and Hu, "FastSV: a distributed-memory connected component algorithm
    with fast convergence", 2020): every vertex points at a vertex of a smaller number in its component, all
    pointers at once are hooked to the smallest grandparent among their neighbours and shortened, until
    nothing changes. That takes a number of rounds that grows with the logarithm of the graph; following the
    edges in a recursive query takes as many as its longest path. The pointers are one array, the only row of
    the recursive query::

        steps(labels, changed) AS (
            SELECT array_agg(i ORDER BY i), true FROM vertices
            UNION ALL
            SELECT next.labels, next.labels <> steps.labels FROM steps CROSS JOIN LATERAL (
                SELECT array_agg(label ORDER BY i) AS labels FROM (
                    SELECT hooked.i, min(steps.labels[steps.labels[v]]) AS label
                    FROM edges CROSS JOIN unnest(ARRAY[u, steps.labels[u]]) AS hooked(i)
                    GROUP BY hooked.i) AS hook) AS next
            WHERE steps.changed)

    :returns: rows ``(n, root)``, the vertices that have an edge, and the smallest vertex of their component.
    """
    ends = union(select(edges.c.a.label("n")), select(edges.c.b)).subquery()
    numbered = select(ends.c.n, cast(func.row_number().over(order_by=ends.c.n), Integer).label("i"))
    vertices = materialized(numbered, "vertices")
    steps = _steps(vertices, _directed(edges, vertices))
    end = select(steps.c.labels).where(~steps.c.changed).subquery()
    label = (
        func.unnest(end.c.labels).table_valued(column("root", Integer), with_ordinality="i").render_derived()
    )
    root = vertices.alias()
    return (
        select(vertices.c.n, root.c.n.label("root"))
        .select_from(end.join(label, true()))
        .join(vertices, vertices.c.i == label.c.i)
        .join(root, root.c.i == label.c.root)
        .subquery()
    )


def _directed(edges: FromClause, vertices: CTE) -> CTE:
    """Both directions of each edge, and a loop at every vertex, by which it sees its own grandparent."""
    a, b = vertices.alias(), vertices.alias()
    there = (
        select(a.c.i.label("u"), b.c.i.label("v"))
        .select_from(edges)
        .join(a, a.c.n == edges.c.a)
        .join(b, b.c.n == edges.c.b)
        .cte()
    )
    loops = select(vertices.c.i.label("u"), vertices.c.i.label("v"))
    return materialized(union_all(select(there.c.u, there.c.v), select(there.c.v, there.c.u), loops), "edges")


def _steps(vertices: CTE, directed: CTE) -> CTE:
    start = select(
        func.array_agg(aggregate_order_by(vertices.c.i, vertices.c.i), type_=_POINTERS).label("labels"),
        true().label("changed"),
    )
    steps = start.cte(recursive=True)
    labels = steps.c.labels
    ends = func.unnest(array([directed.c.u, labels[directed.c.u]]))
    hooked = ends.table_valued(column("i", Integer)).render_derived()
    # The aggregates are in a subquery: Postgres allows none over the recursive reference itself.
    hook = (
        select(hooked.c.i, func.min(labels[labels[directed.c.v]]).label("label"))
        .select_from(directed.join(hooked, true()))
        .group_by(hooked.c.i)
        .correlate(steps)
        .subquery()
    )
    following = (
        select(func.array_agg(aggregate_order_by(hook.c.label, hook.c.i), type_=_POINTERS).label("labels"))
        .correlate(steps)
        .lateral()
    )
    return steps.union_all(
        select(following.c.labels, following.c.labels != labels)
        .select_from(steps.join(following, true()))
        .where(steps.c.changed)
    )
