"""Boosts, groups and counts in SQL are those of the Python helpers, and run with the rights of the caller."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Date,
    DateTime,
    Engine,
    Float,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    bindparam,
    cast,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from pgembed import HNSW
from pgembed.columns.types import VectorType
from pgembed.queries import count_within, decay, facets, semantic_search
from tests.integration.queries.conftest import store, with_twins

ROWS = 2000
DAY = datetime.timedelta(days=1)
ITEM = Table(
    "item",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("shelf", Integer),  # 40 of them; every ninth row is on none
    Column("maker", String),  # of one maker there are two rows
    Column("likes", Numeric),
    Column("seen", DateTime(timezone=True)),
    Column("vector", VectorType(16)),
    HNSW("vector", build="immediate"),
)
VECTORS = with_twins(ROWS, 16)
VECTORS[5] = 0
QUERY = VECTORS[30] + np.float32(0.1)
LATER = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def values(key: int) -> dict[str, Any]:
    return {
        "shelf": key % 40 if key % 9 else None,
        "maker": "rare" if key in (1200, 1990) else f"m{key % 3}",
        "likes": key % 10 / 10 or None,
        "seen": LATER - key * datetime.timedelta(hours=1),
    }


@pytest.fixture(scope="module")
def engine(module_url: URL) -> Iterator[Engine]:
    engine = create_engine(module_url)
    store(engine, ITEM, VECTORS, values)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION public.recent(item) RETURNS float8 LANGUAGE sql IMMUTABLE "
                "RETURN pgembed.decay($1.seen, '30 days', '2026-01-01 00:00+00')"
            )
        )
    yield engine
    engine.dispose()


@pytest.fixture
def empty_engine(url: URL) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection whose work is undone."""
    with engine.connect() as connection:
        yield connection
        connection.rollback()


def of_items(connection: Connection, function: str, *third: Any, query: Any = QUERY, **options: Any) -> Any:
    """Rows of a function; options that are ``None`` are left out."""
    given = {name: value for name, value in options.items() if value is not None}
    named = "".join(f", {name} => :{name}" for name in given)
    extra = "".join(f", :third_{n}" for n in range(len(third)))
    sql = f"SELECT * FROM pgembed.{function}('item', 'vector'{extra}, CAST(:q AS vector){named})"
    parameters = {f"third_{n}": value for n, value in enumerate(third)}
    return connection.execute(text(sql), {"q": str(query.tolist()), **parameters, **given}).all()


def assert_same(rows: Any, expected: Any) -> None:
    assert [row.key for row in rows] == [{"id": row.id} for row in expected]
    for name in ("distance", "score"):
        found = [getattr(row, name) for row in rows]
        assert found == pytest.approx([getattr(row, name) for row in expected], abs=1e-6)


