"""Changes of indexes, and what Postgres only runs outside transactions: ``CREATE INDEX CONCURRENTLY``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic.operations import Operations
from sqlalchemy import Index

from pgembed.indexes.locks import turn
from pgembed.indexes.partitions import is_partitioned
from pgembed.indexes.server_settings import unlimited
from pgembed.indexes.standing import find, is_name_taken
from pgembed.indexes.tables import name_of, relation_of
from pgembed.migrations.definitions import MigrationError
from pgembed.migrations.operations.base import Identifier, Statement

#: The comment on an index of a temporary name, which marks it as a leftover for a later attempt.
TEMPORARY = "pgembed replaces an index, and drops this one"


def temporary_name(name: str, suffix: str) -> str:
    """The name of an index while it is built beside the one it replaces; Postgres cuts names at 63 bytes."""
    return name.encode()[: 62 - len(suffix)].decode(errors="ignore") + "_" + suffix


def create_index(
    operations: Operations, index: Index, *, concurrently: bool, temporary: bool = False
) -> None:
    """``CREATE INDEX [CONCURRENTLY]``, which drops first what a failed attempt left.

    Concurrently it does nothing if the index exists, so that a migration that failed after it can be run
    again.

    :param temporary: the name is a temporary one.
    """
    if not concurrently:
        with in_turn(operations, index):
            operations.impl.create_index(index)
        return
    index.dialect_kwargs["postgresql_concurrently"] = True
    with outside_transaction(operations, index), in_turn(operations, index):
        _drop_leftover(operations, index, temporary=temporary)
        operations.impl.create_index(index, if_not_exists=not temporary)
        if temporary:
            comment_on(operations, index, TEMPORARY)


def drop_leftover(operations: Operations, index: Index) -> None:
    """Drop what a failed attempt left under a temporary name.

    :raises MigrationError: the index of this name is not a leftover.
    """
    index.dialect_kwargs["postgresql_concurrently"] = True
    with outside_transaction(operations, index), in_turn(operations, index):
        _drop_leftover(operations, index, temporary=True)


def drop_index(operations: Operations, index: Index, *, concurrently: bool) -> None:
    """``DROP INDEX``, or ``DROP INDEX CONCURRENTLY IF EXISTS``, which can be repeated."""
    if not concurrently:
        with in_turn(operations, index):
            operations.impl.drop_index(index)
        return
    index.dialect_kwargs["postgresql_concurrently"] = True
    with outside_transaction(operations, index), in_turn(operations, index):
        operations.impl.drop_index(index, if_exists=True)


@contextmanager
def in_turn(operations: Operations, index: Index) -> Iterator[None]:
    """Wait until no other session changes indexes of the table with pgembed; offline, do not."""
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
    what = f"index {index.name!r} is changed CONCURRENTLY"
    if not operations.get_context().as_sql:
        check_own_transaction(operations, what)
        if is_partitioned(operations.get_bind(), relation_of(index)):
            raise MigrationError(
                f"table {index.table.fullname} is partitioned, and Postgres cannot change indexes of "
                "partitioned tables CONCURRENTLY: leave concurrently=True out, or build the index of each "
                "partition and attach them"
            )
    with autocommit(operations):
        yield


@contextmanager
def autocommit(operations: Operations) -> Iterator[None]:
    """Commit the migration's transaction; what follows runs outside transactions, without time limits."""
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
            "nothing on the connection before context.configure(), wrap only "
            "context.begin_transaction() around context.run_migrations(), or leave concurrently=True out"
        )


def comment_on(operations: Operations, index: Index, comment: str | None) -> None:
    """``COMMENT ON INDEX <index> IS '<comment>'``"""
    operations.execute(Statement("COMMENT ON INDEX :index IS :comment", index=index, comment=comment))


def rename(operations: Operations, index: Index, other: Index) -> None:
    """``ALTER INDEX <index> RENAME TO <the name of the other>``"""
    name = Identifier(other.name)
    operations.execute(Statement("ALTER INDEX :index RENAME TO :name", index=index, name=name))


def exists(operations: Operations, index: Index) -> bool:
    """Whether an index exists; offline it is assumed to."""
    return operations.get_context().as_sql or is_name_taken(operations.get_bind(), index)


def _drop_leftover(operations: Operations, index: Index, *, temporary: bool) -> None:
    if operations.get_context().as_sql or not exists(operations, index):
        return
    found = find(operations.get_bind(), index, methods=None)
    if found is not None and (not found.valid or (temporary and found.comment == TEMPORARY)):
        operations.impl.drop_index(index, if_exists=True)
    elif temporary or found is None:
        raise MigrationError(
            f"cannot build an index under the name {index.name!r}: there is one, "
            + ("which pgembed did not leave there" if found else "and it does not belong to this table")
            + ". Rename or drop it, then run the migration again"
        )
