"""How well indexes are planned and built: estimates beside facts, create beside a hand-tuned CREATE INDEX.

Usage::

    python benchmarks/indexes.py [--rows 20000] [--dimensions 384] [--rounds 1] [--url postgresql+psycopg://...]

Vectors lie around 200 centres. Builds are interleaved, so that a busy machine is unfair to none. Memory is
measured by a build with too little of it: Postgres then says how many rows have fitted.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    make_url,
    text,
)

from pgembed import HNSW
from pgembed.columns.types import VectorType
from pgembed.database import embedded
from pgembed.indexes import create, create_concurrently, drop, plan, recall, sizes, tune

HAND_TUNED = (
    "CREATE INDEX ann ON item USING hnsw (vector vector_cosine_ops) WITH (m = 16, ef_construction = 64)"
)


def load(engine: Engine, rows: int, dimensions: int) -> Table:
    """A table of clustered vectors, with an index declared."""
    table = Table(
        "item",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("vector", VectorType(dimensions)),
        HNSW("vector", name="ann"),
    )
    random = np.random.default_rng(0)
    centres = random.normal(size=(200, dimensions))
    with engine.begin() as connection:
        table.drop(connection, checkfirst=True)
        table.create(connection)
        driver = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY item FROM STDIN") as copy:
            for key in range(rows):
                vector = centres[random.integers(200)] + 0.7 * random.normal(size=dimensions)
                copy.write_row((key, "[" + ",".join(f"{number:.5f}" for number in vector) + "]"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE item")
    return table


def by_hand(connection: Connection, budget: int, workers: int) -> None:
    """What somebody who knows the notes of pgvector types."""
    connection.exec_driver_sql(f"SET LOCAL maintenance_work_mem = '{budget // 1024}kB'")
    connection.exec_driver_sql(f"SET LOCAL max_parallel_maintenance_workers = {workers}")
    connection.exec_driver_sql("ALTER TABLE item SET (parallel_workers = 2)")
    connection.exec_driver_sql(HAND_TUNED)


def memory_ratio(engine: Engine, dimensions: int) -> float:
    """Computed memory over measured memory."""
    budget = 16 * 1024**2
    notices: list[str] = []
    with engine.connect() as connection:
        connection.connection.driver_connection.add_notice_handler(
            lambda notice: notices.append(notice.message_primary)
        )
        connection.exec_driver_sql("CREATE TEMPORARY TABLE part AS SELECT * FROM item LIMIT 12000")
        connection.exec_driver_sql(f"SET LOCAL maintenance_work_mem = '{budget // 1024}kB'")
        connection.exec_driver_sql(HAND_TUNED.replace("ON item", "ON part"))
        connection.rollback()
    found = [int(match[1]) for notice in notices if (match := re.search(r"after (\d+) tuples", notice))]
    return sizes.hnsw_memory(found[0], sizes.vector_size("vector", dimensions), 16) / budget


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(url: URL, rows: int, dimensions: int, rounds: int) -> None:
    """Measure and print."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
    table = load(engine, rows, dimensions)
    with engine.begin() as connection:
        planned = plan(connection, table.c.vector)
    times: dict[str, list[float]] = {"by hand": [], "create": [], "create_concurrently": []}

    def inside(work: Callable[[Connection], object]) -> None:
        with engine.begin() as connection:
            work(connection)

    for _ in range(rounds):
        times["by hand"].append(
            seconds(lambda: inside(lambda c: by_hand(c, planned.maintenance_work_mem, planned.workers)))
        )
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE item RESET (parallel_workers)")
        drop(engine, table.c.vector)
        times["create"].append(seconds(lambda: inside(lambda c: create(c, table.c.vector))))
        drop(engine, table.c.vector)
        times["create_concurrently"].append(
            seconds(lambda: create_concurrently(engine, table.c.vector, on_progress=lambda _: None))
        )
        with engine.begin() as connection:
            disk = connection.scalar(text("SELECT pg_relation_size('ann')"))
            assert disk is not None
        if len(times["create"]) < rounds:
            drop(engine, table.c.vector)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"{rows:,} x {dimensions}, {planned.workers} workers, {rounds} rounds, medians")
    for name, found in medians.items():
        print(f"  {name:<20} {found:7.1f} s   {found / medians['by hand']:.2f} of by hand")
    assert planned.seconds is not None
    share = planned.seconds / medians["create"]
    print(f"  {'time planned':<20} {planned.seconds:7.1f} s   {share:.2f} of create")
    print(f"  disk planned / real    {planned.disk / disk:.3f}")
    print(f"  memory planned / real  {memory_ratio(engine, dimensions):.3f}")
    with engine.begin() as connection:
        tuned = tune(connection, table.c.vector, target_recall=0.95, queries=200)
        again = recall(connection, table.c.vector, queries=200, **tuned.arguments)
    print(f"  tuned to 0.95: {tuned.sql}; on its own queries {tuned.tuned.recall:.3f}")
    print(
        f"  on new queries {again.recall:.3f} ({again.low:.3f} to {again.high:.3f}), "
        f"{again.approximate.p50:.1f} ms against {again.exact.p50:.1f} ms of a scan"
    )
    engine.dispose()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--url")
    arguments = parser.parse_args()
    facts = (arguments.rows, arguments.dimensions, arguments.rounds)
    if arguments.url:
        run(make_url(arguments.url), *facts)
        return
    with tempfile.TemporaryDirectory(prefix="pgembed-") as folder, embedded(Path(folder) / "data") as url:
        run(url, *facts)


if __name__ == "__main__":
    main()
