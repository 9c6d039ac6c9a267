"""What Alembic found changed of vector columns, as operations of pgembed."""

from __future__ import annotations

from typing import Any

from alembic.operations import MigrateOperation, ops
from sqlalchemy import Table

from pgembed.columns.embedding import INFO
from pgembed.exc import DeclarationError
from pgembed.migrations.operations.locking import SetNotNullOp
from pgembed.migrations.operations.vector_column import AlterVectorColumnOp, discards


def convert_not_null(modify_ops: ops.ModifyTableOps, model: Table | None) -> list[MigrateOperation]:
    """``NOT NULL`` of vector columns of tables that are there becomes an operation of its own."""
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
    """Changes of vector types become operations of their own; what else changes of a column stays."""
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
