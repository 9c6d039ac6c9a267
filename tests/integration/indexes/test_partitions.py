"""Indexes of partitioned tables: built partition by partition, and gone on with after whatever happens."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
from sqlalchemy import Column, Index, Integer, MetaData, Table, event, insert, text
from sqlalchemy.exc import DBAPIError

from pgembed import HNSW, IVFFlat
from pgembed.columns.types import VectorType
from pgembed.indexes import (
    IndexBuildError,
    create,
    create_concurrently,
    drop,
    is_built,
    plan,
    recall,
    reindex,
    sizes,
)
from pgembed.indexes.build_plan import server_of
from pgembed.indexes.standing import standing

from .conftest import clustered

#: Indexes of the tree, with their tables: whether valid, attached, their parameters and files.
TREE = text("""
SELECT t.relname AS table, c.relname AS name, i.indisvalid AS valid, h.inhparent IS NOT NULL AS attached,
       c.reloptions AS options, pg_relation_filenode(c.oid) AS file
  FROM pg_index AS i
  JOIN pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_am AS m ON m.oid = c.relam AND m.amname IN ('hnsw', 'ivfflat')
  JOIN pg_class AS t ON t.oid = i.indrelid
  LEFT JOIN pg_inherits AS h ON h.inhrelid = c.oid
 ORDER BY 1, 2
