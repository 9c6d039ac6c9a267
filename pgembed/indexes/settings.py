"""Settings of the server for the time of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import Connection, bindparam, func, select


@contextmanager
def applied(connection: Connection, settings: Mapping[str, str]) -> Iterator[None]:
    """Settings of the session for the time of the block, with and without a transaction.

    They are not made local to the transaction, since without one they would end with their own statement.
    A transaction that fails in the block takes them back itself, and accepts no statement that would.
    """
    before = {name: connection.scalar(select(func.current_setting(name))) for name in settings}
    try:
        _set(connection, settings)
        yield
    except BaseException:
        if not connection.invalidated and in_autocommit(connection):
            _set(connection, before)
        raise
    _set(connection, before)


def in_autocommit(connection: Connection) -> bool:
    """Whether each statement is a transaction of its own."""
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))


def _set(connection: Connection, settings: Mapping[str, str | None]) -> None:
    if settings:
        calls = (func.set_config(name, bindparam(None, value), False) for name, value in settings.items())
        connection.execute(select(*calls))
