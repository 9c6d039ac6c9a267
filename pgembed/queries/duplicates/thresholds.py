"""``suggest_threshold``: from which score on rows are duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ARRAY, Boolean, Connection, Select, cast, column, func, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import real, whole
from pgembed.queries.core.reading import check_session
from pgembed.queries.core.subject import Subject, VectorColumn, key_of, resolve
from pgembed.queries.core.vectors import stored
from pgembed.queries.duplicates.edges import selectable_of
from pgembed.queries.search.many import search_many

#: Distances below this are those of copies.
_SAME = 1e-6
#: Fewer nearest neighbours on one side of a threshold say nothing about how they are spread.
_FEWEST = 5


@dataclass(frozen=True)
class Threshold:
    """A ``min_score``, and how well it tells labelled pairs apart.

    :ivar f1: the harmonic mean of precision and recall; ``None``, as those, without labelled pairs.
    :ivar pairs: how many scores it was found with.
    """

    min_score: float
    precision: float | None
    recall: float | None
    f1: float | None
    pairs: int


def suggest_threshold(
    session: Session | Connection,
    column: VectorColumn,
    labelled: Any = None,
    *,
    precision: float | None = None,
    sample: int = 1000,
    where: Any = None,
    metric: str | None = None,
) -> Threshold:
    """The ``min_score`` that tells duplicates from others best.

    ::

        suggest_threshold(session, Article.embedding, [(1, 7, True), (2, 9, False), ...])
        suggest_threshold(session, Article.embedding, labelled, precision=0.95)
        suggest_threshold(session, Article.embedding)

    With labelled pairs, it is the one of the best F1; with ``precision``, the one of the most recall whose
    precision is at least that. It lies in the middle between two scores.

    Without them it is a guess, to be looked at with ``near_duplicates(..., min_score=, max_score=)``: the
    nearest neighbours of a sample of rows are of two kinds, duplicates and others, whose scores are taken for
    two normal distributions, and the threshold is where the fewest are on the wrong side (Kittler and
    Illingworth, "Minimum error thresholding", 1986). Copies, at a distance of 0, are left out. A table with
    hardly any duplicates has no such place, and gets one all the same.

    :param labelled: a list of ``(left_key, right_key, is_duplicate)``, or a table or select with the columns
        ``left_key``, ``right_key`` and ``duplicate``; a composite key is a tuple, or a JSON array. Pairs of
        rows without a vector are left out.
    :param precision: a wished precision, above 0 and up to 1.
    :param sample: how many rows, without labelled pairs.
    :param where: which rows, without labelled pairs.
    :raises QueryError: there are no pairs of both kinds, too few rows, or no threshold has that precision.
    """
    check_session(session, "suggest_threshold", twin=False)
    subject = resolve(column, metric)
    if labelled is None:
        if precision is not None:
            raise QueryError(f"precision={precision} needs labelled pairs, which tell right from wrong")
        return _guess(session, subject, column, whole("sample", sample, 1), where, metric)
    rows = session.execute(_scores(subject, labelled)).all()
    scores = np.array([row[0] for row in rows], dtype=np.float64)
    right = np.array([bool(row[1]) for row in rows])
    kept = np.isfinite(scores)
    scores, right = scores[kept], right[kept]
    if right.all() or not right.any():
        raise QueryError(
            f"{len(right)} labelled pairs have vectors, {right.sum()} of them duplicates; "
            "expected pairs of both kinds"
        )
    return _best(scores, right, precision)


def _scores(subject: Subject, labelled: Any) -> Select[Any]:
    (left, left_keys), (right, right_keys) = stored(subject), stored(subject)
    score = subject.metric.score(subject.metric.between(left, right)).label("score")
    if isinstance(labelled, Sequence) and not isinstance(labelled, str):
        given = _unnested(subject, labelled)
        sides = [
            [given.c[f"{side}_{n}"] for n, _ in enumerate(subject.keys, 1)] for side in ("left", "right")
        ]
        same = [
            key == other
            for keys, others in zip((left_keys, right_keys), sides, strict=True)
            for key, other in zip(keys, others, strict=True)
        ]
    else:
        given = selectable_of(labelled, "labelled", ("left_key", "right_key", "duplicate"))
        same = [key_of(left_keys) == given.c.left_key, key_of(right_keys) == given.c.right_key]
    found: Select[Any] = select(score, cast(given.c.duplicate, Boolean))
    return found.where(*same, left.is_not(None), right.is_not(None), given.c.duplicate.is_not(None))


def _unnested(subject: Subject, labelled: Sequence[Any]) -> FromClause:
    """:raises QueryError: the pairs are not triples of two keys and a boolean."""
    count = len(subject.keys)
    columns: list[list[Any]] = [[] for _ in range(2 * count + 1)]
    for each in labelled:
        try:
            left, right, same = each
            keys = [tuple(key) if count > 1 else (key,) for key in (left, right)]
        except (TypeError, ValueError):
            keys = []
        if [len(key) for key in keys] != [count, count] or not isinstance(same, bool | np.bool_):
            raise QueryError(f"labelled holds {each!r}; expected (left_key, right_key, True or False)")
        for values, value in zip(columns, (*keys[0], *keys[1], bool(same)), strict=True):
            values.append(value)
    if not labelled:
        raise QueryError("labelled is empty; expected pairs of both kinds")
    types = [*(key.type for key in subject.keys), *(key.type for key in subject.keys), Boolean()]
    names = [f"{side}_{n}" for side in ("left", "right") for n in range(1, count + 1)]
    arrays = (cast(values, ARRAY(kind)) for values, kind in zip(columns, types, strict=True))
    named: list[ColumnElement[Any]] = [
        column(name, kind) for name, kind in zip([*names, "duplicate"], types, strict=True)
    ]
    return func.unnest(*arrays).table_valued(*named).render_derived()


def _best(scores: NDArray[np.float64], right: NDArray[np.bool_], precision: float | None) -> Threshold:
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))  # of each run of equal scores
    hits = np.cumsum(right)[last]
    precisions, recalls = hits / (last + 1), hits / right.sum()
    f1 = 2 * hits / (last + 1 + right.sum())
    if precision is None:
        best = int(np.argmax(f1))
    else:
        wished = real("precision", precision)
        if not 0 < wished <= 1:
            raise QueryError(f"precision={precision!r}; expected a number above 0 and up to 1")
        enough = np.flatnonzero(precisions >= wished)
        if not len(enough):
            raise QueryError(
                f"no threshold has a precision of {wished} on these pairs; the best is {precisions.max():.4f}"
            )
        best = int(enough[np.argmax(recalls[enough])])
    end = last[best]
    score = float(scores[end] if end + 1 == len(scores) else (scores[end] + scores[end + 1]) / 2)
    return Threshold(score, float(precisions[best]), float(recalls[best]), float(f1[best]), len(scores))


def _guess(
    session: Session | Connection,
    subject: Subject,
    column: VectorColumn,
    sample: int,
    where: Any,
    metric: str | None,
) -> Threshold:
    conditions = [*subject.conditions(where, "include"), subject.vector.is_not(None)]
    some = select(*subject.keys, subject.vector).where(*conditions).order_by(func.random()).limit(sample)
    nearest = search_many(column, some.subquery(), limit=1, where=where, metric=metric)
    rows = session.execute(nearest.with_only_columns(nearest.selected_columns.distance)).all()
    distances = np.array([row[0] for row in rows], dtype=np.float64)
    scores = np.sort(subject.metric.score(distances[np.abs(distances) > _SAME]))
    if len(scores) < 2 * _FEWEST:
        raise QueryError(
            f"{len(scores)} rows have a nearest neighbour that is not a copy; expected at least {2 * _FEWEST}"
        )
    split = minimum_error(scores)
    return Threshold(float((scores[split - 1] + scores[split]) / 2), None, None, None, len(scores))


def minimum_error(values: NDArray[np.float64]) -> int:
    """Where two normal distributions meet: the number of sorted values that belong to the lower one."""
    count = len(values)
    below = np.arange(_FEWEST, count - _FEWEST + 1)
    sums, squares = np.cumsum(values), np.cumsum(values**2)
    error = np.ones(len(below))
    for parts, total, square in (
        (below, sums[below - 1], squares[below - 1]),
        (count - below, sums[-1] - sums[below - 1], squares[-1] - squares[below - 1]),
    ):
        spread = np.maximum(square / parts - (total / parts) ** 2, np.var(values) * 1e-4)
        share = parts / count
        error += share * np.log(spread) - 2 * share * np.log(share)
    return int(below[np.argmin(error)])
