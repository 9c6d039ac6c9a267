"""Recall and tuning, beside brute force."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import Column, MetaData, Table, event, insert, text
from sqlalchemy.orm import Session

from pgembed import HNSW, IVFFlat
from pgembed.database import install
from pgembed.exc import DeclarationError, DimensionMismatchError, MissingExtraError, QueryError
from pgembed.indexes import IndexMissingError, IndexNotUsedError, create, measurement, reindex
from pgembed.indexes.measurement import Measurement
from pgembed.indexes.methods import ACCESS_METHODS
from pgembed.measuring import plot, recall, sweep, tune
from pgembed.measuring.accuracy import Bench
from pgembed.measuring.curve import figure
from pgembed.testing import HashEncoder

from ..models import Models
from .conftest import clustered


@pytest.fixture
def engine(engine):
    """The planner rightly finds tables of a few thousand rows quickly read: it is told to use the index."""
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("SET enable_seqscan = off"))
    return engine


@pytest.fixture
def poor(fill, engine):
    """A table whose graph is so thin that a small ef_search misses rows."""
    table = fill(HNSW("vector", name="ann", m=4, ef_construction=12, metric="l2"), rows=3000)
    with engine.begin() as connection:
        create(connection, table.c.vector, workers=0)
    return table


def by_hand(connection, vectors, queries, k, value):
    """The recall of vectors of the table that are asked for as if from outside, computed with numpy."""
    connection.execute(text("SELECT set_config('hnsw.ef_search', :value, true)"), {"value": str(value)})
    connection.execute(text("SET LOCAL hnsw.iterative_scan = 'strict_order'"))
    shares = []
    for key in queries:
        distances = np.linalg.norm(vectors - vectors[key], axis=1)
        true = set(np.argsort(distances)[:k].tolist())
        found = connection.scalars(
            text(
                'SELECT id FROM "Item" ORDER BY vector <-> (SELECT vector FROM "Item" WHERE id = :key) '
                f"LIMIT {k + 1}"
            ),
            {"key": key},
        ).all()
        shares.append(len(true & {*found[:k]}) / k)
    return float(np.mean(shares))


def test_recall_is_that_of_brute_force(engine, poor):
    vectors = clustered(3000)
    with engine.begin() as connection:
        expected = by_hand(connection, vectors, range(0, 3000, 30), 6, 10)
    with engine.begin() as connection:
        measured = recall(connection, poor.c.vector, queries=vectors[::30], k=6, ef_search=10)
        assert connection.scalar(text("SELECT current_setting('hnsw.ef_search')")) == "40"
    assert expected < 0.9
    assert measured.recall == pytest.approx(expected, abs=0.01)
    assert measured.low < measured.recall < measured.high
    assert (measured.queries, measured.setting, measured.value) == (100, "ef_search", 10)
    assert 0 < measured.approximate.p50 <= measured.approximate.p95
    assert 0 < measured.exact.p50 <= measured.exact.p95


def test_rows_are_not_their_own_neighbours(engine, poor):
    with engine.begin() as connection:
        low = recall(connection, poor.c.vector, queries=150, k=1, ef_search=1)
        full = recall(connection, poor.c.vector, queries=150, k=1, ef_search=1000)
    assert low.recall < 0.7  # the row itself is easy to find, its neighbour is not
    assert low.recall < full.recall
    assert json.loads(json.dumps(full.as_dict()))["approximate"]["p50"] > 0


def test_identical_rows_are_ties(engine, fill):
    table = fill(HNSW("vector", name="ann"), rows=0)
    with engine.begin() as connection:
        vectors = clustered(150).repeat(8, axis=0)
        connection.execute(
            insert(table), [{"id": key, "vector": vector} for key, vector in enumerate(vectors)]
        )
        connection.execute(text('ANALYZE "Item"'))
        create(connection, table.c.vector)
        assert recall(connection, table.c.vector, queries=50, k=10).recall == 1


def test_an_index_that_is_not_used_is_an_error(engine, poor):
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL enable_indexscan = off"))
        connection.execute(text("SET LOCAL enable_seqscan = on"))
        with pytest.raises(IndexNotUsedError, match="enable_indexscan is off") as caught:
            recall(connection, poor.c.vector, queries=3)
        assert caught.value.index == "ann"


def test_latencies_are_those_of_their_leg(engine, poor, monkeypatch):
    """By a clock that only queries move: exact ones by 20 ms, one in four of the index's by 50."""
    seen = itertools.count()
    now = 0.0

    @event.listens_for(engine, "before_cursor_execute")
    def hold(connection, cursor, sql, parameters, context, many):
        nonlocal now
        if sql.startswith("WITH pgembed_settings"):  # which asks for ef_search, and then the index
            now += 0.05 if next(seen) % 4 == 0 else 0
        elif sql.startswith("SELECT") and "<->" in sql:
            now += 0.02

    monkeypatch.setattr("pgembed.measuring.accuracy.time", SimpleNamespace(perf_counter=lambda: now))
    with engine.begin() as connection:
        measured = recall(connection, poor.c.vector, queries=40, k=5)
    assert measured.exact.p50 == pytest.approx(20)
    assert measured.approximate.p50 == 0
    assert measured.approximate.p95 == pytest.approx(50)


