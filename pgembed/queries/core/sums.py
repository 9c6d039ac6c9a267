"""``vector_of``: sums of weighted vectors, such as king - man + woman, as a query."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from sqlalchemy import REAL, BindParameter, bindparam, cast, func, inspect, select
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.sql.elements import ClauseElement, ColumnElement

from pgembed.columns import Array, Embedding, as_array
from pgembed.exc import QueryError
from pgembed.queries.core.arguments import real
from pgembed.queries.core.parameters import QueryText, QueryValue, QueryVectorType, encode
from pgembed.queries.core.subject import Subject
from pgembed.queries.core.vectors import Query, query_sql, query_type


def vector_of(query: Query) -> VectorSum:
    """A query that can be added, subtracted, and multiplied by numbers.

    ::

        semantic_search(Word.embedding, vector_of("king") - vector_of("man") + vector_of("woman"))
        semantic_search(Article.embedding, 0.7 * vector_of(article) + 0.3 * vector_of("but shorter"))

    The sum is a query of every helper. Its texts are encoded in one batch when the statement is executed; the
    vectors are summed up as they are, without being normalised. Entities in it are not found themselves. One
    that has no vector makes the sum NULL, and nothing is found.

    :param query: a text, a vector, ``bindparam("q")``, an entity or a scalar subquery.
    """
    return query if isinstance(query, VectorSum) else VectorSum([(1.0, query)])


class VectorSum:
    """Terms with their weights; see :func:`vector_of`."""

    __array_ufunc__ = None  # array + sum is our __radd__, not numpy's elementwise sum

    def __init__(self, terms: list[tuple[float, Any]]) -> None:
        self._terms = terms

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} * {term!r}" for weight, term in self._terms)

    def __add__(self, other: Any) -> VectorSum:
        return VectorSum([*self._terms, *vector_of(other)._terms])

    def __radd__(self, other: Any) -> VectorSum:
        return vector_of(other) + self

    def __sub__(self, other: Any) -> VectorSum:
        return self + -vector_of(other)

    def __rsub__(self, other: Any) -> VectorSum:
        return vector_of(other) - self

    def __neg__(self) -> VectorSum:
        return self * -1

    def __mul__(self, weight: float) -> VectorSum:
        """:raises QueryError: the weight is not a finite number."""
        factor = real("the weight of a vector", weight, "a finite number", finite=True)
        return VectorSum([(factor * own, term) for own, term in self._terms])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> VectorSum:
        """:raises QueryError: the divisor is not a finite number, or is 0."""
        number = real("the divisor of a vector", divisor, "a finite number", finite=True)
        if number == 0:
            raise QueryError("the divisor of a vector is 0; expected another number")
        return self * (1 / number)

    def query_sql(self, subject: Subject) -> tuple[ColumnElement[Any], list[ColumnElement[bool]]]:
        """The sum as SQL: one parameter for all texts and vectors, plus what the database knows.

        :raises QueryError: vectors of the column cannot be summed up, or one of the terms cannot be searched
            for.
        """
        kind = summable(subject)
        given, parts, conditions = [], [], []
        for weight, term in self._terms:
            if _is_given(term):
                given.append((weight, kind.accepted(term)))
            else:
                part, also = query_sql(subject, term)
                parts.append(scaled(subject, part, weight))
                conditions += also
        if given:
            directed = kind.directed and not parts
            of_given = QueryVectorType(kind.dimensions, kind.storage, kind.declaration, directed, kind.column)
            parts.insert(0, bindparam("query", QuerySum(given), type_=of_given, unique=True))
        total = reduce(lambda left, right: left.op("+", return_type=subject.column.type)(right), parts)
        # As a subquery, it is computed once and not for each row.
        return total if isinstance(total, BindParameter) else select(total).scalar_subquery(), conditions


class QuerySum(QueryValue):
    """Texts and vectors with their weights, whose sum is the vector that is searched for."""

    __slots__ = ("terms",)

    def __init__(self, terms: list[tuple[float, QueryText | Array]]) -> None:
        self.terms = terms

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} * {term!r}" for weight, term in self.terms)

    def vector(self, declaration: Embedding | None, dimensions: int | None, column: str) -> Array:
        texts = [term for _, term in self.terms if isinstance(term, QueryText)]
        if texts:
            encode(texts, declaration, dimensions, column)
        vectors = (
            (weight, term.vector(declaration, dimensions, column) if isinstance(term, QueryText) else term)
            for weight, term in self.terms
        )
        total = np.sum([weight * vector.astype(np.float64) for weight, vector in vectors], axis=0)
        return as_array(total, dimensions)


def summable(subject: Subject) -> QueryVectorType:
    """The type of a query parameter.

    :raises QueryError: there is no sum of vectors of the column's type.
    """
    kind = query_type(subject)
    if not isinstance(kind, QueryVectorType):
        raise QueryError(
            f"{subject} is a column of the type {subject.storage}, whose values have no sum; expected vector "
            "or halfvec"
        )
    return kind


def scaled(subject: Subject, vector: ColumnElement[Any], weight: Any) -> ColumnElement[Any]:
    """SQL: a vector times a number. (pgvector multiplies vectors with vectors, element by element.)"""
    if isinstance(weight, float) and weight == 1:
        return vector
    dimensions = subject.dimensions or func.vector_dims(vector)
    factor = cast(func.array_fill(cast(weight, REAL), array([dimensions])), subject.column.type)
    return vector.op("*", return_type=subject.column.type, precedence=7)(factor)


def _is_given(term: Any) -> bool:
    """Whether it is a text or a vector, and not for the database to say."""
    if term is None or isinstance(term, ClauseElement) or hasattr(term, "__clause_element__"):
        return False
    return not isinstance(inspect(term, raiseerr=False), InstanceState)
