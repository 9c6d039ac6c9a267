"""Each finding is made where it should be, and nowhere else."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import HNSW, IVFFlat, Part, embedding_parts
from pgembed.columns.types import VectorType
from pgembed.database import install
from pgembed.indexes import check, create
from pgembed.indexes.findings import bugs_of
from pgembed.testing import HashEncoder

from ..models import Models
from .conftest import clustered


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
    assert (finding.index, "quantize=" in finding.fix) == ("half", True)


def test_unused(engine, fill):
    table = fill(HNSW("vector", name="ann"), rows=500)
    with engine.begin() as connection:
        create(connection, table.c.vector)
        for _ in range(5):
            connection.execute(text('SELECT count(*) FROM "Item"'))
        for _ in range(5):  # by key, which no vector index could serve
            connection.execute(text('SELECT vector FROM "Item" WHERE id = 1'))
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with engine.begin() as connection:
        (finding,) = check(connection, reads=5)
        scans = int(re.search(r"scanned without any (\d+) times", finding.message)[1])
        assert finding.code == "unused"
        assert codes(check(connection, reads=scans + 1)) == []
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        query = text('SELECT id FROM "Item" ORDER BY vector <=> (SELECT vector FROM "Item" LIMIT 1) LIMIT 1')
        connection.execute(query)
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with engine.begin() as connection:
        assert codes(check(connection, reads=5)) == []


def test_a_graph_that_does_not_fit_spills_where_the_finding_says(connection, fill):
    table = fill(HNSW("vector", name="ann"), rows=2000)
    create(connection, table.c.vector)
    assert codes(check(connection)) == []
    connection.execute(text("SET LOCAL maintenance_work_mem = '1MB'"))
    (finding,) = [found for found in check(connection) if found.code == "spilled"]
    assert re.search(r"its graph takes 1\.[67] MB, and maintenance_work_mem is 1\.0 MB", finding.message)
    assert "not recorded" in finding.message
    said = int(re.search(r"after about ([\d,]+) of 2,000", finding.message)[1].replace(",", ""))
    notices = []
    driver = connection.connection.driver_connection
    driver.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    connection.execute(text("REINDEX INDEX ann"))
    (real,) = [int(found[1]) for notice in notices if (found := re.search(r"after (\d+) tuples", notice))]
    assert said == pytest.approx(real, rel=0.05)


def test_lists_that_cannot_be_built_again(connection, fill):
    table = fill(IVFFlat("vector", name="ann", lists=60), rows=3000)
    create(connection, table.c.vector)
    assert codes(check(connection)) == []
    connection.execute(text("SET LOCAL maintenance_work_mem = '1MB'"))
    (finding,) = [found for found in check(connection) if found.code == "memory"]
    assert "a REINDEX or a restore fails" in finding.message
    with pytest.raises(DBAPIError, match="memory required"), connection.begin_nested():
        connection.execute(text("REINDEX INDEX ann"))
    wanted = re.search(r"maintenance_work_mem to (\d+kB)", finding.fix)[1]
    connection.execute(text(f"SET LOCAL maintenance_work_mem = '{wanted}'"))
    connection.execute(text("REINDEX INDEX ann"))
    assert codes(check(connection)) == []


def test_smaller_indexes_are_of_use_where_they_are_declared(connection, fill):
    table = fill(
        HNSW("vector", name="half", quantize="half"),
        HNSW("vector", name="bits", quantize="bit"),
        HNSW("vector", name="part", dimensions=16),
        rows=300,
    )
    for index in table.indexes:
        create(connection, index)
    (half,) = [index for index in table.indexes if index.name == "half"]
    assert codes(check(connection)) == codes(check(connection, half)) == []
    other = 'CREATE INDEX odd ON "Item" USING hnsw (l2_normalize(vector) vector_l2_ops)'
    with connection.begin_nested() as savepoint:
        connection.execute(
            text(other.replace("(l2", "((l2").replace("(vector) v", "(vector)::vector(32)) v"))
        )
        assert [found.code for found in check(connection, half) if found.index == "odd"][:1] == ["cast"]
        savepoint.rollback()
    connection.execute(text("DROP INDEX half"))
    connection.execute(text('CREATE INDEX half ON "Item" USING hnsw ((vector::halfvec(32)) halfvec_l2_ops)'))
    assert [(found.code, found.index) for found in check(connection, half) if found.code == "metric"] == [
        ("metric", "half")
    ]


def test_registered_columns_say_what_their_queries_order_by(engine):
    """Without a model: the metric of the registry, and any expression that a model may declare."""
    models = Models(encoder=HashEncoder(16), index=HNSW())
    with Session(engine) as session:
        install(session.connection())
        models.base.metadata.create_all(session.connection())
        session.add_all(models.article(title=f"word {n}") for n in range(50))
        session.commit()
        connection = session.connection()
        create(connection, models.article.embedding)
        on = "ON article USING hnsw"
        half = f"CREATE INDEX half {on} ((embedding::halfvec(16)) halfvec_cosine_ops)"
        connection.execute(text(half))
        assert codes(check(connection)) == []
        connection.execute(text(f"CREATE INDEX far {on} (embedding vector_l2_ops)"))
        connection.execute(
            text(f"CREATE INDEX unit {on} ((l2_normalize(embedding)::vector(16)) vector_cosine_ops)")
        )
        found = [(finding.code, finding.index) for finding in check(connection)]
        assert [each for each in found if each[0] != "old-pgvector"] == [("metric", "far"), ("cast", "unit")]
        session.rollback()
        models.base.metadata.drop_all(session.connection())
        session.commit()


def test_the_metric_of_parts_is_that_of_their_registration(engine):
    class Base(DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        parts: Mapped[list[Part]] = embedding_parts(
            "body", encoder=HashEncoder(16, max_tokens=8), metric="l2", index=HNSW()
        )

    with engine.connect() as connection:
        Base.metadata.create_all(connection)
        create(connection, Page.parts)
        assert codes(check(connection)) == codes(check(connection, Page.parts)) == []
        connection.execute(text("CREATE INDEX far ON page_parts USING hnsw (embedding vector_cosine_ops)"))
        for target in (None, Page.parts):
            (found,) = [found for found in check(connection, target) if found.code != "old-pgvector"]
            assert (found.code, found.index) == ("metric", "far")
            assert "it serves cosine, and queries of embedding use l2" in str(found)


def test_statements_that_the_server_compiles(connection, fill):
    """Not every server can: where it cannot, it is made to say so."""
    table = fill(HNSW("vector", name="ann"), rows=500)
    create(connection, table.c.vector)
    connection.execute(text("SET LOCAL jit_above_cost = 10"))
    available = "CREATE OR REPLACE FUNCTION pg_catalog.pg_jit_available() RETURNS boolean RETURN "
    connection.execute(text(available + "false"))
    assert codes(check(connection)) == []
    connection.execute(text(available + "true"))
    (found,) = [found for found in check(connection) if found.code != "old-pgvector"]
    assert found.code == "jit"
    cost = connection.scalar(text('EXPLAIN (FORMAT json) SELECT FROM "Item"'))[0]["Plan"]["Total Cost"]
    assert f"cost of about {cost:,.0f} is above jit_above_cost, 10" in found.message
    assert found.fix.startswith(f"ALTER DATABASE {connection.engine.url.database} SET jit = off")
    for above in ("-1", str(cost + 1)):
        connection.execute(text(f"SET LOCAL jit_above_cost = {above}"))
        assert codes(check(connection)) == []


def test_partitions_are_looked_at_with_their_table(engine):
    index = HNSW("vector", name="ann")
    columns = Column("id", Integer, primary_key=True), Column("vector", VectorType(32))
    table = Table("Item", MetaData(), *columns, index, postgresql_partition_by="RANGE (id)")
    with engine.begin() as connection:
        table.create(connection)
        connection.exec_driver_sql('CREATE TABLE part PARTITION OF "Item" FOR VALUES FROM (0) TO (9000)')
        rows = [{"id": key, "vector": vector} for key, vector in enumerate(clustered(2000))]
        connection.execute(insert(table), rows)
        connection.exec_driver_sql('CREATE INDEX ann ON ONLY "Item" USING hnsw (vector vector_cosine_ops)')
        (finding,) = [found for found in check(connection, index) if found.code == "invalid"]
        assert "not finished" in finding.message
        create(connection, index)
        assert codes(check(connection, index)) == codes(check(connection)) == []
        connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '1MB'")
        assert [
            (found.code, found.index) for found in check(connection, index) if found.code == "spilled"
        ] == [("spilled", "part_vector_idx")]


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
    ("version", "hnsw", "ivfflat", "ivfflat_on_32_bit"),
    [
        ("0.5.1", 2, 1, 2),
        ("0.8.1", 3, 1, 2),
        ("0.8.2", 2, 1, 2),
        ("0.8.5", 0, 1, 2),
        ("0.8.6", 0, 1, 1),
        ("0.8.7", 0, 0, 0),
        ("0.10.0", 0, 0, 0),
    ],
)
def test_known_bugs(version, hnsw, ivfflat, ivfflat_on_32_bit):
    assert len(bugs_of("hnsw", version)) == hnsw
    assert len(bugs_of("ivfflat", version)) == ivfflat
    assert len(bugs_of("ivfflat", version, is_32_bit=True)) == ivfflat_on_32_bit


def test_an_old_pgvector_is_found_by_what_the_server_says(connection, fill):
    table = fill(HNSW("vector", name="ann"), rows=100)
    create(connection, table.c.vector)

    def found(version):
        connection.execute(
            text("UPDATE pg_extension SET extversion = :version WHERE extname = 'vector'"),
            {"version": version},
        )
        return [finding for finding in check(connection) if finding.code == "old-pgvector"]

    (finding,) = found("0.8.1")
    assert "CVE-2026-3172" in finding.message
    assert "issues/959" in finding.message
    assert "Install pgvector 0.8.4" in finding.fix
    assert found("0.8.7") == []
