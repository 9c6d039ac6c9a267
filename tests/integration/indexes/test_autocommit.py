"""Measuring on connections in autocommit: as in a transaction, and nothing is left of it."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from pgembed import IVFFlat
from pgembed.indexes import check, create, explain, findings, plan
from pgembed.indexes.server_settings import applied, undone
from pgembed.measuring import recall, sweep, tune


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_measuring_works_and_leaves_nothing(engine, fill, driver, monkeypatch):
    monkeypatch.setattr(findings, "BUGS", ())
    index = IVFFlat("vector", name="ann", lists=20, metric="l2")
    fill(index, rows=2000)
    with engine.begin() as connection:
        create(connection, index)
    distance = index.table.c.vector.l2_distance([0.5] * 32)
    far = select(index.table.c.id).order_by(distance).limit(1900)

    def measure(connection):
        connection.execute(text("SET seq_page_cost = 100"))  # the table is small enough to be read
        assert recall(connection, index, queries=5, probes=20).recall == 1
        assert tune(connection, index, queries=10, target_recall=0.5).reached
        assert plan(connection, index, workers=0).seconds > 0
        assert sweep(connection, index, queries=3)[-1].recall == 1
        assert check(connection) == []
        connection.execute(text("RESET seq_page_cost"))
        assert "the planner expects another plan" in str(explain(connection, far).unused)
        assert connection.scalar(text("SHOW enable_sort")) == "on"
        assert connection.scalar(text("SELECT to_regclass('pgembed_sample')")) is None
        # Work in a transaction that was begun by hand stays.
        connection.execute(text("BEGIN"))
        connection.execute(text("CREATE TEMPORARY TABLE mine ()"))
        check(connection)
        connection.execute(text("COMMIT"))
        assert connection.scalar(text("SELECT to_regclass('mine')")) is not None

    url = engine.url.set(drivername=f"postgresql+{driver}")

    async def run():
        own = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        async with own.connect() as connection:
            await connection.run_sync(measure)

    if driver == "asyncpg":
        asyncio.run(run())
        return
    with create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
        measure(connection)


def test_the_error_of_a_block_comes_through_and_the_connection_goes_on(engine):
    with create_engine(engine.url, isolation_level="AUTOCOMMIT").connect() as connection:
        with (
            pytest.raises(DataError, match="division by zero"),
            undone(connection),
            applied(connection, {"work_mem": "1MB"}),
        ):
            connection.execute(text("SELECT 1 / 0"))
        assert connection.scalar(text("SHOW work_mem")) == "4MB"
        assert connection.scalar(text("SELECT now() = statement_timestamp()"))  # in no transaction
    connection.engine.dispose()
