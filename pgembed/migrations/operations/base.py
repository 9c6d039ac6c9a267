"""What operations share: a base class, and statements without parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Index, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement

from pgembed.migrations.rendering import comment


@dataclass(eq=False)
class PgembedOp(MigrateOperation):
    """An operation that can be run and written into a migration.

    :cvar names: its names in ``op``, each a class method; empty if only autogenerate emits it.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def run(self, operations: Operations) -> None:
        """Carry it out."""
        raise NotImplementedError

    def render(self, context: AutogenContext) -> list[str]:
        """Write it into a migration: comments and a call."""
        raise NotImplementedError

    def in_schema(self, schemas: Mapping[str | None, str | None]) -> Self:
        """The same in the schema that a ``schema_translate_map`` has for the one it names."""
        changed: dict[str, Any] = {}
        if hasattr(self, "schema"):
            changed["schema"] = schemas.get(self.schema, self.schema)
        return replace(self, **changed)


@dataclass(eq=False)
class NothingOp(PgembedOp):
    """The opposite of an operation whose opposite does nothing.

    :ivar comment: why, for readers of the migration; without one, nothing is written.
    """

    opposite: MigrateOperation
    comment: str = ""

    def run(self, operations: Operations) -> None:
        """Nothing to do."""

    def render(self, context: AutogenContext) -> list[str]:  # noqa: ARG002
        return [*comment(self.comment), "pass"] if self.comment else []

    def reverse(self) -> MigrateOperation:
        return self.opposite

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("nothing",)


class Identifier(str):
    """A name in a statement."""

    __slots__ = ()


class Statement(DDLElement):
    """SQL without parameters, with names and values instead of ``:name``.

    :param values: tables, indexes (with their schema), identifiers, texts, numbers and ``None``.
    """

    def __init__(self, sql: str, **values: Table | Index | Identifier | str | float | None) -> None:
        self.sql = sql
        self.values = values


@compiles(Statement)
def _statement(element: Statement, compiler: Any, **_: Any) -> str:
    written = {name: _written(compiler.preparer, value) for name, value in element.values.items()}
    return re.sub(r":(\w+)", lambda found: written.get(found[1], found[0]), element.sql)


def _written(preparer: Any, value: Table | Index | Identifier | str | float | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, Table):
        return str(preparer.format_table(value))
    if isinstance(value, Index):
        assert value.table is not None
        schema = value.table.schema
        return (
            f"{'' if schema is None else preparer.quote_schema(schema) + '.'}{preparer.format_index(value)}"
        )
    if isinstance(value, Identifier):
        return str(preparer.quote(value))
    return _literal(preparer, value) if isinstance(value, str) else repr(value)


def _literal(preparer: Any, text: str) -> str:
    """A text as an SQL literal.

    Offline nothing tells how the server reads backslashes, and SQLAlchemy 2.0 guesses wrong; ``E'...'`` means
    the same everywhere.
    """
    quoted = "'" + text.replace("'", "''") + "'"
    if "\\" in text:
        quoted = "E" + quoted.replace("\\", "\\\\")
    return quoted.replace("%", "%%") if preparer._double_percents else quoted
