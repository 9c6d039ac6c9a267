"""Statements that Postgres runs outside of transactions only: ``CREATE INDEX CONCURRENTLY`` and the like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic.operations import Operations
from sqlalchemy import Index, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement

from pgembed.indexes.catalogue import name_of, relation_of
from pgembed.indexes.locks import turn
from pgembed.indexes.partitions import is_partitioned
from pgembed.indexes.settings import unlimited
from pgembed.migrations.definitions import MigrationError
from pgembed.migrations.operations.base import qualified_name


class RenameIndex(DDLElement):
    """``ALTER INDEX <index> RENAME TO <name>``"""

    def __init__(self, index: Index, name: str) -> None:
        self.index = index
        self.name = name


@compiles(RenameIndex)
def _rename_index(element: RenameIndex, compiler: object, **_: object) -> str:
    preparer = compiler.preparer  # type: ignore[attr-defined]
    return f"ALTER INDEX {qualified_name(preparer, element.index)} RENAME TO {preparer.quote(element.name)}"


def temporary_name(name: str, suffix: str) -> str:
    """The name of an index while it is built beside the one it replaces; Postgres cuts names at 63 bytes."""
    return name.encode()[: 62 - len(suffix)].decode(errors="ignore") + "_" + suffix


def create_index(
    operations: Operations, index: Index, *, concurrently: bool, temporary: bool = False
) -> None:
    """``CREATE INDEX [CONCURRENTLY]``, which drops first what a failed attempt left.

    Concurrently it does nothing where the index stands, so that a migration that failed behind it can be run
    again.

    :param temporary: the name is a temporary one, and whatever has it is a leftover.
    """
    if not concurrently:
        with in_turn(operations, index):
            operations.impl.create_index(index)
        return
    index.dialect_kwargs["postgresql_concurrently"] = True
    with outside_transaction(operations, index), in_turn(operations, index):
        _drop_leftover(operations, index, valid=temporary)
        operations.impl.create_index(index, if_not_exists=True)


def drop_index(operations: Operations, index: Index, *, concurrently: bool) -> None:
    """``DROP INDEX``, or ``DROP INDEX CONCURRENTLY IF EXISTS``, which can be run again."""
    if not concurrently:
        with in_turn(operations, index):
            operations.impl.drop_index(index)
        return
    index.dialect_kwargs["postgresql_concurrently"] = True
    with outside_transaction(operations, index), in_turn(operations, index):
        operations.impl.drop_index(index, if_exists=True)


@contextmanager
def in_turn(operations: Operations, index: Index) -> Iterator[None]:
    """While no other session changes indexes of the table with pgembed; offline nothing is waited for."""
    if operations.get_context().as_sql:
        yield
        return
    with turn(operations.get_bind(), relation_of(index), name_of(index)):
        yield


@contextmanager
def outside_transaction(operations: Operations, index: Index) -> Iterator[None]:
    """Leave the migration's transaction, which is committed, for one concurrent change of an index.

    :raises MigrationError: the transaction is not Alembic's to commit, or the table is partitioned.
    """
    assert index.table is not None
    what = f"index {index.name!r} is to be changed CONCURRENTLY"
    if not operations.get_context().as_sql:
        check_own_transaction(operations, what)
        if is_partitioned(operations.get_bind(), relation_of(index)):
            raise MigrationError(
                f"table {index.table.fullname} is partitioned, and Postgres changes indexes of partitioned "
                "tables not CONCURRENTLY: leave concurrently=True out, or build the index of each partition "
                "and attach them"
            )
    with autocommit(operations):
        yield


@contextmanager
def autocommit(operations: Operations) -> Iterator[None]:
    """Commit the migration's transaction, and run what follows without one and without time limits."""
    context = operations.get_context()
    with context.autocommit_block():
        if context.as_sql:
            yield
            return
        connection = operations.get_bind()
        with unlimited(connection):
            yield


def check_own_transaction(operations: Operations, what: str) -> None:
    """
    :raises MigrationError: the transaction is not Alembic's to commit.
    """
    context = operations.get_context()
    if not context.as_sql and operations.get_bind().in_transaction() and context._transaction is None:
        raise MigrationError(
            f"{what}, which works outside of transactions, "
            "and this connection was in a transaction before Alembic began its own. Let env.py execute "
            "nothing on the connection before context.configure(), wrap nothing but "
            "context.begin_transaction() around context.run_migrations(), or leave concurrently=True out"
        )


def _drop_leftover(operations: Operations, index: Index, *, valid: bool) -> None:
    if operations.get_context().as_sql:
        return
    connection = operations.get_bind()
    if connection.scalar(
        text(
            "SELECT true FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid "
            "WHERE i.indrelid = pg_catalog.to_regclass(:relation) "
            "AND c.relname = :name AND (:valid OR NOT i.indisvalid)"
        ),
        {"relation": relation_of(index), "name": name_of(index), "valid": valid},
    ):
        operations.impl.drop_index(index, if_exists=True)
