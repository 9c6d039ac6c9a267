"""SQL functions that classify, under names that need quoting, composite keys and a hostile search_path.

Each gives the rows of its Python helper for random vectors, with copies, zeros and rows without a vector.
"""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import (
    ARRAY,
    Column,
    Float,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    create_engine,
    insert,
    text,
    true,
)
from sqlalchemy.exc import DBAPIError

from pgembed.columns.types import VectorType
from pgembed.queries import knn_classify_many, softmax

ROWS = 70
TABLE = Table(
    'odd "table"',
    MetaData(schema="other schema"),
    Column("it's", String, primary_key=True),
    Column("No %", Integer, primary_key=True),
    Column("the vector; --", VectorType(4)),
    Column("%s label", String(collation="C")),
    Column("number", Integer),
    Column("mean", Float),
    Column("exact mean", Numeric),
    Column("tags", ARRAY(String)),
    Column("numbers", ARRAY(Integer)),
)
NAME = '"other schema"."odd ""table"""'
KEY = """pg_catalog.jsonb_build_object('it''s', "it's", 'No %', "No %")"""
VECTOR = TABLE.c["the vector; --"]
# What Postgres would prefer to its own, were it looked for there.
HOSTILE = """
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.fail(text, text) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'hers'; END $$;
CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.fail);
CREATE FUNCTION hostile.fail(float8, float8) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'hers'; END $$;
CREATE OPERATOR hostile.<= (LEFTARG = float8, RIGHTARG = float8, FUNCTION = hostile.fail);
CREATE OPERATOR hostile.< (LEFTARG = float8, RIGHTARG = float8, FUNCTION = hostile.fail);
CREATE FUNCTION hostile.unnest(jsonb[]) RETURNS SETOF jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE 'hers'; END $$;
CREATE FUNCTION hostile.exp(float8) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'hers'; END $$;
CREATE FUNCTION hostile.jsonb_build_object(text, text) RETURNS jsonb LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'hers'; END $$;
"""


def rows_of_table():
    rng = np.random.default_rng(11)
    vectors = rng.standard_normal((ROWS, 4)).astype(np.float32)
    vectors[40:55] = vectors[:15]
    vectors[60:64] = vectors[0]
    vectors[5] = vectors[6] = 0
    for n, vector in enumerate(vectors):
        yield {
            "it's": f"k{n % 7}",
            "No %": n,
            "the vector; --": None if n % 17 == 9 else vector,
            "%s label": None if n % 5 == 0 else str(rng.choice(["b", "B", "a", "ä"])),
            "number": None if n % 6 == 0 else int(rng.choice([9, 10, 100])),
            "mean": None if n % 6 == 0 else float(rng.standard_normal()),
            "exact mean": None if n % 6 == 0 else n % 4,
            "tags": None if n % 6 == 0 else sorted({str(rng.choice(["x", "Y", "z, {"])) for _ in range(3)}),
            "numbers": [] if n % 6 == 0 else [9, 10, 10][: n % 4],
        }


@pytest.fixture(scope="module")
def doors(module_url):
    """Two connections: one for the helpers, and one with a hostile search_path for the functions."""
    engine = create_engine(module_url)
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "other schema"'))
        connection.exec_driver_sql(HOSTILE)
        TABLE.create(connection)
        connection.execute(insert(TABLE), list(rows_of_table()))
    with engine.connect() as helpers, engine.connect() as functions:
        yield helpers, functions
    engine.dispose()


def called(doors, sql, columns="*", **parameters):
    """The rows of a function under the hostile search_path."""
    doors[1].execute(text("SET LOCAL search_path = hostile, pg_catalog, public"))
    rows = doors[1].execute(text(f"SELECT {columns} FROM pgembed.{sql}"), parameters)
    return [tuple(row) for row in rows]


def near(row):
    return tuple(pytest.approx(value, abs=2e-6) if isinstance(value, float) else value for value in row)


def keys_of(*values):
    return dict(zip(TABLE.primary_key.columns.keys(), values, strict=True))


ANSWERS = [
    {},
    {"k": 3, "weights": "uniform", "metric": "l2"},
    {"k": 7, "weights": "softmax", "min_margin": 0.3},
    {"k": 60, "prior": "balanced", "min_share": 0.3, "metric": "inner_product"},
    {"k": 10, "max_distance": 0.4, "prior": "balanced"},
    {"k": 10, "max_distance": 0.8, "min_neighbours": 4, "metric": "l1"},
    {"k": 9, "regression": False},
    {"k": 9, "regression": True, "max_distance": 0.3},
]


def is_refused(label, options):
    """Whether options do not go with a column's labels."""
    averaged = options.get("regression", label in ("mean", "exact mean"))
    if averaged:
        limits = {"prior", "min_share", "min_margin"} & {*options}
        return bool(limits) or label in ("%s label", "tags", "numbers")
    return "prior" in options and label in ("tags", "numbers")


TYPES = {
    "%s label": "text",
    "number": "integer",
    "mean": "float8",
    "exact mean": "float8",
    "tags": "text[]",
    "numbers": "integer[]",
}


@pytest.mark.parametrize("label", TYPES)
def test_labels_of_rows_agree(doors, label):
    """A row does not vote for itself, and ties are decided by the type of the label."""
    for options in ANSWERS:
        named = "".join(f", {name} => :{name}" for name in options)
        sql = (
            f"knn_classify_many(:name, 'the vector; --', :label, ARRAY(SELECT {KEY} FROM {NAME} "
            f'ORDER BY "it\'s", "No %"), exact => true{named})'
        )
        parameters = {"name": NAME, "label": label, **options}
        if is_refused(label, options):
            with pytest.raises(DBAPIError) as caught:
                called(doors, sql, **parameters)
            assert caught.value.orig.sqlstate == "22023"
            doors[1].rollback()
            continue
        kind = "float8" if options.get("regression") else TYPES[label]
        columns = f"key, label::{kind}, share, votes, margin, nearest_distance, reason"
        rows = called(doors, sql, columns, **parameters)
        weights = {"weights": softmax(0.05)} if options.get("weights") == "softmax" else {}
        statement = knn_classify_many(
            VECTOR,
            queries=true(),
            label=TABLE.c[label],
            mode="exact",
            **{**options, **weights},
        )
        expected = [(keys_of(*row[:2]), *row[2:]) for row in doors[0].execute(statement)]
        assert rows == [near(row) for row in expected]
        assert len(rows) == ROWS
