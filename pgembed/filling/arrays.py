"""Many vectors as one parameter: ``vector[]`` in Postgres's binary format where the driver can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sqlalchemy import Connection
from sqlalchemy.engine import Dialect
from sqlalchemy.types import UserDefinedType

from pgembed.columns import Array
from pgembed.columns.values import to_text


class NamedType(UserDefinedType[Any]):
    """A type by the name that Postgres gave it, for casts."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name


class VectorArray:
    """Vectors on their way through psycopg: float32 ``(n, d)`` as the array of n pgvector values."""

    __slots__ = ("type_oid", "vectors", "width")

    def __init__(self, vectors: Array, type_oid: int, width: int) -> None:
        self.vectors = vectors
        self.type_oid = type_oid
        self.width = width

    def __repr__(self) -> str:  # shown by echo=True and in the messages of failed statements
        return f"<{len(self.vectors)} vectors>"

    def to_binary(self) -> bytes:
        """The form that ``array_recv`` reads, whose elements are in the form that ``vector_recv`` reads."""
        rows, dimensions = self.vectors.shape
        head = np.array([1, 0, self.type_oid, rows, 1], dtype=">u4").tobytes()
        element = np.dtype(
            [
                ("size", ">i4"),
                ("dimensions", ">u2"),
                ("reserved", ">u2"),
                ("numbers", f">f{self.width}", (dimensions,)),
            ]
        )
        body = np.zeros(rows, dtype=element)
        body["size"] = 4 + self.width * dimensions
        body["dimensions"] = dimensions
        body["numbers"] = self.vectors
        return head + body.tobytes()


class VectorArrayType(UserDefinedType[Any]):
    """The SQL type of an array of vectors. Values are float32 arrays of the shape ``(n, d)``.

    :param element: SQL name of the vector type, with its schema.
    :param element_oid: its oid, which the binary form of an array holds.
    """

    cache_ok = True

    def __init__(self, element: str, element_oid: int) -> None:
        self.element = element
        self.element_oid = element_oid

    def get_col_spec(self, **_: Any) -> str:
        return f"{self.element}[]"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        width = 2 if self.element.endswith("halfvec") else 4

        def binary(vectors: Array) -> VectorArray:
            return VectorArray(vectors, self.element_oid, width)

        def texts(vectors: Array) -> list[str]:
            return [to_text(vector) for vector in vectors]

        return binary if dialect.driver == "psycopg" else texts


def prepare(connection: Connection) -> None:
    """Teach a connection to send :class:`VectorArray`, where its driver is psycopg; again is free."""
    if connection.dialect.driver == "psycopg":
        from pgembed.filling.psycopg_arrays import register

        register(connection.connection.driver_connection)
