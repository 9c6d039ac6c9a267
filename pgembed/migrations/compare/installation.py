"""The extension ``vector`` and pgembed's SQL objects, as autogenerate compares them."""

from __future__ import annotations

import logging
from typing import Any

from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Connection, text

from pgembed.columns.extension import needs_extension
from pgembed.database.install import is_installed
from pgembed.database.scripts import REVISION
from pgembed.migrations.operations.installation import InstallPgembedOp
from pgembed.migrations.rendering import render_types
from pgembed.migrations.revisions import split_revisions, written_installation

log = logging.getLogger(__name__)

_Result = PriorityDispatchResult


def setup() -> None:
    """Register the comparators: one before all others, one after that of alembic-utils."""
    for priority, subgroup, comparator in (
        (DispatchPriority.FIRST, "pgembed.installation", compare_installation),
        (DispatchPriority.LAST, "pgembed.others", settle_entities),
    ):
        comparators.dispatch_for("schema", priority=priority, qualifier="postgresql", subgroup=subgroup)(
            comparator
        )


def compare_installation(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Extension and SQL objects, before all other operations, if models have vector columns or indexes.

    A revision installs them even if this database has them: the next database may not.
    """
    render_types(context)
    split_revisions(context)
    # With include_schemas, Alembic would drop pgembed's own tables, which no model declares.
    schemas.discard("pgembed")
    connection = context.connection
    assert connection is not None
    if not any(needs_extension(table, connection.dialect) for table in context.sorted_tables):
        return _Result.CONTINUE
    installed = installed_revision(connection)
    extension = bool(
        connection.scalar(text("SELECT true FROM pg_catalog.pg_extension WHERE extname = 'vector'"))
    )
    written = written_installation(context, upgrade_ops)
    if not extension or installed is None or min(installed, written) < REVISION:
        # Only the downgrade of the first revision that installs uninstalls.
        existing = installed if written else None
        upgrade_ops.ops.insert(0, InstallPgembedOp(existing=existing, had_extension=extension))
        log.info(
            "Detected pgembed's SQL objects: installed %s, in revisions %s, wanted %s",
            *(installed, written or None, REVISION),
        )
    return _Result.CONTINUE


def installed_revision(connection: Connection) -> int | None:
    """The revision of pgembed's SQL objects that is installed; ``None`` for none."""
    if not is_installed(connection):
        return None
    revision: int | None = connection.scalar(text("SELECT revision FROM pgembed.version"))
    return revision


def settle_entities(
    _context: AutogenContext, upgrade_ops: ops.UpgradeOps, _schemas: set[str | None]
) -> PriorityDispatchResult:
    """Correct what the comparator of alembic-utils has proposed.

    alembic-utils drops what no entity declares, the extension and pgembed's SQL objects included: these drops
    are removed. An extension that an entity declares is created before pgembed's SQL objects, which need it,
    and dropped after them.
    """
    created = [each for each in upgrade_ops.ops if _is_extension(_target(each, "CreateOp"))]
    kept = [each for each in upgrade_ops.ops if each not in created and not _is_ours(_target(each, "DropOp"))]
    for operation in kept:
        if created and isinstance(operation, InstallPgembedOp):
            operation.had_extension = True
    upgrade_ops.ops[:] = created + kept
    return PriorityDispatchResult.CONTINUE


def _target(operation: MigrateOperation, kind: str) -> Any:
    """The entity that an operation of alembic-utils is about, if it is of this kind."""
    theirs = type(operation).__module__.partition(".")[0] == "alembic_utils"
    return getattr(operation, "target", None) if theirs and type(operation).__name__ == kind else None


def _is_extension(entity: Any) -> bool:
    return type(entity).__name__ == "PGExtension" and entity.signature == "vector"


def _is_ours(entity: Any) -> bool:
    return _is_extension(entity) or getattr(entity, "schema", None) == "pgembed"
