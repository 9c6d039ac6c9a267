"""What SQLAlchemy's dialects of Postgres learn about vectors: reflection, arrays, functions.

Importing :mod:`pgembed.columns` applies it; for other types nothing changes.

- Reflected columns have pgembed's types, or those of ``pgvector.sqlalchemy`` if that is imported as well.
- ``ARRAY(Vector(3))`` works as a column and as an expression, such as ``func.array_agg(Article.embedding)``.
  Values are lists of float32 arrays, and of ``None``; psycopg returns arrays of types that it does not know
  as one text.
- ``func.avg(Article.embedding)`` and others of that kind have the type of their argument.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
from sqlalchemy import ARRAY, Column, Function, event
from sqlalchemy.dialects.postgresql import asyncpg, pg8000, psycopg, psycopg2
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.functions import _registry, register_function
from sqlalchemy.types import TypeDecorator, TypeEngine

from pgembed.columns.types import VectorType
from pgembed.columns.values import elements

# --- reflection -----------------------------------------------------------------------------------


def _halfvec(dimensions: int | None = None) -> VectorType:
    return VectorType(dimensions, "halfvec")


def _sparsevec(dimensions: int | None = None) -> TypeEngine[Any]:
    """pgvector's own type; importing it registers its other types, which then do not change half-way."""
    present = {name: ischema_names[name] for name in ("vector", "halfvec")}
    from pgvector.sqlalchemy import SPARSEVEC

    ischema_names.update(present)
    return SPARSEVEC(dimensions)


for _name, _type in (("vector", VectorType), ("halfvec", _halfvec), ("sparsevec", _sparsevec)):
    ischema_names.setdefault(_name, _type)  # type: ignore[arg-type]

# --- arrays ---------------------------------------------------------------------------------------


def _of_vectors(type_: TypeEngine[Any]) -> bool:
    """Whether it is the type of arrays of vectors."""
    item: Any = getattr(type_, "item_type", None)
    while isinstance(item, TypeDecorator):
        item = item.impl
    return isinstance(item, VectorType)


class _VectorArrays(ARRAY[Any]):
    """Mixed into the array type of a dialect."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        if not _of_vectors(self):
            return super().bind_processor(dialect)
        item = self.item_type.dialect_impl(dialect).bind_processor(dialect)
        assert item is not None
        return lambda value: None if value is None else _each(value, item)

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str] | None:
        if not _of_vectors(self):
            return super().literal_processor(dialect)
        item = self.item_type.dialect_impl(dialect).literal_processor(dialect)
        assert item is not None

        def written(value: Any) -> str:
            return f"ARRAY[{', '.join(map(written, value))}]" if isinstance(value, list) else value

        name = dialect.type_compiler_instance.process(self)
        return lambda value: f"{written(_each(value, item))}::{name}"

    def result_processor(self, dialect: Dialect, coltype: Any) -> Callable[[Any], Any] | None:
        process: Any = super().result_processor(dialect, coltype)
        if not _of_vectors(self):
            return process  # type: ignore[no-any-return]
        return lambda value: process(elements(value) if isinstance(value, str) else value)


def _each(values: Any, process: Callable[[Any], Any]) -> list[Any]:
    """The vectors of an array processed; an array of two axes or a nested list is an array of arrays."""
    return [
        _each(value, process) if _is_array(value) else process(value)
        for value in (values if _is_array(values) else [values])
    ]


def _is_array(value: Any) -> bool:
    """Whether it holds vectors, and not numbers."""
    if isinstance(value, np.ndarray):
        return value.ndim > 1
    return isinstance(value, list | tuple) and not (
        value and isinstance(value[0], numbers.Number | np.generic | Decimal)
    )


for _dialect in (
    psycopg.PGDialect_psycopg,
    psycopg2.PGDialect_psycopg2,
    asyncpg.PGDialect_asyncpg,
    pg8000.PGDialect_pg8000,
):
    _own: Any = _dialect.colspecs[ARRAY]
    _dialect.colspecs[ARRAY] = type(_own.__name__, (_VectorArrays, _own), {})


@event.listens_for(Column, "after_parent_attach")
def _compare_arrays(column: Column[Any], _table: Any) -> None:
    """The ORM finds changes by ``==``, which cannot compare lists of numpy arrays."""
    if isinstance(column.type, ARRAY) and _of_vectors(column.type):
        column.type.compare_values = _same  # type: ignore[method-assign, assignment]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


# --- functions ------------------------------------------------------------------------------------


def _of_first_argument(name: str) -> Callable[..., Function[Any]]:
    """``func.<name>`` as before, but with the type of its first argument where that holds vectors."""

    def function(*arguments: Any, **options: Any) -> Function[Any]:
        made: Function[Any] = Function(name, *arguments, **options)
        kind: Any = made.clauses.clauses[0].type if arguments else None
        if options.get("type_") is not None or kind is None:
            pass
        elif name == "unnest":
            made.type = kind.item_type if _of_vectors(kind) else made.type
        elif isinstance(kind, VectorType):
            made.type = VectorType(None, kind.storage) if name == "subvector" else kind
        return made

    return function


#: ``sum`` and ``coalesce`` have their argument's type in SQLAlchemy itself.
for _name in (
    "avg",
    "l2_normalize",
    "subvector",
    "any_value",
    "first_value",
    "last_value",
    "nth_value",
    "lag",
    "lead",
    "nullif",
    "unnest",
):
    if _name not in _registry["_default"]:
        register_function(_name, _of_first_argument(_name))  # type: ignore[arg-type]