def test_decay_equals_that_of_python_in_1200_random_cases(connection: Connection) -> None:
    random = np.random.default_rng(5)
    rows = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("number", Float(53)),
        Column("whole", Integer),
        Column("moment", DateTime(timezone=True)),
        Column("local", DateTime),
        Column("day", Date),
        prefixes=["TEMPORARY"],
    )
    rows.create(connection)
    moments = [LATER + datetime.timedelta(seconds=value) for value in random.normal(scale=3e6, size=20)]
    numbers = random.normal(scale=50, size=20)
    connection.execute(
        insert(rows),
        [
            {
                "id": n,
                "number": number,
                "whole": int(number),
                "moment": at,
                "local": at.replace(tzinfo=None),
                "day": at,
            }
            for n, (number, at) in enumerate(zip(numbers.tolist(), moments, strict=True))
        ],
    )
    for case in range(60):
        name = ("number", "whole", "moment", "local", "day")[case % 5]
        kind, left = ("exponential", "gaussian", "linear")[case % 3], float(random.uniform(0.05, 0.95))
        scale, margin = float(random.uniform(1, 40)), float(random.uniform(0, 20)) * (case % 2)
        wide: Any = (scale, margin) if case % 5 < 2 else (scale * DAY, margin * DAY)
        origin = (
            float(random.normal())
            if case % 5 < 2
            else LATER
            if name == "moment"
            else LATER.replace(tzinfo=None)
        )
        expected = decay(
            rows.c[name],
            scale=wide[0],
            origin=origin,
            offset=wide[1],
            decay=left,
            kind=kind,  # type: ignore[arg-type]
        )
        found = text(
            f"SELECT pgembed.decay({name}, :scale, :origin, :margin, :left, :kind) FROM t ORDER BY id"
        ).bindparams(bindparam("scale", wide[0]), bindparam("margin", wide[1]), bindparam("origin", origin))
        assert connection.scalars(found, {"left": left, "kind": kind}).all() == pytest.approx(
            connection.scalars(select(expected).order_by(rows.c.id)).all(), rel=1e-12, abs=1e-300
        ), case
    far = text(
        "SELECT pgembed.decay(1e9, 1, 0, kind => k) FROM unnest(ARRAY['exponential', 'gaussian', 'linear']) k"
    )
    assert connection.scalars(far).all() == pytest.approx([0, 0, 0], abs=1e-300)
    assert connection.scalar(text("SELECT pgembed.decay(NULL::timestamp, '1 day')")) == 1
    assert connection.scalar(text("SELECT pgembed.decay(now() - interval '1 hour', '1 hour')")) == 0.5
    local = text("SELECT pgembed.decay(localtimestamp - interval '3 hours', '1 hour', margin => '2 hours')")
    assert connection.scalar(local) == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        "0, 0",
        "'NaN', 0",
        "-1, 0",
        "1, 0, -1",
        "1, 0, 'Infinity'",
        "1, 0, 0, 1",
        "1, 0, 0, 0",
        "1, 0, 0, 0.5, 'x'",
    ],
)
def test_what_is_no_decay_is_refused(connection: Connection, arguments: str) -> None:
    with pytest.raises(DBAPIError) as caught:
        connection.execute(text(f"SELECT pgembed.decay(v, {arguments}) FROM generate_series(1, 2) AS v"))
    diagnostic: Any = caught.value.orig
    assert "scale is" in diagnostic.diag.message_primary
    assert "between 0 and 1" in diagnostic.diag.message_hint


BOOSTS = {"likes": ITEM.c.likes, "public.recent": decay(ITEM.c.seen, scale=30 * DAY, origin=LATER)}


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize("boosting", ["multiply", "add"])
@pytest.mark.parametrize(("exact", "candidates"), [(False, None), (False, 300), (True, None)])
def test_boosts_agree(
    connection: Connection, boost: str, boosting: Any, exact: bool, candidates: int | None
) -> None:
    expected = connection.execute(
        semantic_search(
            ITEM.c.vector,
            QUERY,
            boost=BOOSTS[boost],
            boosting=boosting,
            candidates=candidates,
            limit=12,
            max_distance=0.9,
            mode="exact" if exact else "auto",
        )
    ).all()
    rows = of_items(
        connection,
        "search_boosted",
        boost,
        k=12,
        boosting=boosting,
        candidates=candidates,
        max_distance=0.9,
        exact=exact,
    )
    assert len(rows) == 12
    assert_same(rows, expected)


