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
    table = fill_table(engine, HNSW("vector", name="ann"), rows=4000)
    with engine.begin() as connection:
        create(connection, table.c.vector)
        connection.exec_driver_sql(
            "CREATE FUNCTION anew() RETURNS vector VOLATILE LANGUAGE sql "
            "AS $$ SELECT array_agg(random() + g)::vector FROM generate_series(1, 32) AS g $$"
        )
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
        (NEAREST + "(vector <=> CAST(:q AS vector)) + 0 LIMIT 5", "the search is exact"),
        (NEAREST + "(vector <=> CAST(:q AS vector)) + 10 LIMIT 5", "an expression over the distance"),
        (NEAREST + "cosine_distance(vector, CAST(:q AS vector)) LIMIT 5", r"function cosine_distance\(\)"),
        (NEAREST + "vector <-> CAST(:q AS vector) LIMIT 5", "ordered by <->, and it serves <=>"),
        (NEAREST + "CAST(vector AS halfvec(32)) <=> CAST(:q AS halfvec) LIMIT 5", r"cast to halfvec\(32\)"),
        (NEAREST + "vector <=> CAST(:q AS vector)", "there is no LIMIT"),
        (COUNTED, "a window function"),
        (NEAREST + "vector <=> anew() LIMIT 5", "the query vector is volatile"),
        (NEAREST + 'vector <=> (SELECT vector FROM "Item" WHERE id = 3) LIMIT 5', None),
        ('SELECT i.vector <=> CAST(:q AS vector) AS d FROM "Item" AS i ORDER BY d LIMIT 5', None),
        (
            'SELECT n.id FROM (SELECT * FROM "Item" LIMIT 3) AS o, '
            'LATERAL (SELECT id FROM "Item" AS i ORDER BY i.vector <=> o.vector LIMIT 2) AS n',
            None,
        ),
        (
            'SELECT a.id FROM "Item" AS a JOIN "Item" AS b ON b.id = a.id + 1 '
            "ORDER BY a.vector <=> b.vector LIMIT 5",
            "joined before the LIMIT",
        ),
        (
            'SELECT id FROM "Item" GROUP BY id ORDER BY vector <=> CAST(:q AS vector) LIMIT 5',
            "grouped before they are ordered",
        ),
        (
            'SELECT id FROM "Item" WHERE id < 20 ORDER BY vector <=> CAST(:q AS vector) LIMIT 5',
            "conditions that few rows meet",
        ),
        (NEAREST + "id LIMIT 5", "nothing is ordered by a distance"),
        (NEAREST + "vector <=> CAST(:q AS vector) LIMIT 4900", "expects another plan to be cheaper"),
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
    assert ["the search is exact" in reason for reason in exact.unused["ann"]] == [True]
    assert "Plan" not in repr(exact)
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


@pytest.mark.parametrize(
    ("left", "right", "used", "reason"),
    [
        ("CAST(vector AS halfvec(32))", "<=> CAST({} AS halfvec(32))", "half", None),
        ("binary_quantize(vector)::bit(32)", "<~> binary_quantize({})", "bits", None),
        ("subvector(vector, 1, 16)::vector(16)", "<=> subvector({}, 1, 16)", "part", None),
        (
            "CAST(vector AS halfvec)",
            "<=> CAST({} AS halfvec)",
            "half",
            r"::halfvec, and it is on .*halfvec\(32\)",
        ),
        ("binary_quantize(vector)", "<~> binary_quantize({})", "bits", r"and it is on .*bit\(32\)"),
        ("subvector(vector, 1, 16)", "<=> subvector({}, 1, 16)", "part", r"and it is on .*vector\(16\)"),
        ("vector", "<=> {}", "half", r"ordered by .*vector, and it is on .*halfvec\(32\)"),
    ],
)
def test_indexes_on_expressions(connection, left, right, used, reason):
    connection.execute(text("DROP INDEX ann"))
    for name, expression, opclass in (
        ("half", "vector::halfvec(32)", "halfvec_cosine_ops"),
        ("bits", "binary_quantize(vector)::bit(32)", "bit_hamming_ops"),
        ("part", "subvector(vector, 1, 16)::vector(16)", "vector_cosine_ops"),
    ):
        connection.execute(text(f'CREATE INDEX {name} ON "Item" USING hnsw (({expression}) {opclass})'))
    order = left + " " + right.format(f"CAST('{QUERY}' AS vector)")
    explanation = explain(connection, connection_text(NEAREST + order + " LIMIT 5"))
    if reason is None:
        assert explanation.used == (used,)
        assert all("and it is on the expression" in str(why) for why in explanation.unused.values())
    else:
        assert explanation.used == ()
        assert re.search(reason, " ".join(explanation.unused[used]))


def connection_text(statement):
    """Two colons are a cast, not a parameter."""
    return statement.replace("::", "\\:\\:")


def test_another_index_that_gives_the_same_order(connection, table):
    connection.execute(text('CREATE INDEX twin ON "Item" USING hnsw (vector vector_cosine_ops)'))
    explanation = explain(connection, NEAREST + "vector <=> CAST(:q AS vector) LIMIT 5", {"q": QUERY})
    (why,) = explanation.unused.values()
    assert why[0].endswith("gives the same order") or "cheaper" in why[0]
