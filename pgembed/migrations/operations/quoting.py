"""Names and texts inside of statements that take no parameters."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index


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
