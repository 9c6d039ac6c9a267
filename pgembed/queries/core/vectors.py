"""What is searched for: a text, a vector, a row, a bound parameter or an SQL expression, as SQL.

Texts become vectors when the statement is executed, in the bind processor of :class:`QueryVectorType`: not
when the statement is built, printed or compiled, and once for each statement object.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
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
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.engine import Dialect
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.sql.elements import ClauseElement, ColumnElement
from sqlalchemy.sql.selectable import ScalarSelect
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from pgembed.columns import Array, Embedding, TextEncoder, VectorType, answered, as_array
from pgembed.columns.types import is_postgres
from pgembed.columns.values import Storage, as_bits, as_sparse
from pgembed.encoders.text.texts import checked
from pgembed.encoders.threads import encoder_errors, off_event_loop
from pgembed.exc import QueryError, UnsupportedDialectError, VectorValueError
from pgembed.queries.core.subject import Subject

#: What a search is for: text, a vector, ``bindparam("q")``, an entity, or a scalar subquery.
Query: TypeAlias = str | list[float] | NDArray[Any] | ColumnElement[Any] | Select[Any] | object


#: What types are not, whatever decorates them (of operators, types are guessed).
_NO_VECTORS = {String, Numeric, Float, Integer, Boolean, DateTime, Date, Time, Interval, LargeBinary, Uuid}
_NO_VECTORS |= {JSON, ARRAY}
_NO_DIRECTION = "a vector of zeros has no direction, so no cosine distance to anything"


class QueryValue:
    """A value whose vector is known when the statement is executed."""

    __slots__ = ()

    def vector(self, declaration: Embedding | None, dimensions: int | None, column: str) -> Array:
        """The vector that is searched for; texts are encoded by the encoder of the column.

        :raises QueryError: the column has no encoder.
        :raises EncoderAnswerError: the encoder answers with something else.
        """
        raise NotImplementedError


@runtime_checkable
class Composed(Protocol):
    """A query that is made of others."""

    def query_sql(self, subject: Subject) -> tuple[ColumnElement[Any], list[ColumnElement[bool]]]:
        """What :func:`query_sql` returns for it."""


class QueryText(QueryValue):
    """A text on its way to the database; it keeps its vector, so that a statement encodes once.

    :raises QueryError: the text is blank: its neighbours would be any rows.
    :raises TextError: it holds half a surrogate pair.
    """

    __slots__ = ("_encoded", "text")

    def __init__(self, text: str) -> None:
        checked([text])
        if not text.strip():
            raise QueryError(f"the text is {text!r}; expected one that says what to search for")
        self.text = text
        self._encoded: tuple[TextEncoder, Array] | None = None

    def __repr__(self) -> str:
        return repr(self.text)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.text,)  # elsewhere another encoder may be in its place

    def vector(self, declaration: Embedding | None, dimensions: int | None, column: str) -> Array:
        encode([self], declaration, dimensions, column)
        assert self._encoded is not None
        return self._encoded[1]


class DocumentText(QueryText):
    """A text that is encoded as those of the column are, to be compared with them."""

    __slots__ = ()


def encode(
    texts: Sequence[QueryText], declaration: Embedding | None, dimensions: int | None, column: str
) -> None:
    """Let the texts keep their vectors, those that have none yet by one batch.

    :raises QueryError: there is no encoder.
    :raises EncoderAnswerError: the encoder answers with something else.
    """
    if declaration is None:
        raise QueryError(
            "a text needs an encoder, and the column is not declared with embedding_column(): "
            "search for a vector"
        )
    encoder = declaration.encoder
    new = [text for text in texts if text._encoded is None or text._encoded[0] is not encoder]
    for kind, work in ((True, encoder.encode_documents), (False, encoder.encode_queries)):
        batch = [text for text in new if isinstance(text, DocumentText) is kind]
        if batch:
            answer = off_event_loop(encoder_errors(encoder.name)(work), [text.text for text in batch])
            vectors = answered(encoder, answer, len(batch), column=column)
            for text, vector in zip(batch, vectors, strict=True):
                text._encoded = encoder, as_array(vector, dimensions)


class QueryVectorType(VectorType):
    """The type of a query parameter: a vector, or a text that the column's encoder turns into one.

    The declaration is part of the cache key (it is compared by identity and holds the encoder), so that a
    cached statement never meets another encoder than its own.

    :param declaration: the embedding that is searched; ``None`` where only vectors can be searched for.
    :param directed: whether the metric needs a direction, which a vector of zeros does not have.
    :param column: what errors call the column that is searched.
    """

    cache_ok = True

    def __init__(
        self,
        dimensions: int | None = None,
        storage: Storage = "vector",
        declaration: Embedding | None = None,
        directed: bool = False,
        column: str = "",
    ) -> None:
        super().__init__(dimensions, storage)
        self.declaration = declaration
        self.directed = directed
        self.column = column

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """:raises UnsupportedDialectError: the database has no vectors to search."""
        if not is_postgres(dialect):
            raise UnsupportedDialectError(dialect.name, "a search")
        return super().bind_processor(dialect)

    def accepted(self, query: Any) -> QueryText | Array:
        """A query as the value of a parameter; texts are encoded later.

        :raises QueryError: a text that is blank or has no encoder, or zeros for the cosine metric.
        """
        if not isinstance(query, str | QueryText):
            return self.to_array(query)
        if self.declaration is None:
            raise QueryError(
                f"a text needs an encoder, and {self.column} is not declared with embedding_column(): "
                "search for a vector"
            )
        return QueryText(query) if isinstance(query, str) else query

    def to_array(self, value: Any) -> Array:
        """
        :raises QueryError: a text that is blank or has no encoder, or zeros for the cosine metric.
        :raises VectorValueError: it is no vector, such as a key or a list of texts.
        """
        if isinstance(value, str):
            value = QueryText(value)
        if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
            raise VectorValueError("the query is a list of texts; expected one: search_many() takes several")
        if isinstance(value, numbers.Number):
            raise VectorValueError(
                f"the query is {value!r}; expected a text, a vector or an entity, such as the one that "
                f"session.get(Article, {value!r}) returns"
            )
        if isinstance(value, QueryText):
            return value.vector(self.declaration, self.dimensions, self.column)
        if isinstance(value, QueryValue):
            value = value.vector(self.declaration, self.dimensions, self.column)
        array = as_array(value, self.dimensions, self.storage)
        if self.directed and not np.any(array):
            raise QueryError(_NO_DIRECTION)
        return array


class QueryBitsType(TypeDecorator[Any]):
    """The type of a query parameter for bits, whose number is checked: Postgres would cut or fill them up."""

    impl = BIT
    cache_ok = True

    def __init__(self, dimensions: int) -> None:
        super().__init__(dimensions)
        self.dimensions = dimensions

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else as_bits(value, self.dimensions)


class QuerySparseType(UserDefinedType[Any]):
    """The type of a query parameter for sparse vectors, checked as the others are.

    :param directed: as for :class:`QueryVectorType`.
    """

    cache_ok = True
    render_bind_cast = True

    def __init__(self, dimensions: int | None, directed: bool) -> None:
        self.dimensions = dimensions
        self.directed = directed

    def get_col_spec(self, **_: Any) -> str:
        return "SPARSEVEC" if self.dimensions is None else f"SPARSEVEC({self.dimensions})"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:  # noqa: ARG002
        return lambda value: None if value is None else self.to_sparse(value).to_text()

    def to_sparse(self, value: Any) -> Any:
        """:raises QueryError: zeros for the cosine metric."""
        sparse = as_sparse(value, self.dimensions)
        if self.directed and not any(sparse.values()):
            raise QueryError(_NO_DIRECTION)
        return sparse


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
    another = ~and_(*(key == value for key, value in zip(subject.keys, identity, strict=True)))
    return select(vector).where(own).scalar_subquery(), [another]


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
