"""``op.create_vector_index``, ``op.drop_vector_index`` and ``op.replace_vector_index``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import func, select

from pgembed.indexes.indexed import bare
from pgembed.migrations.definitions import MigrationError, VectorIndexDefinition
from pgembed.migrations.operations.concurrency import (
    RenameIndex,
    create_index,
    drop_index,
    temporary_name,
)


class CreateVectorIndexOp(MigrateOperation):
    """Build a vector index."""

    def __init__(self, definition: VectorIndexDefinition, *, concurrently: bool = False) -> None:
        self.definition = definition
        self.concurrently = concurrently

    @classmethod
    def create_vector_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        column: str | None = None,
        *,
        expression: str | None = None,
        using: str = "hnsw",
        opclass: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        where: str | None = None,
        schema: str | None = None,
        concurrently: bool = False,
    ) -> None:
        """Build a vector index.

        ::

            CREATE INDEX ix_article_embedding_hnsw ON article USING hnsw (embedding vector_cosine_ops)
            WITH (m = 16, ef_construction = 64)

        :param column: the indexed column, or else
        :param expression: the indexed SQL expression, as ``"embedding::halfvec(384)"``.
        :param using: the access method, ``"hnsw"`` or ``"ivfflat"``.
        :param opclass: the operator class, as ``"vector_cosine_ops"``.
        :param parameters: storage parameters; pgvector's defaults for what is left out. ``{"lists": "auto"}``
            counts the rows when the migration runs; in an offline script it is pgvector's default.
        :param where: the SQL predicate of a partial index.
        :param concurrently: do not lock writers out. It commits the migration's transaction, so it should be
            the only operation of its migration. What a failed attempt left is dropped first, and where the
            index stands nothing happens.
        :raises MigrationError: neither or both of ``column`` and ``expression``; or ``concurrently`` where it
            is impossible.
        """
        operations.invoke(
            cls(
                _definition(
                    index_name, table_name, column, expression, using, opclass, parameters, where, schema
                ),
                concurrently=concurrently,
            )
        )

    def reverse(self) -> MigrateOperation:
        return DropVectorIndexOp(self.definition, concurrently=self.concurrently)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("add_vector_index", self.definition)


class DropVectorIndexOp(MigrateOperation):
    """Drop a vector index; of the definition, a drop needs the names only, its reverse all of it."""

    def __init__(self, definition: VectorIndexDefinition, *, concurrently: bool = False) -> None:
        self.definition = definition
        self.concurrently = concurrently

    @classmethod
    def drop_vector_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        concurrently: bool = False,
    ) -> None:
        """Drop a vector index: ``DROP INDEX ix_article_embedding_hnsw``.

        :param concurrently: wait for other transactions instead of locking them out.
        :raises MigrationError: ``concurrently`` where it is impossible.
        """
        definition = VectorIndexDefinition(
            name=index_name, table=table_name, expression="", using="hnsw", schema=schema
        )
        operations.invoke(cls(definition, concurrently=concurrently))

    def reverse(self) -> MigrateOperation:
        return CreateVectorIndexOp(self.definition, concurrently=self.concurrently)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("remove_vector_index", self.definition)


class ReplaceVectorIndexOp(MigrateOperation):
    """Build an index anew under its own name."""

    def __init__(
        self,
        definition: VectorIndexDefinition,
        existing: VectorIndexDefinition | None = None,
        *,
        concurrently: bool = False,
    ) -> None:
        self.definition = definition
        self.existing = existing
        self.concurrently = concurrently

    @classmethod
    def replace_vector_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        column: str | None = None,
        *,
        expression: str | None = None,
        using: str = "hnsw",
        opclass: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        where: str | None = None,
        schema: str | None = None,
        concurrently: bool = False,
    ) -> None:
        """Build an index with another definition; searches have the old one until the new one is there.

        ::

            CREATE INDEX ix_article_embedding_hnsw_new ON article USING hnsw (...) WITH (...);
            DROP INDEX ix_article_embedding_hnsw;
            ALTER INDEX ix_article_embedding_hnsw_new RENAME TO ix_article_embedding_hnsw

        The parameters are those of ``op.create_vector_index``.
        """
        definition = _definition(
            index_name, table_name, column, expression, using, opclass, parameters, where, schema
        )
        operations.invoke(cls(definition, concurrently=concurrently))

    def reverse(self) -> MigrateOperation:
        assert self.existing is not None, "only what autogenerate found can be reversed"
        return ReplaceVectorIndexOp(self.existing, self.definition, concurrently=self.concurrently)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("replace_vector_index", self.existing, self.definition)


def run_create(operations: Operations, operation: CreateVectorIndexOp) -> None:
    """Carry out :class:`CreateVectorIndexOp`."""
    definition = _counted(operations, operation.definition)
    create_index(operations, definition.index(), concurrently=operation.concurrently)


def run_drop(operations: Operations, operation: DropVectorIndexOp) -> None:
    """Carry out :class:`DropVectorIndexOp`."""
    drop_index(operations, operation.definition.index(), concurrently=operation.concurrently)


def run_replace(operations: Operations, operation: ReplaceVectorIndexOp) -> None:
    """Carry out :class:`ReplaceVectorIndexOp`."""
    definition, concurrently = _counted(operations, operation.definition), operation.concurrently
    new = definition.renamed(temporary_name(definition.name, "new")).index()
    create_index(operations, new, concurrently=concurrently, temporary=True)
    drop_index(operations, definition.index(), concurrently=concurrently)
    operations.execute(RenameIndex(new, definition.name))


def _counted(operations: Operations, definition: VectorIndexDefinition) -> VectorIndexDefinition:
    """With the parameters that the number of rows decides; offline they are pgvector's defaults."""
    if not definition.counts_rows or operations.get_context().as_sql:
        return definition
    index = definition.index()
    assert index.table is not None
    (indexed,) = index.expressions
    counting = select(func.count(bare(indexed))).select_from(index.table)
    where = index.dialect_options["postgresql"]["where"]
    rows = operations.get_bind().scalar(counting if where is None else counting.where(where)) or 0
    return definition.built_on(rows)


def _definition(
    index_name: str,
    table_name: str,
    column: str | None,
    expression: str | None,
    using: str,
    opclass: str | None,
    parameters: Mapping[str, Any] | None,
    where: str | None,
    schema: str | None,
) -> VectorIndexDefinition:
    if (column is None) == (expression is None):
        raise MigrationError(f"index {index_name!r} needs either a column or an expression")
    return VectorIndexDefinition(
        name=index_name,
        table=table_name,
        column=column,
        expression=expression,
        using=using,
        opclass=opclass,
        parameters=dict(parameters or {}),
        where=where,
        schema=schema,
    )
