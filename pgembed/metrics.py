"""The metrics, written once: operator, operator class and what a distance means as a score.

=============  ========  =====================  ===========================  ==================  ============
metric         operator  distance               score (higher is better)     range of the score  types
=============  ========  =====================  ===========================  ==================  ============
cosine         ``<=>``   1 - cosine similarity  1 - distance                 -1 to 1             all but bit
l2             ``<->``   Euclidean              1 / (1 + distance)           above 0, to 1       all but bit
inner_product  ``<#>``   -(inner product)       -distance                    unbounded           all but bit
l1             ``<+>``   sum of differences     1 / (1 + distance)           above 0, to 1       all but bit
hamming        ``<~>``   bits that differ       1 / (1 + distance)           above 0, to 1       bit
jaccard        ``<%>``   1 - shared / all bits  1 - distance                 0 to 1              bit
=============  ========  =====================  ===========================  ==================  ============

Operators and operator classes are those of pgvector (https://github.com/pgvector/pgvector#querying), whose
types are vector, halfvec, sparsevec and, of Postgres, bit. What access methods support is written in
:mod:`pgembed.indexes.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, func
from sqlalchemy.sql.elements import ColumnElement

from pgembed.constants import LEAST_EXPONENT, VOTE_OFFSET
from pgembed.exc import MetricNotSupportedError

Expression = ColumnElement[Any]


@dataclass(frozen=True)
class Metric:
    """One way to compare two vectors.

    :ivar operator: pgvector's distance operator.
    :ivar operator_class: suffix of the operator class: ``vector_<suffix>_ops``, ``halfvec_<suffix>_ops``.
    :ivar types: the types whose values it compares.
    :ivar score: distance to score, for numbers as well as for SQL expressions.
    :ivar distance: score to distance, the inverse.
    :ivar scores: the range of the score in words, and ``is_score`` tells whether a finite number is in it.
    :ivar weight: distance to the weight of a neighbour's vote, as SQL; of several queries, the second
        argument tells their neighbours apart.
    """

    name: str
    operator: str
    operator_class: str
    types: tuple[str, ...]
    score: Callable[[Any], Any]
    distance: Callable[[Any], Any]
    scores: str
    is_score: Callable[[float], bool]
    weight: Callable[[Expression, Expression | None], Expression]

    def opclass(self, storage: str) -> str:
        """Name of the operator class of this metric for a type."""
        return f"{storage}_{self.operator_class}_ops"

    def between(self, left: Expression, right: Any) -> Expression:
        """The SQL distance ``left <operator> right``."""
        return left.op(self.operator, return_type=Float(53), precedence=6)(right)


def _inverse(distance: Expression, _: Expression | None) -> Expression:
    """A vote falls with the distance; an exact hit outweighs everything but other exact hits."""
    return 1.0 / (func.greatest(distance, 0.0) + VOTE_OFFSET)


def exponential(distance: Expression, query: Expression | None, temperature: float = 1) -> Expression:
    """A vote is worth exp(-distance / temperature), relative to the best of its query; Postgres raises an
    error on underflow."""
    best = func.min(distance).over(partition_by=query)
    return func.exp(func.greatest((best - distance) / temperature, LEAST_EXPONENT))


_NUMBERS = ("vector", "halfvec", "sparsevec")
_BITS = ("bit",)


def _of_difference(name: str, operator: str, operator_class: str, types: tuple[str, ...]) -> Metric:
    """A distance from 0 to infinity: the score is 1 for equal values and falls towards 0."""
    return Metric(
        name,
        operator,
        operator_class,
        types,
        lambda d: 1 / (1 + d),
        lambda s: 1 / s - 1,
        "above 0 and up to 1",
        lambda s: 0 < s <= 1,
        _inverse,
    )


_METRICS = (
    Metric(
        "cosine",
        "<=>",
        "cosine",
        _NUMBERS,
        lambda d: 1 - d,
        lambda s: 1 - s,
        "-1 to 1",
        lambda s: -1 <= s <= 1,
        _inverse,
    ),
    _of_difference("l2", "<->", "l2", _NUMBERS),
    Metric(
        "inner_product",
        "<#>",
        "ip",
        _NUMBERS,
        lambda d: -d,
        lambda s: -s,
        "finite numbers",
        lambda _: True,
        exponential,
    ),
    _of_difference("l1", "<+>", "l1", _NUMBERS),
    _of_difference("hamming", "<~>", "hamming", _BITS),
    Metric(
        "jaccard",
        "<%>",
        "jaccard",
        _BITS,
        lambda d: 1 - d,
        lambda s: 1 - s,
        "0 to 1",
        lambda s: 0 <= s <= 1,
        _inverse,
    ),
)
BY_NAME = {metric.name: metric for metric in _METRICS}
_ALIASES = {"ip": "inner_product", "euclidean": "l2", "manhattan": "l1"}


def metric(name: str) -> Metric:
    """The metric called ``name`` (``"ip"``, ``"euclidean"`` and ``"manhattan"`` are understood).

    :raises MetricNotSupportedError: no such metric.
    """
    try:
        return BY_NAME[_ALIASES.get(name, name)]
    except (KeyError, TypeError):
        raise MetricNotSupportedError(name, tuple(BY_NAME), by="pgembed") from None


def metrics_of(storage: str) -> tuple[str, ...]:
    """The names of the metrics that compare values of a type; the first is the default."""
    return tuple(metric.name for metric in _METRICS if storage in metric.types)
