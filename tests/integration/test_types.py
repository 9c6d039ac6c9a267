"""The vector type on the wire: both storages, every form of statement, distances as SQL."""

from __future__ import annotations

import enum
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    URL,
    Column,
    Connection,
    Engine,
    Enum,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import NullType

from pgembed.columns import VectorType
from pgembed.columns.psycopg_dumpers import register
from pgembed.columns.values import BinaryVector

table = Table(
    "t",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("v", VectorType(4)),
    Column("h", VectorType(4, "halfvec")),
)
# Numbers that have an exact form in 32 and in 16 bits.
SINGLE = st.integers(-(2**24), 2**24).map(lambda n: n / 2**10)
HALF = st.integers(-(2**11), 2**11).map(lambda n: n / 2**5)


@pytest.fixture(params=["psycopg", "psycopg2"])
def connection(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Connection]:
    other = create_engine(engine.url.set(drivername=f"postgresql+{request.param}"))
    with other.connect() as connection:
        table.create(connection)
        yield connection
    other.dispose()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(single=st.lists(SINGLE, min_size=4, max_size=4), half=st.lists(HALF, min_size=4, max_size=4))
def test_values_come_back_as_they_went(
    connection: Connection, single: list[float], half: list[float]
) -> None:
    connection.execute(table.delete())
    connection.execute(insert(table), [{"id": i, "v": single, "h": np.array(half)} for i in range(2)])
    for _, v, h in connection.execute(select(table)):
        assert np.array_equal(v, np.array(single, dtype=np.float32))
        assert np.array_equal(h, np.array(half, dtype=np.float32))
        assert (v.dtype, h.dtype) == (np.float32, np.float32)


def test_null_and_literals(connection: Connection) -> None:
    connection.execute(insert(table).values(id=1, v=None, h=[1, 2, 3, 4]))
    assert connection.execute(select(table.c.v)).scalar() is None
    statement = select(table.c.id).where(table.c.h == literal([1, 2, 3, 4], VectorType(4, "halfvec")))
    assert connection.scalar(statement) == 1
    printed = str(statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}))
    assert "'[1.0,2.0,3.0,4.0]'" in printed


def test_distances_are_those_of_numpy(connection: Connection) -> None:
    connection.execute(insert(table).values(id=1, v=[1, 2, 3, 4], h=[1, 2, 3, 4]))
    a, b = np.array([1, 2, 3, 4.0]), np.array([4, 3, 2, -1.0])
    for column in (table.c.v, table.c.h):
        row = connection.execute(
            select(column.cosine_distance(b), column.l2_distance(b), column.max_inner_product(b))
        ).one()
        cosine = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert row == pytest.approx((cosine, np.linalg.norm(a - b), -(a @ b)), abs=1e-6)


def test_copy_and_client_side_cursors(engine: Engine) -> None:
    table.create(engine)
    vector = BinaryVector(np.array([1, 2, 3, 4.5], dtype=np.float32), "vector")
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as connection:
        register(connection)
        connection.execute("INSERT INTO t (id, v) VALUES (1, %s)", [vector])
        with connection.cursor() as cursor, cursor.copy("COPY t (id, v) FROM STDIN") as copy:
            copy.write_row((2, vector))
        assert connection.execute("SELECT v FROM t").fetchall() == [("[1,2,3,4.5]",)] * 2


TYPES = "v vector(3), n vector, h halfvec(3), s sparsevec(3), b bit(3), vs vector(3)[]"


@pytest.mark.parametrize(
    ("imports", "names"),
    [
        ("import pgembed", "VectorType VectorType VectorType SPARSEVEC BIT ARRAY"),
        ("import pgembed, pgvector.sqlalchemy", "VECTOR VECTOR HALFVEC SPARSEVEC BIT ARRAY"),
        ("import pgvector.sqlalchemy, pgembed", "VECTOR VECTOR HALFVEC SPARSEVEC BIT ARRAY"),
        ("import pgembed.queries, pgvector.sqlalchemy", "VECTOR VECTOR HALFVEC SPARSEVEC BIT ARRAY"),
    ],
)
def test_reflection_knows_the_types(module_url: URL, imports: str, names: str) -> None:
    """In a process of its own, where a warning is an error; the second table is reflected as the first."""
    code = f"""
import warnings
from sqlalchemy import MetaData, create_engine, func, select, text
{imports}
warnings.simplefilter("error")
engine = create_engine({module_url.render_as_string(hide_password=False)!r})
with engine.connect() as connection:
    for name in ("one", "two"):
        connection.execute(text("CREATE TABLE " + name + " ({TYPES})"))
        connection.execute(text("INSERT INTO " + name + " (v) VALUES ('[1,2,3]')"))
    metadata = MetaData()
    metadata.reflect(connection)
    for name in ("one", "two"):
        table = metadata.tables[name]
        print(*(type(column.type).__name__ for column in table.c), sep=" ")
        shapes = [pgembed.columns.types.shape_of(column.type) for column in list(table.c)[:-1]]
        print(*shapes, list(connection.scalar(select(table.c.v))))
engine.dispose()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    shapes = "('vector', 3) ('vector', None) ('halfvec', 3) ('sparsevec', 3) ('bit', 3)"
    values = [float(n) for n in (1, 2, 3)] if "VECTOR" in names else list(np.array([1, 2, 3], np.float32))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [names, f"{shapes} {values}"] * 2


class Colour(enum.Enum):
    RED = 1


def test_arrays_and_functions_of_other_types_are_as_before(connection: Connection) -> None:
    values: list[tuple[Any, Any]] = [
        (ARRAY(Integer), [1, None]),
        (ARRAY(Text), ["[1,2]", "a"]),
        (postgresql.ARRAY(Integer, dimensions=2), [[1, 2], [3, 4]]),
        (ARRAY(Enum(Colour, native_enum=False)), [Colour.RED, None]),
    ]
    for kind, value in values:
        assert connection.scalar(select(literal(value, kind))) == value
        assert connection.scalar(select(func.array_agg(literal(value, kind)))) == [value]
    number = Column("n", Integer)
    assert isinstance(func.avg(number).type, NullType)
    assert func.avg(table.c.v, type_=Text()).type._type_affinity is String
    assert isinstance(func.unnest(literal([1], ARRAY(Integer))).type, NullType)
    assert isinstance(func.avg(table.c.h).type, VectorType)
    assert [str(func.AVG(number).label(None).element), str(func.lag(number, 2))] == [
        "avg(n)",
        "lag(n, :lag_1)",
    ]
    assert connection.scalar(select(func.avg(literal(2)))) == 2