""")
LEAVES = ["2023", "2024 even", "2024 odd", "2025"]


def item(*indexes, primary_key=True):
    """The partitioned table, with indexes declared."""
    columns = Column("id", Integer, primary_key=primary_key), Column("vector", VectorType(32))
    return Table("Item", MetaData(), *columns, *indexes, postgresql_partition_by="RANGE (id)")


@pytest.fixture
def partitioned(engine):
    """``partitioned(index)``: rows in three of four partitions, one of which has partitions itself."""

    def make(*indexes, rows=1200, primary_key=True):
        table = item(*indexes, primary_key=primary_key)
        with engine.begin() as connection:
            table.create(connection)
            for statement in (
                """CREATE TABLE "2023" PARTITION OF "Item" FOR VALUES FROM (0) TO (1000)""",
                """CREATE TABLE "2024" PARTITION OF "Item" FOR VALUES FROM (1000) TO (3000)
                   PARTITION BY HASH (id)""",
                """CREATE TABLE "2024 even" PARTITION OF "2024" FOR VALUES WITH (MODULUS 2, REMAINDER 0)""",
                """CREATE TABLE "2024 odd" PARTITION OF "2024" FOR VALUES WITH (MODULUS 2, REMAINDER 1)""",
                """CREATE TABLE "2025" PARTITION OF "Item" FOR VALUES FROM (3000) TO (4000)""",
            ):
                connection.exec_driver_sql(statement)
            values = [{"id": key, "vector": vector} for key, vector in enumerate(clustered(rows))]
            connection.execute(insert(table), values)
            connection.exec_driver_sql('ANALYZE "Item"')
        return table

    return make


def tree(engine):
    with engine.connect() as connection:
        return connection.execute(TREE).all()


def files(engine):
    return {row.table: row.file for row in tree(engine) if row.table in LEAVES}


def assert_complete(engine, name="ann", leaves=4):
    rows = tree(engine)
    assert [row.name for row in rows if row.table == "Item"] == [name]
    assert all(row.valid for row in rows)
    assert all(row.attached for row in rows if row.table != "Item")
    assert len(rows) == leaves + 2


@pytest.mark.parametrize("concurrently", [True, False])
def test_every_partition_gets_its_index(engine, partitioned, concurrently):
    index = HNSW("vector", name="ann")
    partitioned(index)
    seen = []
    if concurrently:
        create_concurrently(engine, index, on_progress=seen.append)
        assert all(1 <= progress.part <= progress.parts == 4 for progress in seen)
    else:
        with engine.begin() as connection:
            create(connection, index)
    assert_complete(engine)
    with engine.begin() as connection:
        assert is_built(connection, index)
        (root,) = standing(connection, '"Item"')
        assert root.size == sum(row.size for row in standing(connection) if row.table in LEAVES) > 0
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        query = (
            'EXPLAIN SELECT id FROM "Item" ORDER BY vector <=> (SELECT vector FROM "2023" LIMIT 1) LIMIT 5'
        )
        shown = " ".join(connection.exec_driver_sql(query).scalars())
        assert all(f'using "{leaf}_vector_idx"' in shown for leaf in LEAVES)
    before = files(engine)
    create_concurrently(engine, index)
    assert files(engine) == before


def test_a_backend_that_dies_costs_one_partition(engine, partitioned, monkeypatch):
    """The second partition fails: the first keeps its index, and the next call goes on."""
    monkeypatch.setattr("pgembed.indexes.progress.INTERVAL", 0.01)
    index = HNSW("vector", name="ann", ef_construction=400)
    partitioned(index, rows=3000)
    died = []

    def die(progress):
        if progress.part == 2 and progress.phase == "building index: loading tuples" and not died:
            with engine.begin() as other:
                died.extend(
                    other.scalars(
                        text(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index "
                            "WHERE datname = current_database()"
                        )
                    )
                )

    with pytest.raises(DBAPIError, match=r"terminat|closed|connection"):
        create_concurrently(engine, index, workers=0, on_progress=die)
    assert died == [True]
    assert [(row.table, row.valid) for row in tree(engine)] == [
        ("2023", True),
        ("2024", False),
        ("Item", False),
    ]
    first = files(engine)
    create_concurrently(engine, index)
    assert_complete(engine)
    assert files(engine)["2023"] == first["2023"]


def build_in_a_process(url):
    from sqlalchemy import create_engine

    index = HNSW("vector", name="ann", ef_construction=400)
    item(index)
    create_concurrently(create_engine(url), index, workers=0)


def test_a_killed_process_and_server_backend_leave_what_is_cleared_away(engine, partitioned):
    """Nobody is left to clean up: the invalid index of the second partition stays until the next call."""
    index = HNSW("vector", name="ann", ef_construction=400)
    partitioned(index, rows=3000)
    process = multiprocessing.get_context("spawn").Process(target=build_in_a_process, args=(engine.url,))
    process.start()
    building = text(
        "SELECT p.pid FROM pg_stat_progress_create_index AS p JOIN pg_class AS c ON c.oid = p.relid "
        "WHERE c.relname = '2024 even' AND p.phase = 'building index: loading tuples'"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        deadline = time.monotonic() + 60
        while (pid := connection.scalar(building)) is None:
            assert process.is_alive()
            assert time.monotonic() < deadline
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
    left = [(row.table, row.valid, row.attached) for row in tree(engine)]
    assert ("2024 even", False, False) in left
    create_concurrently(engine, index)
    assert_complete(engine)


@pytest.mark.parametrize("concurrently", [True, False])
def test_indexes_that_are_there_already_are_taken(engine, partitioned, concurrently):
    """One built by hand; one of other parameters stays apart; one that a failed build left is dropped."""
    index = HNSW("vector", name="ann")
    partitioned(index)
    using = "USING hnsw (vector vector_cosine_ops) WITH (m = 16, ef_construction = 64)"
    with engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE INDEX mine ON "2023" {using}')
        connection.exec_driver_sql(f'CREATE INDEX other ON "2024 odd" {using.replace("16", "5")}')
        connection.exec_driver_sql(f'CREATE INDEX failed ON "2025" {using}')
        connection.exec_driver_sql(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'failed'::regclass"
        )
    if concurrently:
        create_concurrently(engine, index)
    else:
        with engine.begin() as connection:
            create(connection, index)
    found = {row.name: row for row in tree(engine)}
    assert found["mine"].attached
    assert not found["other"].attached
    assert "failed" not in found
    assert found["ann"].valid


def test_a_transaction_finishes_what_was_begun(engine, partitioned):
    index = HNSW("vector", name="ann", ef_construction=400)
    partitioned(index)

    builds = []

    def stop(connection, cursor, sql, *_):
        if sql.startswith("CREATE INDEX CONCURRENTLY"):
            builds.append(sql)
            if len(builds) == 2:
                raise KeyboardInterrupt

    event.listen(engine, "before_cursor_execute", stop)
    with pytest.raises(KeyboardInterrupt):
        create_concurrently(engine, index, workers=0)
    event.remove(engine, "before_cursor_execute", stop)
    before = files(engine)
    assert list(before) == ["2023"]
    with engine.begin() as connection:
        create(connection, index)
    assert_complete(engine)
    assert before.items() <= files(engine).items()


def test_what_was_begun_with_other_parameters_is_begun_again(engine, partitioned):
    table = partitioned()
    with engine.begin() as connection:
        connection.exec_driver_sql(
            'CREATE INDEX ann ON ONLY "Item" USING hnsw (vector vector_cosine_ops) WITH (m = 5)'
        )
    index = HNSW(table.c.vector, name="ann")
    create_concurrently(engine, index)
    assert_complete(engine)
    assert {tuple(row.options) for row in tree(engine)} == {("m=16", "ef_construction=64")}


def test_conditions_and_foreign_characters_reach_the_partitions(engine, partitioned):
    table = partitioned()
    index = Index(
        'a "b" ON c',
        table.c.vector,
        postgresql_using="hnsw",
        postgresql_ops={"vector": "vector_l2_ops"},
        postgresql_where=text("CAST(id AS text) LIKE '1%'"),
    )
    create_concurrently(engine, index)
    assert_complete(engine, name='a "b" ON c')
    with engine.connect() as connection:
        assert {"1%" in (row.predicate or "") for row in standing(connection)} == {True}


def test_a_locked_partition_is_waited_for_and_then_given_up(engine, partitioned, monkeypatch):
    index = HNSW("vector", name="ann")
    partitioned(index)
    with engine.connect() as other:
        other.execute(text('LOCK TABLE "2024 odd" IN SHARE MODE'))
        monkeypatch.setattr(time, "sleep", lambda _: None)
        with pytest.raises(IndexBuildError, match=r"kept public.2024 odd locked for 0.1 s, 2 times"):
            create_concurrently(engine, index, lock_timeout=0.1, attempts=2)
        assert [row.table for row in tree(engine) if row.valid] == ["2023", "2024 even"]
        monkeypatch.setattr(time, "sleep", lambda _: other.rollback())
        create_concurrently(engine, index, lock_timeout=0.1, attempts=2)
    assert_complete(engine)


def test_reindex_and_drop(engine, partitioned, monkeypatch):
    partitioned()
    index = HNSW("vector", name="ann")
    item(index)
    create_concurrently(engine, index)
    before, seen = files(engine), []
    reindex(engine, index, on_progress=seen.append)
    assert_complete(engine)
    assert not before.items() & files(engine).items()
    assert {progress.parts for progress in seen} <= {4}

    wider = HNSW("vector", name="ann", m=20)
    item(wider)
    reindex(engine, wider)
    assert_complete(engine)
    assert {tuple(row.options) for row in tree(engine)} == {("m=20", "ef_construction=64")}

    with engine.connect() as other:
        other.execute(text('SELECT count(*) FROM "2023"'))
        monkeypatch.setattr(time, "sleep", lambda _: None)
        with pytest.raises(IndexBuildError, match="locked"):
            drop(engine, wider, lock_timeout=0.1, attempts=2)
        monkeypatch.setattr(time, "sleep", lambda _: other.rollback())
        assert drop(engine, wider, lock_timeout=0.1, attempts=2)
    assert tree(engine) == []
    assert not drop(engine, wider)


def test_a_plan_is_for_one_partition_after_the_other(engine, partitioned):
    """Memory is that of the largest, and disk that of all; half of 2024's rows are even."""
    index = HNSW("vector", name="ann")
    partitioned(index, rows=3000)
    with engine.begin() as connection:
        planned = plan(connection, index, workers=0, sample=500)
        assert planned.rows == sum(planned.parts) == 3000
        assert len(planned.parts) == 3
        a_row = sizes.hnsw_memory(1, 4 * 32 + 8, 16, server_of(connection))
        assert planned.memory == max(planned.parts) * a_row
        create(connection, index)
        (root,) = standing(connection, '"Item"')
        assert planned.disk == pytest.approx(root.size, rel=0.1)
        assert planned.seconds > 0


