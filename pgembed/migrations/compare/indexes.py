"""What autogenerate compares of a table's indexes: vector indexes and pending indexes.

:mod:`pgembed.migrations.compare.encoder_series` says which columns take the place of others; here it is put
into operations.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Connection, Index, Table, literal_column, select
from sqlalchemy.exc import DBAPIError

from pgembed.columns import PendingIndex, embeddings_of
from pgembed.indexes import ACCESS_METHODS, access_method_of
from pgembed.indexes.catalogue import name_of, written
from pgembed.indexes.explaining import plan_of
from pgembed.indexes.partitions import is_partitioned
from pgembed.migrations.compare.columns import convert_not_null, convert_vector_types
from pgembed.migrations.compare.encoder_series import Series, dependent, find_series, in_place, settle
from pgembed.migrations.compare.refusals import check_renamed
from pgembed.migrations.definitions import (
    Definition,
    MigrationError,
    PendingIndexDefinition,
    VectorIndexDefinition,
)
from pgembed.migrations.operations.pending_index import (
    CreatePendingIndexOp,
    DropPendingIndexOp,
    RegisterEmbeddingOp,
    ReplacePendingIndexOp,
)
from pgembed.migrations.operations.table_locks import LockTableOp
from pgembed.migrations.operations.vector_column import AlterVectorColumnOp, AssertBackfilledOp
from pgembed.migrations.operations.vector_index import (
    CreateVectorIndexOp,
    DropVectorIndexOp,
    ReplaceVectorIndexOp,
)
from pgembed.migrations.reflection import indexes_of
from pgembed.migrations.revisions import in_parts

log = logging.getLogger(__name__)


def setup() -> None:
    """Register the comparator, which runs after all others of a table."""
    comparators.dispatch_for(
        "table", priority=DispatchPriority.LAST, qualifier="postgresql", subgroup="pgembed.indexes"
    )(compare_indexes)


def compare_indexes(
    context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    schema: str | None,
    table_name: Any,  # noqa: ARG001
    conn_table: Table | None,
    metadata_table: Table | None,
) -> PriorityDispatchResult:
    """Vector and pending indexes, in place of Alembic's own comparison, which sees their names and columns.

    It runs after the others, and takes what Alembic decided about these indexes (and with it the filters of
    ``env.py``) out of the list again.
    """
    # Written as in the list of operations: without the schema that is the connection's default.
    declared = declared_indexes(metadata_table, schema)
    pending = {
        name for name, definition in declared.items() if isinstance(definition, PendingIndexDefinition)
    }
    assert context.connection is not None
    existing = {} if conn_table is None else indexes_of(context.connection, conn_table, pending)
    not_null = convert_not_null(modify_ops, metadata_table)
    if declared or existing:
        created, dropped = take_over(modify_ops, declared, existing)
        compared = in_both(context, conn_table, metadata_table) & declared.keys() & existing.keys()
        compared |= declared.keys() & created & dropped
        comparison = _Comparison(
            context, modify_ops, conn_table, metadata_table, declared, existing, created, dropped, compared
        )
        comparison.find_changes_of_columns()
        comparison.find_added()
        convert_vector_types(modify_ops)
        comparison.compare()
        modify_ops.ops[:] = in_parts(
            [*comparison.before, *modify_ops.ops, *comparison.after],
            comparison.drop_old,
            comparison.add_new,
            comparison.index_new,
            not_null,
        )
    else:
        convert_vector_types(modify_ops)
        modify_ops.ops[:] = in_parts(modify_ops.ops, [], [], [], not_null)
    return PriorityDispatchResult.CONTINUE


@dataclass
class _Comparison:
    """The indexes of one table on both sides, and the operations that make the one like the other.

    :ivar created: names that Alembic would create, and ``dropped``, those that it would drop.
    :ivar compared: names that are on both sides.
    :ivar before: operations that go before those on columns, and ``after``, those that go after them.
    :ivar before_drop: what is checked before old columns are dropped.
    :ivar before_return: what a downgrade checks before old columns are ``NOT NULL`` again.
    :ivar drop_old: the parts of a series; see :mod:`pgembed.migrations.compare.encoder_series`.
    :ivar series_of: the index names of new columns, with the column.
    :ivar old_indexes: the index names of columns whose place was taken.
    :ivar filled_first: the index names of columns that a table in use gets, with the column.
    """

    context: AutogenContext
    modify_ops: ops.ModifyTableOps
    conn_table: Table | None
    metadata_table: Table | None
    declared: dict[str, Definition]
    existing: dict[str, Definition]
    created: set[str]
    dropped: set[str]
    compared: set[str]
    before: list[MigrateOperation] = field(default_factory=list)
    after: list[MigrateOperation] = field(default_factory=list)
    drop_old: list[MigrateOperation] = field(default_factory=list)
    before_drop: list[MigrateOperation] = field(default_factory=list)
    before_return: list[MigrateOperation] = field(default_factory=list)
    add_new: list[MigrateOperation] = field(default_factory=list)
    index_new: list[MigrateOperation] = field(default_factory=list)
    series_of: dict[str, Series] = field(default_factory=dict)
    old_indexes: set[str] = field(default_factory=set)
    filled_first: dict[str, str] = field(default_factory=dict)

    @property
    def connection(self) -> Connection:
        assert self.context.connection is not None
        return self.context.connection

    def find_changes_of_columns(self) -> None:
        """Look for columns that take, or have taken, the place of others."""
        if self.conn_table is None or self.metadata_table is None:
            return
        if not in_place(self.context):
            check_renamed(self.metadata_table, self.existing, self.declared, self.dropped)
        begun = find_series(
            self.context, self.connection, self.conn_table, self.metadata_table, self.existing, self.compared
        )
        for series in begun:
            self._begin(series)
        in_use = {series.old for series in begun}
        for definition in self._pending_indexes():
            old = _replaced_by(definition)
            if (
                old is not None
                and old not in in_use
                and _replaced_by(self.declared.get(definition.name)) is None
                and old in self.conn_table.c
                and old not in self.metadata_table.c
            ):
                self._finish(old, _column_of(definition))

    def _begin(self, series: Series) -> None:
        """The old column stays as it is, the new one is added."""
        assert self.metadata_table is not None
        columns = series.settle_columns(self.modify_ops, self.metadata_table)
        settle(self.modify_ops, series.columns)
        if columns:
            lock = LockTableOp(
                self.modify_ops.table_name, schema=self.modify_ops.schema, reason=series.reason
            )
            self.add_new += [lock, *columns, lock.reverse()]
            if series.facts and any(isinstance(each, ops.AlterColumnOp) for each in columns):
                self.before_return.append(self._backfilled(series.old, "the column again", 1.0).reverse())
        elif series.proposed:
            log.warning(
                "%s.%s is being replaced: write name=%r, replaces=%r into its embedding_column()",
                *(self.modify_ops.table_name, series.old, series.name, series.old),
            )
        stand = series.indexes & self.existing.keys()
        for name in stand:
            del self.existing[name]
        wanted: dict[str, Definition] = {}
        for index in series.new.table.indexes:
            name = name_of(index)
            definition = definition_of(index, name, self.modify_ops.schema)
            if definition is None or not _is_on(index, series):
                continue
            if name in stand and not series.proposed:
                raise MigrationError(
                    f"{series.new}: its index {name!r} has the name of the index of {series.old!r}, whose "
                    "place it takes while that is still in use: give it another name, or none"
                )
            name = name + series.name.removeprefix(series.old) if name in stand else name
            wanted[name] = definition.renamed(name)
        if series.proposed:
            self.compared = (self.compared - stand) | (wanted.keys() & self.existing.keys())
            self.created = (self.created - stand) | (wanted.keys() - self.existing.keys())
            self.dropped -= wanted.keys()
            for name in stand & self.declared.keys():
                del self.declared[name]
        self.declared |= wanted
        self.series_of |= dict.fromkeys(wanted, series)

    def _finish(self, old: str, new: str | None) -> None:
        """Nobody uses the old column any more."""
        assert self.conn_table is not None
        assert self.metadata_table is not None
        facts = next((each.registration for each in self._pending_indexes() if _column_of(each) == old), None)
        gone = {old} | ({str(facts["digest"])} if facts else set())
        columns: list[MigrateOperation] = []
        for name in sorted(gone):
            column = self.conn_table.c.get(name)
            if column is not None and self.context.run_object_filters(column, name, "column", True, None):
                drop = ops.DropColumnOp.from_column_and_tablename(
                    self.modify_ops.schema, self.modify_ops.table_name, column
                )
                drop.if_exists = True
                columns.append(drop)
        if not columns:
            return
        settle(self.modify_ops, gone)
        self.old_indexes |= dependent(self.connection, self.conn_table, old)
        lock = LockTableOp(self.modify_ops.table_name, schema=self.modify_ops.schema)
        self.drop_old += [lock, *columns, lock.reverse()]
        if new is not None and new in self.metadata_table.c:
            self.before_drop.append(self._backfilled(new, "the column that takes its place"))

    def compare(self) -> None:
        """Find what is to be dropped, built and built anew."""
        retyped = any(isinstance(operation, AlterVectorColumnOp) for operation in self.modify_ops.ops)
        table = self.conn_table
        in_use = table is not None and not is_partitioned(self.connection, written(table))
        # A concurrent build commits what came before it; if it failed, that could not be run again.
        concurrently = (
            bool(self.context.opts.get("pgembed_concurrently"))
            and self.conn_table is not None
            and self.metadata_table is not None
            and not self.modify_ops.ops
        )
        table_name = self.modify_ops.table_name
        ended: list[MigrateOperation] = []
        for name in sorted(self.existing.keys() & self.dropped - self.created):
            log.info("Detected removed index %r on %r", name, table_name)
            if name in self.old_indexes:
                ended.append(drop_op(self.existing[name], in_use))
            else:
                self.before.append(drop_op(self.existing[name], concurrently))
        self.drop_old[:0] = [*self.before_drop, *ended]
        for name in sorted(self.declared.keys() & self.created - self.dropped):
            log.info("Detected added index %r on %r", name, table_name)
            apart = name in self.series_of or name in self.filled_first
            self._put(name, create_op(self.declared[name], in_use if apart else concurrently))
        for name in sorted(self.compared):
            old, new = self.existing.get(name), self.declared[name]
            concurrent = in_use if name in self.series_of else concurrently
            if old is None:  # an index of another kind, which Alembic drops
                self.after.append(create_op(new, concurrently))
                continue
            assert self.conn_table is not None
            if same(self.connection, self.conn_table, old, new):
                (self.drop_old if self.drop_old else self.after).extend(registration_ops(old, new))
                continue
            log.info("Detected changed index %r on %r", name, table_name)
            if type(old) is type(new) and not retyped:
                self._put(name, replace_op(old, new, concurrent))
            else:
                self.before.append(drop_op(old, concurrently))
                self.after.append(create_op(new, concurrently))
        self._wait_for_backfill()

    def find_added(self) -> None:
        """Look for vector indexes on embedding columns that are added: they are filled first."""
        if self.conn_table is None or self.metadata_table is None:
            return
        added = {each.column.name for each in self.modify_ops.ops if isinstance(each, ops.AddColumnOp)}
        filled = {each.vector for each in embeddings_of(self.metadata_table) if each.vector.name in added}
        for index in self.metadata_table.indexes:
            name = name_of(index)
            if isinstance(self.declared.get(name), VectorIndexDefinition):
                for column in filled.intersection(index.columns.values()):
                    self.filled_first[name] = str(column.name)

    def _put(self, name: str, operation: MigrateOperation) -> None:
        """An operation on an index, into the part where it belongs."""
        if name in self.filled_first:
            self.index_new.append(operation)
        elif name not in self.series_of:
            self.after.append(operation)
        elif isinstance(self.declared[name], PendingIndexDefinition):
            self.add_new.append(operation)
        else:
            self.index_new.append(operation)

    def _wait_for_backfill(self) -> None:
        """An index is built faster over vectors that are there, and makes filling slow."""
        names = {
            each.definition.name
            for each in self.index_new
            if isinstance(each, CreateVectorIndexOp | ReplaceVectorIndexOp)
        }
        columns = dict.fromkeys(
            self.filled_first.get(name) or self.series_of[name].name for name in sorted(names)
        )
        self.index_new[:0] = [self._backfilled(column, "the column") for column in columns]
        self.add_new += self.before_return

    def _backfilled(self, column: str, what: str, share: float = 0.99) -> AssertBackfilledOp:
        return AssertBackfilledOp(
            self.modify_ops.table_name,
            column,
            share=share,
            schema=self.modify_ops.schema,
            reason=f"The migration stops here until workers, or `pgembed backfill`, have filled {what}.",
        )

    def _pending_indexes(self) -> list[PendingIndexDefinition]:
        return [each for each in self.existing.values() if isinstance(each, PendingIndexDefinition)]


def _is_on(index: Index, series: Series) -> bool:
    """Whether an index is one of a new column."""
    if isinstance(index, PendingIndex):
        return index.embedding is series.new
    return series.new.vector in index.columns.values()


def _column_of(definition: PendingIndexDefinition) -> str | None:
    return (definition.registration or {}).get("column")


def _replaced_by(definition: Definition | None) -> str | None:
    """The column whose place an embedding column takes."""
    if not isinstance(definition, PendingIndexDefinition):
        return None
    return (definition.registration or {}).get("replaces")


def declared_indexes(table: Table | None, schema: str | None) -> dict[str, Definition]:
    """The vector and pending indexes of a model's table, by the names that they get in the database."""
    found: dict[str, Definition] = {}
    for index in table.indexes if table is not None else ():
        name = name_of(index)
        definition = definition_of(index, name, schema)
        if definition is not None:
            found[name] = definition
    return found


