"""Type, dimensions and ``NOT NULL`` of vector columns, as autogenerate compares them."""

from __future__ import annotations

import logging
from typing import Any

from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Column, Table

from pgembed.columns.embedding import INFO
from pgembed.columns.types import shape_of
from pgembed.columns.words import WORDS
from pgembed.exc import DeclarationError
from pgembed.migrations.compare.indexes import same_expressions
from pgembed.migrations.definitions import sql
from pgembed.migrations.operations.table_locks import SetNotNullOp
from pgembed.migrations.operations.vector_column import AlterVectorColumnOp, discards
from pgembed.migrations.revisions import NextRevisionOp

log = logging.getLogger(__name__)

_Result = PriorityDispatchResult


def setup() -> None:
    """Register the comparators.

    That of types is in Alembic's own subgroup, so that Alembic does not compare a type again.
    """
    comparators.dispatch_for(
        "column", priority=DispatchPriority.FIRST, qualifier="postgresql", subgroup="types"
    )(compare_vector_type)
    comparators.dispatch_for(
        "column", priority=DispatchPriority.FIRST, qualifier="postgresql", subgroup="server_default"
    )(leave_words)
    comparators.dispatch_for(
        "schema", priority=DispatchPriority.LAST, qualifier="postgresql", subgroup="pgembed.series"
    )(settle_drops)


def convert_not_null(modify_ops: ops.ModifyTableOps, model: Table | None) -> list[MigrateOperation]:
    """``NOT NULL`` of embedding columns of existing tables becomes an operation of pgembed."""
    found: list[MigrateOperation] = []
    kept: list[MigrateOperation] = []
    for operation in modify_ops.ops:
        if (
            isinstance(operation, ops.AlterColumnOp)
            and operation.modify_nullable is False
            and model is not None
            and (column := model.c.get(operation.column_name)) is not None
            and column.info.get(INFO) is not None
            and column.info[INFO].replaces is None
        ):
            found.append(
                SetNotNullOp(
                    operation.table_name,
                    operation.column_name,
                    schema=operation.schema,
                    existing_type=column.type,
                )
            )
            operation.modify_nullable = None
            if not operation.has_changes():
                continue
        kept.append(operation)
    modify_ops.ops[:] = kept
    return found


def convert_vector_types(modify_ops: ops.ModifyTableOps) -> None:
    """Changes of vector types become operations of pgembed; other changes of the column stay."""
    converted: list[MigrateOperation] = []
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


def compare_vector_type(
    context: AutogenContext,
    operation: ops.AlterColumnOp,
    schema: str | None,  # noqa: ARG001
    table_name: Any,
    column_name: Any,
    found: Column[Any],
    declared: Column[Any],
) -> PriorityDispatchResult:
    """Storage and dimensions of a vector column, where Alembic would compare the text of the types."""
    if context.opts.get("compare_type", True) is False:
        return _Result.CONTINUE
    try:
        shapes = shape_of(found.type), shape_of(declared.type)
    except DeclarationError:  # not a vector on both sides
        return _Result.CONTINUE
    if "bit" in (shapes[0][0], shapes[1][0]):  # a built-in type, which Alembic compares
        return _Result.CONTINUE
    operation.existing_type = found.type
    if shapes[0] != shapes[1]:
        operation.modify_type = declared.type
        log.info("Detected vector type change from %s to %s on '%s.%s'", *shapes, table_name, column_name)
    return _Result.STOP


def leave_words(
    context: AutogenContext,  # noqa: ARG001
    operation: ops.AlterColumnOp,  # noqa: ARG001
    schema: str | None,  # noqa: ARG001
    table_name: Any,  # noqa: ARG001
    column_name: Any,  # noqa: ARG001
    found: Column[Any],
    declared: Column[Any],
) -> PriorityDispatchResult:
    """The expression of a column of words is compared by :func:`replace_words`; Alembic would warn of it."""
    return _Result.STOP if WORDS in declared.info and found.computed is not None else _Result.CONTINUE


def replace_words(
    context: AutogenContext, modify_ops: ops.ModifyTableOps, table: Table | None, model: Table | None
) -> None:
    """A column of words that is generated otherwise is dropped and added, with its index.

    Postgres computes it anew for all rows, with the table locked.
    """
    if table is None or model is None:
        return
    for column in model.c:
        found = table.c.get(column.name)
        if WORDS not in column.info or found is None or column.computed is None:
            continue
        current = None if found.computed is None else str(found.computed.sqltext)
        assert context.connection is not None
        if same_expressions(context.connection, table, [(current, sql(column.computed.sqltext))]):
            continue
        log.info("Detected changed words on '%s.%s'", table.name, column.name)
        name, schema = modify_ops.table_name, modify_ops.schema
        # By name: while it compares, Alembic attaches copies to the table.
        indexed = {index.name: index for index in table.indexes if found.name in index.columns}
        modify_ops.ops += [
            *map(ops.DropIndexOp.from_index, indexed.values()),
            ops.DropColumnOp.from_column_and_tablename(schema, name, found),
            ops.AddColumnOp(name, column._copy(), schema=schema),
            *(ops.CreateIndexOp.from_index(index) for index in model.indexes if WORDS in index.info),
        ]


def settle(modify_ops: ops.ModifyTableOps, columns: set[str]) -> None:
    """Have :func:`settle_drops` remove Alembic's own drops of these columns."""
    settled: set[str] = getattr(modify_ops, "pgembed_columns", set())
    modify_ops.pgembed_columns = settled | columns  # type: ignore[attr-defined]


def settle_drops(
    _context: AutogenContext, upgrade_ops: ops.UpgradeOps, _schemas: set[str | None]
) -> PriorityDispatchResult:
    """Correct the drops of columns, which Alembic appends after all comparators of a table have run."""
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
