"""Many vectors as one parameter: ``vector[]`` in Postgres's binary format where the driver can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import UserDefinedType

from pgembed.columns import Array
from pgembed.columns.values import VectorArray, to_text


class NamedType(UserDefinedType[Any]):
    """A type by the name that Postgres gave it, for casts."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name


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


@compiles(NamedType)
@compiles(VectorArrayType)
def _named(type_: Any, compiler: Any, **_: Any) -> str:
    """Drivers whose placeholders are ``%s`` or ``%(name)s`` take ``%%`` for a per cent sign in a name."""
    name: str = type_.get_col_spec()
    return name.replace("%", "%%") if compiler.dialect.paramstyle in ("format", "pyformat") else name
