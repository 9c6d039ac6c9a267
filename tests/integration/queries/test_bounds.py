"""The helpers and the SQL functions take the same values, and ask pgvector for the same ones."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, create_engine, insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex

from pgembed import (
    HNSW,
    IVFFlat,
    constants,
    duplicate_groups,
    knn_classify,
    knn_classify_many,
    measuring,
    near_duplicates,
    queries,
    semantic_search,
)
from pgembed.columns.types import VectorType
from pgembed.exc import QueryError, sqlstate
from pgembed.indexes import ACCESS_METHODS, Search, indexes_on
from pgembed.queries.core.settings import suitable

ITEM = Table(
    "item",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("label", Integer),
    Column("v", VectorType(8)),
    HNSW("v", name="whole", metric="l2"),
    HNSW("v", name="half", metric="l2", quantize="half"),
    HNSW("v", name="four", metric="l2", dimensions=4),
    HNSW("v", name="bits", metric="l2", quantize="bit"),
)
LISTED = Table(
    "item",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("v", VectorType(8)),
    IVFFlat("v", name="lists", metric="l2"),
)
QUERY = [1.0, 0, 0, 0, 0, 0, 0, 0]
WHOLE_NUMBERS = constants.Range(1, 2**31 - 1)


@pytest.fixture(scope="module")
def item(module_url: Any) -> Iterator[Connection]:
    engine = create_engine(module_url)
    with engine.connect() as connection:
        ITEM.create(connection)
        connection.execute(insert(ITEM), [{"id": n, "label": n, "v": [n, 1] + [0] * 6} for n in range(3)])
        for index in ITEM.indexes:
            connection.execute(CreateIndex(index))
        connection.commit()
        yield connection
    engine.dispose()


def is_taken(connection: Connection, statement: Callable[[], Any]) -> bool:
    """Whether a statement is made and runs. (What pgvector and the functions refuse is a wrong value.)"""
    try:
        connection.execute(statement()).all()
    except QueryError:
        return False
    except DBAPIError as error:
        if sqlstate(error) not in ("22023", "42883"):  # no such value; no function of a bigint
            raise
        return False
    finally:
        connection.rollback()
    return True


def around(bounds: constants.Range) -> list[int]:
    return [bounds.least - 1, bounds.least, bounds.most, bounds.most + 1]


DOORS: dict[str, tuple[constants.Range, Callable[[int], Any], str]] = {
    "semantic_search": (
        WHOLE_NUMBERS,
        lambda value: semantic_search(ITEM.c.v, QUERY, limit=value),
        "SELECT * FROM pgembed.search('item', 'v', '[1,0,0,0,0,0,0,0]', :value)",
    ),
    "knn_classify": (
        WHOLE_NUMBERS,
        lambda value: knn_classify(ITEM.c.v, QUERY, label=ITEM.c.label, k=value),
        "SELECT * FROM pgembed.knn_classify('item', 'v', 'label', '[1,0,0,0,0,0,0,0]', :value)",
    ),
    "knn_classify_many": (
        WHOLE_NUMBERS,
        lambda value: knn_classify_many(ITEM.c.v, queries=[QUERY], label=ITEM.c.label, k=value),
        "SELECT * FROM pgembed.knn_classify_many('item', 'v', 'label', ARRAY['[1,0,0,0,0,0,0,0]'], :value)",
    ),
    "min_neighbours": (
        constants.Range(1, 15),
        lambda value: knn_classify_many(ITEM.c.v, queries=[QUERY], label=ITEM.c.label, min_neighbours=value),
        "SELECT * FROM pgembed.knn_classify_many('item', 'v', 'label', ARRAY['[1,0,0,0,0,0,0,0]'], "
        "min_neighbours => :value)",
    ),
    "near_duplicates": (
        constants.NEIGHBOURS,
        lambda value: near_duplicates(ITEM.c.v, min_score=0.5, k=value),
        "SELECT * FROM pgembed.near_duplicates('item', 'v', 0.5, k => :value)",
    ),
    "duplicate_groups": (
        constants.NEIGHBOURS,
        lambda value: duplicate_groups(ITEM.c.v, min_score=0.5, k=value),
        "SELECT * FROM pgembed.duplicate_groups('item', 'v', 0.5, k => :value)",
    ),
    "ef_search": (
        constants.EF_SEARCH,
        lambda value: semantic_search(ITEM.c.v, QUERY, ef_search=value),
        "SELECT set_config('hnsw.ef_search', CAST(CAST(:value AS bigint) AS text), true)",
    ),
    "probes": (
        constants.PROBES,
        lambda value: semantic_search(LISTED.c.v, QUERY, probes=value),
        "SELECT set_config('ivfflat.probes', CAST(CAST(:value AS bigint) AS text), true)",
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_both_doors_refuse_at_the_same_bounds(item: Connection, door: str) -> None:
    bounds, helper, sql = DOORS[door]
    item.execute(text("LOAD 'vector'"))  # without it, its settings take whatever they are given
    for value in around(bounds):
        by_both = (
            is_taken(item, functools.partial(helper, value)),
            is_taken(item, functools.partial(text(sql).bindparams, value=value)),
        )
        expected = bounds.least <= value <= bounds.most
        assert by_both == (expected, expected), value


@pytest.mark.parametrize(
    ("metric", "taken", "refused"),
    [
        ("cosine", [-1.0, 1.0], [math.nextafter(-1, -2), math.nextafter(1, 2)]),
        ("l2", [1e-300, 1.0], [0.0, -1e-300, math.nextafter(1, 2)]),
        ("l1", [1e-300, 1.0], [0.0, -1e-300, math.nextafter(1, 2)]),
        ("inner_product", [-1e300, 0.0, 1e300], []),
    ],
)
def test_both_doors_take_the_scores_of_a_metric(
    item: Connection, metric: str, taken: list[float], refused: list[float]
) -> None:
    sql = text("SELECT * FROM pgembed.near_duplicates('item', 'v', :score, metric => :metric)")

    def by_both(score: float) -> tuple[bool, bool]:
        return (
            is_taken(item, lambda: near_duplicates(ITEM.c.v, min_score=score, metric=metric)),
            is_taken(item, lambda: sql.bindparams(score=score, metric=metric)),
        )

    assert {by_both(score) for score in taken} == {(True, True)}
    assert {by_both(score) for score in [*refused, math.inf, -math.inf, math.nan]} == {(False, False)}


@pytest.mark.parametrize(
    ("helper", "names"),
    [
        (queries.semantic_search, {"": "search", "k": "limit"}),
        (queries.knn_classify, {}),
        (queries.knn_classify_many, {}),
        (queries.zero_shot, {}),
        (queries.centroid_classify, {}),
        (queries.near_duplicates, {}),
        (queries.duplicate_groups, {}),
        (queries.keep_list, {}),
        (queries.mine_pairs, {"pairs": "limit"}),
        (queries.match, {}),
        (queries.hard_negatives, {}),
        (queries.cluster, {}),
        (queries.topics, {}),
        (queries.label_issues, {}),
        (queries.outliers, {}),
        (queries.representatives, {}),
        (measuring.evaluate, {}),
    ],
)
def test_both_doors_have_the_same_defaults(
    item: Connection, helper: Callable[..., Any], names: dict[str, str]
) -> None:
    """Of all arguments that both have, in each form of a function.

    :param names: of the helper's arguments, by those that they have in SQL; under ``""``, the function's.
    """
    arguments = text(
        "SELECT a.name, pg_get_function_arg_default(p.oid, a.place::integer) FROM pg_proc AS p "
        "CROSS JOIN LATERAL unnest(p.proargnames[1 : p.pronargs]) WITH ORDINALITY AS a (name, place) "
        "WHERE pronamespace = 'pgembed'::regnamespace AND proname = :name"
    )
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(helper).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    compared = set()
    for name, stated in item.execute(arguments, {"name": names.get("", helper.__name__)}).all():
        argument = names.get(name, name)
        if stated is None or argument not in defaults:
            continue
        given = item.scalar(text("SELECT to_jsonb(" + stated.replace(":", "\\:") + ")"))
        assert given == defaults[argument], argument
        compared.add(argument)
    assert len(compared) > 1
    item.rollback()


@pytest.mark.parametrize("rows", [1, 4, 5, 19, 20, 21, 100, 101, 499, 500, 501, 2**31 - 1])
def test_both_doors_ask_an_index_for_the_same(item: Connection, rows: int) -> None:
    """Candidates by what the index holds, and lists by their number; scans go on in the same order."""
    asked = text("SELECT pgembed.ask_for(:method, :lists, :oversample, :rows)")
    setting = text("SELECT current_setting(:name)")
    item.execute(text("LOAD 'vector'"))
    hnsw, ivfflat = (cast("Search", ACCESS_METHODS[name].search) for name in ("hnsw", "ivfflat"))
    iterative = {"hnsw": "strict_order", "ivfflat": "relaxed_order"}
    item.execute(text("SET LOCAL jit = on"))
    item.execute(asked, {"method": None, "lists": None, "oversample": None, "rows": rows})
    assert item.scalar(setting, {"name": "jit"}) == "off"
    item.rollback()
    oversamples = set()
    for index in indexes_on(ITEM.c.v):
        values = {"method": "hnsw", "lists": None, "oversample": index.oversample, "rows": rows}
        item.execute(asked, values)
        assert item.scalar(setting, {"name": hnsw.setting}) == str(suitable(hnsw, index, rows, {}))
        assert item.scalar(setting, {"name": "hnsw.iterative_scan"}) == iterative["hnsw"]
        item.rollback()
        oversamples.add(index.oversample)
    assert oversamples == {1, 2, 4, 10}
    for lists in (1, 2, 100, 101, 32768):
        item.execute(asked, {"method": "ivfflat", "lists": lists, "oversample": 1, "rows": rows})
        expected = suitable(ivfflat, None, rows, {"lists": lists})
        assert item.scalar(setting, {"name": ivfflat.setting}) == str(expected)
        assert item.scalar(setting, {"name": "ivfflat.iterative_scan"}) == iterative["ivfflat"]
        item.rollback()
