"""Vector indexes and pending indexes, with their registrations, as autogenerate compares them.

Alembic's own comparison sees only their names and columns.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from sqlalchemy import Connection, Index, Table, literal_column, select
from sqlalchemy.exc import DBAPIError

from pgembed.columns import PendingIndex, embeddings_of
from pgembed.indexes import ACCESS_METHODS, access_method_of
from pgembed.indexes.query_plan import plan_of
from pgembed.indexes.server_settings import undone
from pgembed.indexes.tables import name_of
from pgembed.migrations.definitions import IndexDefinition, PendingIndexDefinition, VectorIndexDefinition
from pgembed.migrations.operations.indexes import ChangeIndexOp, RegisterEmbeddingOp
from pgembed.migrations.reflection import indexes_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableIndexes:
    """The vector and pending indexes of one table on both sides.

    :ivar declared: those of the model, by the names that they get in the database.
    :ivar existing: those in the database, by name.
    :ivar created: the names that Alembic would create.
    :ivar dropped: the names that Alembic would drop.
    :ivar compared: the names that are on both sides.
    """

    declared: Mapping[str, IndexDefinition]
    existing: Mapping[str, IndexDefinition]
    created: Set[str]
    dropped: Set[str]
    compared: Set[str]


def find_indexes(
    context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    schema: str | None,
    table: Table | None,
    model: Table | None,
) -> TableIndexes:
    """The indexes of a table, taken out of what Alembic and the filters of ``env.py`` have decided.

    :param schema: as in the list of operations: ``None`` for the connection's default.
    """
    declared: dict[str, IndexDefinition] = {}
    for index in model.indexes if model is not None else ():
        definition = definition_of(index, schema)
        if definition is not None:
            declared[definition.name] = definition
    pending = {name for name, each in declared.items() if isinstance(each, PendingIndexDefinition)}
    assert context.connection is not None
    existing = {} if table is None else indexes_of(context.connection, table, pending)
    created: set[str] = set()
    dropped: set[str] = set()
    kept: list[MigrateOperation] = []
    for operation in modify_ops.ops:
        if isinstance(operation, ops.CreateIndexOp) and operation.index_name in declared:
            created.add(str(operation.index_name))
            continue
        if isinstance(operation, ops.DropIndexOp):
            if operation.index_name in existing or operation.index_name in declared:
                dropped.add(str(operation.index_name))
            if operation.index_name in existing:
                continue
        kept.append(operation)
    modify_ops.ops[:] = kept
    both = declared.keys() & existing.keys()
    compared = both & _in_both(context, table, model) if both else set()
    compared |= declared.keys() & created & dropped
    return TableIndexes(declared, existing, created, dropped, compared)


def definition_of(index: Index, schema: str | None) -> IndexDefinition | None:
    """The definition of a vector index or pending index; ``None`` for any other index."""
    if isinstance(index, PendingIndex):
        return PendingIndexDefinition.of(index, name_of(index), schema)
    if access_method_of(index) in ACCESS_METHODS:
        return VectorIndexDefinition.of(index, name_of(index), schema)
    return None


def on_added_columns(
    modify_ops: ops.ModifyTableOps, model: Table, declared: Mapping[str, IndexDefinition]
) -> dict[str, str]:
    """The vector indexes on added embedding columns, each with its column, which is filled first."""
    added = {each.column.name for each in modify_ops.ops if isinstance(each, ops.AddColumnOp)}
    filled = {each.vector for each in embeddings_of(model) if each.vector.name in added}
    return {
        name: str(column.name)
        for index in model.indexes
        if isinstance(declared.get(name := name_of(index)), VectorIndexDefinition)
        for column in filled.intersection(index.columns.values())
    }


def compare_indexes(
    connection: Connection,
    table: Table | None,
    indexes: TableIndexes,
    waiting: Collection[str] = (),
    ended: Collection[str] = (),
    *,
    in_use: bool,
    concurrently: bool,
    retyped: bool,
) -> Iterator[tuple[str, MigrateOperation]]:
    """What to drop, create, replace and register, each with its place among the operations.

    "before" and "after" refer to operations on columns; "ended", "add" and "index" are parts of a series, and
    "registered" is a changed registration of an index that stays.

    :param waiting: the names of indexes on columns that are filled first.
    :param ended: the names of indexes on columns that were replaced.
    :param in_use: change these two kinds concurrently.
    :param concurrently: change the others concurrently.
    :param retyped: a vector type changes: an index is dropped before that, and created after it.
    """

    def put(name: str, old: IndexDefinition | None, new: IndexDefinition) -> tuple[str, ChangeIndexOp]:
        if name not in waiting:
            return "after", ChangeIndexOp(old, new, concurrently=concurrently)
        place = "add" if isinstance(new, PendingIndexDefinition) else "index"
        return place, ChangeIndexOp(old, new, concurrently=in_use)

    for name in sorted(indexes.existing.keys() & indexes.dropped - indexes.created):
        log.info("Detected removed index %r on %r", name, indexes.existing[name].table)
        place, concurrent = ("ended", in_use) if name in ended else ("before", concurrently)
        yield place, ChangeIndexOp(indexes.existing[name], None, concurrently=concurrent)
    for name in sorted(indexes.declared.keys() & indexes.created - indexes.dropped):
        log.info("Detected added index %r on %r", name, indexes.declared[name].table)
        yield put(name, None, indexes.declared[name])
    for name in sorted(indexes.compared):
        old, new = indexes.existing.get(name), indexes.declared[name]
        if old is None:  # an index of another kind, which Alembic drops
            yield "after", ChangeIndexOp(None, new, concurrently=concurrently)
            continue
        assert table is not None
        if same(connection, table, old, new):
            if (
                isinstance(old, PendingIndexDefinition)
                and isinstance(new, PendingIndexDefinition)
                and old.registration != new.registration
            ):
                yield (
                    "registered",
                    RegisterEmbeddingOp(name, new.registration, existing=old.registration, schema=new.schema),
                )
            continue
        log.info("Detected changed index %r on %r", name, new.table)
        if type(old) is type(new) and not retyped:
            yield put(name, old, new)
        else:
            yield "before", ChangeIndexOp(old, None, concurrently=concurrently)
            yield "after", ChangeIndexOp(None, new, concurrently=concurrently)


def same(connection: Connection, table: Table, old: IndexDefinition, new: IndexDefinition) -> bool:
    """Whether an index matches its declaration, apart from the registration."""
    if type(old) is not type(new) or not old.same_settings(new):
        return False
    pairs = [pair for pair in zip(old.expressions, new.expressions, strict=True) if pair[0] != pair[1]]
    return not pairs or same_expressions(connection, table, pairs)


def same_expressions(
    connection: Connection, table: Table, pairs: Sequence[tuple[str | None, str | None]]
) -> bool:
    """Whether the expressions of each pair are the same.

    Postgres keeps expressions as trees, and prints them in its own form: one ``EXPLAIN`` prints both in the
    same form. It changes nothing and needs only ``SELECT``. An expression that Postgres rejects (of a column
    that does not exist yet) counts as different.
    """
    columns: list[Any] = []
    for left, right in pairs:
        if left is None or right is None:
            return False
        columns += [literal_column(left), literal_column(right)]
    try:
        with undone(connection):
            labelled = [column.label(f"c{number}") for number, column in enumerate(columns)]
            output = plan_of(connection, select(*labelled).select_from(table))["Output"]
    except DBAPIError:
        return False
    return bool(output[::2] == output[1::2])


def _in_both(context: AutogenContext, table: Table | None, model: Table | None) -> set[str]:
    """The names of indexes that are on both sides and that the filters of ``env.py`` let through."""
    if table is None or model is None:
        return set()
    found = {str(index.name): index for index in table.indexes}
    parents: Any = {"table_name": str(table.name), "schema_name": table.schema}
    return {
        name
        for index in model.indexes
        if (name := name_of(index)) in found
        and context.run_name_filters(name, "index", dict(parents))
        and context.run_object_filters(index, name, "index", False, found[name])
    }
