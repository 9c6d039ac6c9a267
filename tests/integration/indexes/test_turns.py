"""Several sessions that change the indexes of one table at once, and what those that are killed leave."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError

from pgembed import HNSW, IVFFlat
from pgembed.indexes import (
    IndexBuildError,
    IndexMissingError,
    check,
    create,
    create_concurrently,
    differences,
    drop,
    is_built,
    reindex,
)
from pgembed.indexes.standing import beside
from pgembed.migrations import setup

from .test_build import indexes_of, item, leave_an_invalid_index

setup()

ANN = ("ann", True, ["m=16", "ef_construction=64"])
BUILDS = text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND query ~ '^(CREATE|DROP|REINDEX) INDEX|^REINDEX'"
)


@pytest.fixture
def engines(engine):
    """Pools for as many sessions as are wanted, as of processes that do not know one another."""
    made = [create_engine(engine.url) for _ in range(6)]
    yield made
    for each in made:
        each.dispose()


def declared(**options):
    index = HNSW("vector", **{"name": "ann", **options})
    item(index)
    return index


def at_once(engines, *works):
    """Begin all together; what each returned or raised."""
    ready = threading.Barrier(len(works))

    def run(work, engine):
        ready.wait()
        try:
            return work(engine)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return [
            future.result()
            for future in [pool.submit(run, *each) for each in zip(works, engines, strict=False)]
        ]


def in_transaction(work):
    def run(engine):
        with engine.begin() as connection:
            return work(connection)

    return run


def until_not_awaited(work):
    """In a new transaction each time that another session waits for this one, as the error says."""

    def run(engine):
        while True:
            try:
                return in_transaction(work)(engine)
            except IndexBuildError as error:
                if "waits for this transaction" not in str(error):
                    raise

    return run


def migrate(engine):
    """``op.create_vector_index(..., concurrently=True)``"""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        with context.begin_transaction(_per_migration=True):
            Operations(context).create_vector_index(
                "ann",
                "Item",
                "vector",
                opclass="vector_cosine_ops",
                parameters={"m": 16, "ef_construction": 64},
                concurrently=True,
            )


def test_sessions_that_build_the_same_index_take_turns(engine, engines, fill):
    fill(rows=300)
    concurrently = lambda engine: create_concurrently(engine, declared())  # noqa: E731
    inside = in_transaction(lambda connection: create(connection, declared()))
    beside = until_not_awaited(lambda connection: create(connection, declared()))
    for works in (
        [concurrently, concurrently, concurrently],
        [inside, inside, inside],
        [concurrently, beside, migrate, migrate],
        [concurrently, lambda engine: create_concurrently(engine, declared(name="other", m=8))],
    ):
        outcomes = at_once(engines, *works)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert indexes_of(engine)[0] == ANN
        assert all(valid for _, valid, _ in indexes_of(engine))
        for name, *_ in indexes_of(engine):
            drop(engine, declared(name=name))
        assert indexes_of(engine) == []


def test_nothing_raw_comes_out_of_a_mixture_with_kills(engine, engines, fill):
    """Whoever returns normally has seen what it asked for, and what the killed leave is gone in the end."""
    fill(rows=300)
    seen, done = random.Random(7), threading.Event()

    def kill():
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not done.is_set():
                time.sleep(0.05 * seen.random())
                for pid in connection.scalars(BUILDS).all():
                    way = "pg_cancel_backend" if seen.random() < 0.7 else "pg_terminate_backend"
                    if seen.random() < 0.3:
                        connection.execute(text(f"SELECT {way}(:pid)"), {"pid": pid})

    def mixture(number):
        choice = random.Random(number)

        def run(engine):
            unexpected, finished = [], 0
            while finished + len(unexpected) < 12:
                work = choice.choice(
                    [
                        lambda: create_concurrently(engine, declared()),
                        lambda: reindex(engine, declared(m=choice.choice([4, 16]))),
                        lambda: drop(engine, declared()),
                        lambda: in_transaction(lambda connection: create(connection, declared()))(engine),
                        lambda: migrate(engine),
                    ]
                )
                try:
                    work()
                    finished += 1
                except (IndexBuildError, IndexMissingError):
                    finished += 1
                except (
                    OperationalError,
                    PendingRollbackError,
                ):  # cancelled; killed, and that beneath Alembic
                    pass
                except Exception as error:
                    unexpected.append(error)
            return unexpected, finished

        return run

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        outcomes = at_once(engines, *(mixture(number) for number in range(4)))
    finally:
        done.set()
        killer.join()
    assert [unexpected for unexpected, _ in outcomes] == [[]] * 4
    assert all(finished for _, finished in outcomes)
    drop(engine, declared())
    create_concurrently(engine, declared())
    assert indexes_of(engine) == [ANN]


def test_a_call_that_returns_has_seen_the_index_although_builds_are_cancelled(engine, engines, fill):
    fill(rows=300)
    for _ in range(4):
        done = threading.Event()

        def cancel(done=done):
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                while not done.is_set():
                    for pid in connection.scalars(BUILDS).all()[:1]:
                        connection.execute(text("SELECT pg_cancel_backend(:pid)"), {"pid": pid})
                        done.wait(0.3)

        thread = threading.Thread(target=cancel)
        thread.start()
        outcomes = at_once(engines, *[lambda engine: create_concurrently(engine, declared())] * 3)
        done.set()
        thread.join()
        assert all(not isinstance(each, Exception) or isinstance(each, DBAPIError) for each in outcomes)
        if any(not isinstance(each, Exception) for each in outcomes):
            assert indexes_of(engine) == [ANN]
        drop(engine, declared())
        assert indexes_of(engine) == []


def test_new_parameters_come_with_the_new_graph(engine, fill):
    fill(rows=3000)
    index = declared()
    create_concurrently(engine, index)
    with engine.begin() as connection:
        connection.execute(text("COMMENT ON INDEX ann IS '100 % ours'"))

    def interrupt(progress):
        if progress.phase == "building index: loading tuples":
            raise KeyboardInterrupt

    wider = declared(m=40, ef_construction=400)
    with pytest.raises(KeyboardInterrupt):
        reindex(engine, wider, workers=0, on_progress=interrupt)
    assert indexes_of(engine) == [ANN]
    reindex(engine, declared(m=5))
    assert indexes_of(engine) == [("ann", True, ["m=5", "ef_construction=64"])]
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT obj_description('ann'::regclass)")) == "100 % ours"


def test_a_killed_process_leaves_no_build_behind(engine, fill):
    """The server ends the build; the next call clears away what is left."""
    fill(rows=4000)
    program = (
        "import sys; from sqlalchemy import create_engine; from pgembed.indexes import create_concurrently\n"
        "from tests.integration.indexes.test_turns import declared\n"
        "create_concurrently(create_engine(sys.argv[1]), declared(m=60, ef_construction=1000), workers=0)\n"
    )
    url = engine.url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, "-c", program, url])
    running = text(
        "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database() "
        "AND phase = 'building index: loading tuples'"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.scalar(running):
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        begun = time.monotonic()
        while connection.scalar(running):
            assert time.monotonic() - begun < 60
            time.sleep(0.1)
    create_concurrently(engine, declared())
    assert indexes_of(engine) == [ANN]


def test_a_transaction_that_is_waited_for_is_told_so(engine, fill, monkeypatch):
    """The build waits for the transaction that has written, which waits for its turn: nobody would end."""
    fill(rows=300)
    waiting = text(
        "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database() "
        "AND phase LIKE 'waiting for%'"
    )
    with engine.connect() as connection, engine.connect() as watcher:
        connection.execute(text('INSERT INTO "Item" SELECT 9999, vector FROM "Item" WHERE id = 1'))
        thread = threading.Thread(target=create_concurrently, args=(engine, declared()))
        thread.start()
        while not watcher.scalar(waiting):
            watcher.rollback()
            time.sleep(0.02)
        with pytest.raises(IndexBuildError, match="waits for this transaction"):
            create(connection, declared())
        connection.rollback()
        thread.join()
    assert indexes_of(engine) == [ANN]


def test_an_index_that_is_built_between_two_looks_is_found(engine, fill, monkeypatch):
    fill(rows=300)

    def meanwhile(connection, index):
        monkeypatch.undo()
        create_concurrently(engine, declared())
        return differences.is_name_taken(connection, index)

    monkeypatch.setattr(differences, "is_name_taken", meanwhile)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert differences.stands_as_declared(connection, declared())


def test_an_index_of_another_form_is_refused(engine, fill):
    fill(rows=300)
    create_concurrently(engine, declared())
    other = [declared(m=8), declared(metric="l2"), declared(quantize="half"), declared(where="id > 3")]
    lists = IVFFlat("vector", name="ann", lists=2)
    item(lists)
    for index in (*other, lists):
        with engine.begin() as connection, pytest.raises(IndexBuildError, match="it exists"):
            create(connection, index)
        with pytest.raises(IndexBuildError, match="it exists"):
            create_concurrently(engine, index)
    for index in (*other[1:], lists):
        with pytest.raises(IndexBuildError, match="it exists in another form"):
            reindex(engine, index)
    with engine.begin() as connection:
        connection.execute(text('CREATE INDEX taken ON "Item" (id)'))
        with pytest.raises(IndexBuildError, match="another relation of the schema has this name"):
            create(connection, declared(name="taken"))
    assert indexes_of(engine) == [ANN]


def test_views_and_tables_that_are_not_there_are_named(engine, fill):
    fill(rows=10)
    with engine.begin() as connection:
        connection.execute(text('CREATE VIEW unbuilt AS SELECT * FROM "Item"'))
    for table, reason in (("unbuilt", "unbuilt is a view"), ("nowhere", "has no table nowhere")):
        index = HNSW(name="ann").bound_to(item().to_metadata(item().metadata, name=table).c.vector, metric())
        with pytest.raises(IndexBuildError, match=reason):
            create_concurrently(engine, index)
        with engine.connect() as connection, pytest.raises(IndexBuildError, match=reason):
            create(connection, index)
    with engine.begin() as connection:
        connection.execute(text("DROP VIEW unbuilt"))


def metric():
    from pgembed.metrics import metric as named

    return named("cosine")


def test_an_index_that_a_failed_build_left_is_built_again(engine, fill):
    fill(rows=50)
    leave_an_invalid_index(engine)
    reindex(engine, declared())
    assert indexes_of(engine) == [ANN]
    leave_an_invalid_index(engine, '"ann_pgembed_new"')
    leave_an_invalid_index(engine, '"ann_ccold"')
    assert drop(engine, declared())
    assert indexes_of(engine) == []


def test_a_materialized_view_is_indexed_like_a_table(engine, fill):
    fill(rows=300)
    with engine.begin() as connection:
        connection.execute(text('CREATE MATERIALIZED VIEW unbuilt AS SELECT id, vector FROM "Item"'))
    try:
        index = HNSW(name="ann").bound_to(
            item().to_metadata(item().metadata, name="unbuilt").c.vector, metric()
        )
        create_concurrently(engine, index)
        reindex(engine, index)
        with engine.connect() as connection:
            assert is_built(connection, index)
            assert not [found for found in check(connection) if found.code == "invalid"]
        assert drop(engine, index)
        with engine.begin() as connection:
            create(connection, index)
            assert is_built(connection, index)
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP MATERIALIZED VIEW unbuilt"))


def test_long_names_are_cut(engine, fill):
    fill(rows=20)
    name = "n" * 63
    create_concurrently(engine, declared(name=name))
    reindex(engine, declared(name=name, m=6))
    assert indexes_of(engine) == [(name, True, ["m=6", "ef_construction=64"])]
    assert len(beside(name, "new").encode()) == 63
