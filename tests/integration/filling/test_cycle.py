"""The fill cycle on a real server: what it fills, what it leaves alone, and how often it encodes."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from pgembed import HNSW
from pgembed.exc import EncoderNotFoundError
from pgembed.filling.cycle import Cycle
from pgembed.filling.leases import Leases
from pgembed.filling.statements import Statements
from pgembed.filling.targets import Target, registered_targets
from pgembed.filling.transactions import Transactions
from pgembed.testing import HashEncoder
from tests.commands import wait_for
from tests.tables import execute, rows

from .conftest import FAST, Articles, Picky


def fill(articles: Articles, **options: Any) -> Any:
    return Cycle(articles.engine, articles.target, FAST, **options).run(once=True)


@contextmanager
def locked(engine: Engine, condition: str) -> Iterator[None]:
    with engine.begin() as connection:
        connection.execute(text(f"SELECT FROM article WHERE {condition} FOR UPDATE"))
        yield


def test_it_fills_what_is_pending_once_and_nothing_else(articles: Articles) -> None:
    titles = [f"title {i}" for i in range(1000)]
    articles.insert(*titles, None, "")
    counts = fill(articles)
    assert (counts.claimed, counts.encoded, counts.written, counts.failed) == (1000, 1000, 1000, 0)
    assert articles.pending() == set()
    articles.check()
    assert sorted(text for call in articles.encoder.calls for text in call) == sorted(titles)
    assert fill(articles).claimed == 0
    # A model's onupdate is about its users' writes.
    assert rows(articles.engine, "SELECT count(*) FROM article WHERE touched IS NOT NULL") == [(0,)]
    assert rows(articles.engine, "SELECT * FROM pgembed.lease") == []


def test_vectors_of_texts_that_are_gone_are_cleared(articles: Articles) -> None:
    articles.insert("a", "b", "c", "d", "e")
    fill(articles)
    execute(
        articles.engine,
        "UPDATE article SET title = NULL WHERE id = 1",
        "UPDATE article SET title = '' WHERE id = 2",
        "UPDATE article SET embedding = NULL WHERE id = 3",
        "UPDATE article SET embedding_digest = NULL WHERE id = 4",
        "UPDATE article SET title = '', embedding_digest = NULL WHERE id = 5",
    )
    articles.encoder.calls.clear()
    assert fill(articles).written == 5
    articles.check()
    assert articles.pending() == set()
    assert rows(articles.engine, "SELECT id FROM article WHERE embedding IS NULL ORDER BY 1") == [
        (1,),
        (2,),
        (5,),
    ]
    assert sorted(sum(articles.encoder.calls, ())) == ["c", "d"]


def test_the_claim_reads_only_the_pending_index(articles: Articles) -> None:
    """In both modes, under a custom and under a generic plan, with leases and failures about."""
    execute(articles.engine, "INSERT INTO article (title) SELECT 'x' || i FROM generate_series(1, 20000) i")
    fill(articles)
    execute(articles.engine, "UPDATE article SET title = 'y' WHERE id % 1000 = 0")
    autocommit = articles.engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        connection.execute(text("VACUUM ANALYZE article"))
    with articles.engine.begin() as connection:
        (registered,) = registered_targets(connection)
    assert isinstance(registered, Target)
    for target in (articles.target, registered):
        for after in (False, True):
            statement = Statements(target).claim(after=after)
            explained: list[str] = []
            with articles.engine.connect() as connection:
                event.listen(
                    connection,
                    "before_cursor_execute",
                    lambda c, cu, sql, parameters, *rest: ("EXPLAIN " + sql, parameters),
                    retval=True,
                )
                connection.exec_driver_sql("SELECT 1")  # so that the listener is seen to act on the next one
                explained = list(
                    connection.execute(statement, {"rows": 100, "octets": 1 << 20, "after": "[5]"})
                    .scalars()
                    .all()
                )
            plan = "\n".join(explained)
            assert "Index Scan using ix_article_embedding_pending" in plan
            assert "Seq Scan on article" not in plan
            assert "Sort" not in plan


def test_two_workers_never_encode_a_row_twice(articles: Articles) -> None:
    articles.insert(*(f"title {i}" for i in range(2000)))
    settings = replace(FAST, batch_rows=50)
    # Whatever the application's engine is set to, a claim has to see the claims before it.
    engine = create_engine(articles.engine.url, isolation_level="REPEATABLE READ")
    cycles = [Cycle(engine, articles.target, settings) for _ in range(4)]
    threads = [threading.Thread(target=cycle.run, kwargs={"once": True}) for cycle in cycles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    encoded = [text for call in articles.encoder.calls for text in call]
    assert len(encoded) == len(set(encoded)) == 2000
    assert sum(cycle.counts.written for cycle in cycles) == 2000
    assert sum(cycle.counts.written > 0 for cycle in cycles) > 1
    assert articles.pending() == set()
    engine.dispose()


def test_new_rows_do_not_wait_for_a_mass_replacement(articles: Articles, impatient: None) -> None:
    articles.insert(*(f"title {i}" for i in range(200)))
    fill(articles)
    execute(articles.engine, "UPDATE article SET title = title || ' edited'")
    articles.insert(*(f"new {i}" for i in range(25)))
    articles.encoder.calls.clear()
    settings = replace(FAST, first_batch=10, batch_rows=10)
    with locked(articles.engine, "title = 'new 24'"):
        Cycle(articles.engine, articles.target, settings).run(once=True)
        encoded = [text for call in articles.encoder.calls for text in call]
        # The last rows in the order of the keys, after the first batch of the old ones.
        assert set(encoded[10:20]) == {f"new {i}" for i in range(15, 25)}
        assert len(encoded) - len(set(encoded)) <= 3  # the row in somebody's hands is not tried all the time
    assert articles.pending() <= {225}


def test_rows_of_a_lease_are_left_alone_until_it_expires(articles: Articles) -> None:
    articles.insert("a", "b", "c")
    target = articles.target
    transactions = Transactions(articles.engine, patience=0)
    dead = Leases(transactions, target, Statements(target), ttl=timedelta(hours=1), octets=1 << 20)
    assert [row.key for row in dead.claim(2)] == ["[1]", "[2]"]
    fill(articles)
    assert articles.pending() == {1, 2}
    execute(articles.engine, "UPDATE pgembed.lease SET expires_at = now() - interval '1 second'")
    fill(articles)
    assert articles.pending() == set()
    dead.release()


def test_leases_are_renewed_before_every_use_of_the_encoder(engine: Engine) -> None:
    """Bisection outlives the time to live of a lease; none may expire, for others to take its rows."""
    full: list[bool] = []

    def age(texts: list[str]) -> bool:
        found = rows(engine, "SELECT expires_at > now() + interval '30 minutes' FROM pgembed.lease")
        full.extend(row[0] for row in found)
        execute(engine, "UPDATE pgembed.lease SET expires_at = now()")
        return "bad" in texts

    articles = Articles(engine, Picky(age))
    articles.insert("a", "bad", "b", "c", "d", "e", "f", "g")
    settings = replace(FAST, lease=timedelta(hours=1))
    Cycle(engine, articles.target, settings).run(once=True)
    assert full == [True] * len(full)
    assert len(full) > 5
    assert articles.pending() == {2}
    assert articles.encoder.times("bad") <= 6
    assert articles.encoder.times("poison") <= 6


def test_rows_locked_by_somebody_are_skipped_and_written_later_without_encoding_again(
    articles: Articles,
) -> None:
    articles.insert("a", "b", "c")
    cycle = Cycle(articles.engine, articles.target, replace(FAST, patience=60))
    thread = threading.Thread(target=cycle.run, kwargs={"once": True})
    with locked(articles.engine, "id = 2"):
        thread.start()
        wait_for(lambda: articles.pending() == {2})
    thread.join()
    assert articles.pending() == set()
    assert articles.encoder.times("b") == 1


def test_rows_that_others_refer_to_are_filled_meanwhile(articles: Articles) -> None:
    """A row that is inserted elsewhere with a foreign key to an article locks the article's key alone."""
    articles.insert("a", "b")
    execute(articles.engine, "CREATE TABLE comment (article_id integer REFERENCES article)")
    with articles.engine.begin() as connection:
        connection.execute(text("INSERT INTO comment VALUES (1)"))
        assert fill(articles).written == 2
    assert articles.pending() == set()


