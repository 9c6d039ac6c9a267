"""Searches under conditions beside plain pgvector: rows, recall and time by the share that fulfils them.

Usage::

    python benchmarks/filtered.py [--rows 100000] [--queries 40] [--url postgresql+psycopg://...]

Rows are mixtures of the vectors of 6,000 real texts, with noise, as in ``indexes.py``; queries are texts held
back. A condition is fulfilled by a share of the rows: "scattered" by rows drawn at random, "topic" by those
whose nearest text is among the first of the list, near to some queries and far from others. Contestants take
turns:

exact                   pgembed's helper with ``mode="exact"``
pgvector                ``SELECT ... WHERE ... ORDER BY embedding <=> :query LIMIT 10``
pgvector, iterative     the same with ``hnsw.iterative_scan = strict_order``
semantic_search         pgembed's helper at its defaults

It starts the embedded server on a temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from indexes import mixtures, vectors_of_texts
from sqlalchemy import URL, Engine, create_engine, func, insert, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import HNSW, Vector, embedding_column, semantic_search
from pgembed.columns import Array
from pgembed.database import embedded
from pgembed.indexes import create
from pgembed.metrics import BY_NAME
from pgembed.testing import HashEncoder

SHARES, LIMIT, BATCH = (0.5, 0.05, 0.005, 0.0005, 0.0), 10, 5_000


class Base(DeclarativeBase):
    """Of the table."""


class Item(Base):
    """A row, with its place in a random order and in the order of topics, from 0 to 1."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    scattered: Mapped[float]
    topic: Mapped[float]
    embedding: Mapped[Vector | None] = embedding_column(
        "title", encoder=HashEncoder(384), index=HNSW(), fill="worker"
    )


def load(engine: Engine, vectors: Array, topics: Array) -> None:
    """The table with its index."""
    places = np.random.default_rng(3).permutation(len(vectors)) / len(vectors)
    with Session(engine) as session:
        session.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        Base.metadata.drop_all(session.connection())
        Base.metadata.create_all(session.connection())
        for start in range(0, len(vectors), BATCH):
            rows = [
                {
                    "id": key,
                    "title": f"title {key}",
                    "scattered": float(places[key]),
                    "topic": float(topics[key]),
                    "embedding": vectors[key],
                }
                for key in range(start, min(start + BATCH, len(vectors)))
            ]
            session.execute(insert(Item.__table__), rows)
        create(session.connection(), Item.embedding)
        session.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE item"))


def by_helper(session: Session, query: Array, condition: Any, **options: Any) -> list[int]:
    """pgembed's helper."""
    found = semantic_search(
        Item.embedding, query, limit=LIMIT, where=condition, base=select(Item.id), **options
    )
    return [row.id for row in session.execute(found)]


def by_hand(session: Session, query: Array, condition: Any, scan: str) -> list[int]:
    """pgvector's statement."""
    session.execute(select(func.set_config("hnsw.iterative_scan", scan, True)))
    distance = BY_NAME["cosine"].between(Item.embedding, query)
    return list(session.scalars(select(Item.id).where(condition).order_by(distance).limit(LIMIT)))


CONTESTANTS: dict[str, Callable[[Session, Array, Any], list[int]]] = {
    "exact": lambda session, query, condition: by_helper(session, query, condition, mode="exact"),
    "pgvector": lambda session, query, condition: by_hand(session, query, condition, "off"),
    "pgvector, iterative": lambda session, query, condition: by_hand(
        session, query, condition, "strict_order"
    ),
    "semantic_search": by_helper,
}


def compare(engine: Engine, title: str, condition: Any, queries: Array) -> None:
    """A line for each contestant."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    answers: dict[str, list[list[int]]] = {name: [] for name in CONTESTANTS}
    for turn, query in enumerate(queries):
        names = [*CONTESTANTS][turn % len(CONTESTANTS) :] + [*CONTESTANTS][: turn % len(CONTESTANTS)]
        for name in names:
            with Session(engine) as session:  # settings end with the transaction
                session.execute(select(func.set_config("hnsw.ef_search", "40", True)))
                started = time.perf_counter()
                answers[name].append(CONTESTANTS[name](session, query, condition))
                seconds[name].append(time.perf_counter() - started)
    print(title)
    for name, found in answers.items():
        pairs = [(set(rows), set(best)) for rows, best in zip(found, answers["exact"], strict=True)]
        recall = statistics.mean(len(rows & best) / len(best) if best else 1.0 for rows, best in pairs)
        slower = [one / exact for one, exact in zip(seconds[name], seconds["exact"], strict=True)]
        print(
            f"  {name:<20} {min(map(len, found)):>3} rows at least   recall {recall:.3f}   "
            f"{1000 * statistics.median(seconds[name]):7.1f} ms   {statistics.median(slower):.2f} of exact",
            flush=True,
        )


def run(url: URL, rows: int, queries: int) -> None:
    """Measure and print."""
    engine = create_engine(url)
    texts, held_back = vectors_of_texts()
    vectors = np.array([*mixtures(texts, rows)], np.float32)
    nearest = np.concatenate([np.argmax(part @ texts.T, axis=1) for part in np.array_split(vectors, 100)])
    load(engine, vectors, nearest / len(texts))
    for kind in ("scattered", "topic"):
        for share in SHARES:
            condition = getattr(Item, kind) < share
            compare(engine, f"{kind}, {share:.2%} of {rows:,} rows", condition, held_back[:queries])
    engine.dispose()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--url")
    arguments = parser.parse_args()
    facts = (arguments.rows, arguments.queries)
    if arguments.url:
        run(make_url(arguments.url), *facts)
        return
    with tempfile.TemporaryDirectory(prefix="pgembed-") as folder, embedded(Path(folder) / "data") as url:
        run(url, *facts)


if __name__ == "__main__":
    main()
