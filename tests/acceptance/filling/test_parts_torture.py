"""Parts of long texts while everything happens at once: writers, workers, and a killer among them.

``PGEMBED_TORTURE_SECONDS`` sets how long it goes on (4 seconds by default).
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import URL, Connection, create_engine, delete, func, insert, null, select, text, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from pgembed.parts import parts_of
from pgembed.testing import HashEncoder
from tests.commands import start

from .models import LONG_MODELS, LongArticle, LongBase

SECONDS = float(os.environ.get("PGEMBED_TORTURE_SECONDS", "4"))
KEYS = 60
WORKERS = 2
WRITERS = 5
#: Seconds from one kill of a worker to the next.
KILLS = 1.2

_bound = parts_of(LongArticle.parts)
assert _bound is not None
BOUND = _bound
TABLE, PARTS, DECLARATION = BOUND.table, BOUND.parts, BOUND.declaration


@cache
def vector(encoded: str) -> Any:
    return HashEncoder(16).encode_documents([encoded])[0]


class Writer:
    """A user: random writes to long texts, one row each, until told to stop."""

    def __init__(self, url: URL, seed: int, stop: threading.Event) -> None:
        self.engine = create_engine(url)
        self.random = random.Random(seed)
        self.stop = stop
        self.errors: list[Exception] = []
        self.done = 0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        rare = [self.clear, self.rename, self.remove, self.move, self.again]
        kinds = [*[self.edit] * 5, *[self.flush] * 3, *[self.put] * 2, *rare]
        while not self.stop.is_set():
            try:
                with self.engine.begin() as connection:
                    self.random.choice(kinds)(connection, self.random.randint(1, KEYS))
                    if self.random.random() < 0.1:
                        connection.rollback()
                self.done += 1
            except Exception as error:
                if getattr(getattr(error, "orig", None), "sqlstate", None) != "23505":  # a key that is taken
                    self.errors.append(error)
                    break
            time.sleep(self.random.random() * 0.1)
        self.engine.dispose()

    def sentence(self) -> str:
        words = [f"word{self.random.randrange(50)}" for _ in range(self.random.randrange(1, 12))]
        return f"It was {' '.join(words)}. "

    def body(self) -> str | None:
        paragraphs = [
            "".join(self.sentence() for _ in range(self.random.randrange(1, 8)))
            for _ in range(self.random.randrange(0, 12))
        ]
        return "\n\n".join(paragraphs)

    def edit(self, connection: Connection, key: int) -> None:
        """Sentences change, come, go, and come twice."""
        body = connection.scalar(select(TABLE.c.body).where(TABLE.c.id == key).with_for_update())
        if not body:
            return
        sentences = body.split(". ")
        place = self.random.randrange(len(sentences))
        what = self.random.randrange(4)
        if what == 0:
            sentences[place] = f"It was changed to {self.random.random()}"
        elif what == 1:
            sentences.insert(place, self.sentence().removesuffix(". "))
        elif what == 2:
            del sentences[place]
        else:
            sentences[place:place] = sentences[: self.random.randrange(6)]
        connection.execute(update(TABLE).where(TABLE.c.id == key).values(body=". ".join(sentences)))

    def clear(self, connection: Connection, key: int) -> None:
        connection.execute(
            update(TABLE).where(TABLE.c.id == key).values(body=self.random.choice(["", null()]))
        )

    def rename(self, connection: Connection, key: int) -> None:
        title = self.random.choice([None, "A title", f"Title {self.random.random()}"])
        connection.execute(update(TABLE).where(TABLE.c.id == key).values(title=title))

    def remove(self, connection: Connection, key: int) -> None:
        connection.execute(delete(TABLE).where(TABLE.c.id == key))

    def put(self, connection: Connection, key: int) -> None:
        connection.execute(insert(TABLE), [{"id": key, "title": "New", "body": self.body()}])

    def move(self, connection: Connection, key: int) -> None:
        connection.execute(update(TABLE).where(TABLE.c.id == key).values(id=self.random.randint(1, KEYS)))

    def flush(self, connection: Connection, key: int) -> None:
        """The ORM, which fills; another user may delete the row in between."""
        with contextlib.suppress(StaleDataError), Session(connection) as session:
            article = session.get(LongArticle, key)
            if article is None:
                session.add(LongArticle(id=key, title="New", body=self.body()))
            elif self.random.random() < 0.2:
                article.body = None
            elif self.random.random() < 0.3:
                article.title = "Flushed"
            else:
                article.body = (article.body or "") + self.sentence()
            session.commit()

    def again(self, connection: Connection, key: int) -> None:
        """What tells the worker to look at a row again: NULL would say that it has no parts."""
        connection.execute(update(TABLE).where(TABLE.c.id == key).values({BOUND.digest.key: UUID(int=0)}))


def wrong(connection: Connection) -> tuple[int, int, list[str]]:
    """Fresh rows, their parts, and what is wrong with them, as one snapshot has it."""
    rows = connection.execute(
        select(TABLE.c.id, TABLE.c.body, TABLE.c.title).where(~BOUND.pending()).order_by(TABLE.c.id)
    ).all()
    stored: dict[int, list[Any]] = defaultdict(list)
    for part in connection.execute(select(PARTS).order_by(PARTS.c.number, PARTS.c.id)):
        stored[part.long_article_id].append(part)
    found = []
    count = 0
    for row in rows:
        cuts = DECLARATION.cut((row.body, row.title)) if row.body else []
        parts = stored[row.id]
        count += len(parts)
        expected = [(cut.number, cut.start, cut.end, cut.text, cut.digest) for cut in cuts]
        if [(part.number, part.start, part.end, part.text, part.digest) for part in parts] != expected:
            found.append(f"{row.id}: {len(parts)} parts instead of {len(cuts)}, or others")
            continue
        for cut, part in zip(cuts, parts, strict=True):
            if not np.array_equal(part.embedding, vector(cut.encoded)):
                found.append(f"{row.id}: the vector of part {part.number}")
    return len(rows), count, found


def test_parts_are_those_of_their_texts_whatever_died(url: URL, tmp_path: Path) -> None:
    """In every snapshot a fresh row has exactly its parts, each with its own vector."""
    engine = create_engine(url, isolation_level="REPEATABLE READ")
    LongBase.metadata.create_all(engine)
    stop = threading.Event()
    log = tmp_path / "workers"
    environment = {"ENCODER_SECONDS": "0.05", "PGEMBED_URL": url.render_as_string(hide_password=False)}
    arguments = ("worker", "--models", LONG_MODELS, "--poll", "0.05", "--batch-seconds", "0.5")
    workers = [start(*arguments, log=log, **environment) for _ in range(WORKERS)]
    writers = [Writer(url, seed, stop) for seed in range(WRITERS)]
    snapshots = seen = killed = 0
    try:
        deadline = time.monotonic() + 60
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not connection.scalar(select(PARTS.c.id).limit(1)) and time.monotonic() < deadline:
                time.sleep(0.05)
        begin = time.monotonic()
        while (now := time.monotonic() - begin) < SECONDS:
            with engine.connect() as connection:
                _, parts, found = wrong(connection)
            assert found == []
            snapshots += 1
            seen += parts
            if killed < now // KILLS:
                victim = random.randrange(WORKERS)
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = start(*arguments, log=log, **environment)
                killed += 1
            time.sleep(0.05)
        stop.set()
        for writer in writers:
            writer.thread.join(10)
        # Leases of killed workers last a minute, which a test does not wait for.
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM pgembed.lease"))
        deadline = time.monotonic() + 60
        while True:
            with engine.connect() as connection:
                if not connection.scalar(select(func.count()).where(BOUND.pending())):
                    break
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
    finally:
        stop.set()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(20)
    shown = log.read_text()
    assert [writer.errors for writer in writers] == [[]] * WRITERS, shown[-2000:]
    assert killed
    assert snapshots > SECONDS
    assert seen
    assert sum(writer.done for writer in writers) > 10 * SECONDS
    with engine.connect() as connection:
        rows, parts, found = wrong(connection)
        assert found == []
        assert rows == connection.scalar(select(func.count()).select_from(TABLE)) > KEYS / 6
        assert parts == connection.scalar(select(func.count()).select_from(PARTS)) > 50
        assert connection.scalar(text("SELECT count(*) FROM pgembed.failure")) == 0
    engine.dispose()
    assert "Traceback" not in shown
