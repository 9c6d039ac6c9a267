"""Registration with Alembic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import cache
from typing import Any

from alembic.autogenerate import renderers
from alembic.operations import MigrateOperation, Operations

from pgembed.migrations import compare, rendering
from pgembed.migrations.operations import (
    base,
    installation,
    pending_index,
    table_locks,
    vector_column,
    vector_index,
)

_Run = Callable[[Operations, Any], None]
_Render = Callable[..., str | list[str]]

#: Operation, its name in ``op``, what carries it out, what writes it into a migration.
_OPERATIONS: tuple[tuple[type[MigrateOperation], str | None, _Run, _Render], ...] = (
    (
        installation.InstallPgembedOp,
        "install_pgembed",
        installation.run_install,
        rendering.install_pgembed,
    ),
    (
        installation.UninstallPgembedOp,
        "uninstall_pgembed",
        installation.run_uninstall,
        rendering.uninstall_pgembed,
    ),
    (base.NothingOp, None, base.run_nothing, rendering.nothing),
    (base.NextRevisionOp, None, base.run_nothing, rendering.next_revision),
    (table_locks.LockTableOp, "lock_table", table_locks.run_lock, rendering.lock_table),
    (table_locks.SetNotNullOp, "set_not_null", table_locks.run_set_not_null, rendering.set_not_null),
    (
        vector_index.CreateVectorIndexOp,
        "create_vector_index",
        vector_index.run_create,
        rendering.create_vector_index,
    ),
    (vector_index.DropVectorIndexOp, "drop_vector_index", vector_index.run_drop, rendering.drop_vector_index),
    (
        vector_index.ReplaceVectorIndexOp,
        "replace_vector_index",
        vector_index.run_replace,
        rendering.replace_vector_index,
    ),
    (
        pending_index.CreatePendingIndexOp,
        "create_pending_index",
        pending_index.run_create,
        rendering.create_pending_index,
    ),
    (
        pending_index.DropPendingIndexOp,
        "drop_pending_index",
        pending_index.run_drop,
        rendering.drop_pending_index,
    ),
    (
        pending_index.ReplacePendingIndexOp,
        "replace_pending_index",
        pending_index.run_replace,
        rendering.replace_pending_index,
    ),
    (
        pending_index.RegisterEmbeddingOp,
        "register_embedding",
        pending_index.run_register,
        rendering.register_embedding,
    ),
    (
        vector_column.AlterVectorColumnOp,
        "alter_vector_column",
        vector_column.run_alter,
        rendering.alter_vector_column,
    ),
    (
        vector_column.AssertBackfilledOp,
        "assert_backfilled",
        vector_column.run_assert,
        rendering.assert_backfilled,
    ),
)


@cache
def setup() -> None:
    """Teach Alembic embedding columns and vector indexes: one line in ``env.py``, before migrations run.

    It registers operations (``op.create_vector_index``), comparators of autogenerate for PostgreSQL, and how
    they are written into migrations. Once a process; further calls do nothing.

    ``context.configure(..., pgembed_concurrently=True)`` has autogenerate write ``concurrently=True`` for
    indexes of tables that are there already. ``pgembed_reembed="in_place"`` has it change the encoder of a
    column where it is, instead of writing the series of
    :mod:`pgembed.migrations.compare.encoder_series`; for one run,
    ``alembic -x reembed=in_place revision --autogenerate``.
    """
    # Reflection knows the types vector and halfvec once this is imported.
    import pgvector.sqlalchemy  # noqa: F401

    for operation, name, run, render in _OPERATIONS:
        if name is not None:
            Operations.register_operation(name)(operation)
        Operations.implementation_for(operation)(_translated(run))
        renderers.dispatch_for(operation)(render)

    compare.setup()


def _translated(run: _Run) -> _Run:
    """What carries an operation out, in the schema that ``schema_translate_map`` has for the one it names.

    It is looked up once, here: an operation reads the catalogue, emits DDL and has Alembic emit some, and
    SQLAlchemy translates only part of that.
    """

    def translated(operations: Operations, operation: Any) -> None:
        context = operations.get_context()
        schemas = None
        if not context.as_sql:
            schemas = operations.get_bind().get_execution_options().get("schema_translate_map")
        if not schemas:
            run(operations, operation)
            return
        connection = operations.get_bind()
        connection.execution_options(schema_translate_map=None)
        try:
            run(operations, _in_schema(operation, schemas))
        finally:
            connection.execution_options(schema_translate_map=schemas)

    return translated


def _in_schema(operation: Any, schemas: Mapping[str | None, str | None]) -> Any:
    operation = copy(operation)
    if hasattr(operation, "definition"):
        definition = operation.definition
        operation.definition = replace(definition, schema=schemas.get(definition.schema, definition.schema))
    elif hasattr(operation, "schema"):
        operation.schema = schemas.get(operation.schema, operation.schema)
    return operation
