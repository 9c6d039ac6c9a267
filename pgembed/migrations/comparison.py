"""What autogenerate compares: the installation and the types of vector columns.

Each function is a comparator of Alembic; :mod:`pgembed.migrations.setup` says when it runs.
"""

from __future__ import annotations

import logging
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import Column, Connection

from pgembed.columns.types import shape_of
from pgembed.database.scripts import REVISION
from pgembed.database.server import needs_extension
from pgembed.exc import DeclarationError
from pgembed.migrations.catalogue import has_extension, installed_revision
from pgembed.migrations.operations.installation import InstallPgembedOp
from pgembed.migrations.rendering import render_types
from pgembed.migrations.revisions import split_revisions, written_installation

log = logging.getLogger(__name__)

_Result = PriorityDispatchResult


def compare_installation(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Extension and SQL objects, first of all operations, where models have vector columns or indexes.

    What the database has says nothing of the next one that the revisions are run on: they must hold it.
    """
    render_types(context)
    split_revisions(context)
    # With include_schemas Alembic would take pgembed's own tables for ones that no model declares any more.
    schemas.discard("pgembed")
    connection = _connection(context)
    if not any(needs_extension(table, connection.dialect) for table in context.sorted_tables):
        return _Result.CONTINUE
    installed, extension = installed_revision(connection), has_extension(connection)
    written = written_installation(context, upgrade_ops)
    if not extension or installed is None or min(installed, written) < REVISION:
        # The revision that is the first to install is the one whose downgrade takes it away.
        existing = installed if written else None
        upgrade_ops.ops.insert(0, InstallPgembedOp(existing=existing, had_extension=extension))
        log.info(
            "Detected pgembed's SQL objects: installed %s, in revisions %s, wanted %s",
            *(installed, written or None, REVISION),
        )
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
    if "bit" in (shapes[0][0], shapes[1][0]):  # a type of Postgres's own, which Alembic compares
        return _Result.CONTINUE
    operation.existing_type = found.type
    if shapes[0] != shapes[1]:
        operation.modify_type = declared.type
        log.info("Detected vector type change from %s to %s on '%s.%s'", *shapes, table_name, column_name)
    return _Result.STOP


def _connection(context: AutogenContext) -> Connection:
    assert context.connection is not None
    return context.connection
