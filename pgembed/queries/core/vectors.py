"""What is searched for: a text, a vector, a row, a bound parameter or an SQL expression, as SQL."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray
from sqlalchemy import (
    ARRAY,
    JSON,
    BinaryExpression,
    BindParameter,
    Boolean,
    Date,
    DateTime,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    Select,
    String,
    Time,
    Uuid,
    and_,
    bindparam,
    inspect,
    select,
)
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.sql.elements import ClauseElement, ColumnElement
from sqlalchemy.sql.selectable import ScalarSelect
from sqlalchemy.types import TypeEngine

from pgembed.columns.values import as_bits
from pgembed.exc import QueryError
from pgembed.queries.core.parameters import QueryBitsType, QuerySparseType, QueryText, QueryVectorType
from pgembed.queries.core.subject import Subject, differ

#: What a search is for: text, a vector, ``bindparam("q")``, an entity, or a scalar subquery.
Query: TypeAlias = str | list[float] | NDArray[Any] | ColumnElement[Any] | Select[Any] | object


#: What types are not, whatever decorates them (of operators, types are guessed).
_NO_VECTORS = {String, Numeric, Float, Integer, Boolean, DateTime, Date, Time, Interval, LargeBinary, Uuid}
_NO_VECTORS |= {JSON, ARRAY}


@runtime_checkable
class Composed(Protocol):
    """A query that is made of others."""

    def query_sql(self, subject: Subject) -> tuple[ColumnElement[Any], list[ColumnElement[bool]]]:
        """What :func:`query_sql` returns for it."""


def query_sql(subject: Subject, query: Query) -> tuple[ColumnElement[Any], list[ColumnElement[bool]]]:
    """The vector that is searched for as SQL, and what must hold for rows beside the search's own conditions.

    :raises QueryError: ``query`` is nothing that can be searched for, such as a blank text.
    :raises VectorValueError: a sequence that is not a vector of numbers, or of bits.
    :raises DimensionMismatchError: a vector of other dimensions than the column's.
    """
    kind = query_type(subject)
    if isinstance(query, str | QueryText) and isinstance(kind, QueryVectorType):
        return bindparam("query", kind.accepted(query), type_=kind, unique=True), []
    if isinstance(query, BindParameter):
        return typed(query, kind), []
    if isinstance(query, Composed):
        return query.query_sql(subject)
    if isinstance(query, Select):
        query = query.scalar_subquery()
    if isinstance(query, ClauseElement) or hasattr(query, "__clause_element__"):
        return _expression(query), []
    state = inspect(query, raiseerr=False)
    if isinstance(state, InstanceState):
        return _row(subject, state)
    if query is None:
        raise QueryError(
            "the query is None; expected a text, a vector, bindparam(...), an entity or a subquery"
        )
    value = query
    if isinstance(kind, QueryVectorType):
        value = kind.to_array(query)
    elif isinstance(kind, QueryBitsType):
        value = as_bits(query, kind.dimensions)
    elif isinstance(kind, QuerySparseType):
        value = kind.to_sparse(query)
    return bindparam("query", value, type_=kind, unique=True), []


def query_type(subject: Subject) -> TypeEngine[Any]:
    """The type of a query parameter."""
    if subject.storage == "bit" and subject.dimensions is not None:
        return QueryBitsType(subject.dimensions)
    directed = subject.metric.name == "cosine"
    if subject.storage == "sparsevec":
        return QuerySparseType(subject.dimensions, directed)
    if subject.storage not in ("vector", "halfvec"):
        return subject.column.type
    storage: Any = subject.storage
    return QueryVectorType(subject.dimensions, storage, subject.declaration, directed, str(subject))


def typed(parameter: BindParameter[Any], kind: TypeEngine[Any]) -> BindParameter[Any]:
    """The user's parameter with a type that understands texts."""
    if parameter.required:
        return bindparam(parameter.key, type_=kind, required=True, unique=parameter.unique)
    return bindparam(parameter.key, parameter.value, type_=kind, unique=parameter.unique)


def _expression(query: Any) -> ColumnElement[Any]:
    expression = query.__clause_element__() if hasattr(query, "__clause_element__") else query
    one = (
        "a search has one query vector: select(...).scalar_subquery() of one row. For each row of a table, "
        "there are search_many() and knn_classify_many()"
    )
    if not isinstance(expression, ColumnElement) or select(expression).get_final_froms():
        raise QueryError(f"the query {query} is an expression over the rows of a table, and {one}")
    kind = expression.type
    if kind._type_affinity in _NO_VECTORS and not isinstance(expression, BinaryExpression):
        raise QueryError(f"the query {query} is of the type {kind!r}; expected a vector")
    if not isinstance(expression, ScalarSelect):
        return expression
    inner: Any = expression.element
    if len(inner.selected_columns) > 1:
        raise QueryError(f"the query is a subquery of {len(inner.selected_columns)} columns, and {one}")
    if getattr(inner, "_correlate", None) or getattr(inner, "_correlate_except", None) is not None:
        raise QueryError(f"the query is a subquery that is correlated to the rows of a table, and {one}")
    # Without this, a subquery over the table that is searched would be correlated to it and lose its FROM.
    return expression.correlate(None)


def _row(subject: Subject, state: InstanceState[Any]) -> tuple[ColumnElement[Any], list[ColumnElement[bool]]]:
    """The stored vector of an entity, which is not a neighbour of itself."""
    identity = identity_of(subject, state)
    vector, keys = stored(subject)
    own = and_(*(key == value for key, value in zip(keys, identity, strict=True)))
    return select(vector).where(own).scalar_subquery(), [differ(subject.keys, identity)]


def identity_of(subject: Subject, state: InstanceState[Any]) -> tuple[Any, ...]:
    """The primary key of an entity, one of those that are searched.

    :raises QueryError: it is of another class, or not stored yet.
    """
    mapper = inspect(subject.entity, raiseerr=False)
    searched: Any = getattr(mapper, "mapper", None)
    # Classes of one hierarchy share the columns of the tables that they share.
    related = searched is not None and searched.base_mapper is state.mapper.base_mapper
    if not related or subject.column.table not in state.mapper.tables:
        raise QueryError(
            f"the query is of the class {state.class_.__name__}, and {subject} is searched. For the vector "
            "of another class, pass select(...).scalar_subquery()"
        )
    if state.identity is None:
        raise QueryError(
            f"the query, of the class {state.class_.__name__}, is not stored yet: flush the session first"
        )
    return state.identity


def stored(subject: Subject) -> tuple[ColumnElement[Any], list[ColumnElement[Any]]]:
    """The vectors that are asked about, and the keys that tell whose: columns of an alias of the table.

    It is a Core alias, so that criteria for the entity (with_loader_criteria) do not hide the rows.
    """
    table = subject.column.table
    alias = table.alias()
    mapper = getattr(inspect(subject.entity, raiseerr=False), "mapper", None)
    columns = mapper.primary_key if mapper is not None and mapper.primary_key[0].table is table else None
    keys = columns or tuple(table.primary_key)  # the table of a base class has its own key
    return alias.c[subject.column.key], [alias.c[key.key] for key in keys]
