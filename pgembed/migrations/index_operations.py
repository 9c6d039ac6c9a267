"""The operation that creates, replaces or drops an index, of either kind."""

from __future__ import annotations

from alembic.operations import MigrateOperation
from sqlalchemy import Connection, Table

from pgembed.migrations.catalogue import same_in_database
from pgembed.migrations.definitions import (
    Definition,
    PendingIndexDefinition,
    VectorIndexDefinition,
)
from pgembed.migrations.operations.pending_index import (
    CreatePendingIndexOp,
    DropPendingIndexOp,
    RegisterEmbeddingOp,
    ReplacePendingIndexOp,
)
from pgembed.migrations.operations.vector_index import (
    CreateVectorIndexOp,
    DropVectorIndexOp,
    ReplaceVectorIndexOp,
)


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
