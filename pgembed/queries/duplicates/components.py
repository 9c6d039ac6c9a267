"""Connected components of a graph in one recursive query."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    Select,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, FromClause, LateralFromClause, Subquery

from pgembed.queries.core.statement import materialized

_NUMBERS, _CODES = ARRAY(Integer), ARRAY(BigInteger)
_HALF: ColumnElement[Any] = literal_column("32", Integer)
_LOWER: ColumnElement[Any] = literal_column("2147483647", BigInteger)
_ZERO: ColumnElement[int] = literal_column("0")
#: How many pointers are followed in a round: paths to smaller places are short where those are random.
_FOLLOWED = 3


def components(edges: CTE) -> Subquery:
    """The connected components of the graph with the edges ``(a, b)`` between numbers that are not negative.

    The graph is contracted by Borůvka's steps: vertices have places at random, each points at the smallest
    place among its neighbours and itself, pointers are followed, and what arrives at one vertex becomes one;
    the edges within are gone. Each round leaves a part of the vertices, so that there are as many rounds as
    the logarithm of the graph, the later ones over few edges; following the edges in a recursive query takes
    as many as its longest path.

    All is done in arrays, which are read by their places; joins of as many rows would be hashed, and written
    to files, in each round. Two numbers are one code, the first in the upper half: a vertex its hash and its
    number, an edge its greater and its smaller place. In a sorted array of codes, ``width_bucket`` finds the
    place of a vertex, and the smallest of its neighbours. The recursive query has one row: where each vertex
    has gone, and the edges that are left::

        vertices(codes) AS (SELECT array_agg(DISTINCT code ORDER BY code) FROM <ends of the edges>),
        steps(labels, edges) AS (
            SELECT <1, 2, ...>, array_agg(DISTINCT code ORDER BY code) FROM <edges>
            UNION ALL
            SELECT (SELECT array_agg(p[p[p[label]]]) FROM unnest(labels)),
                   (SELECT array_agg(DISTINCT code ORDER BY code) FROM <edges, their ends likewise>)
            FROM steps CROSS JOIN LATERAL (<p: where each place points>) WHERE cardinality(edges) > 0)

    (Aggregates take the elements of an array in their order: nothing comes between.)

    :returns: rows ``(n, root, size)``, the vertices that have an edge, the smallest vertex of their component
        and the number of its vertices.
    """
    ends = union_all(select(edges.c.a.label("n")), select(edges.c.b)).subquery()
    hashed = select(_hashed(ends.c.n).label("code")).subquery()
    vertices = materialized(select(_sorted(hashed.c.code).label("codes")), "vertices")
    steps = _steps(edges, vertices)
    end = (
        select(func.unnest(vertices.c.codes).label("code"), func.unnest(steps.c.labels).label("label"))
        .select_from(steps.join(vertices, true()))
        .where(func.cardinality(steps.c.edges) == 0)
        .subquery()
    )
    vertex = select(_second(end.c.code).label("n"), end.c.label).subquery()
    root = func.min(vertex.c.n).over(partition_by=vertex.c.label).label("root")
    size = func.count().over(partition_by=vertex.c.label).label("size")
    return select(vertex.c.n, root, size).subquery()


def _steps(edges: FromClause, vertices: CTE) -> CTE:
    codes = select(vertices.c.codes).scalar_subquery()
    place = _places(select(func.cardinality(vertices.c.codes)).scalar_subquery())
    one, other = (func.width_bucket(_hashed(end), codes) for end in (edges.c.a, edges.c.b))
    start = select(
        select(func.array_agg(place.c.i, type_=_NUMBERS)).scalar_subquery().label("labels"),
        select(_left(select(one.label("u"), other.label("v")))).scalar_subquery().label("edges"),
    )
    steps = start.cte(recursive=True)
    pointers = _pointers(steps)

    def arrived(place: ColumnElement[Any]) -> ColumnElement[Any]:
        for _ in range(_FOLLOWED):
            place = pointers.c.p[place]
        return place

    label = _elements(steps, steps.c.labels)
    labels = select(func.array_agg(arrived(label), type_=_NUMBERS).label("labels"))
    code = _elements(steps, steps.c.edges)
    u, v = arrived(code.bitwise_rshift(_HALF)), arrived(code.bitwise_and(_LOWER))
    rest = select(_left(select(u.label("u"), v.label("v")).correlate(steps, pointers)).label("edges"))
    gone, left = (each.correlate(steps, pointers).lateral() for each in (labels, rest))
    return steps.union_all(
        select(gone.c.labels, left.c.edges)
        .select_from(steps.join(pointers, true()).join(gone, true()).join(left, true()))
        .where(func.cardinality(steps.c.edges) > 0)
    )


def _pointers(steps: CTE) -> LateralFromClause:
    """Where each place points, as the array ``p``: at the smallest of its neighbours and itself."""
    place = _places(func.cardinality(steps.c.labels)).c.i
    # The first code whose upper half is not below the place.
    first = steps.c.edges[func.width_bucket(_code(place, 0), steps.c.edges) + 1]
    found = select(place, first.label("code")).correlate(steps).offset(_ZERO).subquery()
    smallest = case((found.c.code.bitwise_rshift(_HALF) == found.c.i, _second(found.c.code)), else_=found.c.i)
    return select(func.array_agg(smallest, type_=_NUMBERS).label("p")).correlate(steps).lateral()


def _left(edges: Select[Any]) -> ColumnElement[Any]:
    """The codes of edges ``(u, v)``, without those within a vertex, sorted."""
    edge = edges.offset(_ZERO).subquery()  # so that u and v are computed once
    code = _code(func.greatest(edge.c.u, edge.c.v), func.least(edge.c.u, edge.c.v))
    left = select(code.label("code")).where(edge.c.u != edge.c.v).subquery()
    return func.coalesce(_sorted(left.c.code), literal_column("'{}'::bigint[]", _CODES))


def _sorted(code: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.array_agg(aggregate_order_by(code.distinct(), code), type_=_CODES)


def _hashed(number: ColumnElement[Any]) -> ColumnElement[Any]:
    return _code(func.hashint4(number), number)


def _code(first: Any, second: Any) -> ColumnElement[Any]:
    code: ColumnElement[Any] = cast(first, BigInteger).bitwise_lshift(_HALF) + second
    return code


def _second(code: ColumnElement[Any]) -> ColumnElement[Any]:
    return cast(code.bitwise_and(_LOWER), Integer)


def _places(last: ColumnElement[Any]) -> Any:
    """The numbers from 1 as the column ``i``."""
    return func.generate_series(1, last).table_valued(column("i", Integer)).render_derived()


def _elements(steps: CTE, array: ColumnElement[Any]) -> ColumnElement[Any]:
    """The elements of an array. (As a function of FROM, it would be copied to a table first.)"""
    return select(func.unnest(array).label("element")).correlate(steps).subquery().c.element
