"""Registration with Alembic."""

from __future__ import annotations

from functools import cache

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import Operations

from pgembed.migrations import compare
from pgembed.migrations.operations.base import NothingOp, PgembedOp
from pgembed.migrations.operations.indexes import ChangeIndexOp, RegisterEmbeddingOp
from pgembed.migrations.operations.installation import InstallPgembedOp, UninstallPgembedOp
from pgembed.migrations.operations.meaning_guard import CreateMeaningGuardOp, DropMeaningGuardOp
from pgembed.migrations.operations.table_locks import LockTableOp, SetNotNullOp
from pgembed.migrations.operations.vector_column import AlterVectorColumnOp, AssertBackfilledOp
from pgembed.migrations.revisions import NextRevisionOp

OPERATIONS: tuple[type[PgembedOp], ...] = (
    InstallPgembedOp,
    UninstallPgembedOp,
    ChangeIndexOp,
    RegisterEmbeddingOp,
    CreateMeaningGuardOp,
    DropMeaningGuardOp,
    AlterVectorColumnOp,
    AssertBackfilledOp,
    LockTableOp,
    SetNotNullOp,
    NothingOp,
    NextRevisionOp,
)


@cache
def setup() -> None:
    """Teach Alembic embedding columns and vector indexes: one line in ``env.py``, before migrations run.

    It registers operations (``op.create_vector_index``), how they are written into migrations, and the
    comparators of autogenerate for PostgreSQL. Calls after the first do nothing.

    ``context.configure(..., pgembed_concurrently=True)`` has autogenerate write ``concurrently=True`` for
    indexes of existing tables. ``pgembed_reembed="in_place"`` has it change the encoder of a column in place,
    instead of writing the series of
    :mod:`pgembed.migrations.compare.encoder_series`; for one run,
    ``alembic -x reembed=in_place revision --autogenerate``.
    """
    # Reflection knows the types vector and halfvec once this is imported.
    import pgvector.sqlalchemy  # noqa: F401

    for operation in OPERATIONS:
        for name in operation.names:
            Operations.register_operation(name)(operation)
        Operations.implementation_for(operation)(_run)
        renderers.dispatch_for(operation)(_render)
    compare.setup()


def _run(operations: Operations, operation: PgembedOp) -> None:
    """Carry an operation out in the schema that ``schema_translate_map`` has for the one it names.

    The schema is looked up once, here: an operation reads the catalogue, emits DDL and lets Alembic emit
    some, and SQLAlchemy would translate only part of that.
    """
    connection = None if operations.get_context().as_sql else operations.get_bind()
    schemas = connection and connection.get_execution_options().get("schema_translate_map")
    if connection is None or not schemas:
        operation.run(operations)
        return
    connection.execution_options(schema_translate_map=None)
    try:
        operation.in_schema(schemas).run(operations)
    finally:
        connection.execution_options(schema_translate_map=schemas)


def _render(context: AutogenContext, operation: PgembedOp) -> list[str]:
    return operation.render(context)
