"""Building indexes: inside a transaction, and beside writers."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest
from sqlalchemy import Column, Index, Integer, MetaData, Table, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from pgembed import HNSW, IVFFlat
from pgembed.columns.types import VectorType
from pgembed.indexes import (
    IndexBuildError,
    IndexMissingError,
    create,
    create_concurrently,
    drop,
    is_built,
    recall,
    reindex,
)

STANDING = text(
    "SELECT c.relname, i.indisvalid, c.reloptions "
    "FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam "
    "WHERE a.amname IN ('hnsw', 'ivfflat') ORDER BY 1"
)
SHOW = text(
    "SELECT current_setting('maintenance_work_mem'), current_setting('max_parallel_maintenance_workers'), "
    "current_setting('min_parallel_table_scan_size'), current_setting('statement_timeout')"
)


def item(*indexes, **options):
    """The table of the fixture ``fill`` once more, with another index declared."""
    columns = Column("id", Integer, primary_key=True), Column("vector", VectorType(32))
    return Table("Item", MetaData(), *columns, *indexes, **options)


@pytest.fixture
def statements(engine):
    """The statements that change something, as they are sent, with the memory they were sent under."""
    seen = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(connection, cursor, sql, parameters, context, many):
        if sql.split()[0] in ("CREATE", "DROP", "REINDEX", "ALTER"):
            own = connection.connection.driver_connection.cursor()
            own.execute("SELECT current_setting('maintenance_work_mem')")
            seen.append((sql, own.fetchone()[0]))

    return seen


def indexes_of(engine):
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(STANDING)]


def leave_an_invalid_index(engine, name='"ann"'):
    """As a build that failed leaves it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'CREATE INDEX {name} ON "Item" USING hnsw (vector vector_l2_ops)'))
        # An unprivileged way to an invalid index would need a build that fails at the right moment.
        connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)"),
            {"name": name},
        )


@pytest.mark.parametrize("level", ["READ COMMITTED", "AUTOCOMMIT"])
def test_create_gives_the_graph_its_memory_and_takes_it_back(engine, fill, statements, level):
    index = HNSW("vector", name="ann")
    fill(index)
    statements.clear()
    with engine.connect().execution_options(isolation_level=level) as connection:
        before = connection.execute(SHOW).one()
        create(connection, index, maintenance_work_mem=77 * 1024**2, workers=2)
        assert connection.execute(SHOW).one() == before
        assert is_built(connection, index)
        create(connection, index)  # it is there: nothing is sent
        connection.commit()
    assert [memory for _, memory in statements] == ["77MB"]


def test_a_failed_build_leaves_the_settings_as_they_were(engine, fill):
    table = fill(rows=10)
    broken = Index("broken", table.c.vector, postgresql_using="hnsw", postgresql_ops={"vector": "nothing"})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = connection.execute(SHOW).one()
        with pytest.raises(DBAPIError, match="nothing"):
            create(connection, broken)
        assert connection.execute(SHOW).one() == before


@pytest.mark.parametrize("concurrently", [False, True])
def test_without_shared_memory_the_index_is_built_by_one_process(engine, fill, concurrently):
    index = HNSW("vector", name="ann")
    fill(index, rows=100)
    tried = []

    @event.listens_for(engine, "do_execute")
    def refuse(cursor, statement, parameters, context):
        if statement.startswith("CREATE INDEX"):
            own = cursor.connection.cursor()
            own.execute("SELECT current_setting('max_parallel_maintenance_workers')")
            tried.append(own.fetchone()[0])
            if tried[-1] != "0":
                raise psycopg.errors.DiskFull("could not resize shared memory segment")

    if concurrently:
        create_concurrently(engine, index, workers=2)
    else:
        with engine.begin() as connection:
            create(connection, index, workers=2)
    assert tried == ["2", "0"]
    assert [(name, valid) for name, valid, _ in indexes_of(engine)] == [("ann", True)]


def test_a_leftover_is_replaced(engine, fill):
    index = HNSW("vector", name="ann")
    fill(index, rows=20)
    leave_an_invalid_index(engine)
    with engine.begin() as connection:
        assert not is_built(connection, index)
        create(connection, index)
    assert [(name, valid) for name, valid, _ in indexes_of(engine)] == [("ann", True)]


def test_ivfflat_wants_rows(engine, fill):
    index = IVFFlat("vector", name="ann", lists=10)
    fill(index, rows=499)
    with (
        engine.begin() as connection,
        pytest.raises(IndexBuildError, match="499 rows are too few for 10 lists"),
    ):
        create(connection, index)
    with pytest.raises(IndexBuildError, match="Needed are 500 rows"):
        create_concurrently(engine, index)
    with engine.begin() as connection:
        connection.execute(text('INSERT INTO "Item" SELECT 1000, vector FROM "Item" WHERE id = 1'))
    create_concurrently(engine, index)
    assert [(name, valid) for name, valid, _ in indexes_of(engine)] == [("ann", True)]


def test_concurrently_removes_leftovers_first(engine, fill, statements):
    index = HNSW("vector", name="ann")
    fill(index, rows=200)
    leave_an_invalid_index(engine)
    leave_an_invalid_index(engine, '"ann_ccnew1"')
    statements.clear()
    create_concurrently(engine, index, maintenance_work_mem=33 * 1024**2)
    assert [(name, valid) for name, valid, _ in indexes_of(engine)] == [("ann", True)]
    assert sorted(sql for sql, _ in statements[:2]) == [
        "DROP INDEX CONCURRENTLY IF EXISTS public.ann",
        "DROP INDEX CONCURRENTLY IF EXISTS public.ann_ccnew1",
    ]
    sql, memory = statements[2]
    assert sql.startswith("CREATE INDEX CONCURRENTLY IF NOT EXISTS ann ON ")
    assert memory == "33MB"
    statements.clear()
    create_concurrently(engine, index)
    assert statements == []


