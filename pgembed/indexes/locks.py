"""Short locks in a busy database: asked for with a limit, and again after a pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Table, func, select
from sqlalchemy.exc import DBAPIError

from pgembed.exc import sqlstate
from pgembed.indexes.ddl import LockTable
from pgembed.indexes.errors import IndexBuildError

_LOCK_NOT_AVAILABLE = "55P03"


@dataclass(frozen=True)
class Patience:
    """How long to wait for a lock, and how often.

    Whoever wants the table after us waits behind our request, and so no longer than ``lock_timeout``.

    :ivar index: the index that is worked on, for messages.
    :ivar lock_timeout: seconds, each time.
    :ivar attempts: pauses between them are of 1, 2, 4, ... seconds.
    """

    engine: Engine
    index: str
    lock_timeout: float
    attempts: int

    def briefly(self, table: Table, work: Callable[[Connection], object]) -> None:
        """Do short work on the table or its indexes, in a transaction of its own.

        :raises IndexBuildError: others have kept it locked all the time.
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

    def wait_for(self, table: Table) -> None:
        """Have had the lock of a concurrent build for a moment.

        The build itself runs without a lock_timeout: it would count for its waits for old transactions too,
        and end a build of hours there. Nobody who reads or writes waits behind its request for the lock.
        """
        self.briefly(table, lambda connection: connection.execute(LockTable(table)))