def test_rows_that_stay_locked_do_not_hold_up_a_drain(articles: Articles, impatient: None) -> None:
    articles.insert("a", "b")
    with locked(articles.engine, "id = 2"):
        counts = fill(articles)
    assert (counts.written, articles.pending()) == (1, {2})


def test_a_text_that_changes_while_it_is_encoded_gets_no_vector_of_the_old_one(engine: Engine) -> None:
    changed = threading.Event()

    def change(texts: list[str]) -> bool:
        if not changed.is_set():
            changed.set()
            execute(
                engine,
                "UPDATE article SET title = 'new' WHERE id = 1",
                "UPDATE article SET title = NULL WHERE id = 2",
                "DELETE FROM article WHERE id = 3",
                "UPDATE article SET embedding = '[1,2,3,4,5,6,7,8]', embedding_digest = "
                "md5('x')::uuid WHERE id = 4",
            )
        return False

    articles = Articles(engine, Picky(change))
    articles.insert("one", "two", "three", "four", "five")
    counts = fill(articles)
    assert counts.left >= 3
    assert articles.pending() == set()
    articles.check()
    assert articles.count() == 4


def test_a_text_that_changes_while_it_is_claimed_does_not_wait_for_the_next_poll(engine: Engine) -> None:
    """Its writer's notification comes too early: the row is still claimed."""
    cycles: list[Cycle] = []

    def change(texts: list[str]) -> bool:
        if texts == ["one"]:
            execute(engine, "UPDATE article SET title = 'two'")
            cycles[0].wake()
            time.sleep(0.5)
        return False

    articles = Articles(engine, Picky(change))
    articles.insert("one")
    cycles.append(Cycle(engine, articles.target, replace(FAST, poll=600)))
    thread = threading.Thread(target=cycles[0].run, kwargs={"once": False})
    thread.start()
    wait_for(lambda: not articles.pending())
    cycles[0].stop()
    thread.join()
    assert articles.pending() == set()
    articles.check()


