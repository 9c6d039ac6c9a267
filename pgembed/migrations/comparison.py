"""What autogenerate compares: installation, vector columns, vector indexes and pending indexes.

Each function is a comparator of Alembic; :mod:`pgembed.migrations.setup` says when it runs.
"""

from __future__ import annotations

import logging
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import Column, Connection, Index, Table

from pgembed.columns import PendingIndex, VectorType
from pgembed.columns.types import shape_of
from pgembed.database.scripts import REVISION
from pgembed.exc import DeclarationError
from pgembed.indexes import access_method_of
from pgembed.migrations.catalogue import (
    has_extension,
    indexes_of,
    installed_revision,
    same_in_database,
)
from pgembed.migrations.definitions import (
    PARAMETER_DEFAULTS,
    Definition,
    PendingIndexDefinition,
    VectorIndexDefinition,
)
from pgembed.migrations.operations.installation import InstallPgembedOp
from pgembed.migrations.operations.pending_index import (
    CreatePendingIndexOp,
    DropPendingIndexOp,
    RegisterEmbeddingOp,
    ReplacePendingIndexOp,
)
from pgembed.migrations.operations.vector_column import AlterVectorColumnOp, discards
from pgembed.migrations.operations.vector_index import (
    CreateVectorIndexOp,
    DropVectorIndexOp,
    ReplaceVectorIndexOp,
)
from pgembed.migrations.rendering import render_types

log = logging.getLogger(__name__)

_Result = PriorityDispatchResult


