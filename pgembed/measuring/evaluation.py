"""``evaluate``: how good labels by neighbours are, measured on the rows whose labels are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Float,
    Integer,
    Text,
    and_,
    cast,
    false,
    func,
    literal,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from pgembed.constants import LEAST_EXPONENT, VOTE_OFFSET
from pgembed.exc import QueryError
from pgembed.indexes.errors import NoNeighboursError
from pgembed.measuring.curve import check_drawing, figure_of
from pgembed.metrics import Metric
from pgembed.queries.classification.neighbourhoods import neighbours
from pgembed.queries.classification.votes import Softmax, Weights, kind_of, weight_of
from pgembed.queries.core.arguments import comparable, conditions, real, whole
from pgembed.queries.core.nearest import Mode, Stale
from pgembed.queries.core.reading import check_session
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import materialized
from pgembed.queries.core.subject import Subject, VectorColumn, key_of, resolve

_Floats: TypeAlias = NDArray[np.float64]
_Codes: TypeAlias = NDArray[np.int64]
#: What is tried where the best is asked for.
KS = (1, 3, 5, 7, 10, 15, 20, 30, 50)
TEMPERATURES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
#: Shares are compared with accuracies in this many ranges of equal width.
_BINS = 15
#: Scores of rows times labels that are held at once.
_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Coverage:
    """What ``min_share`` would do: the share of rows that keep a label, and how many of those are right."""

    min_share: float
    coverage: float
    accuracy: float


@dataclass(frozen=True)
class Confused:
    """How many rows with ``label`` have got ``predicted``; ``None`` where there was no neighbour."""

    label: Any
    predicted: Any
    rows: int


@dataclass(frozen=True)
class Evaluation:
    """How good labels by neighbours are.

    :ivar rows: how many rows were evaluated, by ``k`` neighbours.
    :ivar accuracy: the share of rows that got their own label.
    :ivar macro_f1: the mean of the labels' F1, over all labels that rows have or have got.
    :ivar calibration_error: the expected calibration error: how far shares are from accuracies, the mean over
        the rows, in 15 ranges of shares.
    :ivar coverage: for ``min_share`` of 0, 0.1, ... 1.
    :ivar confusion: the confusion matrix: its entries above 0, by label and predicted label.
    :ivar best_k: with the greatest accuracy of those tried; of equal ones, the smallest.
    :ivar accuracies: by the ``k`` that were tried.
    :ivar best_temperature: of softmax weights at ``best_k``: with the least log-loss of those tried.
    """

    rows: int
    k: int
    accuracy: float
    macro_f1: float
    calibration_error: float
    coverage: tuple[Coverage, ...]
    confusion: tuple[Confused, ...]
    best_k: int
    accuracies: dict[int, float] = field(hash=False)
    best_temperature: float

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for JSON."""
        return asdict(self)

    def plot(self, path: Path | str) -> None:
        """Draw the confusion matrix into a file: PNG, SVG or PDF, as its name ends.

        :raises DeclarationError: it ends otherwise, or its folder is not there.
        :raises MissingExtraError: matplotlib is not installed.
        """
        check_drawing(path)
        named = [
            (str(found.label), None if found.predicted is None else str(found.predicted), found.rows)
            for found in self.confusion
        ]
        names = list(dict.fromkeys([*(label for label, _, _ in named), *(found for _, found, _ in named)]))
        place = {name: number for number, name in enumerate(names)}
        matrix = np.zeros((len(names), len(names)))
        for label, predicted, rows in named:
            matrix[place[label], place[predicted]] = rows
        matrix /= np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        side = 4 + 0.14 * len(names)
        drawn = figure_of("drawing a confusion matrix")(figsize=(side, side), dpi=150, layout="constrained")
        axes = drawn.add_subplot()
        drawn.colorbar(axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1), label="share of the label's rows")
        ticks = [str(name) for name in names]
        axes.set_xticks(range(len(names)), ticks, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), ticks, fontsize=6)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        axes.set_title(f"accuracy {self.accuracy:.3f}, {self.rows:,} rows, k = {self.k}")
        drawn.savefig(path)


