"""Definitions of indexes, which operations carry out and comparisons compare; and the error of migrations."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from alembic.util import CommandError
from sqlalchemy import Column, Index, MetaData, Table, literal_column
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import conv
from sqlalchemy.sql.elements import ClauseElement, Grouping
from sqlalchemy.types import NullType

from pgembed.columns import PendingIndex
from pgembed.columns.registration import RegisterEmbedding
from pgembed.exc import PgembedError
from pgembed.indexes import ACCESS_METHODS, access_method_of
from pgembed.indexes.differences import changed_parameters
from pgembed.indexes.indexed import bare
from pgembed.indexes.methods import AUTO
from pgembed.indexes.tables import stated_parameters
from pgembed.migrations.rendering import Code

Facts = dict[str, Any]

# SQL for a file: a driver's parameter style would double the percent signs.
_DIALECT: Any = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
# SQLAlchemy 2.0 doubles backslashes until a connection has shown that the server takes them literally.
_DIALECT._backslash_escapes = False


class MigrationError(PgembedError, CommandError):
    """A migration cannot be carried out, in this environment or with the rows as they are.

    The command line of Alembic prints it as one line.
    """


@dataclass(frozen=True, kw_only=True)
class IndexDefinition(ABC):
    """What both kinds of index have.

    :cvar kind: what it is called in the names of operations.
    :ivar where: the SQL predicate of a partial index.
    :ivar valid: false for what a failed ``CREATE INDEX CONCURRENTLY`` left.
    """

    kind: ClassVar[str]

    name: str
    table: str
    where: str | None = None
    schema: str | None = None
    valid: bool = True

    def renamed(self, name: str) -> Self:
        """The same index under another name."""
        return replace(self, name=name)

    @abstractmethod
    def index(self) -> Index:
        """As an SQLAlchemy index, on a table that has nothing else."""

    @abstractmethod
    def arguments(self, concurrently: bool | None) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the operation that creates it, as they are written into a migration."""

    @abstractmethod
    def same_settings(self, declared: Any) -> bool:
        """Whether what is compared by value is as declared."""

    @property
    def expressions(self) -> tuple[str | None, ...]:
        """What Postgres compares, since it rewrites expressions."""
        return (self.where,)

    @property
    def comment(self) -> str | None:
        """The comment on the index."""
        return None

    def reason(self, old: Any) -> str:  # noqa: ARG002
        """Why it replaces another one, for the reviewer of the migration."""
        return ""