def compare_installation(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Extension and SQL objects, first of all operations; needed where models have vector columns."""
    render_types(context)
    # With include_schemas Alembic would take pgembed's own tables for ones that no model declares any more.
    schemas.discard("pgembed")
    if not any(isinstance(column.type, VectorType) for table in context.sorted_tables for column in table.c):
        return _Result.CONTINUE
    connection = _connection(context)
    installed, extension = installed_revision(connection), has_extension(connection)
    if not extension or installed is None or installed < REVISION:
        upgrade_ops.ops.insert(0, InstallPgembedOp(existing=installed, had_extension=extension))
        log.info("Detected pgembed's SQL objects: installed %s, needed %s", installed, REVISION)
    return _Result.CONTINUE


def compare_vector_type(
    context: AutogenContext,
    operation: ops.AlterColumnOp,
    schema: str | None,  # noqa: ARG001
    table_name: Any,
    column_name: Any,
    found: Column[Any],
    declared: Column[Any],
) -> PriorityDispatchResult:
    """Storage and dimensions of a vector column, in place of the comparison by the type's text."""
    if context.opts.get("compare_type", True) is False:
        return _Result.CONTINUE
    try:
        shapes = shape_of(found.type), shape_of(declared.type)
    except DeclarationError:  # not a vector on both sides
        return _Result.CONTINUE
    operation.existing_type = found.type
    if shapes[0] != shapes[1]:
        operation.modify_type = declared.type
        log.info("Detected vector type change from %s to %s on '%s.%s'", *shapes, table_name, column_name)
    return _Result.STOP


def compare_indexes(
    context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    schema: str | None,
    table_name: Any,
    conn_table: Table | None,
    metadata_table: Table | None,
) -> PriorityDispatchResult:
    """Vector and pending indexes, in place of Alembic's own comparison, which sees their names and columns.

    It runs after the others, and takes what Alembic decided about these indexes (and with it the filters of
    ``env.py``) out of the list again.
    """
    _convert_alter_columns(modify_ops)
    # Written as in the list of operations: without the schema that is the connection's default.
    declared = _declared(context, metadata_table, schema)
    pending = {
        name for name, definition in declared.items() if isinstance(definition, PendingIndexDefinition)
    }
    connection = _connection(context)
    existing = {} if conn_table is None else indexes_of(connection, conn_table, pending)
    if not declared and not existing:
        return _Result.CONTINUE

    created, dropped = _take_over(modify_ops, declared, existing)
    in_both = _in_both(context, conn_table, metadata_table) & declared.keys() & existing.keys()
    retyped = any(isinstance(operation, AlterVectorColumnOp) for operation in modify_ops.ops)
    # A concurrent build commits what came before it; if it failed, that could not be run again.
    concurrently = (
        bool(context.opts.get("pgembed_concurrently"))
        and conn_table is not None
        and metadata_table is not None
        and not modify_ops.ops
    )

    before: list[ops.MigrateOperation] = []
    after: list[ops.MigrateOperation] = []
    for name in sorted(existing.keys() & dropped - created):
        before.append(_drop(existing[name], concurrently))
        log.info("Detected removed index %r on %r", name, table_name)
    for name in sorted(declared.keys() & created - dropped):
        after.append(_create(declared[name], concurrently))
        log.info("Detected added index %r on %r", name, table_name)
    for name in sorted(in_both | (declared.keys() & created & dropped)):
        old, new = existing.get(name), declared[name]
        if old is None:  # an index of another kind, which Alembic drops
            after.append(_create(new, concurrently))
            continue
        assert conn_table is not None
        if _same(connection, conn_table, old, new):
            after.extend(_registration(old, new))
            continue
        log.info("Detected changed index %r on %r", name, table_name)
        if type(old) is type(new) and not retyped:
            after.append(_replace(old, new, concurrently))
        else:
            before.append(_drop(old, concurrently))
            after.append(_create(new, concurrently))
    modify_ops.ops[:] = [*before, *modify_ops.ops, *after]
    return _Result.CONTINUE


def _convert_alter_columns(modify_ops: ops.ModifyTableOps) -> None:
    """Changes of vector types become operations of their own; what else changes of a column stays."""
    converted: list[ops.MigrateOperation] = []
    for operation in modify_ops.ops:
        if isinstance(operation, ops.AlterColumnOp) and operation.modify_type is not None:
            wanted: Any = operation.modify_type
            existing: Any = operation.existing_type
            try:
                discard = discards(existing, wanted)
            except DeclarationError:
                converted.append(operation)
                continue
            converted.append(
                AlterVectorColumnOp(
                    operation.table_name,
                    operation.column_name,
                    wanted,
                    existing_type=existing,
                    discard=discard,
                    schema=operation.schema,
                )
            )
            operation.modify_type = None
            operation.existing_type = wanted
            if not operation.has_changes():
                continue
        converted.append(operation)
    modify_ops.ops[:] = converted


def _declared(context: AutogenContext, table: Table | None, schema: str | None) -> dict[str, Definition]:
    """The vector and pending indexes of a model's table, by the names that they get in the database."""
    found: dict[str, Definition] = {}
    for index in table.indexes if table is not None else ():
        name = _name(context, index)
        if isinstance(index, PendingIndex):
            found[name] = PendingIndexDefinition.of(index, name, schema)
        elif access_method_of(index) in PARAMETER_DEFAULTS:
            found[name] = VectorIndexDefinition.of(index, name, schema)
    return found


def _take_over(
    modify_ops: ops.ModifyTableOps, declared: dict[str, Definition], existing: dict[str, Definition]
) -> tuple[set[str], set[str]]:
    """Remove Alembic's operations on our indexes; the names that it would create, and drop."""
    created: set[str] = set()
    dropped: set[str] = set()
    kept: list[ops.MigrateOperation] = []
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


def _in_both(context: AutogenContext, conn_table: Table | None, metadata_table: Table | None) -> set[str]:
    """The names of indexes that are on both sides and that the filters of ``env.py`` let through."""
    if conn_table is None or metadata_table is None:
        return set()
    found = {str(index.name): index for index in conn_table.indexes}
    parents: Any = {"table_name": str(conn_table.name), "schema_name": conn_table.schema}
    names = set()
    for index in metadata_table.indexes:
        name = _name(context, index)
        if (
            name in found
            and context.run_name_filters(name, "index", dict(parents))
            and context.run_object_filters(index, name, "index", False, found[name])
        ):
            names.add(name)
    return names


def _same(connection: Connection, table: Table, old: Definition, new: Definition) -> bool:
    """Whether an index stands as it is declared, its registration apart."""
    if (
        type(old) is not type(new)
        or old.settings != new.settings
        or (old.where is None) != (new.where is None)
    ):
        return False
    pairs = [] if old.where is None or new.where is None else [(old.where, new.where)]
    if isinstance(old, VectorIndexDefinition) and isinstance(new, VectorIndexDefinition):
        if old.column != new.column:
            return False
        if old.expression is not None and new.expression is not None:
            pairs.append((old.expression, new.expression))
    return same_in_database(connection, table, pairs)


def _registration(old: Definition, new: Definition) -> list[ops.MigrateOperation]:
    if not isinstance(old, PendingIndexDefinition) or not isinstance(new, PendingIndexDefinition):
        return []
    if old.registration == new.registration:
        return []
    return [RegisterEmbeddingOp(new.name, new.registration, existing=old.registration, schema=new.schema)]


def _create(definition: Definition, concurrently: bool) -> ops.MigrateOperation:
    if isinstance(definition, VectorIndexDefinition):
        return CreateVectorIndexOp(definition, concurrently=concurrently)
    return CreatePendingIndexOp(definition, concurrently=concurrently)


def _replace(old: Definition, new: Definition, concurrently: bool) -> ops.MigrateOperation:
    if isinstance(old, VectorIndexDefinition) and isinstance(new, VectorIndexDefinition):
        return ReplaceVectorIndexOp(new, old, concurrently=concurrently)
    assert isinstance(old, PendingIndexDefinition)
    assert isinstance(new, PendingIndexDefinition)
    return ReplacePendingIndexOp(new, old, concurrently=concurrently)


def _drop(definition: Definition, concurrently: bool) -> ops.MigrateOperation:
    if isinstance(definition, VectorIndexDefinition):
        return DropVectorIndexOp(definition, concurrently=concurrently)
    return DropPendingIndexOp(definition, concurrently=concurrently)


def _name(context: AutogenContext, index: Index) -> str:
    """The name after naming conventions and shortening."""
    assert context.dialect is not None
    return context.dialect.identifier_preparer.format_index(index).strip('"')


def _connection(context: AutogenContext) -> Connection:
    assert context.connection is not None
    return context.connection
