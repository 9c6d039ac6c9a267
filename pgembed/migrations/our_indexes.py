"""Vector indexes and pending indexes: those of a model, and those among the operations of Alembic."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from sqlalchemy import Index, Table

from pgembed.columns import PendingIndex
from pgembed.indexes import ACCESS_METHODS, access_method_of
from pgembed.indexes.catalogue import name_of
from pgembed.migrations.definitions import Definition, PendingIndexDefinition, VectorIndexDefinition


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
