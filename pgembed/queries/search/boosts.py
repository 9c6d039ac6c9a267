"""What is beside the distance in a score: boosts, and how they decay."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from sqlalchemy import (
    Date,
    DateTime,
    Float,
    Integer,
    Interval,
    Numeric,
    cast,
    desc,
    extract,
    func,
    literal,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Subquery

from pgembed.constants import LEAST_EXPONENT
from pgembed.exc import QueryError
from pgembed.queries.core.arguments import candidates_for, choice, expression, real
from pgembed.queries.core.nearest import NAN, Nearest
from pgembed.queries.core.subject import keys_of

Boosting: TypeAlias = Literal["multiply", "add"]
Decay: TypeAlias = Literal["exponential", "gaussian", "linear"]
_FLOAT = Float(53)
#: What leaves a score as it is, by how boosts act.
_NEUTRAL = {"multiply": 1.0, "add": 0.0}


def decay(
    column: Any,
    *,
    scale: datetime.timedelta | float,
    origin: Any = None,
    offset: datetime.timedelta | float | None = None,
    decay: float = 0.5,
    kind: Decay = "exponential",
) -> ColumnElement[float]:
    """A number that falls from 1 towards 0 with the distance of a column from an origin, as an expression.

    ::

        recent = decay(Article.published, scale=timedelta(days=30))
        semantic_search(Article.embedding, "elections", boost=recent)

    The definitions are Elasticsearch's. With x = max(0, abs(column - origin) - offset), the value is

    - ``"exponential"``: exp(ln(decay) * x / scale)
    - ``"gaussian"``: exp(ln(decay) * (x / scale) ** 2)
    - ``"linear"``: max(0, 1 - (1 - decay) * x / scale)

    so that it is ``decay`` at the distance ``offset + scale``, and 1 where the column is NULL.

    :param column: a date, a timestamp or a number: a column of the entity, or an expression over it.
    :param scale: the distance, beyond the offset, at which the value is ``decay``: a ``timedelta`` for dates
        and timestamps, else a number.
    :param origin: where the value is 1; left out, the start of the transaction, for dates and timestamps.
        An SQL expression too.
    :param offset: up to this distance, the value is 1.
    :param decay: between 0 and 1, both excluded.
    :raises QueryError: one of the arguments is not as described.
    """
    choice("kind", kind, ("exponential", "gaussian", "linear"))
    value = expression("column", column, "Article.published")
    of_time = isinstance(scale, datetime.timedelta)
    width = _width("scale", scale, of_time)
    margin = 0.0 if offset is None else _width("offset", offset, of_time)
    left = real("decay", decay, "a number between 0 and 1")
    if width <= 0 or margin < 0 or not 0 < left < 1:
        raise QueryError(
            f"scale={scale!r}, offset={offset!r}, decay={decay!r}; expected a scale above 0, an offset that "
            "is not negative, and a decay between 0 and 1"
        )
    difference = value - _origin(value, origin, of_time)
    if of_time:
        difference = extract("epoch", type_coerce(difference, Interval))
    distance = func.greatest(func.abs(cast(difference, _FLOAT)) - literal(margin, _FLOAT), 0.0)
    found = _SHAPES[kind](type_coerce(distance / literal(width, _FLOAT), _FLOAT), left)
    return func.coalesce(found, 1.0, type_=_FLOAT)


def _exponential(exponent: ColumnElement[float], left: float) -> ColumnElement[float]:
    """Postgres raises an error on underflow."""
    return func.exp(func.greatest(literal(math.log(left), _FLOAT) * exponent, LEAST_EXPONENT))


_SHAPES: dict[str, Callable[[ColumnElement[float], float], ColumnElement[float]]] = {
    "exponential": _exponential,
    "gaussian": lambda x, left: _exponential(x * x, left),
    "linear": lambda x, left: func.greatest(1.0 - literal(1 - left, _FLOAT) * x, 0.0),
}


def _width(name: str, given: Any, of_time: bool) -> float:
    """A length in seconds, or as a number."""
    if of_time and not isinstance(given, datetime.timedelta):
        raise QueryError(f"{name}={given!r}; expected a timedelta, as scale= is one")
    if isinstance(given, datetime.timedelta):
        if not of_time:
            raise QueryError(f"{name}={given!r}; expected a number, as scale= is one")
        return given.total_seconds()
    return real(name, given, "a timedelta or a number", finite=True)


def _origin(value: Any, given: Any, of_time: bool) -> Any:
    kind = getattr(value, "type", None)
    is_naive = isinstance(kind, Date) or (isinstance(kind, DateTime) and not kind.timezone)
    if of_time and isinstance(kind, Numeric | Float | Integer):
        raise QueryError(f"scale= is a timedelta, and {value} holds numbers; expected a number")
    if not of_time and isinstance(kind, Date | DateTime):
        raise QueryError(f"scale= is a number, and {value} holds dates; expected a timedelta")
    if given is None:
        if not of_time:
            raise QueryError("origin= is left out; expected a number, as scale= is one")
        return func.localtimestamp() if is_naive else func.now()
    if hasattr(given, "__clause_element__") or isinstance(given, ColumnElement):
        return given
    if not of_time:
        return literal(real("origin", given, "a number", finite=True), _FLOAT)
    if not isinstance(given, datetime.date):
        raise QueryError(f"origin={given!r}; expected a date, a datetime or an SQL expression")
    moment = (
        given if isinstance(given, datetime.datetime) else datetime.datetime.combine(given, datetime.time())
    )
    return literal(moment, DateTime(timezone=moment.tzinfo is not None))


def boosted(page: Nearest, boost: Any, boosting: str, candidates: int | None) -> Subquery:
    """The rows with the best scores among the nearest, or among all with ``mode="exact"``: ``key_1``, ...,
    ``distance``, ``score``.

    :raises QueryError: ``boost`` is not an expression over the entity, or ``candidates`` are too few.
    """
    choice("boosting", boosting, tuple(_NEUTRAL))
    boost = page.subject.over(expression("boost", boost, "Article.likes"), "boost=")
    if page.mode != "exact":
        rows = replace(page, limit=candidates_for(page.rows, candidates), offset=0).subquery(boost)
    elif candidates is None:
        rows = page.all(boost)
    else:
        raise QueryError(f'candidates={candidates} has no effect: mode="exact" scores all rows')
    keys, distance = keys_of(page.subject, rows), rows.c.distance
    own = func.nullif(cast(rows.c.payload_1, _FLOAT), NAN)
    factor = func.coalesce(own, _NEUTRAL[boosting], type_=_FLOAT)
    score = page.subject.metric.score(distance)
    score = score * factor if boosting == "multiply" else score + factor
    found = select(*keys, distance, score.label("score")).order_by(
        desc(literal_column("score")), distance, *keys
    )
    found = found.limit(page.limit)
    return (found.offset(page.offset) if page.offset else found).subquery()
