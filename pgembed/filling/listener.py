"""Waking by NOTIFY, before the next poll.

A notification is a hint and carries nothing. The worker goes on polling, so a lost one (Postgres was
restarted; LISTEN does not work through a transaction pooler) costs no more than the polling interval.
"""

from __future__ import annotations

import logging
import threading
import uuid
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

from pgembed.exc import DatabaseError

logger = logging.getLogger(__name__)

#: The channel of ``pgembed.notify_workers()``; any session may notify it.
CHANNEL = "pgembed"

#: Seconds after which the thread checks whether it should end.
_LOOK = 0.2
#: Seconds within which our own notification has to arrive.
_ECHO = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0


class Listener:
    """A separate connection that listens while the context lasts.

    :param engine: with psycopg as its driver.
    :raises DatabaseError: it has another one.
    """

    def __init__(self, engine: Engine) -> None:
        if engine.driver != "psycopg":
            raise DatabaseError(f"listening needs the driver psycopg; the engine has {engine.driver}")
        self._engine = engine
        self._pause = _FIRST_PAUSE
        self._heard = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pgembed-listen", daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def heard(self) -> bool:
        """Whether there was a notification since the last call."""
        if not self._heard.is_set():
            return False
        self._heard.clear()
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._engine.connect() as connection:
                    self._listen(connection.execution_options(isolation_level="AUTOCOMMIT"))
            except Exception as error:  # of SQLAlchemy, of the driver, of sockets
                cause = error.orig if isinstance(error, DBAPIError) else error
                line = " ".join(str(cause).split())
                logger.warning("event=listen pause=%.1f error=%r", self._pause, line)
            self._stop.wait(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _listen(self, connection: Connection) -> None:
        raw: Any = connection.connection.driver_connection
        connection.detach()  # from the pool, to be closed in the end
        # Keeps the connection alive for firewalls and proxies in between.
        raw.execute("SELECT set_config('tcp_keepalives_idle', '60', false)")
        raw.execute(f"LISTEN {CHANNEL}")
        self._pause = _FIRST_PAUSE
        self._heard.set()  # there may have been some before
        self._try_out(raw)
        while not self._stop.is_set():
            for _ in raw.notifies(timeout=_LOOK, stop_after=1):
                self._heard.set()

    def _try_out(self, raw: Any) -> None:
        """Send a notification through another connection, and say if it does not arrive."""
        token = uuid.uuid4().hex
        with self._engine.begin() as connection:
            connection.execute(select(func.pg_notify(CHANNEL, token)))
        for notification in raw.notifies(timeout=_ECHO):
            self._heard.set()
            if notification.payload == token:
                logger.info("event=listen channel=%r", CHANNEL)
                return
            if self._stop.is_set():
                return
        logger.warning(
            "event=listen error='notifications do not arrive; is a pooler of transactions in between? "
            "Rows are found by polling'"
        )
