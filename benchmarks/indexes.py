"""How well indexes are planned, built and tuned: estimates beside facts, create beside CREATE INDEX by hand.

Usage::

    python benchmarks/indexes.py [--rows 100000] [--rounds 3] [--defaults] [--url postgresql+psycopg://...]

Rows are mixtures of the vectors of 6,000 real texts (first lines of the standard library's documentation, by
all-MiniLM-L6-v2), with noise; 400 more texts are held back as queries that nothing has seen. Builds are
interleaved, so that a busy machine is unfair to none. Memory is measured by builds with too little of it: for
HNSW Postgres then says how many rows have fitted, for IVFFlat how much it needs.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from corpus import short
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    Table,
    create_engine,
    make_url,
    text,
)
from sqlalchemy.exc import DBAPIError

from pgembed import HNSW, Encoder, IVFFlat
from pgembed.columns.types import VectorType
from pgembed.database import embedded
from pgembed.encoders import packaged
from pgembed.indexes import Plan, create, create_concurrently, drop, plan, sizes
from pgembed.indexes.build_plan import server_of
from pgembed.measuring import Recall, recall, tune

HAND_TUNED = (
    "CREATE INDEX ann ON item USING hnsw (vector vector_cosine_ops) WITH (m = 16, ef_construction = 64)"
)
TEXTS, HELD_BACK = 6000, 400


def vectors_of_texts() -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the texts that rows are made of, and of those held back."""
    with Encoder(packaged("all-MiniLM-L6-v2", into=Path(__file__).parents[1] / ".encoders")) as encoder:
        vectors = encoder.encode_documents(short(TEXTS + HELD_BACK))
    held_back = np.random.default_rng(1).permutation(len(vectors)) < HELD_BACK
    return vectors[~held_back], vectors[held_back]


