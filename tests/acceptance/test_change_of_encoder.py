"""From one encoder to another on a table that is read and written all the time.

Two versions of an application run, side by side for a while: the old one writes and searches the old column,
the new one the new column. Both spaces have the same number of dimensions, so that a search that mixed them
would not fail, but find rows at wrong distances: every distance is compared with that of the row's own text.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

from pgembed import HNSW, semantic_search
from pgembed.columns import embeddings_of
from pgembed.filling import Settings, Worker
from pgembed.indexes import create
from pgembed.migrations import MigrationError
from pgembed.reembedding.change import changes
from pgembed.testing import HashEncoder
from tests.commands import wait_for
from tests.migrations.conftest import Migrations
from tests.tables import model

OLD, NEW = HashEncoder(32, "old"), HashEncoder(32, "new")
ROWS = 400
#: That of ``op.lock_table``, which the migrations are generated with.
LOCK_TIMEOUT = 1.0
WORDS = [f"word{number}" for number in range(40)]


BEFORE = model(OLD, index=HNSW())
SWITCHED = model(NEW, index=HNSW(), name="embedding_2", replaces="embedding")
AFTER = model(NEW, index=HNSW(), name="embedding_2")


class Texts:
    """The titles that each row has had, and their vectors in both spaces."""

    def __init__(self) -> None:
        self.of_row: dict[int, set[str]] = defaultdict(set)
        self.vectors: dict[tuple[str, str], Any] = {}

    def vector(self, encoder: HashEncoder, title: str) -> Any:
        key = (encoder.name, title)
        if key not in self.vectors:
            self.vectors[key] = HashEncoder(encoder.dimensions, encoder.name).encode_documents([title])[0]
        return self.vectors[key]

    def distance(self, encoder: HashEncoder, query: str, title: str) -> float:
        return 1 - float(np.dot(self.vector(encoder, query), self.vector(encoder, title)))


class Application:
    """One version of the application: threads that write, and threads that search."""

    def __init__(self, engine: Engine, model: Any, encoder: HashEncoder, texts: Texts, seed: int) -> None:
        self.engine = create_engine(engine.url, connect_args={"application_name": f"app {encoder.name}"})
        self.model = model
        self.encoder = encoder
        self.texts = texts
        self.errors: list[BaseException] = []
        self.wrong: list[Any] = []
        self.counts = {"searches": 0, "rows": 0, "writes": 0}
        self.stopping = threading.Event()
        self.threads = [
            threading.Thread(target=self.loop, args=(step, random.Random(f"{seed}/{number}")), daemon=True)
            for number, step in enumerate((self.search, self.search, self.write, self.write))
        ]
        for thread in self.threads:
            thread.start()

    def loop(self, step: Callable[[random.Random], None], chance: random.Random) -> None:
        while not self.stopping.is_set():
            try:
                step(chance)
            except BaseException as error:
                self.errors.append(error)
                return
            time.sleep(0.02)

    def title(self, chance: random.Random) -> str:
        return " ".join(chance.choices(WORDS, k=3))

    def search(self, chance: random.Random) -> None:
        query, stale = self.title(chance), chance.choice(["include", "exclude"])
        statement = semantic_search(self.model.embedding, query, limit=5, stale=stale)
        with Session(self.engine) as session:
            found = session.execute(statement).all()
        for article, distance, _ in found:
            titles = {article.title} if stale == "exclude" else set(self.texts.of_row[article.id])
            expected = [self.texts.distance(self.encoder, query, title) for title in titles]
            if min(abs(distance - each) for each in expected) > 1e-4:
                self.wrong.append((query, stale, article.title, distance))
        self.counts["searches"] += 1
        self.counts["rows"] += len(found)

    def write(self, chance: random.Random) -> None:
        with Session(self.engine) as session:
            title = self.title(chance)
            if chance.random() < 0.3:
                article = self.model(title=title)
                session.add(article)
                session.flush()
                self.texts.of_row[article.id].add(title)
            else:
                # Users who cross each other would fail for reasons of their own.
                free = select(self.model).where(self.model.id == chance.randint(1, ROWS))
                for article in session.scalars(free.with_for_update(skip_locked=True)):
                    self.texts.of_row[article.id].add(title)
                    article.title = title
            session.commit()
        self.counts["writes"] += 1

    def work(self, searches: int, writes: int) -> None:
        """Let it do that much more."""
        before = dict(self.counts)

        def done() -> bool:
            made = {name: self.counts[name] - before[name] for name in before}
            return bool(self.errors) or (made["searches"] >= searches and made["writes"] >= writes)

        wait_for(done, 180)

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(20)
        self.engine.dispose()


class Watcher:
    """The longest time that a statement of an application has waited for a lock."""

    def __init__(self, engine: Engine) -> None:
        self.engine = create_engine(engine.url, isolation_level="AUTOCOMMIT")
        self.longest_wait = self.longest_gap = 0.0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        waiting: dict[Any, float] = {}
        sample = text(
            "SELECT pid, query_start, extract(epoch FROM clock_timestamp())::float8 AS now "
            "FROM pg_stat_activity WHERE application_name LIKE 'app %' AND wait_event_type = 'Lock'"
        )
        with self.engine.connect() as connection:
            before = time.monotonic()
            while not self.stopping.is_set():
                rows = connection.execute(sample).all()
                waiting = {
                    (row.pid, row.query_start): waiting.get((row.pid, row.query_start), row.now)
                    for row in rows
                }
                for row in rows:
                    since = row.now - waiting[row.pid, row.query_start]
                    self.longest_wait = max(self.longest_wait, since)
                time.sleep(0.01)
                now = time.monotonic()
                self.longest_gap, before = max(self.longest_gap, now - before), now
        self.engine.dispose()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(10)


@contextlib.contextmanager
def worker(engine: Engine, model: Any) -> Iterator[None]:
    """A worker of one version of the application."""
    own = create_engine(engine.url)
    found = Worker(own, embeddings_of(model.__table__), settings=Settings(poll=0.05))
    thread = threading.Thread(target=found.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        found.stop()
        thread.join(20)
        own.dispose()


@contextlib.contextmanager
def long_report(engine: Engine, seconds: float) -> Iterator[None]:
    """A transaction that has read the table and stays open longer than anybody may wait."""
    connection = engine.connect()
    connection.execute(text("SELECT count(*) FROM article"))
    timer = threading.Timer(seconds, connection.close)
    timer.start()
    yield
    timer.join()


def pending(engine: Engine, model: Any) -> int:
    (embedding,) = embeddings_of(model.__table__)
    with engine.connect() as connection:
        return len(connection.execute(select(model.id).where(embedding.pending())).all())


def obstacles(engine: Engine) -> tuple[str, ...]:
    """What speaks against the switch."""
    with engine.begin() as connection:
        (change,) = changes(connection, embeddings_of(SWITCHED.__table__), min_recall=0.9, queries=50)
    return change.obstacles


def test_no_search_is_answered_from_two_spaces(engine: Engine, tmp_path: Path) -> None:
    migrations = Migrations(tmp_path / "migrations", engine, number=-1)
    migrations.write("op.install_pgembed()")
    migrations.upgrade()
    texts = Texts()
    BEFORE.metadata.create_all(engine)
    chance = random.Random(1)
    with Session(engine) as session:
        articles = [BEFORE(title=" ".join(chance.choices(WORDS, k=3))) for _ in range(ROWS)]
        session.add_all(articles)
        session.commit()
        for article in articles:
            texts.of_row[article.id].add(article.title)
        create(session.connection(), BEFORE.embedding)
        session.commit()

    with contextlib.ExitStack() as stack:
        watcher = Watcher(engine)
        old_worker = stack.enter_context(contextlib.ExitStack())
        old_worker.enter_context(worker(engine, BEFORE))
        old = Application(engine, BEFORE, OLD, texts, 1)
        stack.callback(old.stop)
        old.work(searches=20, writes=20)

        # A transaction holds the table longer than the lock is waited for.
        assert len(migrations.generate_series(SWITCHED.metadata)) == 2
        with long_report(engine, 1.5 * LOCK_TIMEOUT):
            migrations.upgrade("0001")
        stack.enter_context(worker(engine, SWITCHED))
        wait_for(lambda: pending(engine, SWITCHED) <= ROWS // 100, 180)

        def upgraded() -> bool:
            """Not while too many rows are pending, which the writers see to."""
            with contextlib.suppress(MigrationError):
                migrations.upgrade()
                return True
            return False

        wait_for(upgraded, 180)
        wait_for(lambda: obstacles(engine) == (), 180)

        # The switch: for a while both versions are there, and then only the new one.
        new = Application(engine, SWITCHED, NEW, texts, 2)
        stack.callback(new.stop)
        for version in (old, new):
            version.work(searches=40, writes=20)
        old.stop()
        old_worker.close()

        migrations.generate(AFTER.metadata)
        with long_report(engine, 1.5 * LOCK_TIMEOUT):
            wait_for(upgraded, 180)
        migrations.check()
        new.work(searches=20, writes=20)
        new.stop()
        wait_for(lambda: pending(engine, AFTER) == 0, 180)
        watcher.stop()

    for one in (old, new):
        assert one.errors == []
        assert one.wrong == []
        assert one.counts["writes"] > 20
        assert one.counts["searches"] > 40
        # Searches were answered, with rows: without them there would be nothing wrong in them either.
        assert one.counts["rows"] > 4 * one.counts["searches"]
    print(
        f"old {old.counts}, new {new.counts}; longest wait for a lock {watcher.longest_wait * 1000:.0f} ms, "
        f"samples at most {watcher.longest_gap * 1000:.0f} ms apart"
    )
    assert 0.1 < watcher.longest_wait < LOCK_TIMEOUT + watcher.longest_gap + 1
    with Session(engine) as session:
        for article in session.scalars(select(AFTER)):
            assert np.array_equal(article.embedding, texts.vector(NEW, article.title))
