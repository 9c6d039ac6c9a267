"""The SQL functions look into indexes that hold less than whole vectors, and compare the whole ones.

A plan inside of a function is not to be seen; what it scanned is counted by the statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    create_engine,
    insert,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex

from pgembed import HNSW, IVFFlat, duplicate_groups, knn_classify, near_duplicates, semantic_search
from pgembed.database import install
from pgembed.indexes import VectorIndex
from tests.integration.indexes.conftest import clustered

ROWS = 6000
DIMENSIONS = 64
TYPES = {"vector": VECTOR(DIMENSIONS), "halfvec": HALFVEC(DIMENSIONS)}
VECTORS = clustered(ROWS, DIMENSIONS)
VECTORS[3000:3005] = VECTORS[:5] + np.float32(0.001)
VECTORS[5000] = 0
QUERY = VECTORS[17] + np.float32(0.05)
#: Rows with a vector; of the one of zeros, cosine knows nothing.
FILLED = ROWS - ROWS // 1000


@pytest.fixture(scope="module")
def engine(module_url: URL) -> Iterator[Engine]:
    engine = create_engine(module_url)
    with engine.begin() as connection:
        for storage in TYPES:
            table = make(storage)
            table.create(connection)
            rows = [
                {
                    "id": key,
                    "label": f"label {key % 4}" if key % 5 else None,
                    "v": None if key % 1000 == 999 else vector,
                }
                for key, vector in enumerate(VECTORS)
            ]
            connection.execute(insert(table), rows)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection whose work is undone."""
    with engine.connect() as connection:
        yield connection
        connection.rollback()


def make(storage: str, *indexes: VectorIndex) -> Table:
    columns = Column("id", Integer, primary_key=True), Column("label", Text), Column("v", TYPES[storage])
    return Table(f"of_{storage}", MetaData(), *columns, *indexes)


def built(connection: Connection, *indexes: VectorIndex, storage: str = "vector") -> Table:
    """The table with these indexes declared and standing."""
    table = make(storage, *indexes)
    for index in table.indexes:
        connection.execute(CreateIndex(index))
    return table


def search(connection: Connection, table: Any, k: int, options: str = "", query: Any = QUERY) -> list[Row[Any]]:
    """Rows ``(id, distance)`` of pgembed.search."""
    sql = f"SELECT (key ->> 'id')::integer AS id, distance FROM pgembed.search(:t, 'v', :q, :k{options})"
    return list(connection.execute(text(sql), {"t": str(table), "q": str(query.tolist()), "k": k}))


def keys(rows: list[Row[Any]]) -> list[int]:
    return [row.id for row in rows]


def scans(connection: Connection, *relations: Any) -> Any:
    """How often this transaction has scanned tables from end to end, and indexes."""
    count = text("SELECT pg_stat_get_xact_numscans(CAST(:relation AS regclass))")
    return np.array([connection.scalar(count, {"relation": str(relation)}) or 0 for relation in relations])


QUANTIZED = [
    ("vector", "hnsw", "cosine", {"quantize": "half"}, 0.95),
    ("vector", "hnsw", "l2", {"quantize": "half"}, 0.95),
    ("vector", "hnsw", "inner_product", {"quantize": "half"}, 0.95),
    ("vector", "hnsw", "l1", {"quantize": "half"}, 0.95),
    ("vector", "hnsw", "cosine", {"quantize": "bit"}, 0.6),
    ("vector", "hnsw", "l1", {"quantize": "bit"}, 0.6),
    ("vector", "hnsw", "l2", {"dimensions": 48}, 0.7),
    ("vector", "hnsw", "l2", {"dimensions": 48, "quantize": "half"}, 0.7),
    ("vector", "hnsw", "cosine", {"dimensions": 60, "quantize": "bit"}, 0.6),
    ("vector", "ivfflat", "cosine", {"quantize": "half"}, 0.8),
    ("vector", "ivfflat", "cosine", {"quantize": "bit"}, 0.5),
    ("halfvec", "hnsw", "cosine", {"quantize": "bit"}, 0.6),
    ("halfvec", "hnsw", "l2", {"dimensions": 48}, 0.7),
    ("halfvec", "ivfflat", "inner_product", {"dimensions": 48, "quantize": "bit"}, 0.3),
]


@pytest.mark.parametrize(("storage", "method", "metric", "options", "least"), QUANTIZED)
def test_search_finds_what_the_helper_finds(
    connection: Connection, storage: str, method: str, metric: str, options: dict[str, Any], least: float
) -> None:
    table = built(connection, VectorIndex("v", using=method, metric=metric, **options), storage=storage)
    (index,) = table.indexes
    settings = text("SELECT name, setting FROM pg_settings WHERE name ~ '^(hnsw|ivfflat)' ORDER BY name")
    before = connection.execute(settings).all()
    stated = f", metric => '{metric}'"
    scanned = scans(connection, table, index.name)
    rows = search(connection, table, 20, stated)
    assert (scans(connection, table, index.name) - scanned).tolist() == [0, 1]
    assert connection.execute(settings).all() == before
    helper = semantic_search(table.c.v, QUERY, limit=20, metric=metric)
    assert keys(rows) == [row.id for row in connection.execute(helper)]
    exact = search(connection, table, FILLED, stated + ", exact => true")
    truth = {row.id: row.distance for row in exact}
    assert [row.distance for row in rows] == pytest.approx([truth[row.id] for row in rows], abs=1e-5)
    assert [row.distance for row in rows] == sorted(row.distance for row in rows)
    assert len(set(keys(rows)) & set(keys(exact)[:20])) >= 20 * least
