"""Several searches fused: by the ranks of their rows, or by their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from sqlalchemy import Float, Integer, Select, func, literal, literal_column, select, union_all
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.sql.selectable import Subquery

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import real
from pgembed.queries.core.subject import Subject, keys_of
from pgembed.queries.search.groups import owners_of

Fusion: TypeAlias = Literal["rrf", "weighted"]

#: As many weights of one as there are searches.
EQUAL = (1.0, 1.0)


def fused(
    subject: Subject,
    legs: Sequence[tuple[str, Select[Any]]],
    fusion: Fusion,
    k: float,
    weights: Sequence[float],
    limit: int,
    offset: int,
) -> Subquery:
    """The best rows of all legs: ``key_1``, ..., ``score``, and ``rank_0``, ``score_0``, ... of each leg.

    ::

        SELECT key_1, sum(share) AS score, max(rank) FILTER (WHERE leg = 0) AS rank_0, ... FROM (
            SELECT key_1, 0 AS leg, rank, found, 1 / (60 + rank) AS share FROM <the first leg>
            UNION ALL ...) AS legs
        GROUP BY key_1 ORDER BY score DESC, key_1 LIMIT :limit

    Of parts, legs have one of each row that has them; they are grouped by that row, and of each, the part
    with the greatest share is returned.
    """
    double = Float(53)
    parts = []
    for number, ((_, leg), weight) in enumerate(zip(legs, weights, strict=True)):
        c = leg.subquery().c
        if fusion == "rrf":
            part = literal(1.0, double) / (literal(k, double) + c.rank)
        else:
            lowest, highest = func.min(c.found).over(), func.max(c.found).over()
            # Of candidates that are all alike, each is the best.
            part = func.coalesce((c.found - lowest) / func.nullif(highest - lowest, 0.0, type_=double), 1.0)
        share = (literal(weight, double) * part).label("share")
        parts.append(select(*c, literal_column(str(number), Integer).label("leg"), share))
    both = union_all(*parts).subquery()
    keys = keys_of(subject, both)
    score = func.sum(both.c.share).label("score")
    of_legs = [
        func.max(both.c[name]).filter(both.c.leg == literal_column(str(number))).label(f"{label}_{number}")
        for number in range(len(legs))
        for name, label in (("rank", "rank"), ("found", "score"))
    ]
    groups = owners_of(both) or keys
    if groups is not keys:
        best = (both.c.share.desc(), both.c.leg)
        keys = [func.array_agg(aggregate_order_by(key, *best))[1].label(key.key) for key in keys]
    fused = select(*keys, score, *of_legs).group_by(*groups).order_by(score.desc(), *groups).limit(limit)
    return (fused.offset(offset) if offset else fused).subquery()


def weighed(k: Any, weights: Any, legs: int) -> tuple[float, list[float]]:
    """``k`` and the weights of the searches, checked.

    :raises QueryError: they are not numbers, or negative, or too few.
    """
    expected = "a number that is not negative"
    if weights is EQUAL:
        weights = [1.0] * legs
    given = list(weights) if isinstance(weights, list | tuple | np.ndarray) else []
    if len(given) != legs:
        vectors = "the vector" if legs == 2 else "each vector"
        raise QueryError(f"weights={weights!r}; expected {legs} numbers: of {vectors}, and of the text")
    levelled = real("k", k, expected, finite=True)
    numbers = [real("weights", value, expected, finite=True) for value in given]
    for name, value in (("k", levelled), *(("weights", number) for number in numbers)):
        if value < 0:
            raise QueryError(f"{name}={value}; expected {expected}")
    return levelled, numbers
