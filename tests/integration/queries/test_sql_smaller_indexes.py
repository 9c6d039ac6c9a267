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
from pgembed.indexes import VectorIndex, indexes_on
from tests.integration.indexes.conftest import clustered

ROWS = 5200  # above 5,000, the functions for duplicates use indexes
DIMENSIONS = 64
TYPES = {"vector": VECTOR(DIMENSIONS), "halfvec": HALFVEC(DIMENSIONS)}
VECTORS = clustered(ROWS, DIMENSIONS)
VECTORS[3000:3005] = VECTORS[:5] + np.float32(0.001)
VECTORS[5000] = 0
QUERY = VECTORS[17] + np.float32(0.05)
#: Rows with a vector; of the one of zeros, cosine knows nothing.
FILLED = ROWS - 5


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
    """The table with these indexes declared and built."""
    table = make(storage, *indexes)
    for index in table.indexes:
        connection.execute(CreateIndex(index))
    return table


def search(
    connection: Connection, table: Any, k: int, options: str = "", query: Any = QUERY
) -> list[Row[Any]]:
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


@pytest.mark.parametrize("quantize", ["half", "bit"])
def test_there_are_never_fewer_rows_than_exist(connection: Connection, quantize: Any) -> None:
    table = built(connection, HNSW("v", quantize=quantize))
    for k in (FILLED - 1, 2 * ROWS, 2_147_483_647):
        exact = search(connection, table, k, ", exact => true")
        assert len(exact) == FILLED - 1
        assert search(connection, table, k) == exact
    nearest = search(connection, table, 20)
    middle = (nearest[8].distance + nearest[9].distance) / 2
    assert search(connection, table, 20, f", max_distance => {middle}") == nearest[:9]


@pytest.mark.parametrize("k", [0, -1])
def test_no_rows_cannot_be_asked_for(connection: Connection, k: int) -> None:
    table = small(connection, np.eye(4), HNSW("v", quantize="bit"))
    with pytest.raises(DBAPIError, match=f"the number of rows is {k}, it must be at least 1"):
        search(connection, table, k, query=np.ones(4))


def small(connection: Connection, vectors: Any, *indexes: VectorIndex) -> Table:
    """A table of a few rows, of which the index is used all the same."""
    table = Table(
        "small",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("v", VECTOR(len(vectors[0]))),
        *indexes,
    )
    table.create(connection)
    connection.execute(insert(table), [{"id": key, "v": vector} for key, vector in enumerate(vectors)])
    for index in table.indexes:
        connection.execute(CreateIndex(index))
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    return table


@pytest.mark.parametrize(
    ("options", "k"), [({"quantize": "half"}, 200), ({"quantize": "bit"}, 40), ({"dimensions": 4}, 100)]
)
def test_where_all_rows_are_candidates_the_nearest_are_found(
    connection: Connection, options: dict[str, Any], k: int
) -> None:
    vectors = clustered(400, 16)
    vectors[100:110] = vectors[100]  # equally far: in the order of the key
    table = small(connection, vectors, IVFFlat("v", lists=4, **options))  # which leaves none out
    (index,) = table.indexes
    scanned = scans(connection, index.name)
    rows = search(connection, table, k, query=vectors[100])
    assert (scans(connection, index.name) - scanned).tolist() == [1]
    assert rows == search(connection, table, k, ", exact => true", query=vectors[100])
    assert keys(rows)[:10] == list(range(100, 110))


def test_candidates_without_a_distance_do_not_count(connection: Connection) -> None:
    """Vectors of zeros have bits like any other, and are the nearest of all here."""
    vectors = np.ones((200, 4), np.float32)
    vectors[:150] = 0
    vectors[150:, 0] += np.arange(50)
    table = small(connection, vectors, IVFFlat("v", lists=1, quantize="bit"))
    query = np.array([-1, -1, -1, -2.0])
    rows = search(connection, table, 10, query=query)
    assert rows == search(connection, table, 10, ", exact => true", query=query)
    assert len(rows) == 10


def indexed_by(connection: Connection, metric: str | None = None) -> tuple[Any, ...]:
    """The metric, and what is indexed, of the index that a search of the small table looks into."""
    found = text("SELECT metric, indexed, oversample FROM pgembed.vector_column('small', 'v', :metric)")
    return tuple(connection.execute(found, {"metric": metric}).one())