def evaluate(
    session: Session | Connection,
    column: VectorColumn,
    *,
    label: Any,
    k: int = 15,
    weights: Weights = "distance",
    held_out: Any = None,
    seed: int = 0,
    apart: Any = None,
    where: Any = None,
    ks: Sequence[int] = KS,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Evaluation:
    """Measure what :func:`~pgembed.queries.knn_classify_many` says of rows whose label is known.

    ::

        found = evaluate(session, Article.embedding, label=Article.section, held_out=Article.id % 10 == 0)
        print(found.accuracy, found.best_k)

    One statement finds the neighbours of each labelled row, itself left out; the rest is counted here. A row
    with fewer than ``k`` neighbours gets a label of those there are, and one without any is wrong.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param label: the attribute to predict, or any expression over the entity: classes.
    :param held_out: which rows are evaluated, by all others; left out, each row by all other rows. A
        condition, evaluated for each row twice, so that it must not be random; or a share of the rows,
        between 0 and 1, which are chosen by a hash of their keys: the same ones each time.
    :param seed: another one chooses other rows.
    :param apart: rows that do not vote for each other, as for :func:`~pgembed.queries.label_issues`: copies
        of a row make its label look easier than it is.
    :param where: which rows take part at all.
    :param ks: which ``k`` to try for ``best_k``.
    :raises NoNeighboursError: there are no rows to evaluate.
    :raises QueryError: whatever cannot give the right figures.
    """
    check_session(session, "evaluate", twin=False)
    k = whole("k", k, 1)
    if not isinstance(ks, Sequence):
        raise QueryError(f"ks={ks!r}; expected the numbers of neighbours to try, such as [5, 15, 30]")
    tried = sorted({whole("ks", each, 1) for each in ks})
    if not tried:
        raise QueryError("ks is empty; expected the numbers of neighbours to try")
    subject = resolve(column, metric)
    given = subject.over(comparable("label", label, "Article.section"), "label=")
    if kind_of(given, regression=False) == "array":
        raise QueryError("label= is an array; expected labels that are classes")
    weight_of(subject.metric, weights, subject.distance(subject.vector))  # refuses those that are none
    taking_part = [given.is_not(None), *subject.conditions(where, stale)]
    training, asked_where = taking_part, taking_part
    if held_out is not None:
        if isinstance(held_out, float):
            held: ColumnElement[bool] = _share_of(subject, held_out, seed)
        else:
            own = conditions(held_out) if subject.owner is None else subject.conditions(held_out, "include")
            held = func.coalesce(and_(true(), *own), false())
        subject.check_own(held, "held_out=")
        training, asked_where = [*taking_part, ~held], [*taking_part, held]
    asked, found = neighbours(
        subject, training, max(k, *tried), mode, SearchSettings(ef_search, probes), given, apart, asked_where
    )
    # Labels are places in the order of the database, where the smaller wins (Python may have none).
    each = select(given.label("label")).where(subject.vector.is_not(None), *taking_part).subquery()
    place = cast(func.row_number().over(order_by=each.c.label) - 1, Integer).label("place")
    labels = materialized(select(each.c.label, place).group_by(each.c.label), "labels")
    other, order, has_any = labels.alias(), found.c.rank, found.c.n.is_not(None)
    places = func.array_agg(aggregate_order_by(other.c.place, order), type_=ARRAY(Integer))
    distances = func.array_agg(aggregate_order_by(found.c.distance, order), type_=ARRAY(Float))
    rows = session.execute(
        select(labels.c.label, labels.c.place, asked.c.n, places.filter(has_any), distances.filter(has_any))
        .select_from(
            labels.outerjoin(asked, asked.c.also_1 == labels.c.label)
            .outerjoin(found, found.c.n == asked.c.n)
            .outerjoin(other, other.c.label == found.c.payload_1)
        )
        .group_by(labels.c.label, labels.c.place, asked.c.n)
        .order_by(labels.c.place, asked.c.n)
    ).all()
    evaluated = [(row.place, *row[3:]) for row in rows if row.n is not None]
    if not evaluated:
        raise NoNeighboursError("no row that has a label and a vector is to be evaluated")
    names = list({row.place: row.label for row in rows}.values())
    return _Votes.of(names, evaluated, subject.metric).evaluation(k, weights, tried)


def _share_of(subject: Subject, share: float, seed: int) -> ColumnElement[bool]:
    """SQL: the row is among that share of all rows.

    :raises QueryError: it is not a share, or the seed not a whole number.
    """
    if not 0 < real("held_out", share) < 1:
        raise QueryError(f"held_out={share!r}; expected a share above 0 and below 1, or a condition")
    key = cast(key_of(subject.keys), Text)
    number = func.hashtextextended(key, literal(whole("seed", seed, 0), BigInteger), type_=BigInteger)
    return number < literal(int((share - 0.5) * 2**64), BigInteger)


@dataclass(frozen=True)
class _Votes:
    """The neighbours of rows as arrays.

    :ivar names: the labels, in their order; a label is a place in it.
    :ivar own: the label of each row.
    :ivar labels: those of its neighbours, nearest first; -1 where there are no more.
    :ivar distances: infinite where there are no more.
    """

    names: list[Any]
    own: _Codes
    labels: _Codes
    distances: _Floats
    metric: Metric

    @classmethod
    def of(cls, names: list[Any], rows: Sequence[Any], metric: Metric) -> _Votes:
        most = max(len(labels or ()) for _, labels, _ in rows)
        codes = np.full((len(rows), most), -1, np.int64)
        distances = np.full((len(rows), most), np.inf)
        for number, (_, labels, near) in enumerate(rows):
            if labels:
                codes[number, : len(labels)] = labels
                distances[number, : len(labels)] = near
        return cls(names, np.array([own for own, _, _ in rows]), codes, distances, metric)

    def evaluation(self, k: int, weights: Weights, ks: Sequence[int]) -> Evaluation:
        predicted, share, _ = self.elect(k, weights)
        right = predicted == self.own
        accuracies = {each: float(np.mean(self.elect(each, weights)[0] == self.own)) for each in ks}
        best = max(ks, key=lambda each: (accuracies[each], -each))
        losses = {each: self._loss(best, Softmax(each)) for each in TEMPERATURES}
        confusion = Counter(zip(self.own.tolist(), predicted.tolist(), strict=True))
        return Evaluation(
            rows=len(self.own),
            k=k,
            accuracy=float(right.mean()),
            macro_f1=_macro_f1(self.own, predicted),
            calibration_error=_calibration_error(share, right),
            coverage=tuple(_coverage(step / 10, share, right) for step in range(11)),
            confusion=tuple(
                Confused(self.names[own], None if found < 0 else self.names[found], rows)
                for (own, found), rows in sorted(confusion.items())
            ),
            best_k=best,
            accuracies=accuracies,
            best_temperature=min(losses, key=lambda each: losses[each]),
        )

    def elect(self, k: int, weights: Weights) -> tuple[_Codes, _Floats, _Floats]:
        """For each row the label that wins, its share, and the share of the row's own label.

        As in SQL: of equal weights the label with the nearest row wins, then the smaller one.
        """
        labels, distances = self.labels[:, :k], self.distances[:, :k]
        weight = self._weights(distances, weights)
        predicted = np.full(len(labels), -1, np.int64)
        share, own_share = np.zeros(len(labels)), np.zeros(len(labels))
        step = max(1, _AT_ONCE // len(self.names))
        for start in range(0, len(labels), step):
            part = slice(start, start + step)
            code, near, count = labels[part], distances[part], len(labels[part])
            row = np.arange(count)[:, None]
            place = np.where(code < 0, 0, code)
            scores = np.bincount(
                (row * len(self.names) + place).ravel(), weight[part].ravel(), count * len(self.names)
            ).reshape(count, -1)
            if not code.size:
                continue
            most = scores.max(axis=1, keepdims=True)
            winning = (scores[row, place] == most) & (code >= 0)
            nearest = np.where(winning, near, np.inf).min(axis=1, keepdims=True)
            best = np.where(winning & (near == nearest), code, len(self.names)).min(axis=1)
            total = scores.sum(axis=1)
            answered = total > 0
            predicted[part] = np.where(answered, best, -1)
            divisor = np.where(answered, total, 1)
            share[part] = most[:, 0] / divisor
            own_share[part] = scores[np.arange(count), self.own[part]] / divisor
        return predicted, share, own_share

    def _weights(self, distances: _Floats, weights: Weights) -> _Floats:
        """As :func:`pgembed.queries.classification.votes.weight_of` has them."""
        there = np.isfinite(distances)
        if weights == "uniform":
            return there.astype(np.float64)
        temperature = weights.temperature if isinstance(weights, Softmax) else 1.0
        if isinstance(weights, Softmax) or self.metric.name == "inner_product":
            nearest = distances[:, :1]
            exponent = np.where(there, np.where(there, nearest, 0) - np.where(there, distances, 0), 0)
            return np.exp(np.maximum(exponent / temperature, LEAST_EXPONENT)) * there
        return np.where(there, 1 / (np.maximum(distances, 0) + VOTE_OFFSET), 0)

    def _loss(self, k: int, weights: Weights) -> float:
        """The log-loss, with one vote more that all labels share: no share is 0."""
        share = self.elect(k, weights)[2]
        return float(-np.log((share * k + 1 / len(self.names)) / (k + 1)).mean())


def _macro_f1(own: _Codes, predicted: _Codes) -> float:
    scores = []
    for label in np.union1d(own, predicted[predicted >= 0]):
        both = np.sum((own == label) & (predicted == label))
        scores.append(2 * both / (np.sum(own == label) + np.sum(predicted == label)))
    return float(np.mean(scores))


def _calibration_error(share: _Floats, right: NDArray[np.bool_]) -> float:
    bins = np.minimum((share * _BINS).astype(int), _BINS - 1)
    gaps = [abs(float(np.sum(right[bins == each]) - np.sum(share[bins == each]))) for each in np.unique(bins)]
    return sum(gaps) / len(share)


def _coverage(least: float, share: _Floats, right: NDArray[np.bool_]) -> Coverage:
    kept = share >= least
    return Coverage(least, float(kept.mean()), float(right[kept].mean()) if kept.any() else 1.0)
