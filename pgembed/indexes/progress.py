"""How far a build is, while it runs: ``pg_stat_progress_create_index``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

#: Seconds between two reports.
INTERVAL = 0.25

_PROGRESS = text("""
SELECT phase,
       CASE WHEN tuples_total > 0 THEN tuples_done ELSE blocks_done END AS done,
       CASE WHEN tuples_total > 0 THEN tuples_total ELSE blocks_total END AS total
  FROM pg_catalog.pg_stat_progress_create_index
 WHERE pid = :pid
""")
_CANCEL = text("SELECT pg_catalog.pg_cancel_backend(:pid)")
_PID = text("SELECT pg_catalog.pg_backend_pid()")


@dataclass(frozen=True)
class Progress:
    """How far a build is.

    :ivar phase: as Postgres calls it: ``"building index: loading tuples"``, ...
    :ivar done: blocks or rows of this phase that are done.
    :ivar total: all of them; 0 in phases that have none.
    :ivar part: which partition is being built, and ``parts`` how many there are; 1 of 1 without partitions.
    """

    phase: str
    done: int
    total: int
    part: int = 1
    parts: int = 1


OnProgress: TypeAlias = Callable[[Progress], None]


def watched(
    engine: Engine, connection: Connection, work: Callable[[], Any], on_progress: OnProgress | None
) -> None:
    """Run ``work``, which uses ``connection``, and report meanwhile.

    The work runs on another thread, so that the callback runs in the caller's, which draws a terminal and
    gets Ctrl-C. An exception there cancels the work and is raised once that has ended.
    """
    pid = connection.scalar(_PID)
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="pgembed-index-build")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
        thread.start()
        try:
            while thread.is_alive():
                if on_progress is not None:
                    row = watcher.execute(_PROGRESS, {"pid": pid}).one_or_none()
                    if row is not None:
                        on_progress(Progress(row.phase, row.done, row.total))
                thread.join(INTERVAL)
        except BaseException:
            while thread.is_alive():  # a request that comes before the statement is lost
                with suppress(SQLAlchemyError):
                    watcher.execute(_CANCEL, {"pid": pid})
                thread.join(INTERVAL)
            raise
    if failure:
        raise failure[0]
