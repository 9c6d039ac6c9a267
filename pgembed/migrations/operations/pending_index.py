"""``op.create_pending_index``, ``drop_pending_index``, ``replace_pending_index``, ``register_embedding``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Index, MetaData, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement, conv

from pgembed.migrations.definitions import Facts, PendingIndexDefinition
from pgembed.migrations.operations.base import literal, qualified_name
from pgembed.migrations.operations.concurrency import (
    RenameIndex,
    create_index,
    drop_index,
    temporary_name,
)


class CreatePendingIndexOp(MigrateOperation):
    """Create the index of the pending rows of an embedding column."""

    def __init__(self, definition: PendingIndexDefinition, *, concurrently: bool = False) -> None:
        self.definition = definition
        self.concurrently = concurrently

    @classmethod
    def create_pending_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        columns: Sequence[str],
        *,
        where: str,
        registration: Mapping[str, Any] | None,
        schema: str | None = None,
        concurrently: bool = False,
    ) -> None:
        """Create the index of the pending rows of an embedding column, and register the column.

        ::

            CREATE INDEX ix_article_embedding_pending ON article (id) WHERE CASE WHEN ... END;
            COMMENT ON INDEX ix_article_embedding_pending IS '{"pgembed": 1, "column": "embedding", ...}'

        From there on ``pgembed.embedding_columns`` lists the column, and ``pgembed.status`` and workers see
        its pending rows.

        :param columns: the primary key.
        :param where: the SQL predicate that holds for pending rows.
        :param registration: what the comment says: column, digest, sources, template, encoder, fingerprint,
            dimensions, metric, fill; and options of the encoder, if it has some that decide vectors.
        :param concurrently: do not lock writers out. It commits the migration's transaction.
        :raises MigrationError: ``concurrently`` where it is impossible.
        """
        definition = _definition(index_name, table_name, columns, where, registration, schema)
        operations.invoke(cls(definition, concurrently=concurrently))

    def reverse(self) -> MigrateOperation:
        return DropPendingIndexOp(self.definition, concurrently=self.concurrently)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("add_pending_index", self.definition)


class DropPendingIndexOp(MigrateOperation):
    """Drop the index of the pending rows of an embedding column."""

    def __init__(self, definition: PendingIndexDefinition, *, concurrently: bool = False) -> None:
        self.definition = definition
        self.concurrently = concurrently

    @classmethod
    def drop_pending_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        concurrently: bool = False,
    ) -> None:
        """Drop the index of the pending rows, and with it the registration of the embedding column.

        :param concurrently: wait for other transactions instead of locking them out.
        :raises MigrationError: ``concurrently`` where it is impossible.
        """
        definition = PendingIndexDefinition(
            name=index_name, table=table_name, columns=(), where="", schema=schema
        )
        operations.invoke(cls(definition, concurrently=concurrently))

    def reverse(self) -> MigrateOperation:
        return CreatePendingIndexOp(self.definition, concurrently=self.concurrently)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("remove_pending_index", self.definition)


class ReplacePendingIndexOp(MigrateOperation):
    """Build the index of the pending rows anew, and let it take the place of the one of the same name.

    :ivar existing: the definition that autogenerate found.
    """

    def __init__(
        self,
        definition: PendingIndexDefinition,
        existing: PendingIndexDefinition | None = None,
        *,
        concurrently: bool = False,
    ) -> None:
        self.definition = definition
        self.existing = existing
        self.concurrently = concurrently

    @classmethod
    def replace_pending_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        columns: Sequence[str],
        *,
        where: str,
        registration: Mapping[str, Any] | None,
        schema: str | None = None,
        concurrently: bool = False,
    ) -> None:
        """Have other rows of an embedding column pending: those of another encoder, template, or text.

        ::

            CREATE INDEX ix_article_embedding_pending_new ON article (id) WHERE ...;
            ALTER INDEX ix_article_embedding_pending RENAME TO ix_article_embedding_pending_old;
            ALTER INDEX ix_article_embedding_pending_new RENAME TO ix_article_embedding_pending;
            COMMENT ON INDEX ... ;
            DROP INDEX ix_article_embedding_pending_old

        Names and registration change in one transaction: workers see the one or the other.

        The parameters are those of ``op.create_pending_index``.
        """
        definition = _definition(index_name, table_name, columns, where, registration, schema)
        operations.invoke(cls(definition, concurrently=concurrently))

    def reverse(self) -> MigrateOperation:
        assert self.existing is not None, "only what autogenerate found can be reversed"
        return ReplacePendingIndexOp(self.existing, self.definition, concurrently=self.concurrently)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("replace_pending_index", self.existing, self.definition)


class RegisterEmbeddingOp(MigrateOperation):
    """Rewrite the registration of an embedding column."""

    def __init__(
        self,
        index_name: str,
        registration: Facts | None,
        *,
        existing: Facts | None = None,
        schema: str | None = None,
    ) -> None:
        self.index_name = index_name
        self.registration = registration
        self.existing = existing
        self.schema = schema

    @classmethod
    def register_embedding(
        cls,
        operations: Operations,
        index_name: str,
        registration: Mapping[str, Any] | None,
        *,
        schema: str | None = None,
    ) -> None:
        """Say what an embedding column is filled with: ``COMMENT ON INDEX ix_..._pending IS '{...}'``.

        Enough where the pending rows stay the same (the encoder's name, the metric, ``fill=``).

        :param registration: as in ``op.create_pending_index``; ``None`` takes the column out of the register.
        """
        facts = None if registration is None else dict(registration)
        operations.invoke(cls(index_name, facts, schema=schema))

    def reverse(self) -> MigrateOperation:
        return RegisterEmbeddingOp(
            self.index_name, self.existing, existing=self.registration, schema=self.schema
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("register_embedding", self.index_name, self.existing, self.registration)


class CommentOnIndex(DDLElement):
    """``COMMENT ON INDEX <index> IS '<facts as JSON>'``"""

    def __init__(self, index: Index, facts: Facts | None) -> None:
        self.index = index
        self.facts = facts


@compiles(CommentOnIndex)
def _comment(element: CommentOnIndex, compiler: Any, **_: Any) -> str:
    name = qualified_name(compiler.preparer, element.index)
    if element.facts is None:
        return f"COMMENT ON INDEX {name} IS NULL"
    return f"COMMENT ON INDEX {name} IS {literal(compiler.preparer, json.dumps(element.facts))}"


def run_create(operations: Operations, operation: CreatePendingIndexOp) -> None:
    """Carry out :class:`CreatePendingIndexOp`."""
    index = operation.definition.index()
    create_index(operations, index, concurrently=operation.concurrently)
    if operation.definition.registration is not None:
        operations.execute(CommentOnIndex(index, operation.definition.registration))


def run_drop(operations: Operations, operation: DropPendingIndexOp) -> None:
    """Carry out :class:`DropPendingIndexOp`."""
    drop_index(operations, operation.definition.index(), concurrently=operation.concurrently)


def run_replace(operations: Operations, operation: ReplacePendingIndexOp) -> None:
    """Carry out :class:`ReplacePendingIndexOp`."""
    definition, concurrently = operation.definition, operation.concurrently
    new = definition.renamed(temporary_name(definition.name, "new")).index()
    old = definition.renamed(temporary_name(definition.name, "old")).index()
    current = definition.index()
    if concurrently:  # what an attempt left that failed at its last step
        drop_index(operations, old, concurrently=True)
    create_index(operations, new, concurrently=concurrently, temporary=True)
    operations.execute(CommentOnIndex(current, None))
    operations.execute(RenameIndex(current, str(old.name)))
    operations.execute(RenameIndex(new, definition.name))
    operations.execute(CommentOnIndex(current, definition.registration))
    drop_index(operations, old, concurrently=concurrently)


def run_register(operations: Operations, operation: RegisterEmbeddingOp) -> None:
    """Carry out :class:`RegisterEmbeddingOp`."""
    index = Index(conv(operation.index_name))
    Table("", MetaData(), index, schema=operation.schema)
    operations.execute(CommentOnIndex(index, operation.registration))


def _definition(
    index_name: str,
    table_name: str,
    columns: Sequence[str],
    where: str,
    registration: Mapping[str, Any] | None,
    schema: str | None,
) -> PendingIndexDefinition:
    return PendingIndexDefinition(
        name=index_name,
        table=table_name,
        columns=tuple(columns),
        where=where,
        registration=None if registration is None else dict(registration),
        schema=schema,
    )
