"""The metrics, written once: operator, operator class and what a distance means as a score.

=============  ========  =====================  ===========================  ==========================
metric         operator  distance               score (higher is better)     range of the score
=============  ========  =====================  ===========================  ==========================
cosine         ``<=>``   1 - cosine similarity  1 - distance                 -1 to 1
l2             ``<->``   Euclidean              1 / (1 + distance)           above 0, to 1
inner_product  ``<#>``   -(inner product)       -distance                    unbounded
=============  ========  =====================  ===========================  ==========================

Operators and operator classes are those of pgvector (https://github.com/pgvector/pgvector#querying).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, func
from sqlalchemy.sql.elements import ColumnElement

from pgembed.exc import MetricNotSupportedError

Expression = ColumnElement[Any]


@dataclass(frozen=True)
class Metric:
    """One way to compare two vectors.

    :ivar operator: pgvector's distance operator.
    :ivar operator_class: suffix of the operator class: ``vector_<suffix>_ops``, ``halfvec_<suffix>_ops``.
    :ivar score: distance to score, for numbers as well as for SQL expressions.
    :ivar distance: score to distance, the inverse.
    :ivar weight: distance to the weight of a neighbour's vote, as SQL.
    """

    name: str
    operator: str
    operator_class: str
    score: Callable[[Any], Any]
    distance: Callable[[float], float]
    weight: Callable[[Expression], Expression]

    def opclass(self, storage: str) -> str:
        """Name of the operator class of this metric for ``vector`` or ``halfvec``."""
        return f"{storage}_{self.operator_class}_ops"

    def between(self, left: Expression, right: Any) -> Expression:
        """The SQL distance ``left <operator> right``."""
        return left.op(self.operator, return_type=Float(53), precedence=6)(right)


def _inverse(distance: Expression) -> Expression:
    """A vote falls with the distance; an exact hit outweighs everything but other exact hits."""
    return 1.0 / (func.greatest(distance, 0.0) + 1e-6)


def _softmax(distance: Expression) -> Expression:
    """A vote is worth exp(inner product), relative to the best; Postgres raises an error on underflow."""
    return func.exp(func.greatest(func.min(distance).over() - distance, -700.0))


_METRICS = (
    Metric("cosine", "<=>", "cosine", lambda d: 1 - d, lambda s: 1 - s, _inverse),
    Metric("l2", "<->", "l2", lambda d: 1 / (1 + d), lambda s: 1 / s - 1, _inverse),
    Metric(
        "inner_product",
        "<#>",
        "ip",
        lambda d: -d,
        lambda s: -s,
        _softmax,
    ),
)
BY_NAME = {metric.name: metric for metric in _METRICS}
_ALIASES = {"ip": "inner_product", "euclidean": "l2"}


def metric(name: str) -> Metric:
    """The metric called ``name`` (``"ip"`` and ``"euclidean"`` are understood).

    :raises MetricNotSupportedError: no such metric.
    """
    try:
        return BY_NAME[_ALIASES.get(name, name)]
    except (KeyError, TypeError):
        raise MetricNotSupportedError(name, tuple(BY_NAME), by="pgembed") from None
