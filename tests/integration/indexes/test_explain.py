"""Why an index is used or not: the reasons that the notes of pgvector and practice know."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import create_engine, select, text

from pgembed import HNSW
from pgembed.indexes import create, explain
from pgembed.queries import semantic_search

from .conftest import clustered, fill_table

QUERY = str(clustered(1)[0].tolist())
NEAREST = 'SELECT id FROM "Item" ORDER BY '
TIES_BROKEN = NEAREST + "vector <=> CAST(:q AS vector), id LIMIT 5"
COUNTED = 'SELECT id, count(*) OVER () FROM "Item" ORDER BY vector <=> CAST(:q AS vector) LIMIT 5'


@pytest.fixture(scope="module")
def corpus(module_url):
    """An engine, and a table with an index; whoever changes it rolls back."""
    engine = create_engine(module_url)
    table = fill_table(engine, HNSW("vector", name="ann"), rows=5000)
    with engine.begin() as connection:
        create(connection, table.c.vector)
    yield engine, table
    engine.dispose()


@pytest.fixture
def table(corpus):
    return corpus[1]


@pytest.fixture
def connection(corpus):
    with corpus[0].connect() as connection:
        yield connection


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (NEAREST + "vector <=> CAST(:q AS vector) LIMIT 5", None),
        (TIES_BROKEN, "more than the distance orders the rows"),
        (NEAREST + "vector <=> CAST(:q AS vector) DESC LIMIT 5", "the order is descending"),
        (NEAREST + "1 - (vector <=> CAST(:q AS vector)) LIMIT 5", "an expression over the distance"),
        (NEAREST + "(vector <=> CAST(:q AS vector)) + 0 LIMIT 5", "an expression over the distance"),
        (NEAREST + "cosine_distance(vector, CAST(:q AS vector)) LIMIT 5", r"function cosine_distance\(\)"),
        (NEAREST + "vector <-> CAST(:q AS vector) LIMIT 5", "ordered by <->, and it serves <=>"),
        (NEAREST + "CAST(vector AS halfvec(32)) <=> CAST(:q AS halfvec) LIMIT 5", r"cast to halfvec\(32\)"),
        (NEAREST + "vector <=> CAST(:q AS vector)", "there is no LIMIT"),
        (COUNTED, "a window function"),
        (NEAREST + "id LIMIT 5", "nothing is ordered by a distance"),
        (NEAREST + "vector <=> CAST(:q AS vector) LIMIT 4900", "takes another plan to be cheaper"),
    ],
)
def test_reasons(connection, statement, reason):
    parameters = {"q": QUERY} if ":q" in statement else None
    explanation = explain(connection, statement, parameters)
    # Postgres 17 learnt the one, and is too clever for the other.
    version = connection.dialect.server_version_info[0]
    if statement == (TIES_BROKEN if version >= 17 else COUNTED):
        reason = None
    if reason is None:
        assert (explanation.used, explanation.unused) == (("ann",), {})
        return
    assert explanation.used == ()
    (reasons,) = explanation.unused.values()
    assert len(reasons) == 1, reasons
    assert re.search(reason, reasons[0])


def test_statements_of_the_helpers_and_of_core(connection, table):
    found = explain(connection, semantic_search(table.c.vector, clustered(1)[0]))
    assert found.used == ("ann",)
    exact = explain(connection, semantic_search(table.c.vector, clustered(1)[0], mode="exact"))
    assert exact.used == ()
    core = select(table.c.vector).order_by(table.c.vector.cosine_distance(clustered(1)[0]))
    assert explain(connection, core.limit(3)).used == ("ann",)
    assert found.as_dict()["used"] == ("ann",)


def test_the_state_of_the_index_is_a_reason(connection, table):
    connection.execute(text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ann'::regclass"))
    explanation = explain(connection, NEAREST + "vector <=> CAST(:q AS vector) LIMIT 5", {"q": QUERY})
    assert "invalid" in explanation.unused["ann"][0]


def test_partial_indexes(connection, table):
    connection.execute(text("DROP INDEX ann"))
    connection.execute(
        text('CREATE INDEX part ON "Item" USING hnsw (vector vector_cosine_ops) WHERE id < 1500')
    )
    statement = 'SELECT id FROM "Item" {} ORDER BY vector <=> CAST(:q AS vector) LIMIT 5'
    without = explain(connection, statement.format(""), {"q": QUERY})
    within = explain(connection, statement.format("WHERE id < 1500"), {"q": QUERY})
    assert "it is partial" in without.unused["part"][0]
    assert within.used == ("part",)
