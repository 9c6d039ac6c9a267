"""The column type: vectors travel as numpy arrays, in Postgres's binary format where the driver can."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import UnsupportedCompilationError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeEngine, UserDefinedType

from pgembed.columns.values import Array, Storage, VectorArray, as_array, received, sent, to_text
from pgembed.constants import MAX_DIMENSIONS
from pgembed.exc import DeclarationError, UnsupportedDialectError
from pgembed.metrics import metric

#: Other databases where columns may be created as text: see :func:`pgembed.testing.allow_dialect`.
TEXT_DIALECTS: set[str] = set()
_POSTGRESQL: Any = postgresql.dialect()  # type: ignore[no-untyped-call]


def is_postgres(dialect: Dialect) -> bool:
    """Whether it is a dialect of Postgres, or the one that statements are printed with."""
    return isinstance(dialect, PGDialect) or dialect.name == "default"


def on_postgres(*_: Any, dialect: Dialect, **__: Any) -> bool:
    """For ``Index.ddl_if``: whether it is to be created."""
    return is_postgres(dialect)


def shape_of(type_: TypeEngine[Any]) -> tuple[str, int | None]:
    """Storage and dimensions of a type that vector indexes take: pgembed's, pgvector-python's, SQLAlchemy's.

    The storage is ``"vector"``, ``"halfvec"``, ``"sparsevec"`` or ``"bit"``.

    :raises DeclarationError: the type is none of them.
    """
    try:
        spec = type_.compile(dialect=_POSTGRESQL)
    except UnsupportedCompilationError:  # a column whose type is not known yet
        spec = ""
    match = re.fullmatch(r"(VECTOR|HALFVEC|SPARSEVEC|BIT)(?:\((\d+)\))?", spec)
    if match is None:
        raise DeclarationError(
            f"the column has the type {type_!r}; expected vector or halfvec (for an index, sparsevec or bit)"
        )
    if match[1] == "BIT":
        return "bit", int(match[2] or 1)
    return match[1].lower(), int(match[2]) if match[2] else None


class VectorType(UserDefinedType[Array]):
    """The SQL type ``vector(n)`` or ``halfvec(n)`` of pgvector.

    Values load as read-only float32 arrays of the shape ``(n,)``; anything that :func:`as_array`
    understands can be stored. ``pgembed.Vector`` is this class at run time, and the type of its values
    to type checkers.

    :param dimensions: n; ``None`` declares the type without a limit.
    :param storage: ``"vector"`` (4 bytes per dimension) or ``"halfvec"`` (2 bytes).
    :raises DeclarationError: n is not within 1 to 16000, or the storage is unknown.
    """

    cache_ok = True
    render_bind_cast = True
    hashable = False

    def __init__(self, dimensions: int | None = None, storage: Storage = "vector") -> None:
        if storage not in MAX_DIMENSIONS:
            raise DeclarationError(f"storage is {storage!r}, expected one of {', '.join(MAX_DIMENSIONS)}")
        if dimensions is not None:
            whole = isinstance(dimensions, int | np.integer) and not isinstance(dimensions, bool)
            if not whole or not 1 <= dimensions <= MAX_DIMENSIONS[storage]:
                raise DeclarationError(
                    f"{dimensions!r} dimensions: {storage} holds 1 to {MAX_DIMENSIONS[storage]} of them"
                )
            dimensions = int(dimensions)
        self.dimensions = dimensions
        self.storage = storage

    def get_col_spec(self, **_: Any) -> str:
        name = self.storage.upper()
        return name if self.dimensions is None else f"{name}({self.dimensions})"

    @property
    def python_type(self) -> type[Any]:
        return np.ndarray

    def to_array(self, value: Any) -> Array:
        """``value`` as the array that is sent; subclasses accept more than vectors."""
        return as_array(value, self.dimensions, self.storage)

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        def process(value: Any) -> Any:
            return None if value is None else sent(self.to_array(value), self.storage, dialect.driver)

        return process

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:  # noqa: ARG002
        def process(value: Any) -> str:  # of arrays, None as well
            return "NULL" if value is None else f"'{to_text(self.to_array(value))}'::{self.get_col_spec()}"

        return process

    def result_processor(self, dialect: Dialect, coltype: Any) -> Callable[[Any], Array | None]:  # noqa: ARG002
        def process(value: Any) -> Array | None:
            return None if value is None else received(value)

        return process

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """What the annotation ``Vector`` is to Pydantic, and so to SQLModel and FastAPI.

        Whatever :func:`as_array` understands is valid, of any length; JSON is a list of numbers. An array of
        float32 stays the same object, so that a loaded vector is recognised.
        """
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            _validated,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: as_array(value).tolist(), when_used="json"
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "number"}}

    def compare_values(self, x: Any, y: Any) -> bool:
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            return bool(np.array_equal(x, y))
        return x is y

    class Comparator(TypeEngine.Comparator[Array]):
        """Distances as SQL: ``Article.embedding.distance([...], "cosine")``."""

        def distance(self, other: Any, metric_name: str = "cosine") -> ColumnElement[float]:
            """The distance to ``other`` (a vector or an SQL expression); smaller is nearer.

            :raises MetricNotSupportedError: no such metric.
            """
            return metric(metric_name).between(self.expr, other)

        def cosine_distance(self, other: Any) -> ColumnElement[float]:
            """``self <=> other``"""
            return self.distance(other, "cosine")

        def l2_distance(self, other: Any) -> ColumnElement[float]:
            """``self <-> other``"""
            return self.distance(other, "l2")

        def max_inner_product(self, other: Any) -> ColumnElement[float]:
            """``self <#> other``, the inner product negated (pgvector's and pgvector-python's convention)"""
            return self.distance(other, "inner_product")

    comparator_factory = Comparator

    def coerce_compared_value(self, op: operators.OperatorType | None, value: Any) -> Any:  # noqa: ARG002
        return VectorType(None, self.storage) if op is operators.concat_op else self


def _validated(value: Any) -> Array:
    array = as_array(value)
    return value if isinstance(value, np.ndarray) and value.dtype == array.dtype else array.copy()


@compiles(VectorType)
def _type(type_: VectorType, compiler: Any, **_: Any) -> str:
    dialect: Dialect = compiler.dialect
    if is_postgres(dialect):
        return type_.get_col_spec()
    if dialect.name in TEXT_DIALECTS:
        return "TEXT"
    raise UnsupportedDialectError(dialect.name, f"a column of type {type_.get_col_spec().lower()}")


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


if TYPE_CHECKING:
    Vector: TypeAlias = Array
else:
    Vector = VectorType


def copied(_target: Any, value: Any, _before: Any, _initiator: Any) -> Any:
    """A listener of attributes. Programs fill one buffer again and again before a flush."""
    return value.copy() if isinstance(value, np.ndarray) and value.flags.writeable else value


@event.listens_for(Pool, "checkout")
def _teach_psycopg(_connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
    """Let a psycopg connection send :class:`BinaryVector`, once; it may be older than this module.

    The dumpers leave the type of the parameter open, so the server derives it from the cast or the column
    and reads the binary form: no look-up of the extension's type numbers, nothing cached that a
    ``DROP EXTENSION`` could make wrong.
    """
    if "pgembed" in record.info:
        return
    record.info["pgembed"] = True
    driver = record.driver_connection
    if any(kind.__module__.partition(".")[0] == "psycopg" for kind in type(driver).__mro__):
        from pgembed.columns.psycopg_dumpers import register

        register(driver)