def definition_of(index: Index, name: str, schema: str | None) -> Definition | None:
    """What an index is, if it is one of ours."""
    if isinstance(index, PendingIndex):
        return PendingIndexDefinition.of(index, name, schema)
    if access_method_of(index) in ACCESS_METHODS:
        return VectorIndexDefinition.of(index, name, schema)
    return None


def take_over(
    modify_ops: ops.ModifyTableOps, declared: dict[str, Definition], existing: dict[str, Definition]
) -> tuple[set[str], set[str]]:
    """Remove Alembic's operations on our indexes; the names that it would create, and drop."""
    created: set[str] = set()
    dropped: set[str] = set()
    kept: list[MigrateOperation] = []
    for operation in modify_ops.ops:
        if isinstance(operation, ops.CreateIndexOp) and operation.index_name in declared:
            created.add(str(operation.index_name))
        elif isinstance(operation, ops.DropIndexOp) and operation.index_name in existing:
            dropped.add(str(operation.index_name))
        else:
            if isinstance(operation, ops.DropIndexOp) and operation.index_name in declared:
                dropped.add(str(operation.index_name))
            kept.append(operation)
    modify_ops.ops[:] = kept
    return created, dropped


def in_both(context: AutogenContext, conn_table: Table | None, metadata_table: Table | None) -> set[str]:
    """The names of indexes that are on both sides and that the filters of ``env.py`` let through."""
    if conn_table is None or metadata_table is None:
        return set()
    found = {str(index.name): index for index in conn_table.indexes}
    parents: Any = {"table_name": str(conn_table.name), "schema_name": conn_table.schema}
    names = set()
    for index in metadata_table.indexes:
        name = name_of(index)
        if (
            name in found
            and context.run_name_filters(name, "index", dict(parents))
            and context.run_object_filters(index, name, "index", False, found[name])
        ):
            names.add(name)
    return names


