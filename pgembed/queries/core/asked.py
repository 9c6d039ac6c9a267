"""Several queries as rows: a list of texts or vectors, or the rows of a select."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from sqlalchemy import (
    ARRAY,
    Boolean,
    Column,
    FromClause,
    SelectBase,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import CompileError
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.operators import is_comparison
from sqlalchemy.sql.selectable import CTE
from sqlalchemy.types import TypeDecorator, TypeEngine

from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError, DimensionMismatchError, QueryError, VectorValueError
from pgembed.queries.core.parameters import QueryText, QueryVectorType, encode
from pgembed.queries.core.statement import materialized
from pgembed.queries.core.subject import Subject, differ, resolve
from pgembed.queries.core.vectors import query_type, typed

#: Texts and vectors, ``bindparam("queries")``, a select of keys and vectors, a vector column, or a condition.
Queries: TypeAlias = Sequence[Any] | ColumnElement[Any] | SelectBase | FromClause | object


class QueryVectorsType(TypeDecorator[Any]):
    """The type of a parameter of several queries, whose texts are encoded in one batch.

    :param kind: the type of one of them.
    """

    impl = ARRAY
    cache_ok = True

    def __init__(self, kind: TypeEngine[Any]) -> None:
        super().__init__(kind)
        self.kind = kind

    def accepted(self, queries: Any) -> list[Any]:
        """The queries as the elements of a parameter; texts are encoded later.

        :raises QueryError: they are not a list, or one of them cannot be searched for.
        """
        if isinstance(queries, str | bytes | Mapping) or not isinstance(queries, Sequence | np.ndarray):
            raise QueryError(
                f"the queries are of the type {type(queries).__name__}; expected a list of texts or vectors, "
                "bindparam(...), a select of keys and vectors, a vector column of a table, or a condition on "
                "the rows searched"
            )
        if not len(queries):
            raise QueryError("the list of queries is empty; expected at least one text or vector")
        if np.isscalar(queries[0]) and not isinstance(queries[0], str):
            raise VectorValueError("the queries are one vector; expected a list of vectors or texts")
        return [self._accepted(query) for query in queries]

    def _accepted(self, query: Any) -> Any:
        if query is None:
            raise QueryError("one of the queries is None; expected a text or a vector")
        return self.kind.accepted(query) if isinstance(self.kind, QueryVectorType) else query

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        if value is None:
            return None
        queries = self.accepted(value)
        texts = [query for query in queries if isinstance(query, QueryText)]
        if texts and isinstance(self.kind, QueryVectorType) and self.kind.declaration is not None:
            encode(texts, self.kind.declaration, self.kind.dimensions, self.kind.column)
        return queries


def asked_by(
    subject: Subject,
    queries: Queries,
    *also: ColumnElement[Any],
    every: bool = False,
    beside: tuple[FromClause, ColumnElement[bool]] | None = None,
) -> tuple[CTE, list[ColumnElement[bool]]]:
    """The queries as a CTE ``(n, query_1, ..., vector, ...)``, and what must hold for rows beside the
    search's own conditions.

    Of a list, the key is the position, from 0. Of a select, the keys are the columns before the first vector;
    those behind it are there for conditions. Queries whose keys are the primary key of the table that is
    searched do not find themselves. A vector column stands for all rows of its table, a condition for the
    rows of the entity that fulfil it.

    :param also: further columns of the entity, where the queries are rows of it: ``also_1``, ...
    :param every: keep the queries that have no vector, which find nothing.
    :param beside: rows of which ``also`` has columns, at most one for each row of the entity, and which.
    :raises QueryError: ``queries`` are nothing that can be searched for.
    :raises DimensionMismatchError: vectors of other dimensions than the column's.
    """
    given: Any = queries
    if _is_vector(given):
        table = resolve(given)
        queries = select(*table.keys, table.vector)
    elif hasattr(given, "__clause_element__"):
        queries = given = given.__clause_element__()
    if _is_condition(given):
        if subject.owner is None:
            subject.check_own(given, "queries=")
        fulfilled = [given] if subject.owner is None else subject.conditions(given, "include")
        rows = select(*subject.keys, subject.vector, *also).where(*fulfilled)
        queries = rows if beside is None else rows.join_from(subject.entity, *beside, isouter=True)
    if isinstance(queries, SelectBase):
        in_order = bool(getattr(queries, "_order_by_clauses", ()))
        return _rows(subject, queries.subquery(), every=every, is_sorted=in_order)
    if isinstance(queries, FromClause):
        return _rows(subject, queries, every=every)
    kind = QueryVectorsType(query_type(subject))
    if isinstance(queries, BindParameter):
        parameter = typed(queries, kind)
    else:
        parameter = bindparam("queries", kind.accepted(queries), type_=kind, unique=True)
    unnested = (
        func.unnest(parameter, type_=kind.kind)
        .table_valued(column("vector", kind.kind), with_ordinality="n")
        .render_derived()
    )
    numbered = select(unnested.c.n, (unnested.c.n - 1).label("query_1"), unnested.c.vector)
    return materialized(numbered, "asked"), []


def _is_vector(queries: Any) -> bool:
    is_column = isinstance(queries, QueryableAttribute | Column) and hasattr(queries, "type")
    return is_column and _shape(queries) is not None


def _is_condition(queries: Any) -> bool:
    if not isinstance(queries, ColumnElement) or isinstance(queries, BindParameter):
        return False
    operator: Any = getattr(queries, "operator", None)
    return isinstance(queries.type, Boolean) or is_comparison(operator)


def _rows(
    subject: Subject, rows: FromClause, *, every: bool, is_sorted: bool = False
) -> tuple[CTE, list[ColumnElement[bool]]]:
    columns = list(rows.c)
    shapes = [_shape(each) for each in columns]
    place = next((number for number, shape in enumerate(shapes) if shape is not None), 1)
    if not 0 < place < len(columns):
        raise QueryError(
            f"the queries are a select of {len(columns)} columns, and the vector is column {place + 1}; "
            "expected keys and then a vector, as in select(Question.id, Question.embedding)"
        )
    dimensions = (shapes[place] or ("", None))[1]
    if dimensions is not None and subject.dimensions not in (None, dimensions):
        raise DimensionMismatchError(dimensions, subject.dimensions)
    keys, vector = columns[:place], columns[place]
    numbered = select(
        func.row_number().over(order_by=None if is_sorted else keys).label("n"),
        *(key.label(f"query_{number}") for number, key in enumerate(keys, 1)),
        vector.label("vector"),
        *(each.label(f"also_{number}") for number, each in enumerate(columns[place + 1 :], 1)),
    )
    asked = materialized(numbered if every else numbered.where(vector.is_not(None)), "asked")
    conditions: list[ColumnElement[bool]] = [asked.c.vector.is_not(None)] if every else []
    if not _is_key(subject, keys):
        return asked, conditions
    asked_keys = (asked.c[f"query_{number}"] for number in range(1, len(keys) + 1))
    return asked, [*conditions, differ(subject.keys, asked_keys)]


def _shape(given: Any) -> tuple[str, int | None] | None:
    try:
        return shape_of(given.type)
    except (DeclarationError, CompileError):  # of an operator, the type is not known
        return None


def _is_key(subject: Subject, columns: Sequence[ColumnElement[Any]]) -> bool:
    """Whether they are the primary key of the table that is searched."""
    if len(columns) != len(subject.keys):
        return False
    return all(
        any(isinstance(base, Column) and base in key.base_columns for base in given.base_columns)
        for given, key in zip(columns, subject.keys, strict=True)
    )
