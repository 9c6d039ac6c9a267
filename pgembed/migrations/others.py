"""What alembic-utils makes of the extension and the schema ``pgembed``: it knows its own entities alone."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from alembic.util import PriorityDispatchResult

from pgembed.migrations.operations.installation import InstallPgembedOp


def settle_entities(
    _context: AutogenContext, upgrade_ops: ops.UpgradeOps, _schemas: set[str | None]
) -> PriorityDispatchResult:
    """The comparator that runs after that of alembic-utils.

    It drops what no entity declares, and so the extension and pgembed's SQL objects: they are left alone. An
    extension that an entity does declare is created before pgembed's SQL objects, which need it, and dropped
    after them.
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
