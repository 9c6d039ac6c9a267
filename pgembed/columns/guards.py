"""``unique_within=``: the trigger that keeps out what is there already, and the error that it becomes."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, Engine, Table, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement

from pgembed.columns.embedding import EmbeddingColumn, embeddings_of
from pgembed.columns.names import shortened
from pgembed.columns.types import is_postgres
from pgembed.exc import DeclarationError, DuplicateMeaningError, NotInstalledError, sqlstate

#: SQLSTATE of the trigger's refusal, in the class of violated constraints.
DUPLICATE_MEANING = "23PGE"
_THERE = text("SELECT pg_catalog.to_regprocedure('pgembed.guard_meaning()') IS NOT NULL")


class CreateGuard(DDLElement):
    """``CREATE TRIGGER ... EXECUTE FUNCTION pgembed.guard_meaning(<score>, <metric>)``

    :param per: names of columns; only rows that agree in all of them are compared.
    :param metric: the name of one of pgembed's.
    :param links: names of the columns that the key of the other row is written into, instead of an error.
    """

    def __init__(
        self,
        table: Table,
        column: str,
        per: tuple[str, ...],
        score: float,
        metric: str,
        links: tuple[str, ...] = (),
        name: str | None = None,
    ) -> None:
        self.table = table
        self.name = name or guard_name(column)
        self.columns = (column, *per)
        self.links = links
        self.score = float(score)
        self.metric = metric


class DropGuard(DDLElement):
    """``DROP TRIGGER``"""

    def __init__(self, table: Table, name: str) -> None:
        self.table = table
        self.name = name


@compiles(CreateGuard)
def _create(element: CreateGuard, compiler: Any, **_: Any) -> str:
    quote = compiler.preparer.quote
    column = element.columns[0]
    names, links = list(element.columns), element.links
    time, condition, arguments = "AFTER", f"WHEN (NEW.{quote(column)} IS NOT NULL) ", ""
    if links:
        names += [*links, f"{column}_digest"]
        time, condition, arguments = "BEFORE", "", f", '{len(links)}'"
    return (
        f"CREATE TRIGGER {quote(element.name)} {time} INSERT OR UPDATE OF {', '.join(map(quote, names))} "
        f"ON {compiler.preparer.format_table(element.table)} FOR EACH ROW {condition}"
        f"EXECUTE FUNCTION pgembed.guard_meaning('{element.score!r}', '{element.metric}'{arguments})"
    )


@compiles(DropGuard)
def _drop(element: DropGuard, compiler: Any, **_: Any) -> str:
    name = compiler.preparer.quote(element.name)
    return f"DROP TRIGGER {name} ON {compiler.preparer.format_table(element.table)}"


def guard_name(column: str) -> str:
    """The name of the trigger of a column."""
    return shortened(f"pgembed_guard_{column}")


def guard_of(embedding: EmbeddingColumn) -> CreateGuard | None:
    """The guard that a column declares.

    :raises DeclarationError: ``unique_per`` names what is no other column of the table.
    """
    declaration = embedding.declaration
    if declaration.unique_within is None:
        return None
    table, names = embedding.table, {column.name for column in embedding.table.c}
    for name in declaration.unique_per:
        if name not in names - {embedding.vector.name}:
            raise DeclarationError(
                f"{embedding}: unique_per names {name!r}; expected the name of another column of "
                f"{table.fullname}, as the database has it"
            )
    return CreateGuard(
        table,
        embedding.vector.name,
        declaration.unique_per,
        declaration.unique_within,
        declaration.metric.name,
        declaration.duplicate_of,
    )


@event.listens_for(Table, "after_create")
def _after_table(table: Table, connection: Any, **_: Any) -> None:
    if not is_postgres(connection.dialect):
        return
    for guard in map(guard_of, embeddings_of(table)):
        if guard is None:
            continue
        if isinstance(connection, Connection) and not connection.scalar(_THERE):
            raise NotInstalledError(
                f"table {table.fullname} has a column with unique_within=, whose trigger needs pgembed's SQL "
                "objects: run pgembed init, or call pgembed.database.install(connection), before create_all"
            )
        connection.execute(guard)


@event.listens_for(Engine, "handle_error")
def _duplicate(context: ExceptionContext) -> DuplicateMeaningError | None:
    error = context.sqlalchemy_exception
    if not isinstance(error, DBAPIError) or sqlstate(error) != DUPLICATE_MEANING:
        return None
    origin: Any = error.orig
    # asyncpg's own error is the cause of SQLAlchemy's.
    detail = origin.diag.message_detail if hasattr(origin, "diag") else origin.__cause__.detail
    facts = json.loads(detail)
    key = tuple(facts["key"]) if isinstance(facts["key"], list) else facts["key"]
    return DuplicateMeaningError(key, facts["score"], error)