def test_ivfflat_wants_rows_in_each_partition_that_has_some(engine, partitioned):
    index = IVFFlat("vector", name="ann", lists=19)
    partitioned(index, rows=3000)
    with engine.begin() as connection:
        assert min(plan(connection, index, sample=0).parts) >= 950
        create(connection, index)
    assert_complete(engine)
    drop(engine, index)
    few = IVFFlat("vector", name="ann", lists=21)
    item(few)
    with pytest.raises(IndexBuildError, match="rows in a partition are too few for 21 lists"):
        create_concurrently(engine, few)
    assert tree(engine) == []


def test_recall_is_measured_over_all_partitions(engine, partitioned):
    index = HNSW("vector", name="ann", m=4, ef_construction=12, metric="l2")
    table = partitioned(index, rows=3000)
    create_concurrently(engine, index)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        low = recall(connection, table.c.vector, queries=clustered(200, seed=5), k=5, ef_search=5)
        high = recall(connection, table.c.vector, queries=clustered(200, seed=5), k=5, ef_search=400)
    assert low.recall < high.recall
    assert high.recall > 0.97


def test_a_foreign_partition_is_refused(engine, partitioned):
    index = HNSW("vector", name="ann")
    partitioned(index, primary_key=False)
    with engine.begin() as connection:
        for statement in (
            "CREATE FOREIGN DATA WRAPPER nothing",
            "CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing",
            'CREATE FOREIGN TABLE far PARTITION OF "Item" FOR VALUES FROM (4000) TO (5000) SERVER nowhere',
        ):
            connection.exec_driver_sql(statement)
    try:
        with pytest.raises(IndexBuildError, match="far is a foreign table"):
            create_concurrently(engine, index)
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP FOREIGN DATA WRAPPER nothing CASCADE")
