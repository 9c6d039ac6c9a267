"""The parameters that stand for what is searched for: texts, vectors, bits and sparse vectors, checked.

Texts become vectors in the bind processor of :class:`QueryVectorType`: not when the statement is built,
printed or compiled, and once for each statement object.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, UserDefinedType

from pgembed.columns import Array, Embedding, TextEncoder, VectorType, answered, as_array
from pgembed.columns.types import is_postgres
from pgembed.columns.values import Storage, as_bits, as_sparse
from pgembed.encoders.text.texts import checked
from pgembed.encoders.threads import encoder_errors, off_event_loop
from pgembed.exc import QueryError, UnsupportedDialectError, VectorValueError

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
