"""What operations share: those that do nothing, and names and texts in statements without parameters."""

from __future__ import annotations

from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Index


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
    """What comes after it belongs in a revision of its own: a part of a series."""

    def reverse(self) -> MigrateOperation:
        return self

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("next_revision",)


def run_nothing(operations: Operations, operation: NothingOp | NextRevisionOp) -> None:
    """Carry out :class:`NothingOp` or :class:`NextRevisionOp`."""


def qualified_name(preparer: Any, index: Index) -> str:
    """The name of an index with its schema, quoted."""
    name: str = preparer.format_index(index)
    assert index.table is not None
    if index.table.schema is not None:
        name = f"{preparer.quote_schema(index.table.schema)}.{name}"
    return name


def literal(preparer: Any, text: str) -> str:
    """A text as an SQL literal.

    Offline there is no connection that could say how the server reads backslashes, and SQLAlchemy 2.0 then
    guesses wrong; the form ``E'...'`` means the same on all.
    """
    quoted = "'" + text.replace("'", "''") + "'"
    if "\\" in text:
        quoted = "E" + quoted.replace("\\", "\\\\")
    return quoted.replace("%", "%%") if preparer._double_percents else quoted