def test_the_index_that_loses_least_is_used(connection: Connection) -> None:
    table = small(
        connection,
        clustered(300, 8),
        HNSW("v", name="bits", quantize="bit"),
        HNSW("v", name="half", quantize="half", metric="l2"),
        HNSW("v", name="four", dimensions=4, metric="l2"),
        IVFFlat("v", name="whole", lists=3, metric="l2"),
    )
    oversample = {str(each.index.name): each.oversample for each in indexes_on(table.c.v)}
    query = np.ones(8)
    for name, indexed in [
        ("whole", "v"),
        ("half", "(v)::public.halfvec(8)"),
        ("four", "(public.subvector(v, 1, 4))::public.vector(4)"),
    ]:
        assert indexed_by(connection) == ("l2", indexed, oversample[name])  # the metric is the index's, too
        scanned = scans(connection, name)
        search(connection, "small", 5, query=query)
        assert (scans(connection, name) - scanned).tolist() == [1]
        connection.execute(text(f"DROP INDEX {name}"))
    bits = "(public.binary_quantize(v))::bit(8)"
    assert indexed_by(connection) == ("cosine", bits, oversample["bits"])
    for metric in ("cosine", "l2", "inner_product", "l1"):
        assert indexed_by(connection, metric) == (metric, bits, oversample["bits"])
        assert len(search(connection, "small", 5, f", metric => '{metric}'", query=query)) == 5
    scanned = scans(connection, "bits")
    search(connection, "small", 5, ", exact => true", query=query)
    assert (scans(connection, "bits") - scanned).tolist() == [0]


@pytest.mark.parametrize(
    "definition",
    [
        "((v::halfvec(8)) halfvec_l2_ops)",  # of another metric
        "((v::halfvec(8)) halfvec_cosine_ops) WHERE id > 5",
        "((binary_quantize(v)::bit(8)) bit_jaccard_ops)",
        "((subvector(v, 3, 4)::vector(4)) vector_cosine_ops)",
        "((l2_normalize(v)::vector(8)) vector_cosine_ops)",
        "(((other::halfvec(8))) halfvec_cosine_ops)",
        "(((v + other)::halfvec(8)) halfvec_cosine_ops)",
        "(((CASE WHEN id > 5 THEN v END)::halfvec(8)) halfvec_cosine_ops)",
    ],
)
def test_indexes_of_anything_else_are_left_alone(connection: Connection, definition: str) -> None:
    small(connection, clustered(300, 8))
    connection.execute(text("ALTER TABLE small ADD other vector(8)"))
    connection.execute(text(f"CREATE INDEX ON small USING hnsw {definition}"))
    assert indexed_by(connection, "cosine") == ("cosine", None, None)
    exact = search(connection, "small", 40, ", metric => 'cosine', exact => true", query=np.ones(8))
    assert search(connection, "small", 40, ", metric => 'cosine'", query=np.ones(8)) == exact


def test_an_invalid_index_is_left_alone(connection: Connection) -> None:
    small(connection, clustered(300, 8), HNSW("v", quantize="bit"))
    connection.execute(text("UPDATE pg_index SET indisvalid = false WHERE indrelid = 'small'::regclass"))
    assert indexed_by(connection) == ("cosine", None, None)


@pytest.mark.parametrize("quantize", ["half", "bit"])
def test_knn_classify_votes_as_the_helper_does(connection: Connection, quantize: Any) -> None:
    table = built(connection, HNSW("v", quantize=quantize))
    (index,) = table.indexes
    scanned = scans(connection, table, index.name)
    sql = "SELECT * FROM pgembed.knn_classify('of_vector', 'v', 'label', :q, 25)"
    votes = connection.execute(text(sql), {"q": str(QUERY.tolist())}).all()
    assert (scans(connection, table, index.name) - scanned).tolist() == [0, 1]
    helper = connection.execute(knn_classify(table.c.v, QUERY, label=table.c.label, k=25)).all()
    assert [tuple(row) for row in votes] == [
        (row.label, pytest.approx(row.share), row.votes) for row in helper
    ]
    assert sum(row.votes for row in votes) == 25


