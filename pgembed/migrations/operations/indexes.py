"""``op.create_``, ``drop_`` and ``replace_`` of vector and pending indexes; ``op.register_embedding``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Index, MetaData, Table, func, select
from sqlalchemy.schema import conv

from pgembed.indexes import ACCESS_METHODS
from pgembed.indexes.indexed import bare
from pgembed.indexes.methods import AUTO
from pgembed.migrations.definitions import (
    Facts,
    IndexDefinition,
    PendingIndexDefinition,
    VectorIndexDefinition,
)
from pgembed.migrations.operations.base import PgembedOp
from pgembed.migrations.operations.concurrency import (
    TEMPORARY,
    comment_on,
    create_index,
    drop_index,
    drop_leftover,
    exists,
    rename,
    temporary_name,
)
from pgembed.migrations.rendering import call, comment


@dataclass(eq=False)
class ChangeIndexOp(PgembedOp):
    """Create, drop or replace a vector index or a pending index.

    :ivar new: the index as it is afterwards; ``None`` drops it.
    :ivar old: the index as it was; ``None`` creates it. If it is dropped, names suffice.
    """

    names = tuple(
        f"{action}_{kind}_index" for kind in ("vector", "pending") for action in ("create", "drop", "replace")
    )

    old: IndexDefinition | None
    new: IndexDefinition | None
    concurrently: bool = False

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

        :param column: the indexed column, or instead of it
        :param expression: the indexed SQL expression, such as ``"embedding::halfvec(384)"``.
        :param using: the access method, ``"hnsw"`` or ``"ivfflat"``.
        :param opclass: the operator class, such as ``"vector_cosine_ops"``.
        :param parameters: storage parameters; pgvector's defaults for any left out. ``{"lists": "auto"}``
            counts the rows when the migration runs; in an offline script it is pgvector's default.
        :param where: the SQL predicate of a partial index.
        :param concurrently: do not block writes. It commits the migration's transaction, so it should be the
            only operation of its migration. What a failed attempt left is dropped first, and if the index
            exists nothing happens.
        :raises MigrationError: neither or both of ``column`` and ``expression``; or ``concurrently`` where it
            is impossible.
        """
        new = VectorIndexDefinition(
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
        operations.invoke(cls(None, new, concurrently))

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
        """Drop an index: ``DROP INDEX ix_article_embedding_hnsw``.

        A pending index takes the registration of its embedding column with it.

        :param concurrently: wait for other transactions instead of blocking them.
        :raises MigrationError: ``concurrently`` where it is impossible.
        """
        old = VectorIndexDefinition(
            name=index_name, table=table_name, expression="", using="hnsw", schema=schema
        )
        operations.invoke(cls(old, None, concurrently))

    drop_pending_index = drop_vector_index

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
        """Build an index with another definition; searches use the old one until the new one is there.

        ::

            CREATE INDEX ix_article_embedding_hnsw_new ON article USING hnsw (...) WITH (...);
            ALTER INDEX ix_article_embedding_hnsw RENAME TO ix_article_embedding_hnsw_old;
            ALTER INDEX ix_article_embedding_hnsw_new RENAME TO ix_article_embedding_hnsw;
            DROP INDEX ix_article_embedding_hnsw_old

        The parameters are those of ``op.create_vector_index``. With ``concurrently``, a comment marks indexes
        of temporary names, so that the next attempt recognises leftovers.

        :raises MigrationError: as ``op.create_vector_index``; or an index of one of the temporary names is
            not a leftover.
        """
        new = VectorIndexDefinition(
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
        operations.invoke(cls(new, new, concurrently))

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

        From then on, ``pgembed.embedding_columns`` lists the column, and ``pgembed.status`` and workers see
        its pending rows.

        :param columns: the primary key.
        :param where: the SQL predicate that holds for pending rows.
        :param registration: what the comment says: column, digest, sources, template, encoder, fingerprint,
            dimensions, metric, fill; and options of the encoder that decide its vectors, if it has any.
        :param concurrently: do not block writes. It commits the migration's transaction.
        :raises MigrationError: ``concurrently`` where it is impossible.
        """
        new = _pending_index(index_name, table_name, columns, where, registration, schema)
        operations.invoke(cls(None, new, concurrently))

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
        """Change which rows of an embedding column are pending: its encoder, template or sources change.

        It is replaced as by ``op.replace_vector_index``, and ``COMMENT ON INDEX`` gives the new one the
        registration. Names and registration change in one transaction: workers see the one or the other.

        The parameters are those of ``op.create_pending_index``.
        """
        new = _pending_index(index_name, table_name, columns, where, registration, schema)
        operations.invoke(cls(new, new, concurrently))

    def run(self, operations: Operations) -> None:
        if self.new is None:
            assert self.old is not None
            drop_index(operations, self.old.index(), concurrently=self.concurrently)
            return
        new = _counted(operations, self.new)
        if self.old is None:
            index = new.index()
            create_index(operations, index, concurrently=self.concurrently)
            if new.comment is not None:
                comment_on(operations, index, new.comment)
            return
        built, replaced = (new.renamed(temporary_name(new.name, end)).index() for end in ("new", "old"))
        current = new.index()
        if self.concurrently:
            drop_leftover(operations, replaced)
        create_index(operations, built, concurrently=self.concurrently, temporary=True)
        if not self.concurrently or exists(operations, current):
            comment_on(operations, current, TEMPORARY)
            rename(operations, current, replaced)
        rename(operations, built, current)
        comment_on(operations, current, new.comment)
        drop_index(operations, replaced, concurrently=self.concurrently)

    def render(self, context: AutogenContext) -> list[str]:
        definition = self.new or self.old
        assert definition is not None
        function = f"{self._action}_{definition.kind}"
        concurrently = self.concurrently or None
        if self.new is None:
            names = [definition.name, definition.table]
            return [call(context, function, names, schema=definition.schema, concurrently=concurrently)]
        positional, options = definition.arguments(concurrently)
        text = call(context, function, positional, **options)
        return [*comment("" if self.old is None else self.new.reason(self.old)), text]

    def reverse(self) -> MigrateOperation:
        return replace(self, old=self.new, new=self.old)

    def in_schema(self, schemas: Mapping[str | None, str | None]) -> Self:
        old, new = (
            each and replace(each, schema=schemas.get(each.schema, each.schema))
            for each in (self.old, self.new)
        )
        return replace(self, old=old, new=new)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        found = [each for each in (self.old, self.new) if each is not None]
        action = {"create": "add", "drop": "remove"}.get(self._action, self._action)
        return (f"{action}_{found[0].kind}", *found)

    @property
    def _action(self) -> str:
        return "create" if self.old is None else "drop" if self.new is None else "replace"


@dataclass(eq=False)
class RegisterEmbeddingOp(PgembedOp):
    """Rewrite the registration of an embedding column."""

    names = ("register_embedding",)

    index_name: str
    registration: Facts | None
    existing: Facts | None = None
    schema: str | None = None

    @classmethod
    def register_embedding(
        cls,
        operations: Operations,
        index_name: str,
        registration: Mapping[str, Any] | None,
        *,
        schema: str | None = None,
    ) -> None:
        """Change the registration of an embedding column: ``COMMENT ON INDEX ix_..._pending IS '{...}'``.

        It suffices if the same rows stay pending (the encoder's name, the metric, ``fill=``).

        :param registration: as in ``op.create_pending_index``; ``None`` removes the registration.
        """
        facts = None if registration is None else dict(registration)
        operations.invoke(cls(index_name, facts, schema=schema))

    def run(self, operations: Operations) -> None:
        index = Index(conv(self.index_name))
        Table("", MetaData(), index, schema=self.schema)
        comment_on(operations, index, None if self.registration is None else json.dumps(self.registration))

    def render(self, context: AutogenContext) -> list[str]:
        arguments = [self.index_name, self.registration]
        return [call(context, "register_embedding", arguments, schema=self.schema)]

    def reverse(self) -> MigrateOperation:
        return replace(self, registration=self.existing, existing=self.registration)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("register_embedding", self.index_name, self.existing, self.registration)


def _pending_index(
    name: str,
    table: str,
    columns: Sequence[str],
    where: str,
    registration: Mapping[str, Any] | None,
    schema: str | None,
) -> PendingIndexDefinition:
    facts = None if registration is None else dict(registration)
    return PendingIndexDefinition(
        name=name, table=table, columns=tuple(columns), where=where, registration=facts, schema=schema
    )


def _counted(operations: Operations, definition: IndexDefinition) -> IndexDefinition:
    """With the parameters that depend on the number of rows; offline they are pgvector's defaults."""
    if (
        not isinstance(definition, VectorIndexDefinition)
        or AUTO not in definition.parameters.values()
        or operations.get_context().as_sql
    ):
        return definition
    index = definition.index()
    assert index.table is not None
    (indexed,) = index.expressions
    counting = select(func.count(bare(indexed))).select_from(index.table)
    where = index.dialect_options["postgresql"]["where"]
    rows = operations.get_bind().scalar(counting if where is None else counting.where(where)) or 0
    parameters = ACCESS_METHODS[definition.using].parameters_for(definition.parameters, rows)
    return replace(definition, parameters=parameters)