@pytest.mark.parametrize(
    ("per", "k", "best"),
    [
        ("shelf", 10, 1),
        ("shelf", 3, 4),
        ("shelf", 60, 2),
        ("maker", 10, 3),
        ("id", 100, 2),
        ("likes", 9, 300),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_groups_agree(connection: Connection, per: str, k: int, best: int, exact: bool) -> None:
    expected = connection.execute(
        semantic_search(
            ITEM.c.vector, QUERY, per=ITEM.c[per], best=best, limit=k, mode="exact" if exact else "auto"
        )
    ).all()
    rows = of_items(connection, "search_per", per, k=k, best=best, exact=exact)
    assert_same(rows, expected)
    groups = {"shelf": 40, "maker": 4, "id": ROWS, "likes": 9}[per]
    assert len({getattr(row, per) for row in expected}) == min(k, groups)


def test_groups_within_a_distance(connection: Connection) -> None:
    for most in (0.2, 0.6):
        expected = connection.execute(
            semantic_search(ITEM.c.vector, QUERY, per=ITEM.c.shelf, best=2, limit=30, max_distance=most)
        ).all()
        rows = of_items(connection, "search_per", "shelf", k=30, best=2, max_distance=most)
        assert 0 < len(rows) < 60
        assert_same(rows, expected)


def test_facets_agree(connection: Connection) -> None:
    for name in ("shelf", "maker", "likes", "seen"):
        for most, k in ((None, 100), (0.8, ROWS)):
            search = semantic_search(ITEM.c.vector, QUERY, limit=k, max_distance=most, mode="exact")
            expected = connection.execute(facets(search, ITEM.c[name])).all()
            rows = of_items(connection, "facets", name, k=k, max_distance=most, exact=True)
            assert [row.count for row in rows] == [row[1] for row in expected]
            as_text = dict(connection.execute(select(ITEM.c[name], cast(ITEM.c[name], String))).all())
            assert [row.value for row in rows] == [as_text[row[0]] for row in expected]


@pytest.mark.parametrize("most", [0.5, 0.9, float("inf")])
def test_counts_and_totals_agree(connection: Connection, most: float) -> None:
    expected = connection.scalar(count_within(ITEM.c.vector, QUERY, most))
    (row,) = of_items(connection, "count_within", query=QUERY, max_distance=most)
    assert row[0] == expected
    page = semantic_search(
        ITEM.c.vector, QUERY, limit=7, offset=3, max_distance=most, mode="exact", total=True
    )
    rows = of_items(connection, "search_page", k=7, skip=3, max_distance=most)
    assert_same(rows, found := connection.execute(page).all())
    assert rows
    assert {row.total for row in rows} == {row.total for row in found} == {expected}


def test_candidates_are_found_through_the_index_and_no_setting_is_left_behind(connection: Connection) -> None:
    """A plan inside of a function is not to be seen; what it scanned is counted by the statistics."""
    connection.execute(text("SELECT '[1]'::vector"))
    connection.execute(text("SET LOCAL enable_sort = off"))  # the planner would rather read so small a table
    setting = text("SELECT current_setting('hnsw.ef_search')")
    before = connection.scalar(setting)
    (index,) = ITEM.indexes
    scans = text("SELECT pg_stat_get_xact_numscans(CAST(:index AS regclass))")
    # Of earlier transactions too, until the session reports them.
    already = connection.scalar(scans, {"index": index.name}) or 0
    for number, (function, third) in enumerate(
        (("search_boosted", "likes"), ("search_per", "shelf"), ("facets", "maker")), 1
    ):
        of_items(connection, function, third, k=2)
        assert connection.scalar(scans, {"index": index.name}) == already + number, function
    assert connection.scalar(setting) == before


@pytest.mark.parametrize("storage", ["vector", "halfvec"])
def test_awkward_names_composite_keys_and_queries_of_every_type(empty_engine: Engine, storage: str) -> None:
    table = Table(
        'odd "table"',
        MetaData(),
        Column("it's", String, primary_key=True),
        Column('the "no"', Integer, primary_key=True),
        Column("the vector; --", VectorType(2, storage)),
        Column("%s of it", String),
        Column("a.b", Integer),
        HNSW("the vector; --", build="immediate"),
    )
    rows = [("b", 1, [1, 0], "x", 1), ("a", 2, [1, 0.01], "x", 5), ("a", 10, [0, 1], "y", None)]
    table.metadata.create_all(empty_engine)
    keys = [{"it's": "b", 'the "no"': 1}, {"it's": "a", 'the "no"': 2}, {"it's": "a", 'the "no"': 10}]
    with empty_engine.connect() as connection:
        connection.execute(insert(table).values([dict(zip(table.c, row, strict=True)) for row in rows]))
        given = {"r": '"odd ""table"""', "v": "the vector; --", "of": "%s of it", "boost": "a.b"}

        def called(sql: str) -> Any:
            return connection.execute(text(f"SELECT * FROM pgembed.{sql}"), given).all()

        for query in ("'[1,0]'", "'[1,0]'::vector", "'[1,0]'::halfvec", "'[1,0]'::text"):
            for exact in ("true", "false"):
                found = called(f"search_per(CAST(:r AS regclass), :v, :of, {query}, exact => {exact})")
                assert [row.key for row in found] == [keys[0], keys[2]]
                found = called(f"search_boosted(CAST(:r AS regclass), :v, :boost, {query}, exact => {exact})")
                assert [row.key for row in found] == [keys[1], keys[0], keys[2]]
            found = called(f"facets(CAST(:r AS regclass), :v, :of, {query})")
            assert [tuple(row) for row in found] == [("x", 2), ("y", 1)]
            assert called(f"count_within(CAST(:r AS regclass), :v, {query}, 0.5)") == [(2,)]
            found = called(f"search_page(CAST(:r AS regclass), :v, {query}, 1, 1)")
            assert [(row.key, row.total) for row in found] == [(keys[1], 3)]


@pytest.mark.parametrize(
    ("function", "arguments", "message", "hint"),
    [
        ("search_boosted", "'items', :q", "the boost is 'items', which is neither", "public.recent"),
        (
            "search_boosted",
            "'1); DROP TABLE item; --', :q",
            "the boost is '1); DROP TABLE item; --'",
            "schema",
        ),
        (
            "search_boosted",
            "'recent', :q",
            "the boost is 'recent', which is neither",
            "public.recent(public.item)",
        ),
        ("search_boosted", "'pg_catalog.row_to_json', :q", "neither a column of table public.item nor", ""),
        ("search_boosted", "NULL, :q", "the boost is NULL", ""),
        ("search_boosted", "'likes', NULL", "query vector is NULL", "filled"),
        ("search_boosted", "'likes', :q, boosting => 'max'", "boosting is 'max'", ""),
        ("search_boosted", "'likes', :q, 10, candidates => 5", "5 candidates for 10 rows", "exact => true"),
        ("search_boosted", "'likes', :q, candidates => 50, exact => true", "50 candidates", "exact => true"),
        ("search_per", "'kind', :q", "no column kind", ""),
        ("search_per", "NULL, :q", "has no column", ""),
        ("search_per", "'shelf', '[1,2]'", "2 dimensions", "encoder"),
        ("search_per", "'shelf', :q, 0", "number of rows is 0", ""),
        ("search_per", "'shelf', :q, best => 0", "best is 0", ""),
        ("facets", "'kind', :q", "no column kind", ""),
        ("facets", "'shelf', :zeros", "zeros", ""),
        ("count_within", ":q, NULL", "max_distance is NULL", ""),
        ("count_within", ":q, 'NaN'", "max_distance is NaN", ""),
        ("count_within", "'[1]', 1", "1 dimensions", "encoder"),
        ("search_page", ":q, skip => -1", "skip is -1", ""),
        ("search_page", ":q, 0", "number of rows is 0", ""),
    ],
)
def test_errors_say_what_to_do(
    connection: Connection, function: str, arguments: str, message: str, hint: str
) -> None:
    for name, vector in (("zeros", np.zeros(16)), ("q", QUERY)):
        arguments = arguments.replace(f":{name}", f"'{vector.tolist()}'")
    with pytest.raises(DBAPIError) as caught:
        connection.exec_driver_sql(f"SELECT * FROM pgembed.{function}('item', 'vector', {arguments})")
    diagnostic: Any = caught.value.orig
    assert message in diagnostic.diag.message_primary
    assert hint in (diagnostic.diag.message_hint or "")


def test_a_boost_runs_with_the_rights_of_the_caller(connection: Connection) -> None:
    """A function of the row that reads what the caller may not read gives the caller nothing."""
    for statement in (
        "CREATE TABLE secret (n float8)",
        "CREATE FUNCTION public.leak(item) RETURNS float8 LANGUAGE sql RETURN (SELECT max(n) FROM secret)",
        "CREATE FUNCTION public.barred(item) RETURNS float8 LANGUAGE sql RETURN 1",
        "REVOKE EXECUTE ON FUNCTION public.barred(item) FROM PUBLIC",
        "CREATE ROLE pgembed_booster",
        "GRANT USAGE ON SCHEMA pgembed TO pgembed_booster",
        "GRANT SELECT ON item, pgembed.embedding_columns TO pgembed_booster",
        "SET LOCAL ROLE pgembed_booster",
        "SET LOCAL search_path = ''",
    ):
        connection.execute(text(statement))
    functions = text(
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace AND prosecdef"
    )
    assert connection.scalar(functions) == 0
    search = "SELECT * FROM pgembed.search_boosted('public.item', 'vector', 'public.{}', '{}'::public.vector)"
    assert len(connection.exec_driver_sql(search.format("recent", QUERY.tolist())).all()) == 10
    for function, denied in (("leak", "table secret"), ("barred", "function barred")):
        with pytest.raises(DBAPIError, match=f"permission denied for {denied}"), connection.begin_nested():
            connection.exec_driver_sql(search.format(function, QUERY.tolist()))


def test_every_function_says_what_it_is_for(connection: Connection) -> None:
    names = ("decay", "search_boosted", "search_per", "facets", "count_within", "search_page")
    comments = text("SELECT proname, obj_description(oid) FROM pg_proc WHERE proname = ANY (:names)")
    found = connection.execute(comments, {"names": list(names)}).all()
    assert {row.proname for row in found} == set(names)
    assert all(row.obj_description for row in found)
