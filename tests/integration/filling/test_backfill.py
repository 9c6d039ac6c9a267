"""``backfill`` and ``estimate`` as functions, and several columns under one worker."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import Column as C
from sqlalchemy import Engine, MetaData, Table, Text, insert, literal_column, text

from pgembed.columns import embedding_column, embeddings_of
from pgembed.exc import DeclarationError
from pgembed.filling import Counts, Estimate, Worker, backfill, estimate
from pgembed.filling.backfill import pending
from pgembed.filling.bisection import BrokenEncoderError
from pgembed.testing import HashEncoder
from tests.commands import wait_for

from .conftest import FAST, Articles, Picky


def test_it_fills_and_reports_progress(articles: Articles) -> None:
    articles.insert(*(f"title {i}" for i in range(1000)), None)
    seen: list[Counts] = []
    column = articles.model.embedding
    assert pending(articles.engine, column) == 1000
    counts = backfill(articles.engine, column, settings=FAST, on_progress=seen.append)
    assert counts.written == 1000
    assert seen[-1].done == 1000
    assert len({one.written for one in seen}) > 5
    assert backfill(articles.engine, column, settings=FAST) == Counts()


def test_conditions_are_expressions_or_sql_and_cannot_widen_the_rows(articles: Articles) -> None:
    articles.insert(*(f"title {i}" for i in range(1, 11)))
    column = articles.model.embedding
    backfill(articles.engine, column, where=articles.model.title == "title 3", settings=FAST)
    assert articles.pending() == set(range(1, 11)) - {3}
    where = "id = 4 OR title LIKE '%:5%' OR id = 5"
    assert pending(articles.engine, column, where=where) == 2
    assert backfill(articles.engine, column, where=where, settings=FAST).written == 2
    # Had the condition no parentheses, these would be all rows.
    assert backfill(articles.engine, column, where="id = 6 OR true", limit=1, settings=FAST).written == 1
    assert backfill(articles.engine, column, where="id = 3 OR id = 4", settings=FAST).claimed == 0


def test_a_condition_may_end_with_a_comment_and_is_no_second_statement(articles: Articles) -> None:
    articles.insert("a", "b", "c")
    column = articles.model.embedding
    assert pending(articles.engine, column, where="id = 1 -- the first") == 1
    assert backfill(articles.engine, column, where="id = 1 -- the first", settings=FAST).written == 1
    for where in ("true); DELETE FROM article; --", "true); DELETE FROM article; SELECT (1"):
        with pytest.raises(DeclarationError, match="closes a parenthesis"):
            pending(articles.engine, column, where=where)
    assert articles.count() == 3


def test_no_condition_reaches_rows_that_are_not_pending(articles: Articles) -> None:
    articles.insert("a", "b", "c")
    column = articles.model.embedding
    backfill(articles.engine, column, settings=FAST)
    for use in (backfill, estimate, pending):
        for where in ("id = 3 OR 1=1", text("id = 3 OR 1=1"), literal_column("id = 3 OR 1=1")):
            assert use(articles.engine, column, where=where) in (0, Counts(), Estimate(0, None))
        with pytest.raises(DeclarationError, match="closes a parenthesis"):
            use(articles.engine, column, where="id = 3) OR (1=1")
    assert len(articles.encoder.calls) == 1


def test_an_interrupted_backfill_is_resumed(engine: Engine) -> None:
    calls = []

    def interrupt(texts: list[str]) -> bool:
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return False

    articles = Articles(engine, Picky(interrupt))
    articles.insert(*(f"title {i}" for i in range(2000)))
    with pytest.raises(KeyboardInterrupt):
        backfill(engine, articles.model.embedding, settings=FAST)
    written = 2000 - len(articles.pending())
    assert written == sum(map(len, calls[:2]))
    assert backfill(engine, articles.model.embedding, settings=FAST).written == 2000 - written
    articles.check()


def test_a_throttle_bounds_the_rows_per_second(articles: Articles) -> None:
    articles.insert(*(f"title {i}" for i in range(60)))
    started = time.monotonic()
    backfill(articles.engine, articles.model.embedding, throttle=30, settings=FAST)
    assert time.monotonic() - started >= 1
    assert max(map(len, articles.encoder.calls)) <= 30
    assert articles.pending() == set()


def test_an_estimate_encodes_a_sample_and_writes_nothing(articles: Articles) -> None:
    articles.insert(*(f"title {i}" for i in range(1000)))
    found = estimate(articles.engine, articles.model.embedding, limit=500, throttle=50, sample=100)
    assert (found.rows, found.rows_per_second, found.seconds) == (500, 50, 10)
    assert sum(map(len, articles.encoder.calls)) == 101
    assert len(articles.pending()) == 1000
    backfill(articles.engine, articles.model.embedding, settings=FAST)
    assert estimate(articles.engine, articles.model.embedding).seconds is None


def test_a_broken_encoder_is_an_error(engine: Engine) -> None:
    articles = Articles(engine, Picky(lambda texts: True))
    articles.insert("a")
    with pytest.raises(BrokenEncoderError) as broken:
        backfill(engine, articles.model.embedding, settings=FAST)
    assert isinstance(broken.value.__cause__, RuntimeError)


def test_one_broken_column_does_not_stop_the_others(engine: Engine) -> None:
    """Two columns of one table, two tables, and a broken encoder."""
    metadata = MetaData()
    good, other = HashEncoder(4, "good"), HashEncoder(4, "other")
    broken = Picky(lambda texts: True, name="broken")
    for name in ("a", "b"):
        Table(
            name,
            metadata,
            C("id", Text, primary_key=True),
            embedding_column("id", encoder=good, name="one").column,
            embedding_column("id", encoder=other if name == "a" else broken, name="two").column,
        )
    metadata.create_all(engine)
    with engine.begin() as connection:
        for table in metadata.tables.values():
            connection.execute(insert(table), [{"id": f"row {i}"} for i in range(50)])
    columns = [column for table in metadata.tables.values() for column in embeddings_of(table)]
    worker = Worker(engine, columns, settings=FAST)
    assert worker.run(once=True) is False
    with engine.connect() as connection:
        status = "SELECT relation::text, column_name, pending FROM pgembed.status ORDER BY 1, 2"
        found = [tuple(row) for row in connection.execute(text(status))]
    assert found == [("a", "one", 0), ("a", "two", 0), ("b", "one", 0), ("b", "two", 50)]


def test_a_column_that_was_broken_is_filled_once_it_is_mended(engine: Engine) -> None:
    broken = threading.Event()
    broken.set()
    articles = Articles(engine, Picky(lambda texts: broken.is_set()))
    articles.insert("a", "b")
    worker = Worker(engine, [articles.embedding], settings=FAST)
    thread = threading.Thread(target=worker.run)
    thread.start()
    time.sleep(0.5)
    assert articles.pending() == {1, 2}
    broken.clear()
    wait_for(lambda: not articles.pending())
    worker.stop()
    thread.join()
    assert articles.pending() == set()
    articles.check()
