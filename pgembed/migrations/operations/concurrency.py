"""Statements that Postgres runs outside of transactions only: ``CREATE INDEX CONCURRENTLY`` and the like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic.operations import Operations
from sqlalchemy import Index, text

from pgembed.migrations.errors import MigrationError


@contextmanager
def outside_transaction(operations: Operations, index: Index) -> Iterator[None]:
    """Leave the migration's transaction, which is committed, for one concurrent change of an index.

    :raises MigrationError: the transaction is not Alembic's to commit, or the table is partitioned.
    """
    context = operations.get_context()
    if not context.as_sql:
        connection = operations.get_bind()
        if connection.in_transaction() and context._transaction is None:
            raise MigrationError(
                f"index {index.name!r} is to be changed CONCURRENTLY, which works outside of transactions, "
                "and this connection was in a transaction before Alembic began its own. Let env.py execute "
                "nothing on the connection before context.configure(), wrap nothing but "
                "context.begin_transaction() around context.run_migrations(), or leave concurrently=True out"
            )
        assert index.table is not None
        relation = connection.dialect.identifier_preparer.format_table(index.table)
        if connection.scalar(
            text(
                "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(:relation)"
            ),
            {"relation": relation},
        ):
            raise MigrationError(
                f"table {relation} is partitioned, and Postgres changes indexes of partitioned tables not "
                "CONCURRENTLY: leave concurrently=True out, or build the index of each partition and attach "
                "them"
            )
    with context.autocommit_block():
        yield


def drop_leftover(operations: Operations, index: Index, *, valid: bool = False) -> None:
    """Drop what an earlier attempt left under the same name.

    :param valid: even if it is valid, because the name is a temporary one.
    """
    if operations.get_context().as_sql:
        return
    connection = operations.get_bind()
    name = connection.dialect.identifier_preparer.format_index(index)
    assert index.table is not None
    relation = connection.dialect.identifier_preparer.format_table(index.table)
    if connection.scalar(
        text(
            "SELECT true FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid "
            "WHERE i.indrelid = pg_catalog.to_regclass(:relation) "
            "AND pg_catalog.quote_ident(c.relname) = :name AND (:valid OR NOT i.indisvalid)"
        ),
        {"relation": relation, "name": name, "valid": valid},
    ):
        operations.impl.drop_index(index, if_exists=True)
