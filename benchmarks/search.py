"""What a search costs beside the same search written by hand: wall clock and client CPU for each call.

Usage::

    python benchmarks/search.py [--rows 20000] [--rounds 20] [--calls 25] [--url postgresql+psycopg://...]

Every contestant looks for the 10 nearest of clustered random vectors (384 dimensions, HNSW) with
``hnsw.ef_search = 40`` and strict iterative scans, gives rows (entity, distance), and runs in an open
transaction with a query vector that no call has had before; once over all rows, once over those of a section,
a parameter that changes with each call too.

psycopg                   pgvector's statement, prepared by psycopg; the session has the settings
SQLAlchemy                the same as pgvector-python's users write it, built for each call; the session has
                          the settings
SQLAlchemy, binary        the same with pgembed's column type, which sends vectors in binary
SQLAlchemy, set_config    the same as SQLAlchemy; the transaction gets the settings by a statement of its own
semantic_search           pgembed's helper, called for each search; it asks for the settings itself
... constant              pgembed's helper as a module constant, with bindparam()

Rounds are interleaved. Medians are printed, with the medians of the rounds' ratios to "SQLAlchemy" and to
"SQLAlchemy, binary". It starts the embedded server on a temporary folder.
"""

from __future__ import annotations

import argparse
import operator
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pgvector.psycopg import register_vector
from pgvector.sqlalchemy import Vector as HandVector
from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, func, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import HNSW, Vector, embedding_column, semantic_search
from pgembed.columns import Array
from pgembed.database import embedded
from pgembed.indexes import create
from pgembed.testing import HashEncoder

DIMENSIONS, SECTIONS, LIMIT = 384, 10, 10
SETTINGS = {"hnsw.ef_search": "40", "hnsw.iterative_scan": "strict_order"}
Call = Callable[[Array, int], list[Any]]
#: Wall clock and client CPU in seconds, of each call of each round.
Times = list[list[tuple[float, float]]]


class Base(DeclarativeBase):
    """Of the class as pgembed declares it."""


class Article(Base):
    """A row as pgembed declares it."""

    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    section: Mapped[int]
    embedding: Mapped[Vector | None] = embedding_column(
        "title", encoder=HashEncoder(DIMENSIONS), index=HNSW(), fill="worker"
    )


class HandBase(DeclarativeBase):
    """Of the class with pgvector-python's type."""


class HandArticle(HandBase):
    """The same row with pgvector-python's type."""

    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    section: Mapped[int]
    embedding: Mapped[Any] = mapped_column(HandVector(DIMENSIONS), deferred=True)


def vectors(random: np.random.Generator, centres: Array, number: int) -> Array:
    """Vectors of length 1 around the centres."""
    chosen = centres[random.integers(len(centres), size=number)]
    found = chosen + random.normal(size=chosen.shape) / np.sqrt(DIMENSIONS)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def load(engine: Engine, centres: Array, rows: int, title: Callable[[int], str] = "title {}".format) -> None:
    """The table with its index, each row with the title for its number."""
    random = np.random.default_rng(0)
    with engine.begin() as connection:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
        with (
            driver_of(connection).cursor() as cursor,
            cursor.copy("COPY article (id, title, section, embedding) FROM STDIN") as copy,
        ):
            for key, vector in enumerate(vectors(random, centres, rows)):
                written = "[" + ",".join(f"{number:.6f}" for number in vector) + "]"
                copy.write_row((key, title(key), int(random.integers(SECTIONS)), written))
        (index,) = [index for index in Article.__table__.indexes if isinstance(index, HNSW)]
        create(connection, index)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE article")


def driver_of(connection: Connection) -> Any:
    """psycopg's connection."""
    return connection.connection.driver_connection


def by_psycopg(session: Session, filtered: bool) -> Call:
    """pgvector's statement."""
    driver = driver_of(session.connection())
    register_vector(driver)
    sql = (
        "SELECT id, title, section, embedding <=> %(query)s AS distance FROM article "
        f"{'WHERE section = %(section)s' if filtered else ''} ORDER BY distance LIMIT %(limit)s"
    )

    def call(query: Array, section: int) -> list[Any]:
        found = driver.execute(sql, {"query": query, "section": section, "limit": LIMIT})
        return list(found.fetchall())

    return call


def by_sqlalchemy(
    session: Session, filtered: bool, *, model: Any = HandArticle, settings: bool = False
) -> Call:
    """pgvector-python's statement."""

    def call(query: Array, section: int) -> list[Any]:
        if settings:
            session.execute(select(*(func.set_config(name, value, True) for name, value in SETTINGS.items())))
        distance = model.embedding.cosine_distance(query).label("distance")
        statement = select(model, distance).order_by(distance).limit(LIMIT)
        if filtered:
            statement = statement.where(model.section == section)
        return list(session.execute(statement).all())

    return call


