"""The worker: a cycle for each embedding column of a database, kept alive.

A column whose encoder is missing or broken, or whose table cannot be read, is tried again after a pause that
doubles up to a minute; the others go on. The columns are looked up from time to time, so that new and changed
ones are filled.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from pgembed.columns import Freshness
from pgembed.columns.extension import LOCK_NOT_AVAILABLE
from pgembed.exc import PgembedError, sqlstate
from pgembed.filling import failures
from pgembed.filling.backfill import pending
from pgembed.filling.cycle import Cycle, Settings
from pgembed.filling.flow import Counts
from pgembed.filling.frequencies import Refresher
from pgembed.filling.heartbeat import Heartbeat, State
from pgembed.filling.listener import Listener
from pgembed.filling.targets import Refused, Target, find_targets
from pgembed.filling.transactions import Transactions, is_lost, warn_superuser

logger = logging.getLogger(__name__)

#: Seconds between two look-ups of the columns.
_LOOK = 30.0
#: Seconds between two log lines on a column's progress.
_REPORT = 10.0
_LONGEST_PAUSE = 60.0

#: What makes two targets the same work: table, column, and what its vectors are made with.
_Identity: TypeAlias = tuple[int, str, str]


@dataclass
class _Job:
    """One column, and the thread that fills it."""

    target: Target
    cycle: Cycle | None = None
    thread: threading.Thread | None = None
    error: BaseException | None = None
    attempts: int = 0
    start_at: float = 0.0
    done: bool = False
    left: int = 0
    failing_since: float | None = None
    failing: str = ""
    reported: Counts = field(default_factory=Counts)
    reported_at: float = field(default_factory=time.monotonic)

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Worker:
    """Fills all embedding columns of a database, or those of some models.

    :param engine: its pool should have room for three connections per column.
    :param models: the columns to fill; without any, those in the database's registry, whose encoders are
        looked up by name.
    :param table: only this table, as SQL writes it; and ``column_name`` only this column.
    :param listen: whether ``NOTIFY pgembed`` makes it look for pending rows at once.
    :param heartbeat: the folder of its heartbeat file; see
        :mod:`pgembed.filling.heartbeat`.
    :raises DatabaseError: to listen, the engine needs the driver psycopg.
    """

    def __init__(
        self,
        engine: Engine,
        models: Sequence[Freshness] | None = None,
        *,
        table: str | None = None,
        column_name: str | None = None,
        settings: Settings | None = None,
        listen: bool = False,
        heartbeat: Path | None = None,
    ) -> None:
        self._engine = engine
        self._heartbeat = None if heartbeat is None else Heartbeat(heartbeat)
        self._lost: State | None = None
        self._listener = Listener(engine) if listen else None
        self._models = models
        self._table = table
        self._column_name = column_name
        self._settings = settings or Settings()
        self._jobs: dict[_Identity, _Job] = {}
        self._refresher = Refresher(engine)
        self._refused: dict[str, str] = {}
        self._refused_since = time.time()
        # A plain attribute, because stop() is called by signal handlers: they interrupt the thread that
        # waits in run(), and may take no lock that it could hold.
        self._stopping = False

    def stop(self) -> None:
        """Let every column finish the batch that is being encoded, and ``run`` return."""
        self._stopping = True

    def run(self, *, once: bool = False) -> bool:
        """Fill until stopped.

        :param once: until nothing that can be filled is pending; every column is tried once.
        :returns: whether all columns went well and, with ``once``, no row is left that could not be filled.
        :raises NotInstalledError: the database has no SQL objects of pgembed.
        :raises DBAPIError: with ``once``, the database cannot be reached; otherwise the worker waits for it.
        """
        with self._listener or nullcontext():
            return self._run(once=once)

    def _run(self, *, once: bool) -> bool:
        look_at = 0.0
        pause = 1.0
        looked = False
        try:
            while not self._stopping:
                if time.monotonic() >= look_at and not (once and self._jobs):
                    try:
                        self._look()
                        if not once:
                            self._refresher.start([job.target for job in self._jobs.values()])
                        look_at, pause, looked = time.monotonic() + _LOOK, 1.0, True
                        self._lost = None
                    except (DBAPIError, PgembedError) as error:
                        # What worked once works again: a table dropped under the look is such an error.
                        if once or not (looked or is_lost(error)):
                            raise
                        logger.warning("event=look pause=%.0f error=%r", pause, _line(error))
                        self._lost = self._lost or State("the database", time.time(), _line(error))
                        look_at, pause = time.monotonic() + pause, min(2 * pause, _LONGEST_PAUSE)
                woken = self._listener is not None and self._listener.heard()
                for job in self._jobs.values():
                    if woken and job.cycle is not None:
                        job.cycle.wake()
                    self._tend(job, once=once)
                if once and all(job.done for job in self._jobs.values()):
                    self._refresher.refresh([job.target for job in self._jobs.values()])
                    break
                if self._heartbeat is not None and self._heartbeat.due:
                    self._heartbeat.beat(list(self._waiting()))
                time.sleep(0.05)
        finally:
            self._halt(list(self._jobs.values()))
            self._refresher.stop()
            if self._heartbeat is not None:
                self._heartbeat.stop()
        return not self._refused and all(job.error is None and not job.left for job in self._jobs.values())

    def _waiting(self) -> Iterator[State]:
        """What has been waiting without progress, and since when."""
        if self._lost is not None:
            yield self._lost
        for job in self._jobs.values():
            since = job.cycle.waiting_since if job.cycle is not None and job.running else None
            if job.failing_since is not None:
                yield State(str(job.target), job.failing_since, job.failing)
            elif since is not None:
                yield State(str(job.target), since, "rows are claimed, and none gets filled")
        if not self._jobs:
            for name, error in self._refused.items():
                yield State(name, self._refused_since, error)

    # --- which columns ----------------------------------------------------------------------------

    def _look(self) -> None:
        def work(connection: Connection) -> list[Target | Refused]:
            warn_superuser(connection)
            return find_targets(connection, self._models, table=self._table, column_name=self._column_name)

        transactions = Transactions(self._engine, patience=0)
        found = transactions.run(work)
        try:
            transactions.run(failures.clean)
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            logger.warning("event=clean error=%r", _line(error))
        wanted: dict[_Identity, Target] = {}
        refused: dict[str, str] = {}
        for one in found:
            if isinstance(one, Target):
                recipe = one.embedding.declaration.recipe
                wanted[one.relation, one.column_name, recipe] = one
            else:
                refused[one.name] = _line(one.error)
                if self._refused.get(one.name) != refused[one.name]:
                    logger.error("event=refused column=%r error=%r", one.name, refused[one.name])
        self._refused = refused
        gone = [self._jobs.pop(identity) for identity in self._jobs.keys() - wanted.keys()]
        self._halt(gone)
        for identity, target in wanted.items():
            if identity not in self._jobs:
                self._jobs[identity] = _Job(target)

    # --- one column -------------------------------------------------------------------------------

    def _tend(self, job: _Job, *, once: bool) -> None:
        """Start a column's cycle, or see what became of it."""
        if job.running:
            if job.cycle is not None and (job.cycle.counts.written or job.cycle.waiting_since is None):
                job.failing_since = None
            if time.monotonic() - job.reported_at >= _REPORT:
                self._report(job)
            return
        if job.thread is not None:
            self._ended(job, once=once)
        elif not job.done and time.monotonic() >= job.start_at:
            self._start(job, once=once)

    def _start(self, job: _Job, *, once: bool) -> None:
        job.error = None
        job.reported, job.reported_at = Counts(), time.monotonic()
        job.cycle = cycle = Cycle(self._engine, job.target, self._settings)

        def body() -> None:
            try:
                cycle.run(once=once)
            except BaseException as error:  # a thread that ends in another way must not go unnoticed
                job.error = error

        logger.info("event=start column=%r encoder=%r", str(job.target), job.target.encoder.name)
        job.thread = threading.Thread(target=body, name=f"pgembed {job.target}", daemon=True)
        job.thread.start()

    def _ended(self, job: _Job, *, once: bool) -> None:
        assert job.cycle is not None
        self._report(job)
        job.thread = None
        if job.error is None:
            job.done = True
            job.left = pending(self._engine, job.target, claimed=False)
            if job.left:
                logger.warning("event=left column=%r rows=%d", str(job.target), job.left)
            return
        self._note_failing(job)
        job.attempts = 1 if job.cycle.counts.written else job.attempts + 1
        pause = 0.0 if once else min(2.0 ** (job.attempts - 1), _LONGEST_PAUSE)
        job.start_at = time.monotonic() + pause
        job.done = once
        logger.error(
            "event=error column=%r error=%r retry_in=%s",
            str(job.target),
            _line(job.error),
            "never" if once else f"{pause:.0f}",
        )

    def _note_failing(self, job: _Job) -> None:
        """Remember since when a column has failed, while there is something to fill in it."""
        try:
            rows = pending(self._engine, job.target, claimed=False)
        except (DBAPIError, PgembedError):
            waiting = "pending rows cannot be counted"
        else:
            waiting = f"{rows:,} {'row is' if rows == 1 else 'rows are'} pending"
            if not rows:
                job.failing_since = None
                return
        assert job.error is not None
        job.failing_since = job.failing_since or time.time()
        job.failing = f"{waiting}, {_line(job.error)}"

    def _report(self, job: _Job) -> None:
        """One line on what was done since the last one, if anything was."""
        assert job.cycle is not None
        now, counts = time.monotonic(), job.cycle.counts
        written = counts.written - job.reported.written
        failed = counts.failed - job.reported.failed
        left = counts.left - job.reported.left
        if written or failed or left:
            seconds = now - job.reported_at
            logger.info(
                "event=filled column=%r rows=%d failed=%d left=%d seconds=%.1f rows_per_second=%.0f",
                str(job.target),
                written,
                failed,
                left,
                seconds,
                written / max(seconds, 1e-6),
            )
        job.reported, job.reported_at = counts, now

    def _halt(self, jobs: list[_Job]) -> None:
        """Stop cycles, all at once, and wait until they have written what they had encoded."""
        running = [job for job in jobs if job.running]
        for job in running:
            assert job.cycle is not None
            job.cycle.stop()
        for job in running:
            assert job.thread is not None
            job.thread.join()
            self._report(job)
            logger.info("event=stop column=%r", str(job.target))


def _line(error: BaseException) -> str:
    """An error as one line."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(f"{type(cause).__name__}: {cause}".split())
