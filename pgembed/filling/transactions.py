"""Short transactions that outlive a restart of the server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from pgembed.exc import sqlstate

logger = logging.getLogger(__name__)

_R = TypeVar("_R")

#: A commit that a crash of the server undoes leaves its rows pending, to be filled again; and who does not
#: wait for the disk holds locks on rows for a shorter time. Rows are looked up by their keys, some thousands
#: at most: other joins would read all of a table of middling size, for each batch.
_SETTINGS = text(
    "SELECT set_config('synchronous_commit', 'off', true), set_config('enable_hashjoin', 'off', true), "
    "set_config('enable_mergejoin', 'off', true), "
    "set_config('TimeZone', coalesce(:zone, current_setting('TimeZone')), true)"
)
#: Pauses between attempts to reach the server: doubled from the first to the second.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


def is_lost(error: BaseException) -> bool:
    """Whether an error says that the server is gone, restarting or full, which passes by itself."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = sqlstate(error)
    if state:
        return state.startswith(("08", "57P", "53300"))
    return isinstance(error, OperationalError | InterfaceError)


class Transactions:
    """Runs functions, each in a transaction of its own, at READ COMMITTED.

    What is run must be repeatable: where the connection is lost, it is unknown whether the transaction was
    committed, and the function is run again.

    :param engine: connects; several threads do so at once.
    :param patience: seconds for which a server that is gone is waited for.
    :param stop: no more attempts once it is set.
    :param utc: let times be written in UTC, whatever the session's time zone: they are parts of keys.
    """

    def __init__(
        self, engine: Engine, *, patience: float, stop: threading.Event | None = None, utc: bool = False
    ) -> None:
        # The newest version of a row is what conditions of an UPDATE must be tried on: only this level does.
        self._engine = engine.execution_options(isolation_level="READ COMMITTED")
        self._patience = patience
        self._stop = stop or threading.Event()
        self._utc = utc

    def run(self, work: Callable[[Connection], _R]) -> _R:
        """``work`` in a transaction that is committed at the end.

        :raises DBAPIError: as it is, unless the server was gone and came back in time.
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
        with self._engine.begin() as connection:
            connection.execute(_SETTINGS, {"zone": "UTC" if self._utc else None})
            return work(connection)
