"""Everything at once: workers and writers on the same few hundred rows, and a killer among them.

``PGEMBED_TORTURE_SECONDS`` sets how long it goes on (15 seconds by default). It uses a server of its own,
because it is restarted in the middle.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import URL, Engine, create_engine, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import NullPool

from pgembed.columns import embeddings_of
from pgembed.testing import HashEncoder
from tests.commands import start

from .models import MODELS, Article, Base
from .servers import Server, running

SECONDS = float(os.environ.get("PGEMBED_TORTURE_SECONDS", "15"))
KEYS = 500
WORKERS = 4
WRITERS = 12
#: Seconds from one kill of a worker to the next, and from one restart of the server to the next.
KILLS, RESTARTS = 2, 6
#: A worker's use of the encoder, much longer than any of its transactions may be.
ENCODER_SECONDS = 2.0
#: What a writer may wait behind a worker at most: milliseconds, but for a machine that stalls the worker; and
#: never for the encoder.
LONGEST_WAIT = ENCODER_SECONDS / 2

EMBEDDING = embeddings_of(Base.metadata.tables["article"])[0]
TABLE = EMBEDDING.table


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        engine = create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(
                insert(TABLE), [{"id": i, "title": f"title {i}", "body": None} for i in range(1, KEYS + 1)]
            )
        engine.dispose()
        yield server


class Writer:
    """A user: random writes of all kinds to the hot rows, until told to stop."""

    def __init__(self, url: URL, seed: int, stop: threading.Event) -> None:
        self.engine = create_engine(url, pool_pre_ping=True, connect_args={"application_name": "writer"})
        self.random = random.Random(seed)
        self.stop = stop
        self.errors: list[Exception] = []
        self.done = 0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.random.choice(
                    [
                        self.edit,
                        self.edit,
                        self.raw,
                        self.several,
                        self.remove,
                        self.put,
                        self.copy,
                        self.flush,
                    ]
                )()
                self.done += 1
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None) or ""
                # A restart; keys that others took; users who cross each other, which is no worker's doing.
                lost = error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError)
                if not (lost or state in ("23505", "40P01") or state.startswith(("57", "08"))):
                    self.errors.append(error)
                    return
                time.sleep(0.05 if not lost else 0.3)
            time.sleep(self.random.random() * 0.01)
        self.engine.dispose()

    def key(self) -> int:
        return self.random.randint(1, KEYS)

    def words(self) -> str | None:
        return self.random.choice([None, "", *(f"word {self.random.random()}" for _ in range(6))])

    def edit(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(TABLE).where(TABLE.c.id == self.key()).values(title=self.words()))
            if self.random.random() < 0.2:
                connection.rollback()

    def raw(self) -> None:
        with self.engine.begin() as connection:
            what = self.random.choice(["embedding = NULL", "embedding_digest = NULL", "body = body || '.'"])
            connection.exec_driver_sql(f"UPDATE article SET {what} WHERE id = {self.key()}")

    def several(self) -> None:
        keys = sorted(self.key() for _ in range(5))
        with self.engine.begin() as connection:
            for key in keys:
                values = {"title": self.words(), "body": self.words()}
                connection.execute(update(TABLE).where(TABLE.c.id == key).values(**values))

    def remove(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete(TABLE).where(TABLE.c.id == self.key()))

    def put(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                insert(TABLE), [{"id": self.key(), "title": self.words(), "body": self.words()}]
            )

    def copy(self) -> None:
        with self.engine.begin() as connection:
            try:
                with (
                    connection.connection.cursor() as cursor,
                    cursor.copy("COPY article (id, title) FROM STDIN") as copy,
                ):
                    copy.write_row((self.key(), self.words()))
            except psycopg.Error as error:
                raise DBAPIError("COPY", None, error) from error

    def flush(self) -> None:
        # Another user may delete the row in between.
        with contextlib.suppress(StaleDataError), Session(self.engine) as session:
            article = session.get(Article, self.key())
            if article is not None:
                article.title = self.words()
            session.commit()


class Watcher:
    """Samples what the server says of its sessions: who waits for whom, and what workers have open."""

    def __init__(self, url: URL, stop: threading.Event) -> None:
        self.engine = create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self.stop = stop
        self.samples = 0
        self.waits: dict[Any, float] = {}
        self.longest_wait = 0.0
        # Between two samples: what a busy machine adds to any wait.
        self.longest_gap = 0.0
        self.longest_transaction = 0.0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(DBAPIError), self.engine.connect() as connection:
                before = time.monotonic()
                while not self.stop.is_set():
                    self.sample(connection)
                    time.sleep(0.005)
                    now = time.monotonic()
                    self.longest_gap = max(self.longest_gap, now - before)
                    before = now
        self.engine.dispose()

    def sample(self, connection: Any) -> None:
        rows = connection.execute(
            text(
                "SELECT a.pid, a.application_name, a.query_start, a.wait_event_type = 'Lock' AND EXISTS ("
                "  SELECT FROM unnest(pg_blocking_pids(a.pid)) AS b JOIN pg_stat_activity AS w ON w.pid = b"
                "  WHERE w.application_name = 'pgembed worker') AS behind_worker,"
                " extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS open,"
                " extract(epoch FROM clock_timestamp())::float8 AS now "
                "FROM pg_stat_activity AS a WHERE a.application_name IN ('writer', 'pgembed worker') "
                "AND a.xact_start IS NOT NULL"
            )
        ).all()
        self.samples += 1
        waiting = {}
        for row in rows:
            if row.application_name == "writer":
                if row.behind_worker:
                    # From the first sample that saw the same statement wait behind a worker.
                    key = (row.pid, row.query_start)
                    waiting[key] = self.waits.get(key, row.now)
                    self.longest_wait = max(self.longest_wait, row.now - waiting[key])
            else:
                self.longest_transaction = max(self.longest_transaction, row.open)
        self.waits = waiting


def wait_until_fresh(engine: Engine, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with engine.connect() as connection:
            left = connection.scalars(select(TABLE.c.id).where(EMBEDDING.pending())).all()
        if not left:
            return
        assert time.monotonic() < deadline, f"still pending: {left}"
        time.sleep(0.2)


def test_every_vector_is_that_of_its_text_whatever_died(server: Server, tmp_path: Path) -> None:
    stop = threading.Event()
    log = tmp_path / "workers"
    environment = {"ENCODER_SECONDS": str(ENCODER_SECONDS), "PGEMBED_URL": server.location}
    arguments = ("worker", "--models", MODELS, "--poll", "0.05", "--batch-seconds", "4")
    workers = [start(*arguments, log=log, **environment) for _ in range(WORKERS)]
    engine = create_engine(server.url, poolclass=NullPool)
    try:
        writers = [Writer(server.url, seed, stop) for seed in range(WRITERS)]
        watcher = Watcher(server.url, stop)
        begin, restarted = time.monotonic(), 0
        killed = 0
        while (now := time.monotonic() - begin) < SECONDS:
            time.sleep(0.2)
            if now > 0.25 * SECONDS and killed < now // KILLS:
                victim = random.randrange(WORKERS)
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = start(*arguments, log=log, **environment)
                killed += 1
            if restarted < now // RESTARTS:
                server.restart()
                restarted += 1
        stop.set()
        for thread in (watcher.thread, *(writer.thread for writer in writers)):
            thread.join(10)
        # Leases of workers that were killed after the restart last a minute, which a test does not wait for.
        with engine.begin() as connection:
            orphaned = connection.execute(text("DELETE FROM pgembed.lease")).rowcount
        wait_until_fresh(engine, 120)
    finally:
        stop.set()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(20)
    shown = log.read_text()
    assert [writer.errors for writer in writers] == [[]] * WRITERS, shown[-2000:]
    assert restarted
    assert killed
    assert orphaned < 100
    assert sum(writer.done for writer in writers) > 20 * SECONDS

    # Every row, by its text alone.
    fresh = HashEncoder(32)
    with engine.connect() as connection:
        rows = connection.execute(select(TABLE)).all()
        assert connection.scalar(text("SELECT count(*) FROM pgembed.failure")) == 0
        assert connection.scalar(text("SELECT count(*) FROM pgembed.lease")) == 0
    assert len(rows) > KEYS / 4
    for row in rows:
        texts = (row.title, row.body)
        if any(texts):
            expected = fresh.encode_documents([EMBEDDING.declaration.compose(texts)])[0]
            assert np.array_equal(row.embedding, expected)
            assert row.embedding_digest == EMBEDDING.declaration.digest(texts)
        else:
            assert row.embedding is None

    # No deadlock that a worker had a part in: their statements would be in its message.
    for message in re.findall(r"deadlock detected.*?(?=ERROR|LOG|$)", server.log.read_text(), re.DOTALL):
        assert "pgembed." not in message
        assert "WITH l AS MATERIALIZED" not in message
    assert watcher.samples > 4 * SECONDS
    print(
        f"longest wait behind a worker {watcher.longest_wait * 1000:.0f} ms, longest transaction of a worker "
        f"{watcher.longest_transaction * 1000:.0f} ms, {watcher.samples} samples, "
        f"at most {watcher.longest_gap * 1000:.0f} ms apart; {sum(writer.done for writer in writers)} "
        f"writes, {killed} kills, {restarted} restarts, {orphaned} leases left"
    )
    assert watcher.longest_wait < LONGEST_WAIT + watcher.longest_gap
    assert watcher.longest_transaction < ENCODER_SECONDS
    assert "event=filled" in shown
    assert "Traceback" not in shown
