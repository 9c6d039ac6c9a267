"""A change of encoder without downtime: a second column takes the place of the first.

=========  ================================================  ====================================
part       operations                                        locks
=========  ================================================  ====================================
add        lock_table, add_column, create_pending_index      a moment; then none that users meet
index      assert_backfilled, create_vector_index            none that users meet
(switch)   the application reads and writes the new column
drop       assert_backfilled, drop_..._index, lock_table,    none that users meet; then a moment
           drop_column
not null   set_not_null, where the model says so             two moments
=========  ================================================  ====================================

Which part a table is at follows from the model and the database alone. The model says it in one of two ways:
``embedding_column(..., name="embedding_2", replaces="embedding")``; or only ``encoder=`` has changed, and the
new column is given a name here, which the first revision asks to be written into the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Column, Connection, MetaData, Table, text

from pgembed.columns import EmbeddingColumn, embeddings_of
from pgembed.columns.embedding import INFO, SOURCES
from pgembed.filling.reembedding_plan import next_name
from pgembed.indexes.catalogue import written
from pgembed.migrations.compare.refusals import (
    check_distinct,
    check_one_at_a_time,
    check_replaced,
    check_same_encoder,
    check_undeclared,
    registrations,
)
from pgembed.migrations.definitions import Definition, Facts, MigrationError, PendingIndexDefinition
from pgembed.migrations.operations.base import NextRevisionOp

_DEPENDENT = text("""
SELECT c.relname
  FROM pg_catalog.pg_depend AS d
  JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind IN ('i', 'I')
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
   AND d.refobjid = pg_catalog.to_regclass(:relation) AND a.attname = :column
""")


def setup() -> None:
    """Register the comparator that runs when all tables are compared."""
    comparators.dispatch_for(
        "schema", priority=DispatchPriority.LAST, qualifier="postgresql", subgroup="pgembed.series"
    )(settle_drops)


@dataclass
class Series:
    """One column that takes the place of another.

    :ivar old: the name of the column that is in use.
    :ivar new: the column that takes its place, declared so or as it is proposed.
    :ivar proposed: the model knows nothing of the new column yet.
    :ivar indexes: the indexes of the old column that stand though no model declares them.
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

    @property
    def standing(self) -> bool:
        """Whether the new column is there."""
        return self.name in self.table.c

    @property
    def columns(self) -> set[str]:
        """The names of the columns that are there until the end, of both vectors and both digests."""
        digest = {str(self.facts["digest"])} if self.facts else set()
        return {self.old, self.name, str(self.new.digest.name)} | digest

    def settle_columns(self, modify_ops: ops.ModifyTableOps, model: Table) -> list[MigrateOperation]:
        """Take over what Alembic would add and change; the operations that add the new columns."""
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
        found: list[MigrateOperation] = []
        for name, column in new.items():
            if name not in self.table.c:
                # Rows of processes that don't know it have none.
                added = column._copy()
                added.nullable = True
                found.append(
                    ops.AddColumnOp(
                        modify_ops.table_name, added, schema=modify_ops.schema, if_not_exists=True
                    )
                )
        if not self.table.c[self.old].nullable and (self.proposed or self.old not in model.c):
            found.append(
                ops.AlterColumnOp(
                    modify_ops.table_name,
                    self.old,
                    schema=modify_ops.schema,
                    existing_type=self.table.c[self.old].type,
                    existing_nullable=False,
                    modify_nullable=True,
                )
            )
        return found

    @property
    def reason(self) -> tuple[str, ...]:
        """What a reviewer of the first revision has to know."""
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


def settle(modify_ops: ops.ModifyTableOps, columns: set[str]) -> None:
    """Have :func:`settle_drops` take back what Alembic drops of these columns."""
    settled: set[str] = getattr(modify_ops, "pgembed_columns", set())
    modify_ops.pgembed_columns = settled | columns  # type: ignore[attr-defined]


def settle_drops(
    _context: AutogenContext, upgrade_ops: ops.UpgradeOps, _schemas: set[str | None]
) -> PriorityDispatchResult:
    """The comparator that runs when Alembic is through with a table: it drops columns after all else."""
    kept: list[MigrateOperation] = []
    for operation in upgrade_ops.ops:
        if isinstance(operation, ops.ModifyTableOps) and hasattr(operation, "pgembed_columns"):
            theirs = [
                each for each in operation.ops if isinstance(each, ops.DropColumnOp) and not each.if_exists
            ]
            others = [each for each in operation.ops if each not in theirs]
            first = next(
                (place for place, each in enumerate(others) if isinstance(each, NextRevisionOp)), len(others)
            )
            settled: set[str] = operation.pgembed_columns
            others[first:first] = [each for each in theirs if each.column_name not in settled]
            operation.ops[:] = others
            if operation.is_empty():
                continue
        kept.append(operation)
    upgrade_ops.ops[:] = kept
    return PriorityDispatchResult.CONTINUE


def in_place(context: AutogenContext) -> bool:
    """Whether a changed encoder is to change the vectors where they are.

    ``alembic -x reembed=in_place``, or ``context.configure(..., pgembed_reembed="in_place")``.
    """
    assert context.migration_context is not None
    environment = context.migration_context.environment_context
    stated: Any = None
    if environment is not None:
        stated = environment.get_x_argument(as_dictionary=True).get("reembed")
    stated = stated or context.opts.get("pgembed_reembed") or "beside"
    if stated not in ("beside", "in_place"):
        raise MigrationError(f'reembed={stated!r}; expected "beside" or "in_place"')
    return bool(stated == "in_place")


def find_series(
    context: AutogenContext,
    connection: Connection,
    table: Table | None,
    model: Table | None,
    existing: dict[str, Definition],
    compared: set[str],
) -> list[Series]:
    """The columns of a table that take the place of others.

    :param compared: names of the indexes that are on both sides and that the filters let through.
    :raises MigrationError: see :mod:`pgembed.migrations.compare.refusals`.
    """
    if table is None or model is None:
        return []
    pending = registrations(existing)
    found = []
    replaced = []
    for embedding in embeddings_of(model):
        declaration, name = embedding.declaration, str(embedding.vector.name)
        check_replaced(embedding, table, pending)
        if not in_place(context):
            check_same_encoder(embedding, table, pending)
        old, new, proposed = declaration.replaces, embedding, False
        if old is None and name in pending and pending[name].name in compared:
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
                    dependent(connection, table, old) if proposed or old not in model.c else set(),
                    None if registered is None else registered.registration,
                )
            )
    check_distinct(replaced)
    return found


def dependent(connection: Connection, table: Table, column: str) -> set[str]:
    """The names of the indexes on a column, in their expressions and predicates too."""
    relation = written(table)
    return set(connection.scalars(_DEPENDENT, {"relation": relation, "column": column}))


def _chosen_name(embedding: EmbeddingColumn, table: Table, pending: dict[str, PendingIndexDefinition]) -> str:
    """The column that was added for this change by an earlier run; else the next free name."""
    old, encoder = str(embedding.vector.name), embedding.declaration.encoder
    for name, definition in pending.items():
        facts = definition.registration or {}
        if facts.get("replaces") == old and facts["fingerprint"] == encoder.fingerprint:
            return name
    return next_name(old, {*table.c.keys(), *(column.name for column in embedding.table.c)})


def _beside(embedding: EmbeddingColumn, name: str) -> EmbeddingColumn:
    """The same declaration for a column of another name, on a table of its own."""
    declaration = replace(embedding.declaration, replaces=str(embedding.vector.name))
    needed = dict.fromkeys([*embedding.table.primary_key.columns, *embedding.sources])
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