def same(connection: Connection, table: Table, old: Definition, new: Definition) -> bool:
    """Whether an index stands as it is declared, its registration apart."""
    if (old.where is None) != (new.where is None):
        return False
    pairs = [] if old.where is None or new.where is None else [(old.where, new.where)]
    if isinstance(old, PendingIndexDefinition) and isinstance(new, PendingIndexDefinition):
        if not old.same_settings(new):
            return False
    elif isinstance(old, VectorIndexDefinition) and isinstance(new, VectorIndexDefinition):
        if old.column != new.column or not old.same_settings(new):
            return False
        if old.expression is not None and new.expression is not None:
            pairs.append((old.expression, new.expression))
    else:
        return False
    return same_in_database(connection, table, pairs)


def registration_ops(old: Definition, new: Definition) -> list[MigrateOperation]:
    if not isinstance(old, PendingIndexDefinition) or not isinstance(new, PendingIndexDefinition):
        return []
    if old.registration == new.registration:
        return []
    return [RegisterEmbeddingOp(new.name, new.registration, existing=old.registration, schema=new.schema)]


def create_op(definition: Definition, concurrently: bool) -> MigrateOperation:
    if isinstance(definition, VectorIndexDefinition):
        return CreateVectorIndexOp(definition, concurrently=concurrently)
    return CreatePendingIndexOp(definition, concurrently=concurrently)


