"""Equal distances: whatever finds the rows, they come in the order of the primary key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pgvector.sqlalchemy import BIT, HALFVEC, VECTOR
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateIndex

from pgembed import HNSW, IVFFlat
from pgembed.queries import hybrid_search, knn_classify, near_duplicates, semantic_search
from pgembed.testing import HashEncoder
from tests.integration.queries.conftest import plan_of
from tests.tables import model

ROWS = 1200
ALIKE = range(0, ROWS, 4)  # with the second row, 301 are alike; of others, half are there twice
PAGE = 50


def _vectors() -> Any:
    rng = np.random.default_rng(5)
    different = rng.standard_normal((ROWS // 2, 16)).astype(np.float32)
    vectors = different[np.arange(ROWS) // 2 % len(different)]
    vectors[ALIKE] = different[0]
    return vectors


VECTORS = _vectors()
NEAR = VECTORS[0] + np.float32(0.3)  # nearest to the 301
FAR = VECTORS[403] + np.float32(0.05)  # nearest to rows that are there twice
METADATA = MetaData()


def make(*indexes: Any, type_: Any = None) -> Table:
    return Table(
        f"item_{len(METADATA.tables)}",
        METADATA,
        Column("a", Integer, primary_key=True),
        Column("b", Integer, primary_key=True),
        Column("title", Text),
        Column("v", type_ or VECTOR(16)),
        *indexes,
    )


TABLES = {
    "vector": make(HNSW("v")),
    "vector, ivfflat": make(IVFFlat("v", lists=10)),
    "halfvec": make(HNSW("v", metric="l2"), type_=HALFVEC(16)),
    "bit": make(HNSW("v", metric="hamming"), type_=BIT(16)),
    "half of a vector": make(HNSW("v", quantize="half")),
    "bits of a vector": make(HNSW("v", quantize="bit")),
    "part of a vector": make(HNSW("v", dimensions=8)),
}


def value(table: Table, vector: Any) -> Any:
    return "".join("01"[int(x > 0)] for x in vector) if isinstance(table.c.v.type, BIT) else vector


@pytest.fixture(scope="module")
def engine(module_url: URL) -> Iterator[Engine]:
    """The tables, with their indexes built; keys are in another order than the rows."""
    engine = create_engine(module_url)
    order = np.random.default_rng(6).permutation(ROWS).tolist()
    rows = [{"a": n % 7, "b": n, "title": f"title {n % 3}", "v": VECTORS[n]} for n in order]
    with engine.begin() as connection:
        for table in TABLES.values():
            indexes = set(table.indexes)
            table.indexes.clear()
            table.create(connection)
            table.indexes.update(indexes)
            connection.execute(insert(table), [row | {"v": value(table, row["v"])} for row in rows])
            for index in indexes:
                connection.execute(CreateIndex(index))
            connection.execute(text(f"ANALYZE {table.name}"))
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest) -> Table:
    return TABLES[request.param]


def keys(connection: Connection, statement: Select[Any]) -> list[tuple[int, int]]:
    return [(row.a, row.b) for row in connection.execute(statement)]


def search(table: Table, vector: Any, **options: Any) -> Select[Any]:
    return semantic_search(table.c.v, value(table, vector), base=select(table.c.a, table.c.b), **options)


@pytest.mark.parametrize("mode", ["auto", "approximate"])
def test_pages_of_equal_rows_are_those_of_an_exact_search(
    connection: Connection, table: Table, mode: Any
) -> None:
    exact = keys(connection, search(table, NEAR, limit=400, mode="exact"))
    found = [
        key
        for offset in range(0, 400, PAGE)
        for key in keys(connection, search(table, NEAR, limit=PAGE, offset=offset, mode=mode))
    ]
    assert len(set(found)) == 400
    assert found[:301] == exact[:301]


def test_a_condition_leaves_their_order(connection: Connection, table: Table) -> None:
    where = table.c.title == "title 1"
    exact = keys(connection, search(table, NEAR, limit=100, where=where, mode="exact"))
    found = [
        key
        for offset in range(0, 100, PAGE)
        for key in keys(connection, search(table, NEAR, limit=PAGE, offset=offset, where=where))
    ]
    assert found == exact


@pytest.mark.parametrize("limit", [1, 2])
def test_a_few_equal_rows_are_found_by_the_index_alone(
    connection: Connection, table: Table, limit: int
) -> None:
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    statement = search(table, FAR, limit=limit)
    plan = plan_of(connection, statement)
    assert f"Index Scan using {next(iter(table.indexes)).name}" in plan
    assert f"on {table.name} {table.name}_1 (never executed)" in plan
    assert keys(connection, statement) == keys(connection, search(table, FAR, limit=limit, mode="exact"))


def test_the_vote_of_one_neighbour(connection: Connection, table: Table) -> None:
    for vector in (NEAR, FAR):
        votes = {
            mode: connection.execute(
                knn_classify(table.c.v, value(table, vector), label=table.c.b, k=1, mode=mode)
            ).all()
            for mode in ("auto", "exact")
        }
        assert votes["auto"] == votes["exact"]


def test_pages_of_a_hybrid_search(connection: Connection, table: Table) -> None:
    found = [
        key
        for offset in range(0, 200, PAGE)
        for key in keys(
            connection,
            hybrid_search(
                table.c.v,
                value(table, NEAR),
                text=table.c.title,
                terms="nothing",
                limit=PAGE,
                offset=offset,
                base=select(table.c.a, table.c.b),
            ),
        )
    ]
    assert found == keys(connection, search(table, NEAR, limit=200, mode="exact"))


def test_no_pair_of_equal_rows_is_lost(connection: Connection) -> None:
    table = TABLES["vector"]
    few = table.c.b < 400
    pairs = connection.execute(
        near_duplicates(table.c.v, min_score=0.9999, where=few, k=5, mode="approximate")
    ).all()
    alike, twice = 101 * 100 // 2, 100
    assert len({(tuple(row.left_key), tuple(row.right_key)) for row in pairs}) == alike + twice


def test_the_sql_functions(connection: Connection) -> None:
    for name in ("vector", "vector, ivfflat", "halfvec", "half of a vector", "part of a vector"):
        table = TABLES[name]
        literal = str(NEAR.tolist())
        exact = keys(connection, search(table, NEAR, limit=300, mode="exact"))
        for limit in (1, 70, 300):
            rows = connection.execute(
                text("SELECT key FROM pgembed.search(CAST(:t AS regclass), 'v', CAST(:q AS vector), :k)"),
                {"t": table.name, "q": literal, "k": limit},
            )
            assert [(row.key["a"], row.key["b"]) for row in rows] == exact[:limit]
        classify = (
            "SELECT label FROM pgembed.knn_classify(CAST(:t AS regclass), 'v', 'b', CAST(:q AS vector), 1)"
        )
        label = connection.scalar(text(classify), {"t": table.name, "q": literal})
        assert label == str(exact[0][1])


Note = model(HashEncoder(8), table="note", source="words", index=HNSW())


def test_equal_texts_before_the_index_is_built_and_without_stale_rows(engine: Engine) -> None:
    Note.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Note(id=key, words="the same") for key in range(30, 0, -1))
        session.commit()
        session.execute(text("UPDATE note SET words = 'another' WHERE id IN (3, 4)"))
        pages = {
            stale: [
                note.id
                for offset in range(0, 30, 5)
                for note, *_ in session.execute(
                    semantic_search(Note.embedding, "the same", limit=5, offset=offset, stale=stale)
                )
            ]
            for stale in ("include", "exclude")
        }
        session.rollback()
    assert pages["include"] == list(range(1, 31))
    assert pages["exclude"] == [key for key in range(1, 31) if key not in (3, 4)]
