"""Building declared indexes once there is something to index."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, Index, inspect
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.schema import CreateIndex

from pgembed.exc import DeclarationError
from pgembed.indexes.declaration import vector_index_of


def create(connection: Connection, target: Index | Column[Any] | QueryableAttribute[Any]) -> Index:
    """Build the vector index of a column, unless it is there: ``CREATE INDEX IF NOT EXISTS ...``.

    Writers of the table wait while it runs. It runs in the caller's transaction.

    :param target: the index, or the column (or mapped attribute) that it is declared on.
    :raises DeclarationError: no index is declared on the column.
    """
    index = declared_index(target)
    connection.execute(CreateIndex(index, if_not_exists=True))
    return index


def is_built(connection: Connection, target: Index | Column[Any] | QueryableAttribute[Any]) -> bool:
    """Whether the declared index stands in the database."""
    index = declared_index(target)
    table = index.table
    assert table is not None
    names = {found["name"] for found in inspect(connection).get_indexes(table.name, schema=table.schema)}
    # Rendered, because a long name is shortened on the way to the database.
    return connection.dialect.identifier_preparer.format_index(index).strip('"') in names


def declared_index(target: Index | Column[Any] | QueryableAttribute[Any]) -> Index:
    """The vector index meant by ``target``.

    :raises DeclarationError: no index is declared on the column.
    """
    if isinstance(target, Index):
        return target
    column: Column[Any] = target if isinstance(target, Column) else target.property.columns[0]
    index = vector_index_of(column)
    if index is None:
        raise DeclarationError(f"no vector index is declared on {column}; declare it with index=HNSW()")
    return index
