"""Settings of the server, for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress

from sqlalchemy import (
    ARRAY,
    Connection,
    Engine,
    NestedTransaction,
    String,
    bindparam,
    func,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from pgembed.exc import sqlstate

_KNOWN = text("SELECT name FROM pg_catalog.pg_settings WHERE name = ANY (:names)").bindparams(
    bindparam("names", type_=ARRAY(String))
)
#: What Postgres says to SAVEPOINT outside of a transaction.
_NO_TRANSACTION = "25P01"


@contextmanager
def undone(connection: Connection) -> Iterator[None]:
    """Take back what the block did in the database: ``SAVEPOINT ...; ROLLBACK TO SAVEPOINT ...``.

    In autocommit the block has a transaction of its own, ``BEGIN; ROLLBACK``. The server knows whether there
    is one already, which may have been begun by hand.
    """
    savepoint = _savepoint(connection)
    if savepoint is not None:
        try:
            yield
        finally:
            savepoint.rollback()
        return
    connection.exec_driver_sql("BEGIN")
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.exec_driver_sql("ROLLBACK")


@contextmanager
def nested(connection: Connection) -> Iterator[None]:
    """An error in the block takes back what the block did, and no more: a savepoint, if in a transaction."""
    with _savepoint(connection) or nullcontext():
        yield


def _savepoint(connection: Connection) -> NestedTransaction | None:
    """``None`` where there is no transaction."""
    try:
        return connection.begin_nested()
    except DBAPIError as error:
        if sqlstate(error) != _NO_TRANSACTION:
            raise
        return None


@contextmanager
def applied(connection: Connection, settings: Mapping[str, str]) -> Iterator[None]:
    """Settings of the session for the duration of the block, with and without a transaction.

    They are not made local to the transaction, since without one they would end with their own statement.
    A transaction that fails in the block takes them back itself, and accepts no statement that would; in
    autocommit it is one that was begun by hand.
    """
    before = {name: connection.scalar(select(func.current_setting(name))) for name in settings}
    try:
        _set(connection, settings)
        yield
    except BaseException:
        if not connection.invalidated and in_autocommit(connection):
            with suppress(DBAPIError):
                _set(connection, before)
        raise
    _set(connection, before)


#: Limits of an application's role are not meant for builds, and would leave an invalid index.
_LIMITS = ("statement_timeout", "lock_timeout", "idle_session_timeout", "transaction_timeout")
#: How soon the server notices that its client is gone; otherwise a build would go on for hours.
_NOTICE = {"client_connection_check_interval": "1s"}


@contextmanager
def unlimited(connection: Connection) -> Iterator[None]:
    """Work in autocommit without limits of time, which the server ends when its client is gone."""
    known = connection.scalars(_KNOWN, {"names": list(_LIMITS)}).all()
    notice = dict(_NOTICE)
    try:
        with applied(connection, notice):
            pass
    except DBAPIError:  # the platform of the server cannot tell
        notice = {}
    with applied(connection, {**dict.fromkeys(known, "0"), **notice}):
        yield


def autocommitting(engine: Engine) -> Connection:
    """A new connection of which each statement is a transaction of its own."""
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def in_autocommit(connection: Connection) -> bool:
    """Whether each statement commits itself."""
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))


def _set(connection: Connection, settings: Mapping[str, str | None]) -> None:
    if settings:
        calls = (func.set_config(name, bindparam(None, value), False) for name, value in settings.items())
        connection.execute(select(*calls))