def replace_op(old: Definition, new: Definition, concurrently: bool) -> MigrateOperation:
    if isinstance(old, VectorIndexDefinition) and isinstance(new, VectorIndexDefinition):
        return ReplaceVectorIndexOp(new, old, concurrently=concurrently)
    assert isinstance(old, PendingIndexDefinition)
    assert isinstance(new, PendingIndexDefinition)
    return ReplacePendingIndexOp(new, old, concurrently=concurrently)


def drop_op(definition: Definition, concurrently: bool) -> MigrateOperation:
    if isinstance(definition, VectorIndexDefinition):
        return DropVectorIndexOp(definition, concurrently=concurrently)
    return DropPendingIndexOp(definition, concurrently=concurrently)


def same_in_database(connection: Connection, table: Table, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether the two expressions of each pair over a table's columns are the same to Postgres.

    Postgres keeps an expression as a tree and writes it out in a form of its own: both are put into one
    ``EXPLAIN``, which writes them in the same form. It changes nothing and needs no more than ``SELECT``.
    An expression that Postgres does not understand (a column that is not there yet) is another one.
    """
    pairs = [(left, right) for left, right in pairs if left != right]
    if not pairs:
        return True
    columns: list[Any] = [
        literal_column(side).label(f"{name}{number}")
        for number, pair in enumerate(pairs)
        for name, side in zip(("l", "r"), pair, strict=True)
    ]
    try:
        with _savepoint(connection):
            output = plan_of(connection, select(*columns).select_from(table))["Output"]
    except DBAPIError:
        return False
    return all(output[2 * number] == output[2 * number + 1] for number in range(len(pairs)))


def _savepoint(connection: Connection) -> AbstractContextManager[Any]:
    """A failed statement spoils the transaction it is in; in autocommit there is none, and no savepoint."""
    try:
        return connection.begin_nested()
    except DBAPIError:
        return nullcontext()
