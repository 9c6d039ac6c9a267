"""Writing vectors: short transactions that wait for no lock, sized so that others hardly wait for theirs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pgembed.exc import sqlstate
from pgembed.filling.flow import EncodedRows, Pace, Row
from pgembed.filling.sql import lines
from pgembed.filling.statements import Statements
from pgembed.filling.transactions import Transactions, is_lost

logger = logging.getLogger(__name__)

#: Seconds after which a write to locked rows is tried again; after the last, they are left.
_RETRIES = (0.1, 0.4, 1.5)

#: Seconds between two look-ups of the table's triggers.
_LOOK = 5.0

#: Classes of SQLSTATE of conflicts with other sessions: the write is tried again.
_LATER = ("40", "55P03")
#: Classes that blame a row: bad data, a constraint, a trigger that raises.
_ROW = ("21", "22", "23", "27", "38", "39", "44", "P0")


@dataclass(frozen=True)
class Locked:
    """Vectors whose rows were locked: when to try again, and the number of that attempt."""

    encoded: EncodedRows
    due: float
    attempt: int


class Writing:
    """The database's part of the cycle.

    :param seconds: what one transaction should take: an ANN index makes rows ten times as costly.
    :param on_failure: called with each row that the database refuses, the digest of its present text, and the
        error.
    :param on_settled: called with the rows that need nothing more, and how many of them were written.
    """

    def __init__(
        self,
        transactions: Transactions,
        statements: Statements,
        *,
        seconds: float,
        on_failure: Callable[[Row, Any, Exception | str], None],
        on_settled: Callable[[list[Row], int], None],
    ) -> None:
        self._transactions = transactions
        self._write = statements.write()
        self._still_wanting = statements.still_wanting()
        self._writable = statements.writable()
        self._has_after_trigger = statements.has_after_trigger()
        self._has_trigger = False
        self._look_at = 0.0
        self._changed_since = statements.changed_since()
        self._may_write = statements.may_write()
        self._pace = Pace(seconds, start=16, largest=2048)
        self._on_failure = on_failure
        self._on_settled = on_settled
        self._locked: list[Locked] = []

    @property
    def due_in(self) -> float | None:
        """Seconds until the next retry; ``None`` if there is none."""
        if not self._locked:
            return None
        return max(min(locked.due for locked in self._locked) - time.monotonic(), 0.0)

    def write(self, encoded: EncodedRows) -> None:
        """Write vectors into those of their rows that still have the text and are not locked."""
        self._write_all(encoded, attempt=0)

    def write_due(self) -> None:
        """Try again what was locked and is due."""
        now = time.monotonic()
        due = [locked for locked in self._locked if locked.due <= now]
        self._locked = [locked for locked in self._locked if locked.due > now]
        for locked in due:
            self._write_all(locked.encoded, attempt=locked.attempt)

    def _write_all(self, encoded: EncodedRows, *, attempt: int) -> None:
        start = 0
        while start < len(encoded.rows):
            end = start + self._pace.rows
            self._write_some(EncodedRows(encoded.rows[start:end], encoded.vectors[start:end]), attempt)
            start = end

    def _write_some(self, some: EncodedRows, attempt: int) -> None:
        started = time.perf_counter()
        try:
            written = self._transactions.run(lambda connection: self._execute(connection, some))
        except DBAPIError as error:
            self._refused(some, attempt, error)
            return
        self._pace.took(len(some.rows), time.perf_counter() - started)
        changed = {key: again for key, again in written.items() if again is not None}
        for row in some.rows if changed else ():
            if row.key in changed:
                self._on_failure(
                    row,
                    changed[row.key] or None,
                    "the row is pending again as soon as it is written: a trigger of the table changes its "
                    "text or its vector in every update",
                )
        settled = some.rows
        if changed or len(written) < len(some.rows):
            missed = [position for position, row in enumerate(some.rows) if row.key not in written]
            waiting = self._wait_for_locks(some, missed, attempt)
            refused = self._swallowed(some, missed) if attempt == len(_RETRIES) else set()
            elsewhere = waiting | refused | changed.keys()
            settled = [row for row in some.rows if row.key not in elsewhere]
        self._on_settled(settled, len(written) - len(changed))

    def _execute(self, connection: Connection, some: EncodedRows) -> dict[str, str | None]:
        """The keys of the written rows, and what :meth:`Statements.write` returns for each."""
        written: dict[str, str | None] = dict(connection.execute(self._write, self._bound(some)).all())
        if written and self._triggered(connection):
            keys = {"keys": lines(written)}
            written.update(connection.execute(self._changed_since, keys).all())
        return written

    def _bound(self, some: EncodedRows) -> dict[str, Any]:
        return named(some.rows) | {"vectors": some.vectors}

    def _triggered(self, connection: Connection) -> bool:
        """Whether the table has an AFTER UPDATE trigger; looked up now and then."""
        if time.monotonic() >= self._look_at:
            self._has_trigger = bool(connection.scalar(self._has_after_trigger))
            self._look_at = time.monotonic() + _LOOK
        return self._has_trigger

    def _wait_for_locks(self, some: EncodedRows, missed: list[int], attempt: int) -> set[str]:
        """Keep the vectors of locked rows that still want them; returns their keys."""
        if attempt == len(_RETRIES) or not missed:
            return set()
        given = named([some.rows[position] for position in missed])
        still = set(
            self._transactions.run(lambda connection: connection.scalars(self._still_wanting, given).all())
        )
        kept = [position for position in missed if some.rows[position].key in still]
        if kept:
            waiting = EncodedRows([some.rows[position] for position in kept], some.vectors[kept])
            self._locked.append(Locked(waiting, time.monotonic() + _RETRIES[attempt], attempt + 1))
        return still

    def _swallowed(self, some: EncodedRows, missed: list[int]) -> set[str]:
        """Set aside rows that want their vectors and are unlocked, but were not written; returns their
        keys."""
        if not missed:
            return set()
        rest = EncodedRows([some.rows[position] for position in missed], some.vectors[missed])

        def work(connection: Connection) -> set[str]:
            wanting = set(connection.scalars(self._writable, named(rest.rows)))
            return wanting - self._execute(connection, rest).keys() if wanting else wanting

        keys = self._transactions.run(work)
        for row in rest.rows:
            if row.key in keys:
                self._on_failure(
                    row, row.digest, "a trigger of the table keeps its vector from being written"
                )
        return keys

    def _refused(self, some: EncodedRows, attempt: int, error: DBAPIError) -> None:
        state = sqlstate(error)
        if is_lost(error) or not (state.startswith(_LATER + _ROW) or self._is_policy(state)):
            raise error
        if state.startswith(_LATER):
            if attempt == len(_RETRIES):
                self._on_settled(some.rows, 0)
            else:
                self._locked.append(Locked(some, time.monotonic() + _RETRIES[attempt], attempt + 1))
        elif len(some.rows) == 1:
            self._on_failure(some.rows[0], some.rows[0].digest, error.orig or error)
        else:
            middle = len(some.rows) // 2
            self._write_some(EncodedRows(some.rows[:middle], some.vectors[:middle]), attempt)
            self._write_some(EncodedRows(some.rows[middle:], some.vectors[middle:]), attempt)

    def _is_policy(self, state: str) -> bool:
        """Whether a row-level policy refuses a row: Postgres has one SQLSTATE for that and for missing
        privileges, which no row is to blame for."""
        return state == "42501" and bool(self._transactions.run(lambda c: c.scalar(self._may_write)))


def named(rows: list[Row]) -> dict[str, Any]:
    """Keys and digests of rows as statements bind them."""
    return {"keys": lines(row.key for row in rows), "digests": lines(row.digest for row in rows)}