def by_helper(session: Session, filtered: bool) -> Call:
    """pgembed's helper, called for each search."""

    def call(query: Array, section: int) -> list[Any]:
        where = Article.section == section if filtered else None
        return list(
            session.execute(semantic_search(Article.embedding, query, limit=LIMIT, where=where)).all()
        )

    return call


def by_constant(session: Session, filtered: bool) -> Call:
    """pgembed's helper, called once."""
    where = Article.section == bindparam("section") if filtered else None
    statement = semantic_search(Article.embedding, bindparam("query"), limit=LIMIT, where=where)

    def call(query: Array, section: int) -> list[Any]:
        values = {"query": query, "section": section} if filtered else {"query": query}
        return list(session.execute(statement, values).all())

    return call


CONTESTANTS: dict[str, Callable[[Session, bool], Call]] = {
    "psycopg": by_psycopg,
    "SQLAlchemy": by_sqlalchemy,
    "SQLAlchemy, binary": lambda session, filtered: by_sqlalchemy(session, filtered, model=Article),
    "SQLAlchemy, set_config": lambda session, filtered: by_sqlalchemy(session, filtered, settings=True),
    "semantic_search": by_helper,
    "... constant": by_constant,
}
#: Whose sessions have the settings; the others ask for them.
WITH_SETTINGS = {"psycopg", "SQLAlchemy", "SQLAlchemy, binary"}
BASELINES = ("SQLAlchemy", "SQLAlchemy, binary")


def measured(calls: dict[str, Call], queries: Iterator[Array], rounds: int, number: int) -> dict[str, Times]:
    """The times of each contestant."""
    found: dict[str, Times] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        start = turn % len(calls)
        for name in [*calls][start:] + [*calls][:start]:
            times = []
            for count in range(number):
                query, section = next(queries), (turn + count) % SECTIONS
                wall, cpu = time.perf_counter(), time.thread_time()
                rows = calls[name](query, section)
                times.append((time.perf_counter() - wall, time.thread_time() - cpu))
                assert len(rows) == LIMIT
            if turn:  # the first round prepares the statements
                found[name].append(times)
    return found


def report(title: str, found: dict[str, Times]) -> None:
    """A line for each contestant."""
    print(f"{title:<58}  ratio to {' / to '.join(BASELINES)}")
    medians = {
        name: [[statistics.median(time[part] for time in times) for times in rounds] for part in (0, 1)]
        for name, rounds in found.items()
    }
    for name, parts in medians.items():
        wall, cpu = (1000 * statistics.median(part) for part in parts)
        ratios = [
            " / ".join(
                f"{statistics.median(map(operator.truediv, part, medians[of][number])):.2f}"
                for of in BASELINES
            )
            for number, part in enumerate(parts)
        ]
        print(
            f"  {name:<24} {wall:6.2f} ms, {cpu:5.2f} ms of CPU    "
            f"{ratios[0]} end to end, {ratios[1]} of CPU",
            flush=True,
        )


def run(url: URL, rows: int, rounds: int, number: int) -> None:
    """Measure and print."""
    engine = create_engine(url)
    random = np.random.default_rng(1)
    centres = np.random.default_rng(2).normal(size=(200, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    load(engine, centres, rows)

    def queries() -> Iterator[Array]:
        while True:
            yield vectors(random, centres, 1)[0]

    for filtered in (False, True):
        sessions = {name: Session(engine) for name in CONTESTANTS}
        for name in WITH_SETTINGS:
            sessions[name].execute(select(*(func.set_config(*pair, False) for pair in SETTINGS.items())))
        calls = {name: make(sessions[name], filtered) for name, make in CONTESTANTS.items()}
        what = "one section of ten" if filtered else "all rows"
        report(
            f"{what} of {rows:,} x {DIMENSIONS}, the {LIMIT} nearest",
            measured(calls, queries(), rounds, number),
        )
        for session in sessions.values():
            session.close()
        engine.dispose()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=25, help="of each contestant in a round")
    parser.add_argument("--url")
    arguments = parser.parse_args()
    facts = (arguments.rows, arguments.rounds, arguments.calls)
    if arguments.url:
        run(make_url(arguments.url), *facts)
        return
    with tempfile.TemporaryDirectory(prefix="pgembed-") as folder, embedded(Path(folder) / "data") as url:
        run(url, *facts)


if __name__ == "__main__":
    main()
