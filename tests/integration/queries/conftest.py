"""A corpus to search, shared by these tests: 3,000 articles with an HNSW index, in their own database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, insert, text
from sqlalchemy.orm import Session

from pgembed import HNSW
from pgembed.columns import bound
from pgembed.indexes import create
from pgembed.testing import HashEncoder
from tests.tables import library

ENCODER = HashEncoder(32)
ROWS = 3000


Base, Author, Article = library(ENCODER, "title", index=HNSW())


class Ranking(list[tuple[Any, float]]):
    """Keys with distances. Equal when keys and distances are, but for the rounding of float32 sums."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list) or sorted(key for key, _ in self) != sorted(key for key, _ in other):
            return False
        return np.allclose([found for _, found in self], [found for _, found in other], rtol=0, atol=3e-6)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Corpus:
    """The corpus, and its vectors by key for brute force."""

    engine: Engine
    url: URL
    vectors: dict[int, Any]
    rows: list[dict[str, Any]]
    article: Any = Article
    author: Any = Author
    encoder: HashEncoder = ENCODER

    def nearest(
        self, query: Any, limit: int, keep: Callable[[dict[str, Any]], bool] = lambda row: True
    ) -> Ranking:
        """Keys and cosine distances by brute force, nearest first."""
        query = np.asarray(query, dtype=np.float64)
        found = []
        for row in self.rows:
            vector = self.vectors.get(row["id"])
            if vector is None or not np.any(vector) or not keep(row):
                continue
            vector = vector.astype(np.float64)
            similarity = vector @ query / np.linalg.norm(vector) / np.linalg.norm(query)
            found.append((1 - float(similarity), row["id"]))
        return Ranking((key, distance) for distance, key in sorted(found)[:limit])


@pytest.fixture(scope="session")
def corpus(server: URL, admin: Engine, template: str) -> Iterator[Corpus]:
    """Read-only: titles of three words, every fifth without a section, some without vector or with zeros."""
    name = f"pgembed_corpus_{os.getpid()}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    url = server.set(database=name)
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    embedding = bound(Article.__table__.c.embedding)
    rows, vectors = [], {}
    for key in range(1, ROWS + 1):
        title = None if key % 500 == 0 else f"w{key % 47} v{key % 61} u{key % 997}"
        row = {
            "id": key,
            "title": title,
            "section": ("help", "news", "code")[key % 3] if key % 5 else None,
            "hidden": key % 7 == 0,
            "author_id": 1 + key % 2 if key % 3 else None,
            "embedding": None if title is None else ENCODER.encode_documents([title])[0],
            "embedding_digest": embedding.declaration.digest([title]),
        }
        if key in (11, 12):
            row["embedding"] = np.zeros(32, np.float32)
        if key in (21, 22, 23):
            row["embedding_digest"] = None
        rows.append(row)
        if row["embedding"] is not None:
            vectors[key] = row["embedding"]
    with Session(engine) as session:
        session.execute(insert(Author), [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Bob"}])
        session.execute(insert(Article.__table__), rows)
        create(session.connection(), Article.embedding)
        session.commit()
        session.execute(text("ANALYZE"))
        session.commit()
    yield Corpus(engine, url, vectors, rows)
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def session(corpus: Corpus) -> Iterator[Session]:
    with Session(corpus.engine) as session:
        yield session


@pytest.fixture(scope="module")
def things(request: pytest.FixtureRequest, server: URL, admin: Engine, template: str) -> Iterator[Engine]:
    """A database of the module's ``TABLE``, with the rows of its ``VECTORS`` under the keys 0, 1, ..."""
    module = request.module
    name = f"pgembed_{module.__name__.rpartition('.')[2]}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine = create_engine(server.set(database=name))
    module.TABLE.metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [{"id": number, "v": vector} for number, vector in enumerate(module.VECTORS)]
        connection.execute(insert(module.TABLE), rows)
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def store(
    engine: Engine, table: Table, vectors: Any, extra: Callable[[int], dict[str, Any]] = lambda key: {}
) -> None:
    """A new table of vectors, their numbers as keys; ``extra`` gives the values of other columns."""
    table.metadata.create_all(engine)
    rows = [{"id": key, "vector": vector, **extra(key)} for key, vector in enumerate(vectors)]
    with engine.begin() as connection:
        connection.execute(insert(table), rows)
        # Of the whole database, with its catalogue, it would take fifty times as long.
        connection.execute(text(f"ANALYZE {connection.dialect.identifier_preparer.format_table(table)}"))


def with_twins(rows: int, dimensions: int) -> Any:
    """Random vectors, every tenth with another near it."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, dimensions)).astype(np.float32)
    vectors[1::10] = vectors[::10] + 0.2 * rng.standard_normal(vectors[::10].shape)
    return vectors


@pytest.fixture
def explain() -> Callable[..., str]:
    """``explain(connection, statement, parameters)``: the plan that was executed, as text."""

    def run(connection: Connection, statement: Any, parameters: Mapping[str, Any] | None = None) -> str:
        return plan_of(connection, statement, parameters)

    return run


def plan_of(connection: Connection, statement: Any, parameters: Mapping[str, Any] | None = None) -> str:
    asked = True

    def prepend(_conn: Any, _cursor: Any, sql: str, values: Any, _context: Any, _many: bool) -> Any:
        return (
            f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) {sql}" if asked else sql
        ), values

    event.listen(connection, "before_cursor_execute", prepend, retval=True)
    result = connection.execute(statement, parameters or {})
    asked = False
    assert result.cursor is not None
    return "\n".join(row[0] for row in result.cursor.fetchall())