def test_a_vector_brought_by_the_user_meanwhile_wins(engine: Engine) -> None:
    target: list[Target] = []

    def bring(texts: list[str]) -> bool:
        wanted = target[0].embedding.declaration.digest(("one",))
        execute(engine, f"UPDATE article SET embedding = '[1,2,3,4,5,6,7,8]', embedding_digest = '{wanted}'")
        return False

    articles = Articles(engine, Picky(bring))
    articles.insert("one")
    target.append(articles.target)
    assert fill(articles).written == 0
    assert rows(engine, "SELECT embedding::text FROM article") == [("[1,2,3,4,5,6,7,8]",)]


def test_no_transaction_is_open_while_the_encoder_runs(engine: Engine) -> None:
    seen: list[Any] = []

    def look(texts: list[str]) -> bool:
        time.sleep(0.1)
        found = rows(
            engine,
            "SELECT state FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND xact_start IS NOT NULL",
        )
        seen.append(found)
        return False

    articles = Articles(engine, Picky(look))
    articles.insert("a", "b")
    Cycle(engine, articles.target, FAST).run(once=True)
    assert seen == [[]]


def test_write_transactions_are_sized_by_time(engine: Engine) -> None:
    """With an HNSW index in place, a write of all rows would take several times as long."""
    articles = Articles(engine, HashEncoder(64), index=HNSW(build="immediate"))
    articles.insert(*(f"title {i} {uuid.uuid4()}" for i in range(1500)))
    sizes: list[int] = []
    watched = create_engine(engine.url)

    @event.listens_for(watched, "before_cursor_execute")
    def before(connection: Any, cursor: Any, sql: str, parameters: Any, *rest: Any) -> None:
        if "UPDATE article" in sql:
            sizes.append(len(parameters["keys"].splitlines()))

    try:
        Cycle(watched, articles.target, FAST).run(once=True)
    finally:
        watched.dispose()
    articles.check()
    assert articles.pending() == set()
    assert sum(sizes) >= 1500
    assert max(sizes) < 1000