def test_duplicates_are_those_of_the_helpers(connection: Connection) -> None:
    table = built(connection, HNSW("v", quantize="bit"))
    (index,) = table.indexes
    scanned = scans(connection, index.name)
    call = "SELECT * FROM pgembed.{}('of_vector', 'v', 0.9, k => 2)"
    pairs = connection.execute(text(call.format("near_duplicates"))).all()
    assert (scans(connection, index.name) - scanned).tolist()[0] > 5000
    found = [(row.left_key["id"], row.right_key["id"]) for row in pairs]
    assert {(key, key + 3000) for key in range(5)} <= set(found)
    groups = connection.execute(text(call.format("duplicate_groups"))).all()
    helper = connection.execute(near_duplicates(table.c.v, min_score=0.9, k=2)).all()
    assert found == [(row.left_key, row.right_key) for row in helper]
    assert [row.score for row in pairs] == pytest.approx([row.score for row in helper])
    helper = connection.execute(duplicate_groups(table.c.v, min_score=0.9, k=2)).all()
    assert [(row.group_id, row.key["id"]) for row in groups] == [tuple(row) for row in helper]


def test_partitioned_tables(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE parts (id int PRIMARY KEY, v vector(16)) PARTITION BY HASH (id)"))
    for rest in (0, 1):
        connection.execute(
            text(f"CREATE TABLE part_{rest} PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER {rest})")
        )
    vectors = clustered(400, 16)
    values = [{"id": key, "v": str(vector.tolist())} for key, vector in enumerate(vectors)]
    connection.execute(text("INSERT INTO parts VALUES (:id, :v)"), values)
    connection.execute(
        text("CREATE INDEX ON parts USING ivfflat ((binary_quantize(v)::bit(16)) bit_hamming_ops)")
    )
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    indexes = connection.scalars(
        text(
            "SELECT indexrelid FROM pg_index WHERE indpred IS NULL AND indkey[0] = 0 AND indrelid IN "
            "('part_0'::regclass, 'part_1'::regclass)"
        )
    ).all()
    scanned = scans(connection, *indexes)
    rows = search(connection, "parts", 40, query=vectors[3])
    assert (scans(connection, *indexes) - scanned).tolist() == [1, 1]
    assert rows == search(connection, "parts", 40, ", exact => true", query=vectors[3])


def test_awkward_names(empty_url: URL) -> None:
    """The extension in a schema of its own; columns called like the table, and like what queries call it."""
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "The %%s ""ext"""')
        connection.exec_driver_sql('CREATE EXTENSION vector SCHEMA "The %%s ""ext"""')
        install(connection)
        connection.exec_driver_sql('SET LOCAL search_path = public, "The %%s ""ext"""')
        for column in ("Select", "t", "asked", 'it\'s %s "odd"'):
            quoted = '"' + column.replace('"', '""') + '"'
            for expression, operators in [
                (f"({quoted}::halfvec(4))", "halfvec_cosine_ops"),
                (f"(subvector({quoted}, 1, 3)::vector(3))", "vector_cosine_ops"),
                (f"(binary_quantize({quoted})::bit(4))", "bit_hamming_ops"),
                (f"(binary_quantize(subvector({quoted}, 1, 3))::bit(3))", "bit_hamming_ops"),
            ]:
                for statement in (
                    f'CREATE TABLE "Select" ("k%s" int PRIMARY KEY, {quoted} vector(4))',
                    """INSERT INTO "Select" VALUES (1, '[1,0,0,0]'), (2, '[1,1,0,0]'), (3, '[0,0,0,-1]')""",
                    f'CREATE INDEX "The index" ON "Select" USING hnsw ({expression} {operators})',
                    "SET LOCAL enable_seqscan = off",
                ):
                    connection.exec_driver_sql(statement.replace("%", "%%"))
                scanned = scans(connection, '"The index"')
                rows = connection.execute(
                    text("SELECT key FROM pgembed.search('\"Select\"', :c, '[1,0.1,0,0]', 2)"), {"c": column}
                )
                assert [row.key for row in rows] == [{"k%s": 1}, {"k%s": 2}]
                assert (scans(connection, '"The index"') - scanned).tolist() == [1]
                connection.exec_driver_sql('DROP TABLE "Select"')
    engine.dispose()