def mixtures(vectors: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """One text, a share of another, and noise; of length 1."""
    random = np.random.default_rng(0)
    for _ in range(rows):
        first, second = vectors[random.integers(len(vectors), size=2)]
        noise = random.normal(size=len(first)) / np.sqrt(len(first))
        mixed = first + random.uniform(0, 0.8) * second + 0.3 * noise
        yield mixed / np.linalg.norm(mixed)


def load(engine: Engine, vectors: np.ndarray, rows: int) -> tuple[Table, Index, Index]:
    """The table, and two indexes of it that are declared."""
    hnsw = HNSW("vector", name="ann")
    ivfflat = IVFFlat("vector", name="lists", lists=max(1, rows // 1000))
    columns = Column("id", Integer, primary_key=True), Column("vector", VectorType(vectors.shape[1]))
    table = Table("item", MetaData(), *columns, hnsw, ivfflat)
    with engine.begin() as connection:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        table.drop(connection, checkfirst=True)
        table.create(connection)
        driver = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY item FROM STDIN") as copy:
            for key, vector in enumerate(mixtures(vectors, rows)):
                copy.write_row((key, "[" + ",".join(f"{number:.6f}" for number in vector) + "]"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE item")
    return table, hnsw, ivfflat


def by_hand(connection: Connection, budget: int, workers: int) -> None:
    """What somebody who knows the notes of pgvector types."""
    connection.exec_driver_sql(f"SET LOCAL maintenance_work_mem = '{budget // 1024}kB'")
    connection.exec_driver_sql(f"SET LOCAL max_parallel_maintenance_workers = {workers}")
    connection.exec_driver_sql("ALTER TABLE item SET (parallel_workers = 2)")
    connection.exec_driver_sql(HAND_TUNED)
    connection.exec_driver_sql("ALTER TABLE item RESET (parallel_workers)")


def hnsw_memory_ratio(engine: Engine, planned: Plan) -> float:
    """Computed memory over measured memory, of at most 30,000 rows: a build that does not fit is slow."""
    rows = min(planned.rows, 30_000)
    vector = sizes.vector_size("vector", planned.dimensions)
    with engine.connect() as connection, noticed(connection) as notices:
        server = server_of(connection)
        budget = int(0.9 * sizes.hnsw_memory(rows, vector, 16, server))
        connection.exec_driver_sql(f"CREATE TEMPORARY TABLE part AS SELECT * FROM item LIMIT {rows}")
        connection.exec_driver_sql(f"SET LOCAL maintenance_work_mem = '{budget // 1024}kB'")
        connection.exec_driver_sql(HAND_TUNED.replace("ON item", "ON part"))
        connection.rollback()
    (fitted,) = [int(found[1]) for notice in notices if (found := re.search(r"after (\d+) tuples", notice))]
    return sizes.hnsw_memory(fitted, vector, 16, server) / budget


def ivfflat_memory_ratio(engine: Engine, planned: Plan) -> float:
    """Computed memory over what Postgres says that the build needs."""
    with engine.connect() as connection:
        # Enough for the rows that the clusters are found from, which it looks at first.
        budget = int(0.9 * planned.memory) // 1024
        connection.exec_driver_sql(f"SET LOCAL maintenance_work_mem = '{budget}kB'")
        try:
            connection.exec_driver_sql(
                "CREATE INDEX ON item USING ivfflat (vector vector_cosine_ops) "
                f"WITH (lists = {planned.parameters['lists']})"
            )
        except DBAPIError as error:
            found = re.search(r"memory required is (\d+) MB", str(error.orig))
            assert found is not None
            return planned.memory / (int(found[1]) * 1024**2)
    raise AssertionError("IVFFlat was built in nine tenths of the memory planned")


@contextmanager
def noticed(connection: Connection) -> Iterator[list[str]]:
    """What the server notices meanwhile."""
    notices: list[str] = []
    driver: Any = connection.connection.driver_connection

    def note(notice: Any) -> None:
        notices.append(notice.message_primary)

    driver.add_notice_handler(note)
    yield notices
    driver.remove_notice_handler(note)


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_memory(connection: Connection, index: Index) -> None:
    """``create``, which must not find at some row that the graph no longer fits."""
    with noticed(connection) as notices:
        create(connection, index)
    assert not [notice for notice in notices if "no longer fits" in notice], notices


def builds(engine: Engine, index: Index, planned: Plan, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way to build the index; it stands at the end."""
    times: dict[str, list[float]] = {"by hand": [], "create": [], "create_concurrently": []}

    def inside(work: Callable[[Connection], object]) -> None:
        with engine.begin() as connection:
            work(connection)

    ways: dict[str, Callable[[], object]] = {
        "by hand": lambda: inside(lambda c: by_hand(c, planned.maintenance_work_mem, planned.workers)),
        "create": lambda: inside(lambda c: in_memory(c, index)),
        "create_concurrently": lambda: create_concurrently(engine, index, on_progress=lambda _: None),
    }
    for number in range(rounds):
        turn = number % len(ways)
        for name in [*ways][turn:] + [*ways][:turn]:
            drop(engine, index)
            times[name].append(seconds(ways[name]))
    return times


def print_estimates(engine: Engine, planned: Plan, taken: float, memory: float) -> None:
    """The plan beside the facts."""
    assert planned.seconds is not None
    with engine.connect() as connection:
        disk = connection.scalar(text("SELECT pg_relation_size(to_regclass(:name))"), {"name": planned.index})
        assert disk is not None
    print(f"  planned / measured: memory {memory:.3f}, disk {planned.disk / disk:.3f}", end="")
    print(f", time {planned.seconds / taken:.2f} ({planned.seconds:.1f} of {taken:.1f} s)")


def print_recall(connection: Connection, index: Index, held_back: np.ndarray) -> None:
    """Tune, and ask again for rows and texts that took no part in it."""
    tuned = tune(connection, index, target_recall=0.95, queries=400)
    print(f"  tuned to 0.95: {tuned.sql}")

    def line(name: str, found: Recall) -> None:
        print(
            f"  {name:<20} {found.recall:.3f} ({found.low:.3f} to {found.high:.3f}), "
            f"p50 {found.approximate.p50:.1f} ms against {found.exact.p50:.1f} ms of a scan"
        )

    line("on its own queries", tuned.tuned)
    line("on other rows", recall(connection, index, queries=300, **tuned.arguments))
    on_texts = tune(connection, index, target_recall=0.95, queries=held_back[::2])
    print(f"  tuned on texts: {on_texts.sql}")
    line("on other texts", recall(connection, index, queries=held_back[1::2], **on_texts.arguments))


def run(url: URL, rows: int, rounds: int, defaults: bool) -> None:
    """Measure and print."""
    engine = create_engine(url)
    vectors, held_back = vectors_of_texts()
    _, hnsw, ivfflat = load(engine, vectors, rows)
    with engine.begin() as connection:
        planned = plan(connection, hnsw)
    taken = builds(engine, hnsw, planned, rounds)
    times = {name: statistics.median(found) for name, found in taken.items()}
    print(f"HNSW: {rows:,} x {planned.dimensions}, {planned.workers} workers, medians of {rounds} rounds")
    for name, found in taken.items():
        ratio = statistics.median(one / hand for one, hand in zip(found, taken["by hand"], strict=True))
        each = ", ".join(f"{one:.1f}" for one in found)
        print(f"  {name:<20} {times[name]:7.1f} s   {ratio:.2f} of by hand   ({each})")
    print_estimates(engine, planned, times["create"], hnsw_memory_ratio(engine, planned))
    with engine.begin() as connection:
        print_recall(connection, hnsw, held_back)
    drop(engine, hnsw)
    if defaults:
        with engine.begin() as connection:
            plain = seconds(lambda: connection.exec_driver_sql(HAND_TUNED))
        print(f"  {'server defaults':<20} {plain:7.1f} s   {plain / times['by hand']:.2f} of by hand")
        drop(engine, hnsw)

    with engine.begin() as connection:
        planned = plan(connection, ivfflat)
    found = []
    for _ in range(rounds):
        drop(engine, ivfflat)
        with engine.begin() as connection:
            found.append(seconds(lambda: create(connection, ivfflat)))
    print(f"IVFFlat: {rows:,} x {planned.dimensions}, {planned.parameters['lists']} lists")
    print_estimates(engine, planned, statistics.median(found), ivfflat_memory_ratio(engine, planned))
    with engine.begin() as connection:
        print_recall(connection, ivfflat, held_back)
    engine.dispose()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--defaults", action="store_true", help="build once with the server's settings too")
    parser.add_argument("--url")
    arguments = parser.parse_args()
    facts = (arguments.rows, arguments.rounds, arguments.defaults)
    if arguments.url:
        run(make_url(arguments.url), *facts)
        return
    with tempfile.TemporaryDirectory(prefix="pgembed-") as folder, embedded(Path(folder) / "data") as url:
        run(url, *facts)


if __name__ == "__main__":
    main()
