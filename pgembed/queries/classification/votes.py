"""The votes of neighbours: what each weighs, which label wins for each query, and when none does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias, TypeVarTuple

from sqlalchemy import (
    ARRAY,
    Float,
    Integer,
    Label,
    Numeric,
    case,
    cast,
    func,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by, array
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, FromClause, Select, Subquery

from pgembed.exc import QueryError
from pgembed.metrics import Metric, exponential
from pgembed.queries.core.arguments import real, whole
from pgembed.queries.core.statement import DuplicatePairs

_Ts = TypeVarTuple("_Ts")
_FLOAT = Float(53)
_ONE: ColumnElement[float] = literal_column("1.0::float8", _FLOAT)
_NOTHING: ColumnElement[float] = literal_column("0.0::float8", _FLOAT)


@dataclass(frozen=True)
class Softmax:
    """See :func:`softmax`."""

    temperature: float


#: What the vote of a neighbour weighs.
Weights: TypeAlias = Literal["distance", "uniform"] | Softmax


def softmax(temperature: float) -> Softmax:
    """Votes that weigh exp(-distance / ``temperature``): the lower it is, the more the nearest rows count.

    :raises QueryError: it is not a number above 0.
    """
    value = real("temperature", temperature, "a number above 0", finite=True)
    if value <= 0:
        raise QueryError(f"temperature={temperature!r}; expected a number above 0")
    return Softmax(value)


def weight_of(
    metric: Metric, weights: Weights, distance: ColumnElement[float], query: ColumnElement[int] | None = None
) -> ColumnElement[float]:
    """SQL: what a vote weighs.

    :param query: of several queries, what tells their neighbours apart.
    :raises QueryError: there are no such weights.
    """
    if isinstance(weights, Softmax):
        return exponential(distance, query, weights.temperature)
    if isinstance(weights, str) and weights == "distance":
        return metric.weight(distance, query)
    if isinstance(weights, str) and weights == "uniform":
        return _ONE
    raise QueryError(f'weights={weights!r}; expected "distance", "uniform" or softmax(temperature)')


class Classified(DuplicatePairs[*_Ts]):
    """The statement of the helpers that give each of many rows a label, or judge it by its neighbours.

    It is a source for INSERT and, as ``.subquery()``, for UPDATE; its rows may be cut and sorted.
    """

    inherit_cache = True

    @classmethod
    def of(cls, statement: Select[Any], helper: str) -> Self:
        """``statement`` as one of the helper."""
        sealed = cls.sealing(statement)
        sealed.helper = helper
        return sealed


@dataclass(frozen=True)
class Limits:
    """What an answer must fulfil; one that does not is NULL, with a reason.

    :ivar neighbours: how many must vote.
    """

    min_share: float | None
    min_margin: float | None
    max_distance: float | None
    neighbours: int

    @classmethod
    def of(
        cls, min_share: Any, min_margin: Any, max_distance: Any, neighbours: Any = None, k: int = 1
    ) -> Limits:
        """The arguments of a helper.

        :param k: the neighbours that are asked for: all must vote, unless a distance decides who does.
        :raises QueryError: one of them is not a number of its range.
        """
        least = k if max_distance is None else 1
        return cls(
            _part("min_share", min_share),
            _part("min_margin", min_margin),
            None if max_distance is None else real("max_distance", max_distance),
            least if neighbours is None else whole("min_neighbours", neighbours, 1, k),
        )

    def reason(self, found: FromClause, vector: ColumnElement[Any], *, share: bool) -> ColumnElement[Any]:
        """SQL: why there is no label; NULL where there is one.

        :param share: whether a share can be too low.
        """
        failing: list[tuple[ColumnElement[bool], str]] = [(vector.is_(None), "no vector")]
        if self.max_distance is not None:
            failing.append((found.c.nearest > self.max_distance, "too far"))
        failing.append((func.coalesce(found.c.voters, 0) < self.neighbours, "too few neighbours"))
        if self.min_share is not None and share:
            failing.append((found.c.share < self.min_share, "low share"))
        if self.min_margin is not None:
            failing.append((found.c.margin < self.min_margin, "low margin"))
        return case(*((failed, literal_column(f"'{reason}'::text")) for failed, reason in failing))


def _part(name: str, given: Any) -> float | None:
    if given is None:
        return None
    value = real(name, given, "a number from 0 to 1")
    if not 0 <= value <= 1:
        raise QueryError(f"{name}={given!r}; expected a number from 0 to 1")
    return value


@dataclass(frozen=True)
class Election:
    """How the labels of neighbours become one label for each query.

    :ivar kind: of the labels: ``"class"``, ``"array"`` (each of its elements is a label), ``"number"``.
    :ivar by_rows: whether rows vote; else each label has one vote of its own, wherever it is.
    """

    metric: Metric
    weights: Weights
    limits: Limits
    kind: Literal["class", "array", "number"] = "class"
    by_rows: bool = True

    def __post_init__(self) -> None:
        for name in ("min_share", "min_margin"):
            if self.kind == "number" and getattr(self.limits, name) is not None:
                raise QueryError(
                    f"{name}={getattr(self.limits, name)} has no effect on labels that are averaged: use "
                    "max_distance= or min_neighbours="
                )

    def answers(
        self, asked: CTE, found: FromClause, label: ColumnElement[Any], sizes: CTE | None = None
    ) -> Select[Any]:
        """One row for each query: its key, ``label, share, votes, margin, nearest_distance, reason``; no
        ``votes`` where it is not rows that vote.

        :param found: the neighbours: ``n``, which tells the queries apart, ``distance``, and ``label``.
        :param sizes: what a vote is divided by, for each label.
        """
        won = self.winners(self.votes(found, label, sizes))
        named = keys_of_queries(asked)
        reason = self.limits.reason(won, asked.c.vector, share=self.kind == "class").label("reason")
        told = (
            select(asked.c.n.label("n"), *named, *(each for each in won.c if each.key != "n"), reason)
            .select_from(asked.outerjoin(won, won.c.n == asked.c.n))
            .subquery()
        )
        return select(
            *(told.c[each.name] for each in named),
            case((told.c.reason.is_(None), told.c.label)).label("label"),
            told.c.share,
            *([func.coalesce(told.c.votes, 0).label("votes")] if self.by_rows else []),
            told.c.margin,
            told.c.nearest.label("nearest_distance"),
            told.c.reason,
        ).order_by(told.c.n)

    def winners(self, votes: Subquery) -> Subquery:
        """``n, label, share, votes, margin, voters, nearest``: what won for each query, ``voters`` in all."""
        count: dict[str, Callable[[Subquery], Subquery]] = {
            "class": _classes,
            "array": self._arrays,
            "number": _means,
        }
        return count[self.kind](votes)

    def votes(self, found: FromClause, label: ColumnElement[Any], sizes: CTE | None = None) -> Subquery:
        """``n, label, distance, weight, counts``; what is too far away weighs nothing and does not count."""
        distance = found.c.distance
        weight = weight_of(self.metric, self.weights, distance, found.c.n)
        counts: ColumnElement[int] = literal_column("1")
        if sizes is not None:
            weight = weight / sizes.c.size
        if self.by_rows and self.limits.max_distance is not None:
            near = distance <= self.limits.max_distance
            weight, counts = case((near, weight), else_=_NOTHING), case((near, 1), else_=0)
        votes = select(
            found.c.n,
            label.label("label"),
            distance,
            cast(weight, _FLOAT).label("weight"),
            counts.label("counts"),
        )
        if sizes is not None:
            votes = votes.select_from(found.join(sizes, sizes.c.label == label))
        return votes.subquery()

    def _arrays(self, votes: Subquery) -> Subquery:
        """Each element is a label of its own, given where its share of all votes is large enough."""
        of_query = _all_votes(votes)
        elements = select(func.unnest(votes.c.label).label("label")).distinct().correlate(votes).lateral()
        weight = _summed(votes)
        tally = (
            select(
                votes.c.n, elements.c.label, weight.label("weight"), func.sum(votes.c.counts).label("votes")
            )
            .select_from(votes.join(elements, true()))
            .where(elements.c.label.is_not(None))
            .group_by(votes.c.n, elements.c.label)
            .subquery()
        )
        share = tally.c.weight / func.nullif(of_query.c.weight, 0, type_=_FLOAT)
        shares = (
            select(*of_query.c, tally.c.label, tally.c.votes, share.label("share"))
            .select_from(of_query.outerjoin(tally, tally.c.n == of_query.c.n))
            .subquery()
        )
        least = self.limits.min_share
        given = shares.c.share > 0.5 if least is None else shares.c.share >= least
        kind: Any = votes.c.label.type
        labels = func.array_agg(aggregate_order_by(shares.c.label, shares.c.label), type_=kind).filter(given)
        lowest = func.min(shares.c.share).filter(given)
        return (
            select(
                shares.c.n,
                func.coalesce(labels, cast(array([], type_=kind.item_type), kind), type_=kind).label("label"),
                lowest.label("share"),
                func.min(shares.c.votes).filter(given).label("votes"),
                (lowest - func.coalesce(func.max(shares.c.share).filter(~given), 0)).label("margin"),
                func.min(shares.c.voters).label("voters"),
                func.min(shares.c.nearest).label("nearest"),
            )
            .group_by(shares.c.n)
            .subquery()
        )


def keys_of_queries(asked: CTE) -> list[Label[Any]]:
    """Their keys: ``key``, or where there are several ``key_1``, ``key_2``, ..."""
    keys = [key for key in asked.c if key.key.startswith("query_")]
    if len(keys) == 1:
        return [keys[0].label("key")]
    return [key.label(f"key_{number}") for number, key in enumerate(keys, 1)]


def kind_of(label: ColumnElement[Any], regression: bool | None) -> Literal["class", "array", "number"]:
    """What the labels are; numbers with a fraction are averaged unless ``regression`` says otherwise.

    :raises QueryError: values that have no mean.
    """
    affinity = label.type._type_affinity
    if regression and affinity not in (Numeric, Float, Integer):
        raise QueryError(f"regression=True, and the labels are of the type {label.type!r}; expected numbers")
    if regression or (regression is None and affinity in (Numeric, Float)):
        return "number"
    return "array" if isinstance(label.type, ARRAY) else "class"


def _summed(votes: Subquery) -> ColumnElement[float]:
    """The sum, in the order of the distance: labels of equal votes tie, whatever the order of the rows."""
    return func.sum(aggregate_order_by(votes.c.weight, votes.c.distance), type_=_FLOAT)


def _all_votes(votes: Subquery) -> Subquery:
    return (
        select(
            votes.c.n,
            _summed(votes).label("weight"),
            func.sum(votes.c.counts).label("voters"),
            func.min(votes.c.distance).label("nearest"),
        )
        .group_by(votes.c.n)
        .subquery()
    )


def _classes(votes: Subquery) -> Subquery:
    """The label of the greatest weight; of equal ones, that of the nearest row, then the smaller label."""
    tally = (
        select(
            votes.c.n,
            votes.c.label,
            _summed(votes).label("weight"),
            func.sum(votes.c.counts).label("votes"),
            func.min(votes.c.distance).label("nearest"),
        )
        .group_by(votes.c.n, votes.c.label)
        .subquery()
    )
    n, weight = tally.c.n, tally.c.weight
    order = (weight.desc(), tally.c.nearest, tally.c.label)
    # Typed, else SQLAlchemy casts it to numeric, and a sole label has less or more than all votes.
    whole_weight = func.nullif(func.sum(weight, type_=_FLOAT).over(partition_by=n), 0, type_=_FLOAT)
    second = func.coalesce(func.lead(weight).over(partition_by=n, order_by=order), _NOTHING)
    ranked = select(
        n,
        tally.c.label,
        (weight / whole_weight).label("share"),
        tally.c.votes,
        ((weight - second) / whole_weight).label("margin"),
        func.sum(tally.c.votes).over(partition_by=n).label("voters"),
        func.min(tally.c.nearest).over(partition_by=n).label("nearest"),
        func.row_number().over(partition_by=n, order_by=order).label("place"),
    ).subquery()
    best = select(*(each for each in ranked.c if each.key != "place")).where(ranked.c.place == 1)
    return best.subquery()


def _means(votes: Subquery) -> Subquery:
    """The weighted mean of numbers."""
    value = cast(votes.c.label, _FLOAT)
    weighted = func.sum(aggregate_order_by(votes.c.weight * value, votes.c.distance), type_=_FLOAT)
    return (
        select(
            votes.c.n,
            (weighted / func.nullif(_summed(votes), 0, type_=_FLOAT)).label("label"),
            cast(null(), _FLOAT).label("share"),
            func.sum(votes.c.counts).label("votes"),
            cast(null(), _FLOAT).label("margin"),
            func.sum(votes.c.counts).label("voters"),
            func.min(votes.c.distance).label("nearest"),
        )
        .group_by(votes.c.n)
        .subquery()
    )