@dataclass(frozen=True, kw_only=True)
class VectorIndexDefinition(IndexDefinition):
    """One vector index.

    :ivar column: the indexed column; ``None`` for an index on an expression.
    :ivar expression: the indexed SQL expression; ``None`` for an index on a column.
    :raises MigrationError: neither or both of them.
    """

    kind = "vector_index"

    column: str | None = None
    expression: str | None = None
    using: str
    opclass: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.column is None) == (self.expression is None):
            raise MigrationError(f"index {self.name!r} needs either a column or an expression")

    @classmethod
    def of(cls, index: Index, name: str, schema: str | None) -> Self:
        """The definition of a declared index."""
        options = index.dialect_options["postgresql"]
        using = access_method_of(index)
        element: Any = next(iter(index.expressions))
        expression = bare(element)
        where = options["where"]
        assert index.table is not None
        return cls(
            name=name,
            table=str(index.table.name),
            column=str(element.name) if isinstance(element, Column) else None,
            expression=None if isinstance(element, Column) else sql(expression),
            using=using,
            opclass=(options["ops"] or {}).get(getattr(element, "key", None)),
            parameters=stated_parameters(index),
            where=None if where is None else sql(where),
            schema=schema,
        )

    def index(self) -> Index:
        element: Any = self.column
        columns = [] if self.column is None else [Column(self.column, NullType())]
        if self.expression is not None:
            # SQLAlchemy finds the operator class of an expression by its label.
            element = Grouping(literal_column(self.expression)).label("expression")
        options: dict[str, Any] = {
            "postgresql_using": self.using,
            "postgresql_with": {name: value for name, value in self.parameters.items() if value != AUTO},
            "postgresql_ops": {self.column or "expression": self.opclass} if self.opclass else {},
        }
        if self.where is not None:
            options["postgresql_where"] = literal_column(self.where)
        index = Index(conv(self.name), element, **options)
        Table(self.table, MetaData(), *columns, index, schema=self.schema)
        return index

    def arguments(self, concurrently: bool | None) -> tuple[list[Any], dict[str, Any]]:
        positional = [self.name, self.table, *([] if self.column is None else [self.column])]
        return positional, {
            "expression": self.expression,
            "using": self.using,
            "opclass": self.opclass,
            "parameters": dict(self.parameters) or None,
            "where": self.where,
            "schema": self.schema,
            "concurrently": concurrently,
        }

    @property
    def expressions(self) -> tuple[str | None, ...]:
        return (self.where, self.expression)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What is compared by value, parameters apart."""
        opclass = self.opclass or ACCESS_METHODS[self.using].default_opclass
        return self.column, self.using, opclass, self.valid

    def same_settings(self, declared: VectorIndexDefinition) -> bool:
        """Whether settings match the declaration; a parameter that is counted may have any value."""
        changed = changed_parameters(self.using, self.parameters, declared.parameters)
        return self.settings == declared.settings and not changed


@dataclass(frozen=True, kw_only=True)
class PendingIndexDefinition(IndexDefinition):
    """The index of the pending rows of an embedding column.

    :ivar columns: the primary key.
    :ivar where: the predicate that holds for pending rows.
    :ivar registration: the facts of the column in its comment; ``None`` for none.
    """

    kind = "pending_index"

    columns: tuple[str, ...]
    where: str
    registration: Facts | None = None

    @classmethod
    def of(cls, index: PendingIndex, name: str, schema: str | None) -> Self:
        """The definition of a declared index."""
        return cls(
            name=name,
            table=str(index.embedding.table.name),
            columns=tuple(str(column.name) for column in index.columns),
            where=sql(index.dialect_options["postgresql"]["where"]),
            registration=RegisterEmbedding(index).facts,
            schema=schema,
        )

    def index(self) -> Index:
        index = Index(conv(self.name), *self.columns, postgresql_where=literal_column(self.where))
        columns = [Column(name, NullType()) for name in self.columns]
        Table(self.table, MetaData(), *columns, index, schema=self.schema)
        return index

    def arguments(self, concurrently: bool | None) -> tuple[list[Any], dict[str, Any]]:
        return [self.name, self.table, list(self.columns)], {
            "where": self.where,
            "schema": self.schema,
            "concurrently": concurrently,
            "registration": Code("None") if self.registration is None else self.registration,
        }

    @property
    def comment(self) -> str | None:
        return None if self.registration is None else json.dumps(self.registration)

    def reason(self, old: PendingIndexDefinition) -> str:
        before, after = old.registration, self.registration
        if before is None or after is None:
            return f"The pending index of {self.table} is made anew."
        name = f"{self.table}.{after['column']}"
        if before["fingerprint"] != after["fingerprint"]:
            change = (
                f"The encoder of {name} changes from {_encoder(before)} to {_encoder(after)}: every row is "
                "pending"
            )
            if before["dimensions"] != after["dimensions"]:
                return f"{change} until it is embedded again."
            if after.get("parts"):
                return (
                    f"{change} until its parts are made again, in place. Until then old vectors are compared "
                    "with new queries."
                )
            return (
                f"{change} until it is embedded again, in place. Until then old vectors are compared with "
                "new queries; a second embedding column keeps the two apart."
            )
        if (before["template"], before["sources"]) != (after["template"], after["sources"]):
            return f"What {name} is made from changes: every row is pending until it is embedded again."
        if before.get("parts") != after.get("parts"):
            return (
                f"How {name} are made changes: every row is pending until its text is split again. Parts "
                "that come out as they were are not encoded again."
            )
        return f"The pending index of {name} changes."

    def same_settings(self, declared: PendingIndexDefinition) -> bool:
        """Whether keys and validity are as declared."""
        return (self.columns, self.valid) == (declared.columns, declared.valid)


def sql(element: ClauseElement) -> str:
    """An expression over the columns of one table, as it is written into a migration."""
    return str(
        element.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True, "include_table": False})
    )


def _encoder(facts: Facts) -> str:
    return f"{facts['encoder']!r} ({facts['fingerprint'][:8]})"
