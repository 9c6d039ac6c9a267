"""Short transactions that outlive a restart of the server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine, MetaData, Table, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from pgembed.columns.names import written
from pgembed.database.embedded import is_embedded
from pgembed.exc import NotInstalledError, NotTrustedError, sqlstate
from pgembed.filling.targets import Target

logger = logging.getLogger(__name__)

_R = TypeVar("_R")

#: If a crash of the server undoes a commit, its rows are pending again; and not waiting for the disk shortens
#: the time that rows are locked. Rows are looked up by their keys, some thousands at most: other joins would
#: scan a table of medium size for each batch.
_SETTINGS = text(
    "SELECT pg_catalog.set_config('synchronous_commit', 'off', true), "
    "pg_catalog.set_config('enable_hashjoin', 'off', true), "
    "pg_catalog.set_config('enable_mergejoin', 'off', true), "
    "pg_catalog.set_config('TimeZone', coalesce(:zone, pg_catalog.current_setting('TimeZone')), true)"
)
#: Whether the table is still the same one, and trusted; run before a statement that names it.
_GUARD = text("""
SELECT pgembed.distrust(CAST(CAST(:relation AS bigint) AS oid)) AS problem,
       EXISTS (SELECT FROM pg_catalog.pg_class AS c
                 JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                WHERE c.oid = CAST(CAST(:relation AS bigint) AS oid) AND c.relname = CAST(:name AS text)
                  AND CASE WHEN CAST(:schema AS text) IS NULL THEN pg_catalog.pg_table_is_visible(c.oid)
                           ELSE n.nspname = CAST(:schema AS text) END) AS same
""")
_MAY_LOCK = text("SELECT pg_catalog.has_table_privilege(CAST(CAST(:relation AS bigint) AS oid), 'SELECT')")
_SUPERUSER = text("SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = current_user AND rolsuper")
#: Pauses between attempts to reach the server: doubled from the first to the second.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


def is_lost(error: BaseException) -> bool:
    """Whether the server is gone, restarting or full, which passes by itself."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = sqlstate(error)
    if state:
        return state.startswith(("08", "57P", "53300"))
    return isinstance(error, OperationalError | InterfaceError)


_warned: set[str] = set()


def warn_superuser(connection: Connection) -> None:
    """Warn, once per process and database, that filling needs no superuser.

    The embedded server is for development, and has no other role.
    """
    url = str(connection.engine.url)
    if url in _warned:
        return
    _warned.add(url)
    role = connection.scalar(_SUPERUSER)
    if role is not None and not is_embedded(connection):
        logger.warning(
            "event=superuser role=%r error='what trusted owners have put into triggers and indexes runs with "
            "all rights: docs/filling.md has the script of a role that is enough, docs/trust.md says more'",
            role,
        )


class Transactions:
    """Runs each function in a transaction at READ COMMITTED.

    Functions must be repeatable: if the connection is lost, its outcome is unknown, and the function runs
    again.

    :param engine: connects; several threads do so at once.
    :param patience: seconds to wait for a server that is gone.
    :param stop: no more attempts once it is set.
    :param target: the column to work on. Each transaction first checks that its table is still the same one,
        and trusted: owners and names change.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        patience: float,
        stop: threading.Event | None = None,
        target: Target | None = None,
    ) -> None:
        self._engine = engine
        self._patience = patience
        self._stop = stop or threading.Event()
        self._target = target
        self._may_lock: dict[int, bool] = {}
        # Times are parts of keys: they are written in UTC, whatever the session's time zone.
        types = () if target is None else target.key_types
        self._zone = "UTC" if any(name.endswith("with time zone") for name in types) else None

    def run(self, work: Callable[[Connection], _R]) -> _R:
        """``work`` in a transaction that is committed at the end.

        :raises DBAPIError: as it is, unless the server was gone and came back in time.
        :raises NotTrustedError: the owner of the target's table is not trusted any more.
        :raises NotInstalledError: the target's table has been replaced.
        """
        deadline = time.monotonic() + self._patience
        pause = _FIRST_PAUSE
        while True:
            try:
                return self.once(work)
            except DBAPIError as error:
                if not is_lost(error) or time.monotonic() + pause > deadline or self._stop.is_set():
                    raise
                logger.warning("event=reconnect pause=%.1f error=%r", pause, str(error.orig).strip())
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def once(self, work: Callable[[Connection], _R]) -> _R:
        """As :meth:`run`, in one attempt."""
        with self._engine.connect() as connection:
            # Only this level evaluates the conditions of an UPDATE on the newest version of a row. Not an
            # option of the engine: SQLAlchemy 2.0 had engines that took options only once.
            connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                connection.execute(_SETTINGS, {"zone": self._zone})
                if self._target is not None:
                    for relation, table in self._target.tables:
                        self._check(connection, self._target, relation, table)
                return work(connection)

    def _check(self, connection: Connection, target: Target, relation: int, table: Table) -> None:
        """Checks with the table locked, where the role may lock it: a statement that waits for an ALTER TABLE
        looks up the name again afterwards."""
        schema = connection.schema_for_object(table)
        if relation not in self._may_lock:
            self._may_lock[relation] = bool(connection.scalar(_MAY_LOCK, {"relation": relation}))
        if self._may_lock[relation]:
            name = written(Table(table.name, MetaData(), schema=schema))
            connection.exec_driver_sql(
                f"LOCK TABLE {name} IN ACCESS SHARE MODE", execution_options={"no_parameters": True}
            )
        named = {"relation": relation, "name": table.name, "schema": schema}
        problem, same = connection.execute(_GUARD, named).one()
        if problem is not None:
            raise NotTrustedError(target.name, problem)
        if not same:
            raise NotInstalledError(f"{target}: the table was renamed, moved or dropped meanwhile")
