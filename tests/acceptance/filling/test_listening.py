"""`pgembed worker --listen`: NOTIFY wakes it, and where no notification arrives it polls."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from pgembed.columns import embeddings_of
from pgembed.exc import DatabaseError
from pgembed.filling import Settings, Worker
from tests.commands import start, wait_for
from tests.tables import execute

from .models import MODELS, Base
from .servers import running

GUIDE = Path(__file__).parents[3] / "docs" / "filling.md"
EMBEDDING = embeddings_of(Base.metadata.tables["article"])[0]


def is_fresh(engine: Engine) -> bool:
    pending = text("SELECT count(*) FROM article WHERE title IS NOT NULL AND embedding IS NULL")
    with suppress(DBAPIError), engine.connect() as connection:
        return connection.scalar(pending) == 0
    return False


def test_a_notification_wakes_the_worker_also_after_a_restart(tmp_path: Path) -> None:
    """With a polling interval of ten minutes."""
    log = tmp_path / "log"
    (trigger,) = re.findall(r"CREATE TRIGGER.*?;", GUIDE.read_text(), re.DOTALL)
    with running() as server:
        engine = create_engine(server.url, pool_pre_ping=True)
        execute(engine, trigger)
        worker = start(
            "worker", "--models", MODELS, "--listen", "--poll", "600", log=log, PGEMBED_URL=server.location
        )
        try:
            wait_for(lambda: "event=listen channel='pgembed'" in log.read_text())
            for i in range(3):
                time.sleep(0.3)  # so that the worker waits again
                execute(engine, f"INSERT INTO article (title) VALUES ('{i}')")
                wait_for(lambda: is_fresh(engine))
            server.restart()
            wait_for(lambda: log.read_text().count("event=listen channel='pgembed'") == 2)
            time.sleep(0.3)
            execute(engine, "INSERT INTO article (title) VALUES ('after the restart')")
            wait_for(lambda: is_fresh(engine))
        finally:
            worker.terminate()
        assert worker.wait(60) == 0
        engine.dispose()


@contextmanager
def working(engine: Engine, **settings: Any) -> Iterator[None]:
    worker = Worker(engine, [EMBEDDING], settings=Settings(**settings), listen=True)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join()


@pytest.fixture
def articles(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    return engine


def test_an_application_may_notify_by_itself(articles: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgembed")
    with working(articles, poll=600):
        wait_for(lambda: "event=listen channel='pgembed'" in caplog.text)

        def waits() -> bool:
            """The first passes may still be under way, and take the row."""
            execute(articles, "INSERT INTO article (title) VALUES ('quiet')")
            time.sleep(1)
            return not is_fresh(articles)

        wait_for(waits)
        execute(articles, "NOTIFY pgembed")
        wait_for(lambda: is_fresh(articles))


def test_behind_a_pooler_that_swallows_it_the_worker_says_so_and_polls(
    articles: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with pgbouncer, whose server connections are others in every transaction."""
    monkeypatch.setattr("pgembed.filling.listener._ECHO", 0.5)

    class Pooled(psycopg.Connection[Any]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            return super().execute("SELECT 1" if "LISTEN" in str(query) else query, *arguments, **options)

    name = articles.url.render_as_string(hide_password=False).replace("+psycopg", "")
    pooled = create_engine("postgresql+psycopg://", creator=lambda: Pooled.connect(name))
    with working(pooled, poll=0.1):
        wait_for(lambda: "notifications do not arrive" in caplog.text)
        execute(articles, "INSERT INTO article (title) VALUES ('polled')")
        wait_for(lambda: is_fresh(articles))
    pooled.dispose()


def test_other_drivers_are_refused_at_once() -> None:
    pytest.importorskip("psycopg2")
    engine = create_engine("postgresql+psycopg2://")
    with pytest.raises(DatabaseError, match="needs the driver psycopg; the engine has psycopg2"):
        Worker(engine, listen=True)
