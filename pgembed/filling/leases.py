"""Claims: which rows this worker is filling, which the others read in ``pgembed.lease``.

A claim is a short transaction. Under an advisory lock, which serialises the claims on one table, it reads the
pending rows that no worker has claimed, and inserts their keys as a lease. It reads in a separate statement
after taking the lock, so it sees every committed lease; and because a lease is released only after the rows
are written, a row that it sees as pending is unclaimed. No row of the user's table is locked.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Executable, delete, func, literal, update
from sqlalchemy.dialects.postgresql import INTERVAL, insert
from sqlalchemy.exc import DBAPIError

from pgembed.columns.extension import LOCK_NOT_AVAILABLE, lock_within
from pgembed.exc import sqlstate
from pgembed.filling.flow import Row
from pgembed.filling.sql import lease, lines, text_array
from pgembed.filling.statements import Statements
from pgembed.filling.targets import Target
from pgembed.filling.transactions import Transactions
from pgembed.parts import PartsDeclaration

logger = logging.getLogger(__name__)

#: First half of the advisory lock of a table's claims; the second is the table's oid.
_LOCK = 0x7067656D
#: How long to wait for it; a claim takes milliseconds.
LOCK_PATIENCE = "10s"
#: Seconds without the lock after another session has kept it for longer than that.
_ALONE = 60.0


class Leases:
    """The leases of one worker on one column.

    :param ttl: how long a lease holds after it was last renewed: how long the rows of a killed worker stay
        claimed.
    :param octets: how many bytes of text to claim at most at once.
    """

    def __init__(
        self,
        transactions: Transactions,
        target: Target,
        statements: Statements,
        *,
        ttl: timedelta,
        octets: int,
        where: Sequence[ColumnElement[bool]] = (),
    ) -> None:
        self._transactions = transactions
        self._target = target
        self._ttl = ttl
        self._octets = octets
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._first = statements.claim(where=where)
        self._next = statements.claim(where=where, after=True)
        self._newest = statements.claim(where=where, after=True, newest=True)
        self._lock = threading.Lock()
        self._held: dict[uuid.UUID, set[str]] = {}
        self._alone_until = 0.0

    def claim(self, rows: int, *, after: str | None = None, newest: bool = False) -> list[Row]:
        """Take the next pending rows in the order of their keys; none where there are none.

        :param rows: how many at most; less where their texts are long.
        :param after: the key to go on after.
        :param newest: instead, those without a vector among the last ``rows`` after that key.
        """
        number = uuid.uuid4()
        waiting = False

        def work(connection: Connection) -> Sequence[Any]:
            nonlocal waiting
            waiting = time.monotonic() >= self._alone_until
            if waiting:
                lock_within(connection, LOCK_PATIENCE, _LOCK, _signed(self._target.relation))
                waiting = False
            statement = self._newest if newest else self._first if after is None else self._next
            bound = {"rows": rows, "octets": self._octets, "after": after}
            claimed = connection.execute(statement, bound).all()
            if claimed:
                keys = text_array(lines(key for key, *_ in claimed))
                connection.execute(
                    insert(lease)
                    .values(
                        id=number,
                        worker=self._worker,
                        relation=self._target.oid,
                        column_name=self._target.column_name,
                        keys=keys,
                        expires_at=self._expiry,
                    )
                    # A second attempt, when the outcome of the first commit is unknown.
                    .on_conflict_do_update(index_elements=["id"], set_={"keys": keys})
                )
            return claimed

        try:
            claimed = self._transactions.run(work)
        except DBAPIError as error:
            if not waiting or sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            # The lock only saves work: a row that two workers encode is written once.
            self._alone_until = time.monotonic() + _ALONE
            logger.warning(
                "event=lock column=%r error='another session has held the advisory lock of claims for %s; "
                "claiming without it for %.0f s'",
                str(self._target),
                LOCK_PATIENCE,
                _ALONE,
            )
            claimed = self._transactions.run(work)
        if claimed:
            with self._lock:
                self._held[number] = {key for key, *_ in claimed}
        declaration = self._target.embedding.declaration
        if isinstance(declaration, PartsDeclaration):
            return [
                Row(key, wanted, "", failed, bare, tuple(texts))
                for key, wanted, failed, bare, *texts in claimed
            ]
        return [
            Row(key, wanted, declaration.compose(texts), failed, bare)
            for key, wanted, failed, bare, *texts in claimed
        ]

    def renew(self) -> None:
        """Let all leases hold for their full time again; called before every use of the encoder."""
        with self._lock:
            numbers = list(self._held)
        if numbers:
            statement = update(lease).where(lease.c.id.in_(numbers)).values(expires_at=self._expiry)
            self._transactions.run(lambda connection: connection.execute(statement))

    def settle(self, keys: Iterable[str]) -> None:
        """Give rows back: they are written, set aside or left for later."""
        done = set(keys)
        statements: list[Executable] = []
        with self._lock:
            for number, held in list(self._held.items()):
                if held.isdisjoint(done):
                    continue
                held -= done
                mine = lease.c.id == number
                if held:
                    statements.append(update(lease).where(mine).values(keys=text_array(lines(sorted(held)))))
                else:
                    statements.append(delete(lease).where(mine))
                    del self._held[number]
        if statements:
            self._transactions.run(lambda connection: [connection.execute(one) for one in statements])

    def release(self) -> None:
        """Give everything back, in one attempt: leases of a lost connection expire by themselves."""
        with self._lock:
            numbers = list(self._held)
            self._held.clear()
        if numbers:
            statement = delete(lease).where(lease.c.id.in_(numbers))
            self._transactions.once(lambda connection: connection.execute(statement))

    @property
    def _expiry(self) -> ColumnElement[Any]:
        return func.clock_timestamp() + literal(self._ttl, INTERVAL)


def _signed(oid: int) -> int:
    """The unsigned oid as the signed integer of the same 32 bits."""
    return oid - (1 << 32) if oid >= 1 << 31 else oid