class Questions(HashEncoder):
    """Queries are encoded differently from documents."""

    def encode_queries(self, texts):
        return self.encode_documents([f"query: {text}" for text in texts])


def test_texts_are_encoded_as_queries_by_the_encoder_of_the_column(engine, fill):
    table = fill(HNSW("vector", name="ann"), rows=10)
    with engine.begin() as connection:
        create(connection, table.c.vector)
    models = Models(encoder=Questions(16), index=HNSW(m=2, ef_construction=4))
    with Session(engine) as session:
        install(session.connection())
        models.base.metadata.create_all(session.connection())
        session.add_all(models.article(title=f"{n} {n % 7} {n % 11} {n % 5}") for n in range(800))
        session.commit()
        connection = session.connection()
        create(connection, models.article.embedding, workers=0)
        texts = [f"{n} {n % 3} {n % 13}" for n in range(60)]
        models.encoder.calls.clear()
        found = recall(connection, models.article.embedding, queries=texts, k=5, ef_search=5)
        assert models.encoder.calls == [tuple(f"query: {text}" for text in texts)]
        vectors = models.encoder.encode_queries(texts)
        expected = recall(connection, models.article.embedding, queries=vectors, k=5, ef_search=5)
        assert (found.recall, found.queries) == (expected.recall, 60)
        assert found.recall < 1
        tuned = tune(connection, models.article.embedding, queries=texts, k=5, target_recall=0.5)
        assert tuned.tuned.queries == tuned.unseen.queries == 30
        with pytest.raises(QueryError, match="texts that are not empty, or vectors, not both"):
            recall(connection, models.article.embedding, queries=["a", vectors[0]])
        models.base.metadata.drop_all(connection)
        session.commit()
    with engine.begin() as connection, pytest.raises(QueryError, match="not declared with an encoder"):
        recall(connection, table.c.vector, queries=["a"])


