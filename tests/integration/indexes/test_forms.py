"""Indexes that hold less than the column, or another type: planned, built, measured and tuned alike."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pgvector import SparseVector
from pgvector.sqlalchemy import SPARSEVEC
from sqlalchemy import Column, Integer, MetaData, Table, event, insert, text
from sqlalchemy.dialects.postgresql import BIT

from pgembed import HNSW, IVFFlat
from pgembed.exc import DeclarationError
from pgembed.indexes import IndexBuildError, create, create_concurrently, drop, plan, reindex
from pgembed.indexes.standing import find
from pgembed.measuring import recall, tune

from .conftest import clustered

ROWS = 3000


@pytest.fixture
def engine(engine):
    """The planner rightly finds tables of a few thousand rows quickly read: it is told to use the index."""
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("SET enable_seqscan = off"))
    return engine


FORMS = {
    "half": (HNSW("vector", name="ann", quantize="half"), "halfvec", 32),
    "bit": (HNSW("vector", name="ann", quantize="bit"), "bit", 32),
    "part": (HNSW("vector", name="ann", dimensions=16), "vector", 16),
    "bits of a part": (HNSW("vector", name="ann", dimensions=16, quantize="bit"), "bit", 16),
    "half in lists": (IVFFlat("vector", name="ann", lists=10, quantize="half"), "halfvec", 32),
    "l1": (HNSW("vector", name="ann", metric="l1"), "vector", 32),
}


def truth(vectors, query, k):
    """The nearest rows by cosine, of all."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return set(np.argsort(-(unit @ (query / np.linalg.norm(query))))[:k].tolist())


@pytest.mark.parametrize("form", FORMS)
def test_from_plan_to_tune(engine, fill, form):
    declared, storage, dimensions = FORMS[form]
    index = type(declared)("vector", **{**declared._arguments(), "metric": declared.metric.name})
    fill(index, rows=1500)
    with engine.begin() as connection:
        planned = plan(connection, index, workers=0, sample=500)
        assert (planned.storage, planned.dimensions, planned.rows) == (storage, dimensions, 1500)
        assert planned.seconds > 0
        create(connection, index, workers=0)
        found = find(connection, index)
        # Rows of equal bits share a node, so that those of 16 dimensions take less.
        assert found.size <= 1.1 * planned.disk
        assert storage == "bit" or found.size >= 0.9 * planned.disk
        tuned = tune(connection, index, target_recall=0.9, queries=300, k=5)
        assert tuned.reached
        assert min(tuned.tuned.recall, tuned.unseen.recall) >= 0.9
        assert recall(connection, index, queries=300, k=5, **tuned.arguments).recall >= 0.8
    reindex(engine, index)
    assert drop(engine, index)


def test_recall_of_bits_is_that_of_the_whole_vectors_of_the_candidates(engine, fill):
    """The nearest 2 by their bits are seldom the nearest 2; among many candidates they are more often."""
    vectors = clustered(ROWS)
    queries = clustered(60, seed=7)
    few = HNSW("vector", name="ann", quantize="bit", oversample=1)
    table = fill(few, rows=ROWS)
    with engine.begin() as connection:
        create(connection, few, workers=0)
        got = recall(connection, few, queries=queries, k=2, ef_search=3)
        bits = vectors > 0
        shares = []
        for query in queries:
            # A bound on the candidates of any search of the bits: ties are many, and where the index misses
            # one of the nearest, the last one and its ties are a bit farther away.
            apart = (bits != (query > 0)).sum(axis=1)
            cut = np.sort(apart)[2] + 1
            shares.append(sum(apart[key] <= cut for key in truth(vectors, query, 2)) / 2)
        assert got.recall <= np.mean(shares) + 0.02
        more = HNSW("vector", name="ann", quantize="bit", oversample=50)
        Table("Item", MetaData(), *(Column(c.name, c.type, primary_key=c.primary_key) for c in table.c), more)
        assert recall(connection, more, queries=queries, k=2).recall > got.recall + 0.2


def test_partial_indexes_are_planned_and_measured_by_their_rows(engine, fill):
    index = HNSW("vector", name="ann", where="id % 3 = 0")
    fill(index, rows=ROWS)
    with engine.begin() as connection:
        planned = plan(connection, index, sample=200)
        assert planned.rows == 1000
        create(connection, index)
        assert planned.disk == pytest.approx(find(connection, index).size, rel=0.1)
        found = recall(connection, index, queries=clustered(50, seed=3), k=5, ef_search=400)
        assert found.recall > 0.95  # of the 1,000: of all 3,000 it could not be above a half


def test_lists_are_found_from_the_rows_when_it_is_built(engine, fill):
    index = IVFFlat("vector", name="ann", lists="auto")
    table = fill(index, rows=2500)
    with engine.begin() as connection:
        assert plan(connection, index, sample=0).parameters == {"lists": 2}
    create_concurrently(engine, index)
    with engine.begin() as connection:
        assert find(connection, index).parameters == {"lists": 2}
        connection.execute(text('INSERT INTO "Item" SELECT id + 10000, vector FROM "Item"'))
        assert recall(connection, index, queries=20, probes=2).recall == 1
    reindex(engine, index)
    with engine.begin() as connection:
        assert find(connection, index).parameters == {"lists": 5}
        connection.execute(text('DELETE FROM "Item" WHERE id > 30'))
    drop(engine, table.c.vector)
    with (
        engine.begin() as connection,
        pytest.raises(IndexBuildError, match="31 rows are too few for 1 lists"),
    ):
        create(connection, index)


def typed(engine, type_, values, index):
    table = Table("Item", MetaData(), Column("id", Integer, primary_key=True), Column("vector", type_), index)
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(insert(table), [{"id": key, "vector": value} for key, value in enumerate(values)])
    return table


@pytest.mark.parametrize("metric", ["hamming", "jaccard"])
def test_columns_of_bits(engine, metric):
    index = HNSW("vector", name="ann", metric=metric)
    values = ["".join("01"[int(bit)] for bit in row > 0) for row in clustered(2000)]
    typed(engine, BIT(32), values, index)
    with engine.begin() as connection:
        planned = plan(connection, index, workers=0, sample=300)
        assert (planned.storage, planned.dimensions) == ("bit", 32)
        create(connection, index)
        assert recall(connection, index, queries=values[:20], k=3, ef_search=400).recall > 0.9


def test_columns_of_sparse_vectors(engine):
    index = HNSW("vector", name="ann", metric="l2")
    random = np.random.default_rng(1)
    values = []
    for _ in range(1500):
        places = random.choice(1000, size=12, replace=False)
        values.append(SparseVector({int(place): float(random.random()) for place in places}, 1000))
    typed(engine, SPARSEVEC(1000), values, index)
    with engine.begin() as connection:
        planned = plan(connection, index, workers=0, sample=300)
        assert planned.storage == "sparsevec"
        create(connection, index)
        assert planned.disk == pytest.approx(find(connection, index).size, rel=0.1)
        assert recall(connection, index, queries=30, k=3, ef_search=800).recall > 0.8


def test_an_index_of_another_form_than_declared(engine, fill):
    table = fill(HNSW("vector", name="ann"), rows=200)
    with engine.begin() as connection:
        create(connection, table.c.vector)
        other = HNSW(table.c.vector, name="ann", metric="l2")
        with pytest.raises(DeclarationError, match="vector_cosine_ops, and is declared otherwise"):
            recall(connection, other)
        assert json.dumps(plan(connection, other, sample=0).as_dict())
