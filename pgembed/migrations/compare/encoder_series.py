"""A change of encoder without downtime: a second column replaces the first.

=========  ===============================================  =========================================
part       operations                                       locks
=========  ===============================================  =========================================
add        lock_table, add_column, create_pending_index     exclusive, milliseconds; then none that
                                                            block users
index      assert_backfilled, create_vector_index           none that block users
(switch)   the application reads and writes the new column
drop       assert_backfilled, drop_..._index, lock_table,   none that block users; then exclusive,
           drop_column                                      milliseconds
not null   set_not_null, where the model says so            exclusive, milliseconds, twice
=========  ===============================================  =========================================

The model and the database alone decide which part comes next. The model declares the change in one of two
ways: ``embedding_column(..., name="embedding_2", replaces="embedding")``; or it changes ``encoder=`` alone,
and the new column gets its name here: a comment in the first revision asks to write it into the model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from sqlalchemy import Column, Connection, MetaData, Table

from pgembed.columns import EmbeddingColumn, PendingIndex, embeddings_of
from pgembed.columns.embedding import INFO, SOURCES
from pgembed.migrations.compare.columns import settle
from pgembed.migrations.compare.indexes import TableIndexes, definition_of
from pgembed.migrations.compare.refusals import (
    check_distinct,
    check_one_at_a_time,
    check_renamed,
    check_replaced,
    check_same_encoder,
    check_undeclared,
    in_place,
    registrations,
)
from pgembed.migrations.definitions import Facts, IndexDefinition, MigrationError, PendingIndexDefinition
from pgembed.migrations.operations.table_locks import locked
from pgembed.migrations.operations.vector_column import AssertBackfilledOp
from pgembed.migrations.reflection import dependent_indexes
from pgembed.reembedding.costs import next_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Series:
    """One column that is replacing another.

    :ivar old: the name of the column that is in use.
    :ivar new: the column that replaces it, as declared or proposed.
    :ivar proposed: the model does not declare the new column yet.
    :ivar indexes: the names of the old column's indexes that are kept though no model declares them.
    :ivar facts: how the old column is registered, if it is.
    """

    table: Table
    old: str
    new: EmbeddingColumn
    proposed: bool
    indexes: set[str]
    facts: Facts | None

    @property
    def name(self) -> str:
        """The name of the new column."""
        return str(self.new.vector.name)

    def add_columns(self, modify_ops: ops.ModifyTableOps, model: Table) -> list[MigrateOperation]:
        """The operations that add the new columns, instead of what Alembic would add and change."""
        new = {self.name: self.new.vector, str(self.new.digest.name): self.new.digest}
        remaining: list[MigrateOperation] = []
        for operation in modify_ops.ops:
            if isinstance(operation, ops.AddColumnOp) and operation.column.name in new:
                continue
            if isinstance(operation, ops.AlterColumnOp):
                if operation.column_name == self.old and self.proposed:
                    continue
                if operation.column_name == self.name and operation.modify_nullable is False:
                    operation.modify_nullable = None
                    if not operation.has_changes():
                        continue
            remaining.append(operation)
        modify_ops.ops[:] = remaining
        # Both vectors and both digests exist until the end.
        settle(modify_ops, {self.old, *new} | ({str(self.facts["digest"])} if self.facts else set()))
        name, schema = modify_ops.table_name, modify_ops.schema
        found: list[MigrateOperation] = []
        for column in new.values():
            if column.name not in self.table.c:
                # Processes that don't know the column insert rows without it.
                added = column._copy()
                added.nullable = True
                found.append(ops.AddColumnOp(name, added, schema=schema, if_not_exists=True))
        if self.frees_old(model):
            type_ = self.table.c[self.old].type
            nullable: dict[str, Any] = {"existing_nullable": False, "modify_nullable": True}
            found.append(ops.AlterColumnOp(name, self.old, schema=schema, existing_type=type_, **nullable))
        return locked(modify_ops, found, self.reason)

    def frees_old(self, model: Table) -> bool:
        """Whether the old column must accept NULL: the new application does not write it."""
        return not self.table.c[self.old].nullable and (self.proposed or self.old not in model.c)

    def indexes_beside(self, indexes: TableIndexes, schema: str | None) -> tuple[TableIndexes, list[str]]:
        """The indexes that are compared while both columns are there, and the names of those of the new one.

        :raises MigrationError: an index of the new column has the name of one that the old column keeps.
        """
        kept = self.indexes & indexes.existing.keys()
        wanted: dict[str, IndexDefinition] = {}
        for index in self.new.table.indexes:
            definition = definition_of(index, schema)
            pending = isinstance(index, PendingIndex) and index.embedding is self.new
            if definition is None or not (pending or self.new.vector in index.columns.values()):
                continue
            name = definition.name
            if name in kept and not self.proposed:
                raise MigrationError(
                    f"{self.new}: its index {name!r} has the name of the index of {self.old!r}, which it "
                    "replaces and which is still in use: give it another name, or none"
                )
            name += self.name.removeprefix(self.old) if name in kept else ""
            wanted[name] = definition.renamed(name)
        existing = {name: each for name, each in indexes.existing.items() if name not in kept}
        if not self.proposed:
            return replace(indexes, declared={**indexes.declared, **wanted}, existing=existing), [*wanted]
        declared = {name: each for name, each in indexes.declared.items() if name not in kept}
        return TableIndexes(
            declared=declared | wanted,
            existing=existing,
            created=indexes.created - kept | (wanted.keys() - existing.keys()),
            dropped=indexes.dropped - wanted.keys(),
            compared=indexes.compared - kept | (wanted.keys() & existing.keys()),
        ), [*wanted]

    @property
    def reason(self) -> tuple[str, ...]:
        """What a reviewer of the first revision needs to know."""
        place = f"{self.new.table.fullname}.{self.old}"
        if not self.proposed:
            return (
                f"{self.name} takes the place of {place}: workers fill it while the application goes on as "
                "it is, the next revision builds its index, and `pgembed reembed status` says when to "
                "switch.",
            )
        old, new = self.facts or {}, self.new.declaration.encoder
        return (
            f"The encoder of {place} changes from {old.get('encoder')!r} "
            f"({old.get('fingerprint', '')[:8]}) to {new.name!r} ({new.fingerprint[:8]}). So that every "
            "search is answered from one space, the new vectors get a column of their own:",
            f"1. This revision adds {self.name}. Workers fill it while the application goes on as it is.",
            "2. The next revision builds its index. `pgembed reembed status` says when all is ready.",
            f'3. Release the application with name="{self.name}", replaces="{self.old}" in its '
            "embedding_column(): it writes and searches the new column, by the new encoder.",
            f"4. When the old application is gone, take replaces= away: {self.old} is dropped.",
            "To change the vectors in place instead: alembic -x reembed=in_place revision --autogenerate",
        )


@dataclass(frozen=True)
class SeriesParts:
    """What the changes of encoder of one table put into the parts of a series.

    :ivar indexes: the indexes that are compared.
    :ivar add: operations that add new columns, and ``back`` what a downgrade checks before it.
    :ivar drop: operations that drop old columns, and ``checks`` what is checked before them.
    :ivar waiting: the names of the indexes of new columns, with the column.
    :ivar ended: the names of the indexes of columns that were replaced.
    :ivar begun: the columns that are being replaced, each with the one that replaces it, and ``over`` those
        that are dropped.
    """

    indexes: TableIndexes
    add: list[MigrateOperation] = field(default_factory=list)
    back: list[MigrateOperation] = field(default_factory=list)
    drop: list[MigrateOperation] = field(default_factory=list)
    checks: list[MigrateOperation] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    begun: dict[str, str] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)


def compare_encoders(
    context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    table: Table,
    model: Table,
    indexes: TableIndexes,
) -> SeriesParts:
    """Columns that are replacing others, or have replaced them."""
    assert context.connection is not None
    if not in_place(context):
        check_renamed(model, indexes)
    begun = find_series(context, context.connection, table, model, indexes)
    parts = SeriesParts(indexes)
    for series in begun:
        parts.begun[series.old] = series.name
        added = series.add_columns(modify_ops, model)
        parts.add.extend(added)
        if added and series.facts and series.frees_old(model):
            parts.back.append(backfilled(modify_ops, series.old, "the column again", 1.0).reverse())
        elif not added and series.proposed:
            log.warning(
                "%s.%s is being replaced: write name=%r, replaces=%r into its embedding_column()",
                *(modify_ops.table_name, series.old, series.name, series.old),
            )
        indexes, names = series.indexes_beside(indexes, modify_ops.schema)
        parts.waiting.update(dict.fromkeys(names, series.name))
    registered = registrations(indexes.existing)
    for new, definition in registered.items():
        old = replaced_by(definition)
        if (
            old is None
            or old in {series.old for series in begun}
            or replaced_by(indexes.declared.get(definition.name)) is not None
            or old not in table.c
            or old in model.c
        ):
            continue
        dropped = drop_columns(context, modify_ops, table, old, registered.get(old))
        parts.drop.extend(dropped)
        if dropped:
            parts.over.add(old)
            parts.ended.update(dependent_indexes(context.connection, table, old))
            if new in model.c:
                parts.checks.append(backfilled(modify_ops, new, "the column that takes its place"))
    return replace(parts, indexes=indexes)


def drop_columns(
    context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    table: Table,
    old: str,
    registered: PendingIndexDefinition | None,
) -> list[MigrateOperation]:
    """The operations that drop an unused column and its digest, if the filters allow it."""
    gone = {old} | ({str((registered.registration or {})["digest"])} if registered else set())
    columns: list[MigrateOperation] = []
    for name in sorted(gone):
        column = table.c.get(name)
        if column is not None and context.run_object_filters(column, name, "column", True, None):
            drop = ops.DropColumnOp.from_column_and_tablename(
                modify_ops.schema, modify_ops.table_name, column
            )
            drop.if_exists = True
            columns.append(drop)
    if columns:
        settle(modify_ops, gone)
    return locked(modify_ops, columns)


def backfilled(
    modify_ops: ops.ModifyTableOps, column: str, what: str, share: float = 0.99
) -> AssertBackfilledOp:
    """The operation that waits until a column is filled: building an index is faster than adding to it."""
    return AssertBackfilledOp(
        modify_ops.table_name,
        column,
        share=share,
        schema=modify_ops.schema,
        reason=f"The migration stops here until workers, or `pgembed backfill`, have filled {what}.",
    )


def replaced_by(definition: IndexDefinition | None) -> str | None:
    """The column that an embedding column replaces."""
    if not isinstance(definition, PendingIndexDefinition):
        return None
    return (definition.registration or {}).get("replaces")


def find_series(
    context: AutogenContext,
    connection: Connection,
    table: Table,
    model: Table,
    indexes: TableIndexes,
) -> list[Series]:
    """The columns of a table that are replacing others.

    :raises MigrationError: see :mod:`pgembed.migrations.compare.refusals`.
    """
    pending = registrations(indexes.existing)
    found = []
    replaced = []
    for embedding in embeddings_of(model):
        declaration, name = embedding.declaration, str(embedding.vector.name)
        check_replaced(embedding, table, pending)
        if not in_place(context):
            check_same_encoder(embedding, table, pending)
        old, new, proposed = declaration.replaces, embedding, False
        if old is None and name in pending and pending[name].name in indexes.compared:
            facts = pending[name].registration or {}
            proposed = facts["fingerprint"] != declaration.encoder.fingerprint and not in_place(context)
            old = name if proposed else None
            new = _beside(embedding, _chosen_name(embedding, table, pending)) if proposed else embedding
        if old is not None and old in table.c:
            check_one_at_a_time(embedding, old, table, pending)
            if proposed:
                check_undeclared(embedding, str(new.vector.name), model)
            replaced.append((embedding, old))
            registered = pending.get(old)
            found.append(
                Series(
                    table,
                    old,
                    new,
                    proposed,
                    dependent_indexes(connection, table, old) if proposed or old not in model.c else set(),
                    None if registered is None else registered.registration,
                )
            )
    check_distinct(replaced)
    return found


def _chosen_name(embedding: EmbeddingColumn, table: Table, pending: dict[str, PendingIndexDefinition]) -> str:
    """The column that an earlier run added for this change, or else the next free name."""
    old, encoder = str(embedding.vector.name), embedding.declaration.encoder
    for name, definition in pending.items():
        facts = definition.registration or {}
        if facts.get("replaces") == old and facts["fingerprint"] == encoder.fingerprint:
            return name
    return next_name(old, {*table.c.keys(), *(column.name for column in embedding.table.c)})


def _beside(embedding: EmbeddingColumn, name: str) -> EmbeddingColumn:
    """The same declaration for a column of another name, on a separate table."""
    declaration = replace(embedding.declaration, replaces=str(embedding.vector.name), words=None)
    needed = dict.fromkeys([*embedding.table.primary_key.columns, *embedding.sources, *embedding.links])
    columns = [
        Column(column.name, column.type, key=column.key, primary_key=column.primary_key) for column in needed
    ]
    vector: Column[Any] = Column(
        name,
        embedding.vector.type,
        nullable=True,
        info={INFO: declaration, SOURCES: tuple(source.key for source in embedding.sources)},
    )
    metadata = MetaData(naming_convention=embedding.table.metadata.naming_convention)
    shadow = Table(embedding.table.name, metadata, *columns, vector, schema=embedding.table.schema)
    (found,) = embeddings_of(shadow)
    return found
