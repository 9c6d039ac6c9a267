"""Each finding is made where it should be, and nowhere else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sqlalchemy import insert, text

from pgembed import HNSW, IVFFlat
from pgembed.indexes import check, create
from pgembed.indexes.catalogue import StandingIndex
from pgembed.indexes.checking import _old


@pytest.fixture
def connection(engine):
    with engine.connect() as connection:
        yield connection


def codes(findings):
    return sorted(finding.code for finding in findings if finding.code != "old-pgvector")


def test_a_good_index_has_no_findings(connection, fill):
    table = fill(HNSW("vector", name="ann"), rows=500)
    create(connection, table.c.vector)
    assert codes(check(connection)) == codes(check(connection, table.c.vector)) == []


def test_invalid_and_of_another_metric(connection, fill):
    table = fill(HNSW("vector", name="ann"), rows=50)
    create(connection, table.c.vector)
    connection.execute(text('CREATE INDEX other ON "Item" USING hnsw (vector vector_l1_ops)'))
    connection.execute(text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ann'::regclass"))
    assert codes(check(connection)) == [
        "invalid"
    ]  # of a table that is not known, any metric may be asked for
    found = {finding.code: finding for finding in check(connection, table.c.vector)}
    assert found["invalid"].index == "ann"
    assert found["metric"].index == "other"
    assert "it serves l1, and queries of vector use cosine" in str(found["metric"])
    assert json.loads(json.dumps(found["metric"].as_dict()))["code"] == "metric"


def test_a_cast_that_no_query_makes(connection, fill):
    table = fill(HNSW("vector", name="ann"), rows=50)
    statement = 'CREATE INDEX half ON "Item" USING hnsw (CAST(vector AS halfvec(32)) halfvec_cosine_ops)'
    connection.execute(text(statement))
    (finding,) = [found for found in check(connection, table.c.vector) if found.code == "cast"]
    assert (finding.index, "halfvec" in finding.fix) == ("half", True)


def test_unused(engine, fill):
    table = fill(HNSW("vector", name="ann"), rows=500)
    with engine.begin() as connection:
        create(connection, table.c.vector)
        for _ in range(5):
            connection.execute(text('SELECT count(*) FROM "Item"'))
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with engine.begin() as connection:
        assert codes(check(connection, reads=5)) == ["unused"]
        assert codes(check(connection)) == []
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        query = text('SELECT id FROM "Item" ORDER BY vector <=> (SELECT vector FROM "Item" LIMIT 1) LIMIT 1')
        connection.execute(query)
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with engine.begin() as connection:
        assert codes(check(connection, reads=5)) == []


def test_memory(connection, fill):
    table = fill(HNSW("vector", name="ann"), rows=2000)
    create(connection, table.c.vector)
    connection.execute(text("SET LOCAL maintenance_work_mem = '1MB'"))
    (finding,) = [found for found in check(connection) if found.code == "memory"]
    assert "its graph takes 1.6 MB, and maintenance_work_mem is 1.0 MB" in finding.message


def test_drift(connection, fill):
    table = fill(IVFFlat("vector", name="ann", lists=20, metric="l2"), rows=2000)
    create(connection, table.c.vector)
    assert codes(check(connection)) == []
    random = np.random.default_rng(3)
    far = (40 + random.normal(size=(8000, 32))).astype(np.float32)
    rows = [{"id": 10_000 + key, "vector": vector} for key, vector in enumerate(far)]
    connection.execute(insert(table), rows)
    connection.execute(text('ANALYZE "Item"'))
    (finding,) = [found for found in check(connection) if found.code == "drift"]
    assert finding.index == "ann"
    connection.execute(text("REINDEX INDEX ann"))
    assert codes(check(connection)) == []
    assert connection.scalar(text("SHOW enable_sort")) == "on"


@pytest.mark.parametrize(
    ("version", "hnsw", "ivfflat"),
    [("0.8.1", 3, 1), ("0.8.2", 2, 1), ("0.8.5", 0, 1), ("0.8.7", 0, 0), ("0.10.0", 0, 0)],
)
def test_known_bugs(version, hnsw, ivfflat):
    for method, expected in (("hnsw", hnsw), ("ivfflat", ivfflat)):
        facts = ("public", "ann", "t", "t", "v", None, method, "vector_l2_ops", {}, None)
        facts = (*facts, True, False, False, [], None, 0)
        messages = [finding.message for finding in _old(StandingIndex(1, *facts), version)]
        assert sum(message.count(";") + 1 for message in messages) == expected
