"""What an index is, free of models and of the database: what operations take and comparisons compare."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from alembic.util import CommandError
from sqlalchemy import Column, Index, MetaData, Table, literal_column
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import conv
from sqlalchemy.sql.elements import ClauseElement, Grouping
from sqlalchemy.types import NullType

from pgembed.columns import PendingIndex
from pgembed.database.schema_events import RegisterEmbedding
from pgembed.exc import PgembedError
from pgembed.indexes import ACCESS_METHODS, access_method_of
from pgembed.indexes.indexed import bare
from pgembed.indexes.methods import AUTO

Facts = dict[str, Any]

# SQL for a file: a driver's parameter style would double the percent signs.
_DIALECT: Any = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
# SQLAlchemy 2.0 doubles backslashes until a connection says that the server takes them as they are.
_DIALECT._backslash_escapes = False


class MigrationError(PgembedError, CommandError):
    """A migration cannot do what it says, in this environment or with the rows as they are.

    The command line of Alembic prints it as one line.
    """


@dataclass(frozen=True, kw_only=True)
class VectorIndexDefinition:
    """One vector index.

    :ivar column: the indexed column; ``None`` for an index on an expression.
    :ivar expression: the indexed SQL expression; ``None`` for an index on a column.
    :ivar valid: false for what a failed ``CREATE INDEX CONCURRENTLY`` left.
    """

    name: str
    table: str
    column: str | None = None
    expression: str | None = None
    using: str
    opclass: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    where: str | None = None
    schema: str | None = None
    valid: bool = True

    @classmethod
    def of(cls, index: Index, name: str, schema: str | None) -> Self:
        """The definition of a declared index."""
        options = index.dialect_options["postgresql"]
        using = access_method_of(index)
        element: Any = next(iter(index.expressions))
        expression = bare(element)
        where = options["where"]
        stated = getattr(index, "parameters", None) or options["with"] or {}
        assert index.table is not None
        return cls(
            name=name,
            table=str(index.table.name),
            column=str(element.name) if isinstance(element, Column) else None,
            expression=None if isinstance(element, Column) else sql(expression),
            using=using,
            opclass=(options["ops"] or {}).get(getattr(element, "key", None)),
            parameters=dict(stated),
            where=None if where is None else sql(where),
            schema=schema,
        )

    def renamed(self, name: str) -> Self:
        """The same index under another name."""
        return replace(self, name=name)

    def index(self) -> Index:
        """As an SQLAlchemy index, on a table that holds nothing else."""
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

    @property
    def counts_rows(self) -> bool:
        """Whether a parameter is found from the number of rows, when the index is built."""
        return AUTO in self.parameters.values()

    def built_on(self, rows: int) -> Self:
        """The same index with the parameters that suit so many rows."""
        return replace(self, parameters=ACCESS_METHODS[self.using].parameters_for(self.parameters, rows))

    def settings(self, free: Collection[str] = ()) -> tuple[Any, ...]:
        """What is compared by value, with the defaults filled in; parameters that are ``free`` apart."""
        method = ACCESS_METHODS[self.using]
        parameters = {**method.defaults, **self.parameters}
        return (
            self.using,
            self.opclass or method.default_opclass,
            {key: str(value) for key, value in parameters.items() if key not in free},
            self.valid,
        )

    def same_settings(self, declared: VectorIndexDefinition) -> bool:
        """Whether this index stands as declared; for a parameter that is found any number does."""
        free = [name for name, value in declared.parameters.items() if value == AUTO]
        return self.settings(free) == declared.settings(free)


@dataclass(frozen=True, kw_only=True)
class PendingIndexDefinition:
    """The index of the pending rows of an embedding column.

    :ivar columns: the primary key.
    :ivar where: the predicate that holds for pending rows.
    :ivar registration: what its comment says of the column; ``None`` where there is none.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    where: str
    registration: Facts | None = None
    schema: str | None = None
    valid: bool = True

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

    def renamed(self, name: str) -> Self:
        """The same index under another name."""
        return replace(self, name=name)

    def index(self) -> Index:
        """As an SQLAlchemy index, on a table that holds nothing else."""
        index = Index(conv(self.name), *self.columns, postgresql_where=literal_column(self.where))
        columns = [Column(name, NullType()) for name in self.columns]
        Table(self.table, MetaData(), *columns, index, schema=self.schema)
        return index

    def same_settings(self, declared: PendingIndexDefinition) -> bool:
        """Whether this index stands with the keys that are declared, and valid."""
        return (self.columns, self.valid) == (declared.columns, declared.valid)


Definition = VectorIndexDefinition | PendingIndexDefinition


def sql(element: ClauseElement) -> str:
    """An expression over the columns of one table, as it is written into a migration."""
    return str(
        element.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True, "include_table": False})
    )