def test_progress_is_told_while_rows_are_written(engine, fill, monkeypatch):
    monkeypatch.setattr("pgembed.indexes.progress.INTERVAL", 0.02)
    index = HNSW("vector", name="ann", ef_construction=200)
    fill(index, rows=6000)
    seen, written = [], []

    def report(progress):
        assert threading.current_thread() is threading.main_thread()
        seen.append(progress)
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '1s'"))
            key = 100_000 + len(written)
            connection.execute(
                text('INSERT INTO "Item" SELECT :key, vector FROM "Item" WHERE id = 1'), {"key": key}
            )
            written.append(key)

    create_concurrently(engine, index, workers=0, on_progress=report)
    loading = [progress for progress in seen if progress.phase == "building index: loading tuples"]
    assert loading
    assert written
    assert all(0 <= progress.done <= progress.total for progress in loading)
    assert max(progress.done for progress in seen) > 0
    assert [(name, valid) for name, valid, _ in indexes_of(engine)] == [("ann", True)]


def test_an_interrupted_build_leaves_nothing(engine, fill):
    index = HNSW("vector", name="ann", ef_construction=200)
    fill(index, rows=6000)

    def interrupt(progress):
        if progress.phase == "building index: loading tuples":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_concurrently(engine, index, workers=0, on_progress=interrupt)
    assert indexes_of(engine) == []


def test_a_locked_table_is_tried_again_and_then_given_up(engine, fill, monkeypatch):
    index = HNSW("vector", name="ann")
    fill(index, rows=100)
    pauses = []
    with engine.connect() as other:
        other.execute(text('LOCK TABLE "Item" IN SHARE MODE'))
        monkeypatch.setattr(time, "sleep", pauses.append)
        with pytest.raises(IndexBuildError, match=r"kept Item locked for 0.1 s, 3 times"):
            create_concurrently(engine, index, lock_timeout=0.1, attempts=3)
        assert pauses == [1, 2]
        monkeypatch.setattr(time, "sleep", lambda _: other.rollback())
        create_concurrently(engine, index, lock_timeout=0.1, attempts=3)
    assert [(name, valid) for name, valid, _ in indexes_of(engine)] == [("ann", True)]


def test_a_role_with_a_statement_timeout_can_build(engine, fill):
    index = HNSW("vector", name="ann", ef_construction=400)
    fill(index, rows=1500)
    hurried = create_engine(engine.url, connect_args={"options": "-c statement_timeout=100ms"})
    create_concurrently(hurried, index)
    with hurried.connect() as connection:
        assert connection.execute(SHOW).one()[3] == "100ms"
    hurried.dispose()
    assert [(name, valid) for name, valid, _ in indexes_of(engine)] == [("ann", True)]


def test_reindex_sets_the_declared_parameters(engine, fill):
    fill(HNSW("vector", name="ann"), rows=300)
    index = HNSW("vector", name="ann", m=5, ef_construction=30)
    item(index)
    with pytest.raises(IndexMissingError, match="has no such index"):
        reindex(engine, index)
    create_concurrently(engine, index)
    wider = HNSW("vector", name="ann", m=20)
    item(wider)
    before = node_of(engine)
    reindex(engine, wider, on_progress=lambda progress: None)
    assert indexes_of(engine) == [("ann", True, ["m=20", "ef_construction=64"])]
    assert node_of(engine) != before


def node_of(engine):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT pg_relation_filenode('ann')"))


def test_drop(engine, fill):
    index = HNSW("vector", name="ann")
    fill(index, rows=10)
    assert not drop(engine, index)
    create_concurrently(engine, index)
    assert drop(engine, index)
    assert indexes_of(engine) == []


@pytest.mark.parametrize("partitioned", [False, True])
def test_names_that_need_quotes(engine, partitioned):
    options = {"postgresql_partition_by": "RANGE (id)"} if partitioned else {}
    index = HNSW("a:b%s", name='ix".%s')
    columns = Column("id", Integer, primary_key=True), Column("a:b%s", VectorType(3))
    table = Table('we"ird%s', MetaData(), *columns, index, schema='sch."%s', **options)
    with engine.begin() as connection:
        connection.execute(CreateSchema(table.schema, if_not_exists=True))
        table.create(connection)
        if partitioned:
            own = connection.connection.driver_connection
            own.execute('CREATE TABLE "sch.""%s"."p%s" PARTITION OF "sch.""%s"."we""ird%s" DEFAULT')
        connection.execute(table.insert(), [{"id": i, "a:b%s": [i, 1, 2]} for i in range(50)])
    create_concurrently(engine, index)
    with engine.begin() as connection:
        assert is_built(connection, index)
        connection.execute(text("SET enable_seqscan = off"))
        assert recall(connection, index, queries=5, k=3).recall == 1
    reindex(engine, index)
    assert drop(engine, index)
    assert indexes_of(engine) == []
    with engine.begin() as connection:
        create(connection, index)
        assert is_built(connection, index)
        table.drop(connection)