def test_a_sweep_goes_from_k_to_where_all_is_found(engine, poor, tmp_path):
    with engine.begin() as connection:
        swept = sweep(connection, poor.c.vector, queries=100, k=5)
    assert [found.value for found in swept[:3]] == [5, 10, 20]
    assert {found.exact for found in swept} == {swept[0].exact}  # one set of queries
    assert swept[0].recall < 0.8 < swept[-1].recall

    drawn = figure(swept)
    (axes,) = drawn.axes
    line, _, scan = axes.lines[0], axes.lines[1], axes.lines[-1]
    assert list(line.get_xdata()) == [found.approximate.p50 for found in swept]
    assert list(line.get_ydata()) == [found.recall for found in swept]
    assert set(scan.get_xdata()) == {swept[0].exact.p50}
    assert [note.get_text() for note in axes.texts] == [str(found.value) for found in swept]
    plot(swept, tmp_path / "drawn.png")
    head = (tmp_path / "drawn.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:]) == (1050, 675)


def test_a_sweep_ends_where_the_planner_takes_a_scan(engine, poor):
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = on"))
        swept = sweep(connection, poor.c.vector, queries=10, k=5)
        assert 1 <= len(swept) < 8
        connection.execute(text("SET LOCAL enable_indexscan = off"))
        with pytest.raises(IndexNotUsedError):
            sweep(connection, poor.c.vector, queries=10, k=5)


@pytest.mark.parametrize("kind", ["TABLE", "MATERIALIZED VIEW"])
def test_rows_without_a_primary_key_are_measured(engine, poor, kind):
    """As those with one, though the database alone knows of the index; the row itself does not count."""
    vectors = clustered(40, seed=3)
    with engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE {kind} keyless AS SELECT vector FROM "Item"')
        connection.exec_driver_sql("CREATE INDEX known ON keyless USING ivfflat (vector) WITH (lists = 4)")
        table = Table("keyless", MetaData(), Column("vector", poor.c.vector.type))
        index = IVFFlat(table.c.vector, name="known", lists=4, metric="l2")
        assert recall(connection, index, queries=40, k=5, probes=4).recall == 1
        one = recall(connection, index, queries=vectors, k=500, probes=1)
        assert 0.2 < one.recall < 0.99  # neighbours in the three lists that are not read are missed
        connection.exec_driver_sql(f"DROP {kind} keyless")


def test_searches_are_measured_as_users_get_them(engine, poor):
    """Where the index gives too few rows, a search is answered exactly."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL hnsw.max_scan_tuples = 1"))
        connection.execute(text("SET LOCAL hnsw.iterative_scan = 'strict_order'"))
        nearest = 'SELECT id FROM "Item" ORDER BY vector <-> (SELECT vector FROM "Item" WHERE id = 1)'
        assert len(connection.execute(text(f"{nearest} LIMIT 1001")).all()) < 1001
        assert recall(connection, poor.c.vector, queries=10, k=1000, ef_search=5).recall == 1


def kept(connection):
    return connection.scalar(text("SELECT obj_description('ann'::regclass)"))


def test_what_was_measured_is_the_comment_of_the_index(engine, poor, monkeypatch):
    with engine.begin() as connection:
        found = recall(connection, poor.c.vector, queries=20, k=3, ef_search=5)
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
    with engine.connect() as connection:
        measured = Measurement.read(kept(connection))
        assert (measured.k, measured.queries, measured.value) == (3, found.queries, 5)
        assert measured.recall == pytest.approx(found.recall, abs=1e-4)
        # It is written in the transaction of the caller, whose settings stay.
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        recall(connection, poor.c.vector, queries=5, k=4)
        assert Measurement.read(kept(connection)).k == 4
        assert connection.scalar(text("SHOW lock_timeout")) == "7s"
        connection.rollback()
        assert Measurement.read(kept(connection)) == measured
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET enable_seqscan = off"))
        recall(connection, poor.c.vector, queries=5, k=6)
        assert connection.scalar(text("SHOW lock_timeout")) == "0"
    with engine.connect() as connection:
        assert Measurement.read(kept(connection)).k == 6
    with engine.begin() as connection:
        monkeypatch.setitem(measurement._PATIENCE, "lock_timeout", "10ms")
        connection.execute(text("COMMENT ON INDEX ann IS 'of searches'"))
        with engine.begin() as other:  # the index is locked
            assert recall(other, poor.c.vector, queries=5, k=7).recall > 0
        assert recall(connection, poor.c.vector, queries=5, k=7).recall > 0
        assert kept(connection) == "of searches"
        connection.rollback()
    with engine.connect() as connection:
        assert Measurement.read(kept(connection)).k == 6


def test_measuring_needs_no_right_to_write(engine, poor):
    with engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        assert recall(connection, poor.c.vector, queries=5).recall > 0
        connection.rollback()
        connection.execute(text("CREATE ROLE measuring"))
        connection.execute(text('GRANT SELECT ON "Item" TO measuring'))
        connection.execute(text("SET LOCAL ROLE measuring"))
        assert recall(connection, poor.c.vector, queries=5).recall > 0
        assert kept(connection) is None


def test_another_graph_was_not_measured(engine, poor):
    with engine.begin() as connection:
        recall(connection, poor.c.vector, queries=5)
    reindex(engine, HNSW(poor.c.vector, name="ann", m=5, ef_construction=12, metric="l2"))
    with engine.connect() as connection:
        assert kept(connection) is None


def test_drawings_that_cannot_be_written(tmp_path):
    for name, message in (("drawn.txt", r"ends with \.png, \.svg, \.pdf"), ("gone/drawn.svg", "no folder")):
        with pytest.raises(DeclarationError, match=message):
            plot([], tmp_path / name)


def test_drawing_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pgembed\[plot\]"):
        figure([])


def test_what_cannot_be_measured(engine, poor, fill):
    with engine.begin() as connection:
        for arguments, message in (
            ({"ef_search": 0}, "pgvector takes 1 to 1000"),
            ({"probes": 3}, "probes is not for hnsw"),
            ({"queries": 0}, "at least 1"),
            ({"queries": []}, "queries is empty"),
            ({"k": 0}, "k=0"),
        ):
            with pytest.raises(QueryError, match=message):
                recall(connection, poor.c.vector, **arguments)
        with pytest.raises(DimensionMismatchError):
            recall(connection, poor.c.vector, queries=[[1.0, 2.0]])
        with pytest.raises(QueryError, match="target_recall"):
            tune(connection, poor.c.vector, target_recall=95)
    unbuilt = fill(HNSW("vector", name="other"), rows=5, name="unbuilt")
    with engine.begin() as connection, pytest.raises(IndexMissingError, match="has no such index"):
        recall(connection, unbuilt.c.vector)


def test_tuning_takes_the_cheapest_that_reaches(engine, poor):
    with engine.begin() as connection:
        tuned = tune(connection, poor.c.vector, target_recall=0.8, queries=300, k=5)
        again = recall(connection, poor.c.vector, queries=300, k=5, **tuned.arguments)
    assert tuned.reached
    assert tuned.tuned.recall >= 0.8
    assert tuned.unseen.recall >= 0.8
    assert again.recall >= 0.7  # other queries: their sample and the choice of the best each cost some points
    below = [found for found in tuned.tried if found.value < tuned.tuned.value]
    short = {found.value for found in tuned.rejected if found.recall < 0.8}
    assert below
    assert all(found.recall < 0.8 or found.value in short for found in below)
    assert tuned.sql == f"SET hnsw.ef_search = {tuned.tuned.value}"
    assert json.loads(json.dumps(tuned.as_dict()))["arguments"] == {"ef_search": tuned.tuned.value}


def test_what_no_setting_reaches_is_said(engine, fill, monkeypatch):
    """A graph whose nodes have two links has rows that no search comes to."""
    hnsw = ACCESS_METHODS["hnsw"]
    monkeypatch.setitem(ACCESS_METHODS, "hnsw", replace(hnsw, search=replace(hnsw.search, high=8)))
    table = fill(HNSW("vector", name="ann", m=2, ef_construction=4, metric="l2"), rows=2000)
    with engine.begin() as connection:
        create(connection, table.c.vector, workers=0)
        tuned = tune(connection, table.c.vector, target_recall=1.0, queries=100, k=5)
    assert not tuned.reached
    assert tuned.arguments == {"ef_search": 8}


def test_settings_at_which_the_index_is_not_used_are_left_out(engine, poor):
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = on"))
        bench = Bench.of(connection, poor.c.vector, 2, 5)
        assert bench.used_at(connection, 5)
        assert not bench.used_at(connection, 1000)
        tuned = tune(connection, poor.c.vector, target_recall=1.0, queries=60, k=5)
    assert tuned.unseen.value < 1000


def test_tuning_ivfflat(engine, fill):
    table = fill(IVFFlat("vector", name="ann", lists=20), rows=3000)
    with engine.begin() as connection:
        create(connection, table.c.vector)
        tuned = tune(connection, table.c.vector, target_recall=0.95, queries=100)
        few = recall(connection, table.c.vector, queries=50, k=200, probes=1)
        all_lists = recall(connection, table.c.vector, queries=50, k=200, probes=20)
    assert tuned.reached
    assert tuned.arguments["probes"] <= 20
    assert tuned.sql.startswith("SET ivfflat.probes = ")
    assert few.recall < all_lists.recall == 1  # a list holds 150 rows
