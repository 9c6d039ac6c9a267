"""What an index is measured with: rows of its table, vectors, or texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from sqlalchemy import Column, Connection, func, select
from sqlalchemy import column as system_column
from sqlalchemy.sql.elements import ColumnElement

from pgembed.columns import answered, bound
from pgembed.columns.types import shape_of
from pgembed.columns.values import Array, as_array, as_bits
from pgembed.exc import QueryError

#: How many random rows to ask for; or the vectors or texts to ask for.
Queries: TypeAlias = int | Sequence[Any]
#: What identifies a row to ask for; ``None`` for what is not a row.
Key: TypeAlias = tuple[Any, ...] | None


def ask(
    connection: Connection, column: Column[Any], where: ColumnElement[bool] | None, queries: Queries
) -> list[tuple[Any, Key]]:
    """The vectors to ask for. Texts are encoded as queries, by the encoder of the column.

    :param where: which rows to draw from.
    :raises QueryError: there are none, or texts for a column that is not declared with an encoder.
    """
    if isinstance(queries, int):
        return _rows(connection, column, where, queries)
    found = list(queries)
    if not found:
        raise QueryError("queries is empty: give vectors, texts, or a number of rows")
    if any(isinstance(query, str) for query in found) and _is_of_numbers(column):
        found = list(_encoded(column, found))
    return [(_value(column, vector), None) for vector in found]


def keys_of(column: Column[Any]) -> list[ColumnElement[Any]]:
    """The primary key of the column's table; of one without, where its rows are stored."""
    table = column.table
    keys: list[ColumnElement[Any]] = list(table.primary_key)
    return keys or [system_column(name, _selectable=table) for name in ("tableoid", "ctid")]


def _encoded(column: Column[Any], texts: list[Any]) -> Array:
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise QueryError("queries are texts that are not empty, or vectors, not both")
    embedding = bound(column)
    if embedding is None:
        raise QueryError(f"{column} is not declared with an encoder, which texts need: pass vectors")
    encoder = embedding.declaration.encoder
    return answered(encoder, encoder.encode_queries(texts), len(texts), column=embedding)


def _rows(
    connection: Connection, column: Column[Any], where: ColumnElement[bool] | None, count: int
) -> list[tuple[Any, Key]]:
    if count < 1:
        raise QueryError(f"queries={count}; expected a number of at least 1")
    statement = select(*keys_of(column), column.label("query")).where(column.is_not(None))
    statement = statement if where is None else statement.where(where)
    rows = connection.execute(statement.order_by(func.random()).limit(count)).all()
    values: list[tuple[Any, Key]] = [(_value(column, row.query), tuple(row[:-1])) for row in rows]
    # A vector of zeros has no cosine distance to anything.
    found = [(value, key) for value, key in values if not isinstance(value, np.ndarray) or value.any()]
    if not found:
        raise QueryError(f"{column} has no vectors to ask for")
    return found


def _value(column: Column[Any], value: Any) -> Any:
    """A vector or bits of the right length; sparse vectors as they are."""
    storage, dimensions = shape_of(column.type)
    if storage == "bit":
        return as_bits(value, dimensions or 1)
    return as_array(value, dimensions) if _is_of_numbers(column) else value


def _is_of_numbers(column: Column[Any]) -> bool:
    return shape_of(column.type)[0] in ("vector", "halfvec")
