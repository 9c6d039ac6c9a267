"""The fill cycle of one column: claim and read, encode, write, each on a thread of its own.

Transactions are short, and none is open while the encoder runs. At most one batch waits before the encoder
and one behind it, so a killed process loses no more than that, and memory does not grow with the table.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Engine

from pgembed.filling import failures, parts
from pgembed.filling.bisection import Encoding
from pgembed.filling.flow import Channel, Closed, Counter, Counts, EncodedRows, Pace, Row
from pgembed.filling.leases import Leases
from pgembed.filling.parts_statements import PartsStatements
from pgembed.filling.statements import Statements
from pgembed.filling.targets import Target
from pgembed.filling.transactions import Transactions
from pgembed.filling.writes import Writing
from pgembed.parts import PartsDeclaration, PartsTable

logger = logging.getLogger(__name__)

#: The pause between two passes that wrote nothing doubles, up to this many polling intervals.
_LONGEST_IDLE = 16


@dataclass(frozen=True)
class Settings:
    """How a cycle works; the defaults suit most.

    :ivar batch_seconds: how long one use of the encoder should take: what is lost when a worker is killed.
    :ivar batch_rows: rows of a batch at most.
    :ivar batch_octets: bytes of text in a batch at most.
    :ivar first_batch: rows of the first batch, while the encoder's speed is not known.
    :ivar write_seconds: how long one write transaction should take: how long a user's write may wait.
    :ivar lease: how long the rows of a killed worker stay claimed; longer than any use of the encoder should
        take.
    :ivar retry: pause before a failed row is tried again; doubled each time, up to a day.
    :ivar poll: seconds between two searches for pending rows, when there are none.
    :ivar patience: seconds to wait for a server that is gone before raising the error.
    """

    batch_seconds: float = 2.0
    batch_rows: int = 4096
    batch_octets: int = 16 << 20
    first_batch: int = 64
    write_seconds: float = 0.02
    lease: timedelta = timedelta(seconds=60)
    retry: timedelta = timedelta(seconds=60)
    poll: float = 1.0
    patience: float = 60.0


class Cycle:
    """Fills one column, until nothing is pending or until it is stopped.

    :param where: conditions on the rows to fill, over the target's own table.
    :param limit: how many rows to claim at most.
    :param throttle: rows per second at most.
    :param on_progress: called with the counts so far, from any of the threads.
    """

    def __init__(
        self,
        engine: Engine,
        target: Target,
        settings: Settings | None = None,
        *,
        where: Sequence[ColumnElement[bool]] = (),
        limit: int | None = None,
        throttle: float | None = None,
        on_progress: Callable[[Counts], None] | None = None,
    ) -> None:
        self.target = target
        self._settings = settings = settings or Settings()
        self._limit = limit
        self._throttle = throttle
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._woken = threading.Event()
        self._error: BaseException | None = None
        self._counter = Counter()
        self._transactions = Transactions(
            engine,
            patience=settings.patience,
            stop=self._stop,
            target=target,
        )
        bound = target.embedding
        self._statements = (
            PartsStatements(target, bound) if isinstance(bound, PartsTable) else Statements(target)
        )
        self._leases = Leases(
            self._transactions,
            target,
            self._statements,
            ttl=settings.lease,
            octets=min(settings.batch_octets, parts.OCTETS)
            if isinstance(bound, PartsTable)
            else settings.batch_octets,
            where=where,
        )
        self._pace, self._claims = (
            Pace(settings.batch_seconds, start=settings.first_batch, largest=settings.batch_rows, growth=4)
            for _ in range(2)
        )
        self._declaration = target.embedding.declaration
        self._encoding: Encoding | parts.PartsEncoding
        if isinstance(self._statements, PartsStatements):
            self._encoding = parts.PartsEncoding(
                self._encodes,
                self._transactions,
                self._statements,
                pace=self._pace,
                claims=self._claims,
                stopped=self._stop.is_set,
                on_failure=self._could_not_encode,
            )
            writing: Callable[..., Writing] = parts.PartsWriting
        else:
            self._claims = self._pace
            self._encoding = self._encodes(self._could_not_encode)
            writing = Writing
        self._writing = writing(
            self._transactions,
            self._statements,
            seconds=settings.write_seconds,
            on_failure=self._failed,
            on_settled=self._written,
        )
        self._settled: list[str] = []
        self._outdated = False
        self._started = 0.0
        self._idle = False
        self._moved_at = time.time()
        self._windows: Channel[list[Row]] = Channel(1)
        self._results: Channel[EncodedRows] = Channel(1)

    @property
    def counts(self) -> Counts:
        """What has been done so far."""
        return self._counter.counts

    @property
    def waiting_since(self) -> float | None:
        """When work last got done (:func:`time.time`) while there is some to do; ``None`` where there is
        none."""
        return None if self._idle and not self._has_claimed() else self._moved_at

    def stop(self) -> None:
        """Finish the batch that is being encoded, write it, give back the rest, and return from ``run``."""
        self._stop.set()
        self._woken.set()

    def wake(self) -> None:
        """Look for pending rows now, since there may be some."""
        self._woken.set()

    def run(self, *, once: bool) -> Counts:
        """Fill rows; from one thread, once.

        :param once: return when nothing that can be filled is pending; otherwise go on until stopped.
        :raises BrokenEncoderError: the encoder fails with every text.
        :raises EncoderError: the encoder's weights are missing, or not those of the column.
        """
        self._encoding.open()
        self._started = time.monotonic()
        threads = [
            self._thread(lambda: self._read(once=once), "read", self._windows.close),
            self._thread(self._write, "write", lambda: self._results.close(discard=True)),
        ]
        self._carry_out(self._encode)
        self._windows.close(discard=True)
        self._results.close()
        for thread in threads:
            thread.join()
        try:
            self._leases.release()
        except Exception as error:
            logger.debug("event=release column=%r error=%r", str(self.target), error)
        if self._error is not None:
            raise self._error
        return self.counts

    def _encodes(self, on_failure: Callable[[Row, Exception], None]) -> Encoding:
        return Encoding(
            self.target.encoder,
            self._pace,
            column=str(self.target),
            before_call=self._leases.renew,
            on_encoded=lambda texts: self._count(encoded=texts),
            on_failure=on_failure,
        )

    def _thread(self, work: Callable[[], None], name: str, close: Callable[[], None]) -> threading.Thread:
        def body() -> None:
            self._carry_out(work)
            close()

        thread = threading.Thread(target=body, name=f"pgembed-{name} {self.target}", daemon=True)
        thread.start()
        return thread

    def _carry_out(self, work: Callable[[], None]) -> None:
        """Do the work of a thread; an error, the first of all threads, stops the cycle."""
        try:
            work()
        except Closed:
            pass
        except BaseException as error:
            self._error = self._error or error
            self.stop()

    # --- reading ----------------------------------------------------------------------------------

    def _has_claimed(self) -> bool:
        counts = self.counts
        return counts.done < counts.claimed

    def _read(self, *, once: bool) -> None:
        """Passes over the pending rows, in the order of their keys."""
        idle = 1
        while True:
            self._woken.clear()
            if self._stop.is_set():
                return
            self._transactions.run(
                lambda connection: failures.sweep(connection, self.target, self._statements)
            )
            before = self.counts
            claimed = self._pass()
            if self._room() == 0:
                return
            if once:
                # The next pass takes rows that changed after they were claimed.
                while self.counts.done < self.counts.claimed and not self._stop.wait(0.02):
                    pass
                if not claimed or self.counts.written == before.written:
                    return
                continue
            # Rows that stay locked are not to be encoded over and over.
            stuck = self.counts.left > before.left and self.counts.written == before.written
            idle = min(2 * idle, _LONGEST_IDLE) if stuck else 1
            self._idle = True
            (self._stop if stuck else self._woken).wait(self._settings.poll * idle)
            if not self._has_claimed():
                self._moved_at = time.time()
            self._idle = False

    def _pass(self) -> int:
        """One pass; while it replaces older vectors, every second batch is new rows, which have none.

        Ascending keys put new rows at the end.
        """
        after: str | None = None
        newest: str | None = None
        total = 0
        replacing = False
        while not self._stop.is_set() and (room := self._room()):
            rows = self._leases.claim(room, after=newest or after, newest=True) if replacing else []
            if rows:
                newest = rows[-1].key
                replacing = False
            else:
                rows = self._leases.claim(room, after=after)
                if not rows:
                    break
                after = rows[-1].key
                replacing = not all(row.bare for row in rows)
            self._count(claimed=len(rows))
            total += len(rows)
            if isinstance(self._declaration, PartsDeclaration):
                rows = parts.split(rows, self._declaration, self._could_not_encode)
            self._windows.put(rows)
        return total

    def _room(self) -> int:
        """How many rows to claim next; waits where a throttle says so."""
        room = self._claims.rows
        claimed = self.counts.claimed
        if self._limit is not None:
            room = min(room, self._limit - claimed)
        if self._throttle is not None and room:
            room = min(room, max(math.ceil(self._throttle), 1))
            self._stop.wait(max(self._started + claimed / self._throttle - time.monotonic(), 0))
        return room

    # --- encoding ---------------------------------------------------------------------------------

    def _encode(self) -> None:
        encoding = self._encoding
        suspects_turn = False
        while not self._stop.is_set():
            if encoding.suspects and (suspects_turn or encoding.suspected_rows > 4 * self._pace.rows):
                result = encoding.suspect()
                suspects_turn = False
            else:
                suspects_turn = True
                try:
                    rows = self._windows.get(timeout=0 if encoding.suspects else None)
                except Closed:
                    if not encoding.suspects:
                        return
                    continue
                if rows is None:
                    continue
                result = self._encode_window(rows)
            if result is not None:
                self._results.put(result)

    def _encode_window(self, rows: list[Row]) -> EncodedRows | None:
        if isinstance(self._encoding, parts.PartsEncoding):
            return self._encoding.window(rows)
        cleared = [row for row in rows if row.digest is None]
        if cleared:
            # Postgres takes NULL for a vector without a digest; the zeros only fill the array.
            zeros = np.zeros((len(cleared), self.target.encoder.dimensions), dtype=np.float32)
            self._results.put(EncodedRows(cleared, zeros))
        return self._encoding.window([row for row in rows if row.digest is not None])

    # --- writing ----------------------------------------------------------------------------------

    def _write(self) -> None:
        writing = self._writing
        try:
            while True:
                encoded = self._results.get(timeout=writing.due_in)
                if encoded is not None:
                    writing.write(encoded)
                writing.write_due()
                self._give_back()
        except Closed:
            while (due := writing.due_in) is not None and not self._stop.wait(due):
                writing.write_due()
                self._give_back()

    def _written(self, rows: list[Row], fresh: int) -> None:
        self._settled.extend(row.key for row in rows)
        self._count(written=fresh, left=len(rows) - fresh)
        self._outdated = self._outdated or fresh < len(rows)

    def _give_back(self) -> None:
        if self._settled:
            self._leases.settle(self._settled)
            self._settled = []
        if self._outdated:
            # A pass that was woken for their new texts may have found them claimed.
            self._outdated = False
            self._woken.set()

    def _could_not_encode(self, row: Row, error: Exception) -> None:
        self._failed(row, row.digest, error)

    def _failed(self, row: Row, digest: Any, error: Exception | str) -> None:
        self._transactions.run(
            lambda connection: failures.record(
                connection, self.target, row.key, digest, error, pause=self._settings.retry
            )
        )
        self._leases.settle([row.key])
        logger.warning("event=failed column=%r key=%s error=%r", str(self.target), row.key, str(error))
        self._count(failed=1)

    def _count(self, **numbers: int) -> None:
        self._moved_at = time.time()
        counts = self._counter.add(**numbers)
        if self._on_progress is not None:
            self._on_progress(counts)
