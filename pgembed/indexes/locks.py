"""Locks in a busy database: sessions that change indexes of a table take turns, and lock it briefly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine, Table, func, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pgembed.columns.names import written
from pgembed.exc import PgembedError, sqlstate
from pgembed.indexes.ddl import LockMaterializedView, LockTable
from pgembed.indexes.errors import IndexBuildError
from pgembed.indexes.server_settings import autocommitting, in_autocommit, unlimited

_LOCK_NOT_AVAILABLE = "55P03"
_DEADLOCK = "40P01"
#: What the server says to those who get in one another's way: deadlock, a name that is taken, a relation that
#: is gone. Among those who take turns it does not.
_COLLISIONS = (_DEADLOCK, "23505", "42P07", "42P01")
#: First half of the advisory lock for changing indexes of a table; the second is the table's oid.
_TURN = 0x70676978
#: Seconds between two tries to get it.
_PAUSE = 0.1

_RELATION = text(
    "SELECT CAST(c.oid AS bigint) AS oid, CAST(c.relkind AS text) AS kind FROM pg_catalog.pg_class AS c "
    "WHERE c.oid = pg_catalog.to_regclass(:relation)"
)
_HOLDS_ANOTHER = text(
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted "
    "AND l.objsubid = 2 AND l.classid = CAST(CAST(:turn AS bigint) AS oid) "
    "AND l.pid = pg_catalog.pg_backend_pid())"
)
#: Whether the session whose turn it is waits for this one, or for one that waits for this one.
_AWAITS_US = text("""
WITH RECURSIVE awaited (pid) AS (
    SELECT l.pid
      FROM pg_catalog.pg_locks AS l
      JOIN pg_catalog.pg_database AS d ON d.oid = l.database AND d.datname = pg_catalog.current_database()
     WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
       AND l.classid = CAST(CAST(:turn AS bigint) AS oid) AND l.objid = CAST(CAST(:oid AS bigint) AS oid)
    UNION
    SELECT blocking.pid
      FROM awaited
     CROSS JOIN LATERAL unnest(pg_catalog.pg_blocking_pids(awaited.pid)) AS blocking (pid)
)
SELECT pg_catalog.pg_backend_pid() IN (SELECT pid FROM awaited)
""")
#: What looks like a table but can have no index.
_WITHOUT_INDEXES = {"v": "a view", "f": "a foreign table"}

T = TypeVar("T")


@contextmanager
def turn(
    connection: Connection,
    relation: str,
    index: str,
    *,
    on_wait: Callable[[], object] | None = None,
    seconds: float | None = None,
) -> Iterator[None]:
    """Change the indexes of a table while no other session does so with pgembed.

    Of two concurrent builds on a table Postgres ends one as the victim of a deadlock: the second waits for
    the lock of the table with a snapshot that the first waits for. So the second waits here, by trying again
    and again, and in between it has no snapshot. In a transaction the turn lasts until its end, since others
    only see its work after that.

    :param relation: the table, as SQL writes it.
    :param index: the index that is worked on, for messages.
    :param on_wait: called before each pause.
    :param seconds: for how long to wait; left out, for as long as it takes.
    :raises IndexBuildError: there is no such table, or it can have no index; or the other session waits for
        this transaction; or the time is over.
    """
    oid = oid_of_table(connection, relation, index)
    keys = (_TURN, oid - (1 << 32) if oid >= 1 << 31 else oid)
    session = in_autocommit(connection)
    attempt = func.pg_try_advisory_lock if session else func.pg_try_advisory_xact_lock
    begun = time.monotonic()
    while not connection.scalar(select(attempt(*keys))):
        if not session:
            if connection.scalar(_HOLDS_ANOTHER, {"turn": _TURN}):
                # Two transactions may each wait for the other's turn. Only Postgres sees that.
                _wait_for_turn(connection, keys, index)
                break
            if connection.scalar(_AWAITS_US, {"turn": _TURN, "oid": oid}):
                raise _awaited(index)
        if seconds is not None and time.monotonic() - begun > seconds:
            raise IndexBuildError(index, "another session changes indexes of the table", fix="Wait for it")
        if on_wait is not None:
            on_wait()
        time.sleep(_PAUSE)
    try:
        yield
    except BaseException:
        if session:
            with suppress(SQLAlchemyError):  # a connection that is lost has lost its locks
                connection.execute(select(func.pg_advisory_unlock(*keys)))
        raise
    if session:
        connection.execute(select(func.pg_advisory_unlock(*keys)))


def oid_of_table(connection: Connection, relation: str, index: str) -> int:
    """The oid of a table, or of what can have an index as a table can.

    :raises IndexBuildError: there is no such table, or it can have no index.
    """
    found = connection.execute(_RELATION, {"relation": relation}).one_or_none()
    if found is None:
        raise IndexBuildError(index, f"the database has no table {relation}", fix="Create it first")
    if found.kind in _WITHOUT_INDEXES:
        raise IndexBuildError(
            index,
            f"{relation} is {_WITHOUT_INDEXES[found.kind]}, which can have no index",
            fix="Index the table that its rows come from, or a materialized view of them",
        )
    return int(found.oid)


def _wait_for_turn(connection: Connection, keys: tuple[int, int], index: str) -> None:
    try:
        connection.execute(select(func.pg_advisory_xact_lock(*keys)))
    except DBAPIError as error:
        if sqlstate(error) != _DEADLOCK:
            raise
        raise _awaited(index) from error


def _awaited(index: str) -> IndexBuildError:
    return IndexBuildError(
        index,
        "another session changes indexes of the table, and waits for this transaction",
        fix="Call it in a transaction of its own, or end this one and try again",
    )


@dataclass(frozen=True)
class Patience:
    """How long to wait for a lock, and how often.

    Others that want the table wait behind our request, but no longer than ``lock_timeout``.

    :ivar index: the index that is worked on, for messages.
    :ivar lock_timeout: seconds, each time.
    :ivar attempts: pauses between them are of 1, 2, 4, ... seconds.
    """

    engine: Engine
    index: str
    lock_timeout: float
    attempts: int

    def briefly(self, table: Table, work: Callable[[Connection], object]) -> None:
        """Do short work on the table or its indexes, in a separate transaction.

        :raises IndexBuildError: other sessions kept it locked all the time.
        """
        for attempt in range(self.attempts):
            try:
                with self.engine.begin() as connection:
                    limit = str(round(self.lock_timeout * 1000)) + "ms"
                    connection.execute(select(func.set_config("lock_timeout", limit, True)))
                    work(connection)
                return
            except DBAPIError as error:
                if sqlstate(error) != _LOCK_NOT_AVAILABLE:
                    raise
                if attempt == self.attempts - 1:
                    raise IndexBuildError(
                        self.index,
                        f"another session has kept {table.fullname} locked for {self.lock_timeout:g} s, "
                        f"{self.attempts} times",
                        fix="Wait until the change of its schema, VACUUM or build of an index is over",
                    ) from error
            time.sleep(2**attempt)

    def in_turn(
        self, relation: str, work: Callable[[Connection], T], on_wait: Callable[[], object] | None = None
    ) -> T:
        """Work on a connection in autocommit while no other session changes indexes of the table with
        pgembed.

        If a session that does not take turns interferes, it starts again.

        :raises IndexBuildError: other sessions interfered each time; or as :func:`turn`.
        """
        for attempt in range(self.attempts):
            try:
                with autocommitting(self.engine) as connection:
                    try:
                        with unlimited(connection), turn(connection, relation, self.index, on_wait=on_wait):
                            return work(connection)
                    except PgembedError:
                        raise
                    except BaseException:
                        connection.invalidate()  # and with it locks and settings that may not be taken back
                        raise
            except DBAPIError as error:
                if sqlstate(error) not in _COLLISIONS:
                    raise
                if attempt == self.attempts - 1:
                    raise IndexBuildError(
                        self.index,
                        f"another session has been in the way, {self.attempts} times: {error.orig}",
                        fix="Wait until it has changed the indexes of the table",
                    ) from error
            time.sleep(2**attempt)
        raise AssertionError("there is a last attempt")

    def wait_for(self, table: Table) -> None:
        """Have had the lock of a concurrent build for a moment.

        The build itself runs without a lock_timeout: it would count for its waits for old transactions too,
        and end a build of hours there. Readers and writers do not wait behind its request for the lock.
        """

        def lock(connection: Connection) -> None:
            kind = connection.execute(_RELATION, {"relation": written(table)}).one().kind
            if kind != "m":
                connection.execute(LockTable(table))
                return
            savepoint = connection.begin_nested()
            connection.execute(LockMaterializedView(table))
            savepoint.rollback()

        self.briefly(table, lock)
