"""Examples as a query: the vectors of rows, texts and vectors that the wanted rows are like, or are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sqlalchemy import (
    ARRAY,
    Boolean,
    Float,
    and_,
    bindparam,
    case,
    column,
    func,
    inspect,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, FromClause

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import real
from pgembed.queries.core.asked import QueryVectorsType
from pgembed.queries.core.nearest import NAN
from pgembed.queries.core.statement import materialized
from pgembed.queries.core.subject import Subject
from pgembed.queries.core.sums import scaled, summable
from pgembed.queries.core.vectors import identity_of, stored

#: What an example is by value, not by key.
_GIVEN = (str, bytes, list, np.ndarray)


@dataclass(frozen=True)
class Examples:
    """Positive and negative examples with their weights.

    :ivar vectors: texts and vectors: the value, its weight, whether it is positive.
    :ivar keys: primary keys of rows, in the same way.
    :ivar weighted: whether the weights differ from 1.
    """

    subject: Subject
    vectors: Sequence[tuple[Any, float, bool]]
    keys: Sequence[tuple[tuple[Any, ...], float, bool]]
    weighted: bool

    @classmethod
    def of(
        cls,
        subject: Subject,
        positive: Any,
        negative: Any,
        positive_weights: Any,
        negative_weights: Any,
    ) -> Examples:
        """Tell what each example is: an entity or a key (a tuple, or whatever is no text and no vector), a
        text, or a vector.

        :raises QueryError: they are not lists, there is none, or one of them is nothing of that kind.
        """
        kind = summable(subject)
        vectors, keys = [], []
        given = (("positive", positive, positive_weights), ("negative", negative, negative_weights))
        for name, listed, weights in given:
            for example, weight in _weighted(name, listed, weights):
                if isinstance(example, _GIVEN):
                    vectors.append((kind.accepted(example), weight, name == "positive"))
                else:
                    keys.append((_key(subject, name, example), weight, name == "positive"))
        found = cls(
            subject,
            vectors,
            keys,
            positive_weights is not None or negative_weights is not None,
        )
        if not vectors and not keys:
            raise QueryError("there are no examples; expected at least one in positive=")
        return found

    @property
    def has_positive(self) -> bool:
        return any(is_positive for _, _, is_positive in [*self.vectors, *self.keys])

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """The rows that are examples are not recommended."""
        if not self.keys:
            return []
        if len(self.subject.keys) == 1:
            return [self.subject.keys[0].not_in([key for (key,), _, _ in self.keys])]
        return [tuple_(*self.subject.keys).not_in([key for key, _, _ in self.keys])]

    @cached_property
    def rows(self) -> CTE:
        """The examples as a CTE ``(vector, weight, positive)``; those without a vector are not among them."""
        kind = summable(self.subject)
        parts = []
        if self.vectors:
            values, weights, signs = zip(*self.vectors, strict=True)
            vectors = bindparam("examples", list(values), type_=QueryVectorsType(kind), unique=True)
            given = _unnested([("vector", kind, vectors)], weights, signs)
            parts.append(select(given.c.vector, given.c.weight, given.c.positive))
        if self.keys:
            identities, weights, signs = zip(*self.keys, strict=True)
            vector, columns = stored(self.subject)
            names = [
                (
                    f"key_{number}",
                    key.type,
                    bindparam("keys", list(values), type_=ARRAY(key.type), unique=True),
                )
                for number, (key, values) in enumerate(
                    zip(columns, zip(*identities, strict=True), strict=True), 1
                )
            ]
            given = _unnested(names, weights, signs)
            same = and_(*(key == given.c[name] for key, (name, _, _) in zip(columns, names, strict=True)))
            own = select(vector.label("vector"), given.c.weight, given.c.positive).join_from(
                given, columns[0].table, same
            )
            parts.append(own.where(vector.is_not(None)))
        return materialized(union_all(*parts) if len(parts) > 1 else parts[0], "examples")

    def average(self) -> ColumnElement[Any]:
        """SQL: the average of the positive examples, twice, less that of the negative ones.

        :raises QueryError: there is no positive example.
        """
        if not self.has_positive:
            raise QueryError(
                'there are no positive examples to average; pass some, or strategy="best", which does without'
            )
        kind = self.subject.column.type
        means = select(self._mean(True).label("liked"), self._mean(False).label("disliked")).subquery()
        add, subtract = (means.c.liked.op(sign, return_type=kind) for sign in "+-")
        both = func.coalesce(add(subtract(means.c.disliked)), means.c.liked, type_=kind)
        return select(materialized(select(both.label("vector")), "average").c.vector).scalar_subquery()

    def _mean(self, positive: bool) -> ColumnElement[Any]:
        rows, kind = self.rows, self.subject.column.type
        chosen = rows.c.positive if positive else ~rows.c.positive
        if not self.weighted:
            return func.avg(rows.c.vector, type_=kind).filter(chosen)
        total = func.sum(scaled(self.subject, rows.c.vector, rows.c.weight), type_=kind).filter(chosen)
        return scaled(self.subject, total, 1 / func.sum(rows.c.weight).filter(chosen))

    def scores(self, vector: ColumnElement[Any], beside: FromClause) -> tuple[FromClause, ColumnElement[Any]]:
        """The best score of each vector of ``beside``, over a LATERAL subquery with its distances to the
        nearest positive example, ``liked``, and to the nearest negative one, ``disliked``.

        The score is s, the greatest among the positive examples, if that is greater than n, the greatest
        among the negative ones, and else -n * n.
        """
        rows, metric = self.rows, self.subject.metric
        distance = metric.between(vector, rows.c.vector)
        liked, disliked = (
            func.min(distance).filter(distance < NAN, chosen)
            for chosen in (rows.c.positive, ~rows.c.positive)
        )
        near = select(liked.label("liked"), disliked.label("disliked")).correlate(beside).lateral()
        s, n = metric.score(near.c.liked), metric.score(near.c.disliked)
        return near, case((or_(near.c.disliked.is_(None), s > n), s), else_=-n * n)


def _unnested(columns: Sequence[tuple[str, Any, Any]], weights: Any, signs: Any) -> FromClause:
    columns = [
        *columns,
        ("weight", Float(53), bindparam("weights", list(weights), ARRAY(Float(53)), unique=True)),
        ("positive", Boolean(), bindparam("positive", list(signs), ARRAY(Boolean), unique=True)),
    ]
    return (
        func.unnest(*(value for _, _, value in columns))
        .table_valued(*(column(name, kind) for name, kind, _ in columns))
        .render_derived()
    )


def _weighted(name: str, listed: Any, weights: Any) -> list[tuple[Any, float]]:
    """:raises QueryError: not lists, or not of one length, or a weight is not above 0."""
    if isinstance(listed, str | bytes | Mapping) or not isinstance(listed, Sequence | np.ndarray):
        raise QueryError(
            f"{name}= is of the type {type(listed).__name__}; expected a list of entities, keys, texts or "
            "vectors"
        )
    if weights is None:
        return [(example, 1.0) for example in listed]
    if isinstance(weights, str) or not isinstance(weights, Sequence | np.ndarray):
        raise QueryError(f"{name}_weights={weights!r}; expected a list of numbers")
    if len(weights) != len(listed):
        raise QueryError(f"{name}_weights= has {len(weights)} numbers, and {name}= {len(listed)} examples")
    expected = "numbers above 0"
    numbers = [real(f"{name}_weights", weight, expected, finite=True) for weight in weights]
    if not all(number > 0 for number in numbers):
        raise QueryError(f"{name}_weights={weights!r}; expected {expected}")
    return list(zip(listed, numbers, strict=True))


def _key(subject: Subject, name: str, example: Any) -> tuple[Any, ...]:
    state = inspect(example, raiseerr=False)
    if isinstance(state, InstanceState):
        return identity_of(subject, state)
    given = example if isinstance(example, tuple) else (example,)
    key = tuple(value.item() if isinstance(value, np.generic) else value for value in given)
    wrong = (value is None or isinstance(value, bool | float) for value in key)
    if len(key) != len(subject.keys) or any(wrong):
        raise QueryError(
            f"{name}= holds {example!r}; expected an entity, a key of {subject.column.table} "
            f"({len(subject.keys)} values), a text or a list of numbers"
        )
    return key