def test_windows_are_bounded_by_the_bytes_of_their_texts(articles: Articles) -> None:
    articles.insert(*(f"{i} " + "long " * 200 for i in range(40)))
    Cycle(articles.engine, articles.target, replace(FAST, batch_octets=5000)).run(once=True)
    assert {len(call) for call in articles.encoder.calls} == {4}
    assert articles.pending() == set()


def test_a_limit_and_a_condition_choose_the_rows(articles: Articles) -> None:
    articles.insert(*(f"title {i}" for i in range(1, 101)))
    condition = articles.model.id % 2 == 0
    assert fill(articles, limit=30, where=[condition]).written == 30
    assert fill(articles, where=[condition]).written == 20
    assert articles.pending() == set(range(1, 101, 2))


def test_a_stop_finishes_the_batch_and_gives_back_the_rest(engine: Engine) -> None:
    running = threading.Event()

    def slow(texts: list[str]) -> bool:
        running.set()
        time.sleep(0.3)
        return False

    articles = Articles(engine, Picky(slow))
    articles.insert(*(f"title {i}" for i in range(500)))
    cycle = Cycle(engine, articles.target, replace(FAST, first_batch=10, batch_seconds=0.3))
    thread = threading.Thread(target=cycle.run, kwargs={"once": False})
    thread.start()
    running.wait(60)
    cycle.stop()
    thread.join(60)
    assert not thread.is_alive()
    encoded = sum(map(len, articles.encoder.calls))
    assert cycle.counts.written == encoded < 500
    assert rows(engine, "SELECT * FROM pgembed.lease") == []


def test_lost_connections_are_replaced(articles: Articles) -> None:
    articles.insert(*(f"title {i}" for i in range(400)))
    lost = create_engine(articles.engine.url)
    cycle = Cycle(lost, articles.target, replace(FAST, batch_rows=20, write_seconds=0.001))
    thread = threading.Thread(target=cycle.run, kwargs={"once": True})
    thread.start()
    for _ in range(10):
        execute(
            articles.engine,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        time.sleep(0.03)
    thread.join(20)
    lost.dispose()
    assert articles.pending() == set()
    articles.check()


def test_an_error_of_the_database_ends_the_cycle_with_that_error(articles: Articles) -> None:
    articles.insert("a")
    target = articles.target
    execute(articles.engine, "ALTER TABLE article RENAME COLUMN title TO heading")
    with pytest.raises(DBAPIError, match="title"):
        Cycle(articles.engine, target, FAST).run(once=True)


def test_weights_that_are_not_here_are_named_before_anything_is_claimed(articles: Articles) -> None:
    articles.insert("a")
    with articles.engine.begin() as connection:
        (registered,) = registered_targets(connection)
    assert isinstance(registered, Target)
    with pytest.raises(EncoderNotFoundError, match="no encoder 'hash'"):
        Cycle(articles.engine, registered, FAST).run(once=True)
    assert rows(articles.engine, "SELECT * FROM pgembed.lease") == []


@pytest.mark.parametrize("storage", ["vector", "halfvec"])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_vectors_arrive_as_they_are(engine: Engine, storage: str, driver: str) -> None:
    if driver == "psycopg2":
        pytest.importorskip("psycopg2")
    other = create_engine(engine.url.set(drivername=f"postgresql+{driver}"))
    articles = Articles(other, Picky(dimensions=5), type=storage)
    articles.insert("a", "b", None, "c")
    fill(articles)
    with other.connect() as connection:
        found = connection.execute(text("SELECT title, embedding::text FROM article WHERE title <> ''")).all()
    other.dispose()
    assert len(found) == 3
    for title, shown in found:
        vector = np.array(shown[1:-1].split(","), dtype=np.float32)
        tolerance = 0 if storage == "vector" else 1e-3
        expected = HashEncoder(5).encode_documents([title])[0]
        np.testing.assert_allclose(vector, expected, atol=tolerance, rtol=tolerance)
