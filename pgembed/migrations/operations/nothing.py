"""Operations that do nothing, and say something about those around them."""

from __future__ import annotations

from typing import Any

from alembic.operations import MigrateOperation, Operations


class NothingOp(MigrateOperation):
    """The opposite of an operation whose opposite does nothing.

    :ivar comment: why, for whoever reads the migration; without one it leaves no trace there.
    """

    def __init__(self, reverse: MigrateOperation, *, comment: str = "") -> None:
        self._reverse = reverse
        self.comment = comment

    def reverse(self) -> MigrateOperation:
        return self._reverse

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("nothing",)


class NextRevisionOp(MigrateOperation):
    """What comes after it belongs into a revision of its own; see :mod:`pgembed.migrations.series`."""

    def reverse(self) -> MigrateOperation:
        return self

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("next_revision",)


def run_nothing(operations: Operations, operation: NothingOp | NextRevisionOp) -> None:
    """Carry out :class:`NothingOp` or :class:`NextRevisionOp`."""
