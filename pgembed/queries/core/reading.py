"""The rows of a statement with a text of each: what re-ranking reads, and what passages are found in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import Connection, Result, Row, Select, String
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.types import NullType

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import expression
from pgembed.queries.core.statement import free_name

if TYPE_CHECKING:  # at run time it needs the package greenlet
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    AnyAsyncSession: TypeAlias = AsyncSession | async_scoped_session[Any] | AsyncConnection

AnySession: TypeAlias = Session | scoped_session[Any] | Connection

_SYNC = (Session, scoped_session, Connection)
_ASYNC = {"AsyncSession", "async_scoped_session", "AsyncConnection"}


def is_session(given: object) -> bool:
    """Whether it is a session or a connection that is not for asyncio."""
    return isinstance(given, _SYNC)


def check_session(session: object, helper: str, *, twin: bool = True) -> None:
    """
    :param helper: the function that was called; with an ``a`` before it, it is the one for asyncio.
    :param twin: whether there is one for asyncio.
    :raises QueryError: not a session or a connection, or one for asyncio.
    """
    if not is_session(session):
        call = f"a{helper}(...)" if twin else f"session.run_sync(lambda session: {helper}(session, ...))"
        instead = f": use `await {call}`" if _is_async(session) else ""
        raise QueryError(f"expected a Session or a Connection, got {session!r}{instead}")


def check_async_session(session: object, helper: str) -> None:
    """
    :param helper: the function for sessions that are not for asyncio.
    :raises QueryError: not a session or a connection for asyncio.
    """
    if not _is_async(session):
        instead = f": use {helper}(...)" if is_session(session) else ""
        raise QueryError(f"expected an AsyncSession or an AsyncConnection, got {session!r}{instead}")


def _is_async(session: object) -> bool:
    return bool(_ASYNC & {kind.__name__ for kind in type(session).__mro__})


class Read:
    """Rows as tuples, their columns' names, and their texts."""

    def __init__(self, keys: Sequence[str], rows: list[tuple[Any, ...]], texts: list[Any]) -> None:
        for number, text in enumerate(texts):
            if not isinstance(text, str | None):
                found = f"something of the type {type(text).__name__} for row {number}"
                raise QueryError(f"text= gives {found}; expected a str, or None")
        self.keys = keys
        self.rows = rows
        self.texts: list[str | None] = texts

    def extended(self, name: str, values: Iterable[tuple[int, Any]]) -> list[Row[Any]]:
        """Rows with one column more.

        :param values: numbers of rows, in the order to return them, with what the column holds.
        """
        keys = [*self.keys, free_name(name, self.keys)]
        rows = ((*self.rows[number], value) for number, value in values)
        result: Result[Any] = IteratorResult(SimpleResultMetaData(keys), rows)
        return list(result.all())


class Reading:
    """A statement whose rows are read with a text each: its last column, if that is SQL.

    :ivar statement: what to execute.
    """

    def __init__(self, statement: Any, text: Any) -> None:
        self._made: Callable[[Row[Any]], Any] | None = None
        self.statement = statement
        if callable(text) and not hasattr(text, "is_not"):
            self._made = text
        else:
            self.statement = _with_text(statement, expression("text", text, "Article.body"))

    def read(self, result: Result[Any] | list[Row[Any]]) -> Read:
        """What the database has answered, now or before."""
        rows = result if isinstance(result, list) else result.all()
        keys = list(rows[0]._fields if rows else ()) if isinstance(result, list) else list(result.keys())
        if self._made is not None:
            return Read(keys, [tuple(row) for row in rows], [self._made(row) for row in rows])
        return Read(keys[:-1], [tuple(row)[:-1] for row in rows], [row[-1] for row in rows])


def _with_text(statement: Any, text: Any) -> Any:
    """
    :raises QueryError: the statement cannot have one more column, or it does not select what the text is of.
    """
    instead = "pass text= a function of a row, as in text=lambda row: row.Article.title"
    if isinstance(statement, list):
        raise QueryError(f"of rows that have been read already, no column can be selected: {instead}")
    if not isinstance(statement, Select):
        raise QueryError(f"statement={statement!r} takes no column more, since it is not a select: {instead}")
    if statement._distinct or statement._group_by_clauses:
        raise QueryError(f"a statement with DISTINCT or GROUP BY takes no column for text=: {instead}")
    if text.type._type_affinity not in (String, NullType):
        raise QueryError(
            f"text={text} is of the type {text.type!r}; expected text (another one becomes text by "
            "sqlalchemy.cast(..., Text))"
        )
    extended = statement.add_columns(text.label("pgembed_text"))
    if len(extended.get_final_froms()) > len(statement.get_final_froms()):
        raise QueryError(
            f"text={text} is of a table that the statement does not select from: pass a column of one that "
            "it does, join the table, or use a correlated scalar subquery"
        )
    return extended
