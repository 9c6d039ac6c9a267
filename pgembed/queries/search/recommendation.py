"""``recommend``: the rows that are like some examples and unlike others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVarTuple, overload

from sqlalchemy import ColumnElement, Select, desc, func, or_, select, true
from sqlalchemy.orm import Mapped
from sqlalchemy.sql.selectable import FromClause, Subquery

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import candidates_for, choice, real
from pgembed.queries.core.nearest import Mode, Nearest, Stale
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import Entity, SearchSelect, materialized, selecting
from pgembed.queries.core.subject import VectorColumn, keys_of, resolve
from pgembed.queries.search.examples import Examples

_Ts = TypeVarTuple("_Ts")
Strategy = Literal["average", "best"]


class Recommended(SearchSelect[*_Ts]):
    """The statement of ``recommend``."""

    inherit_cache = True
    helper = "recommend"


@overload
def recommend(
    column: Mapped[Any],
    positive: Sequence[Any] = ...,
    negative: Sequence[Any] = ...,
    *,
    strategy: Strategy = ...,
    positive_weights: Sequence[float] | None = ...,
    negative_weights: Sequence[float] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    max_distance: float | None = ...,
    base: None = ...,
    candidates: int | None = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Recommended[Entity, float, float]: ...


@overload
def recommend(
    column: ColumnElement[Any],
    positive: Sequence[Any] = ...,
    negative: Sequence[Any] = ...,
    *,
    strategy: Strategy = ...,
    positive_weights: Sequence[float] | None = ...,
    negative_weights: Sequence[float] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    max_distance: float | None = ...,
    base: None = ...,
    candidates: int | None = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Recommended[*tuple[Any, ...]]: ...


@overload
def recommend(
    column: VectorColumn,
    positive: Sequence[Any] = ...,
    negative: Sequence[Any] = ...,
    *,
    strategy: Strategy = ...,
    positive_weights: Sequence[float] | None = ...,
    negative_weights: Sequence[float] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    max_distance: float | None = ...,
    base: Select[*_Ts],
    candidates: int | None = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Recommended[*_Ts, float, float]: ...


def recommend(
    column: VectorColumn,
    positive: Sequence[Any] = (),
    negative: Sequence[Any] = (),
    *,
    strategy: Strategy = "average",
    positive_weights: Sequence[float] | None = None,
    negative_weights: Sequence[float] | None = None,
    limit: int = 10,
    offset: int = 0,
    where: Any = None,
    max_distance: float | None = None,
    base: Any = None,
    candidates: int | None = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Recommended[*tuple[Any, ...]]:
    """The rows like the positive examples and unlike the negative ones: rows ``(Entity, distance, score)``.

    ::

        session.execute(recommend(Article.embedding, positive=[article, 17], negative=["football"])).all()

    The two strategies are Qdrant's (https://qdrant.tech/documentation/concepts/explore/):

    ``"average"``
        one search, for ``avg(positive) + avg(positive) - avg(negative)``, or ``avg(positive)`` where there
        are no negative examples. Vectors are averaged as they are, without being normalised.
    ``"best"``
        each row is compared with each example. Where ``s``, its greatest score among the positive examples,
        is greater than ``n``, the greatest among the negative ones, its score is ``s``, else ``-n * n``.
        ``distance`` is that to the nearest positive example. Negative examples alone will do.

    The best come first, equal scores in the order of the primary key. Examples that are rows of the table are
    not recommended themselves; those without a vector do not count.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here;
        of the type vector or halfvec.
    :param positive: a list of entities, primary keys (a composite key as a tuple, a key that is a text as
        ``("key",)``), texts and vectors (lists or arrays).
    :param negative: a list of the same kind.
    :param positive_weights: a number above 0 for each positive example, for ``"average"``.
    :param negative_weights: a number above 0 for each negative example.
    :param candidates: with an index, ``"best"`` scores as many neighbours of each positive example; left out,
        four times the rows asked for and at least 50. Without an index, or with ``mode="exact"``, it scores
        all rows.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: a vector is of other dimensions than the column.
    """
    choice("strategy", strategy, ("average", "best"))
    most = None if max_distance is None else real("max_distance", max_distance)
    subject = resolve(column, metric)
    examples = Examples.of(subject, positive, negative, positive_weights, negative_weights)
    conditions = [*subject.conditions(where, stale), *examples.conditions]
    settings = SearchSettings(ef_search, probes)
    if strategy == "average":
        if candidates is not None:
            raise QueryError('candidates= has no effect with strategy="average": pass limit=')
        query = examples.average()
        page = Nearest(subject, query, conditions, limit, offset, most, mode, settings)
        hits = page.subquery()
        score: ColumnElement[Any] = subject.metric.score(hits.c.distance)
    else:
        if examples.weighted:
            raise QueryError('weights have no effect with strategy="best", which averages nothing')
        page = Nearest(subject, subject.vector, conditions, limit, offset, most, mode, settings)
        hits = _best(examples, page, candidates)
        score = hits.c.score
    statement = selecting(subject, base, hits, helper="recommend")
    order = [hits.c.distance] if strategy == "average" else [score.desc()]
    return Recommended.sealing(
        statement.order_by(*order, *subject.keys),
        subject.entity,
        legs=[page],
        page=(page, base) if strategy == "average" else None,
        distance=hits.c.distance,
        score=score,
    )


def _best(examples: Examples, page: Nearest, candidates: int | None) -> Subquery:
    subject = page.subject
    rows = _compared(examples, page, candidates_for(page.rows, candidates))
    near, score = examples.scores(rows.c.payload_1, rows)
    keys = keys_of(subject, rows)
    found = (
        select(*keys, score.label("score"), near.c.liked.label("distance"))
        .select_from(rows.join(near, true()))
        .where(or_(near.c.liked.is_not(None), near.c.disliked.is_not(None)))
    )
    if page.max_distance is not None:
        found = found.where(near.c.liked <= page.max_distance)
    found = found.order_by(desc("score"), *keys).limit(page.limit)
    return (found.offset(page.offset) if page.offset else found).subquery()


def _compared(examples: Examples, page: Nearest, candidates: int) -> FromClause:
    """The rows that are compared with the examples: keys and vectors."""
    subject = page.subject
    columns = [
        *(key.label(f"key_{number}") for number, key in enumerate(subject.keys, 1)),
        subject.vector.label("payload_1"),
    ]
    if not page.approximate or not examples.has_positive:
        return select(*columns).where(subject.vector.is_not(None), *page.conditions).subquery()
    rows = examples.rows
    numbered = select(func.row_number().over().label("n"), rows.c.vector).where(rows.c.positive)
    asked = materialized(numbered, "asked")
    near = Nearest(
        subject, asked.c.vector, page.conditions, candidates, 0, None, page.mode, page.settings, asked
    ).subquery(subject.vector)
    keys = keys_of(subject, near)
    return select(*keys, near.c.payload_1).distinct().subquery()
