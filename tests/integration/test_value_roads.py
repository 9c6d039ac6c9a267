"""Every value by every road: drivers, with pgvector's own adapters on the connection or not, in and out."""

from __future__ import annotations

import asyncio
import copy
import importlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    ARRAY,
    URL,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    any_,
    case,
    cast,
    create_engine,
    event,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from pgembed import Vector
from pgembed.columns import VectorType


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    v: Mapped[Vector | None] = mapped_column(Vector(3))
    h: Mapped[Any] = mapped_column(VectorType(3, "halfvec"), nullable=True)
    vs: Mapped[Any] = mapped_column(postgresql.ARRAY(Vector(3)), nullable=True)
    hs: Mapped[Any] = mapped_column(ARRAY(VectorType(3, "halfvec")), nullable=True)
    theirs: Mapped[Any] = mapped_column(VECTOR(3), nullable=True)


ITEM = Item.__table__
A, B, C = [1.0, 2.5, -3.0], [0.0, 0.5, 4.0], [1e-7, -0.25, 2.0]


class BinaryCursor(psycopg.Cursor[Any]):
    """Results come in Postgres's binary format."""

    format = psycopg.pq.Format.BINARY


#: Driver, options of the connection, and whether pgvector's own adapters are registered.
ROADS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "psycopg": ("psycopg", {}, False),
    "psycopg, adapters": ("psycopg", {}, True),
    "psycopg, binary": ("psycopg", {"cursor_factory": BinaryCursor}, False),
    "psycopg, client-side": ("psycopg", {"cursor_factory": psycopg.ClientCursor}, False),
    "psycopg2": ("psycopg2", {}, False),
    "psycopg2, adapters": ("psycopg2", {}, True),
    "psycopg_async": ("psycopg_async", {}, False),
    "psycopg_async, adapters": ("psycopg_async", {}, True),
    "asyncpg": ("asyncpg", {}, False),
    "asyncpg, adapters": ("asyncpg", {}, True),
}


class Road:
    """Runs functions of a connection over one driver."""

    def __init__(self, url: URL, driver: str, options: dict[str, Any], adapters: bool) -> None:
        self.driver = driver
        self.url = url.set(drivername=f"postgresql+{driver}")
        if driver == "asyncpg" and not url.host:
            self.url = self.url.set(host=str(url.query["host"])).set(query={})
        self.options = options
        self.adapters = adapters

    def run(self, function: Callable[[Connection], Any]) -> Any:
        """The result of ``function`` in a transaction that is rolled back."""
        if self.driver in ("asyncpg", "psycopg_async"):
            return asyncio.run(self._run_async(function))
        engine = create_engine(self.url, connect_args=self.options, poolclass=NullPool)
        self._register(engine)
        with engine.connect() as connection:
            return function(connection)

    async def _run_async(self, function: Callable[[Connection], Any]) -> Any:
        engine = create_async_engine(self.url, poolclass=NullPool)
        self._register(engine.sync_engine)
        async with engine.connect() as connection:
            return await connection.run_sync(function)

    def _register(self, engine: Engine) -> None:
        if not self.adapters:
            return

        @event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: Any) -> None:
            module = importlib.import_module(f"pgvector.{self.driver.removesuffix('_async')}")
            if self.driver == "asyncpg":
                connection.run_async(module.register_vector)
            elif self.driver == "psycopg_async":
                connection.run_async(module.register_vector_async)
            else:
                module.register_vector(connection)


@pytest.fixture(scope="module")
def items(module_url: URL) -> URL:
    engine = create_engine(module_url)
    Base.metadata.create_all(engine)
    engine.dispose()
    return module_url


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, items: URL) -> Road:
    return Road(items, *ROADS[request.param])


def same(found: Any, expected: Any) -> bool:
    """Nested lists of the same vectors, all of them read-only float32 arrays."""
    if expected is None or found is None:
        return found is expected
    if isinstance(expected, list) and (not expected or not isinstance(expected[0], float)):
        return isinstance(found, list) and len(found) == len(expected) and all(map(same, found, expected))
    assert isinstance(found, np.ndarray), found
    return (
        found.dtype == np.float32
        and found.dtype.isnative
        and not found.flags.writeable
        and np.array_equal(found, np.array(expected, dtype=np.float32))
    )


ROWS = [
    {"id": 1, "v": A, "h": B, "vs": [A, B], "hs": [B]},
    {"id": 2, "v": np.array(B, dtype=">f8"), "h": tuple(A), "vs": [A, None], "hs": [None]},
    {"id": 3, "v": "[1,2.5,-3]", "h": None, "vs": np.array([A, C]), "hs": []},
    {"id": 4, "v": None, "h": np.array(A, dtype=np.float16), "vs": None, "hs": None},
]
STORED = [
    [A, B, [A, B], [B]],
    [B, A, [A, None], [None]],
    [A, None, [A, C], []],
    [None, A, None, None],
]


def _in(connection: Connection) -> None:
    connection.execute(insert(ITEM), ROWS)


def _ways_in(connection: Connection) -> list[str]:
    """Write the same rows in every way; the ways whose rows come back as others."""
    dialect: Any = connection.dialect
    session = Session(connection)
    literally: dict[str, Any] = {"compile_kwargs": {"literal_binds": True}}
    ways: dict[str, Callable[[], Any]] = {
        "executemany": lambda: connection.execute(insert(ITEM), ROWS),
        "one by one": lambda: [connection.execute(insert(ITEM).values(**row)) for row in ROWS],
        "rows of values": lambda: connection.execute(insert(ITEM).values(ROWS)),
        "literal binds": lambda: [
            connection.exec_driver_sql(str(insert(ITEM).values(**row).compile(dialect=dialect, **literally)))
            for row in ROWS
        ],
        "objects": lambda: (session.add_all(Item(**row) for row in ROWS), session.flush()),
        "bulk": lambda: session.execute(insert(Item), ROWS),
        "update": lambda: (
            connection.execute(insert(ITEM), [{"id": row["id"]} for row in ROWS]),
            [connection.execute(update(ITEM).where(ITEM.c.id == row["id"]).values(**row)) for row in ROWS],
        ),
    }
    wrong = []
    for way, write in ways.items():
        session.expunge_all()
        connection.execute(ITEM.delete())
        write()
        rows = connection.execute(select(ITEM).order_by(ITEM.c.id)).all()
        if not same([list(row[1:5]) for row in rows], STORED):
            wrong.append(way)
    return wrong


def test_rows_are_stored_alike_by_every_statement(road: Road) -> None:
    assert road.run(_ways_in) == []


def _out(connection: Connection) -> dict[str, Any]:
    """Expressions and what they give."""
    _in(connection)
    v, h, vs = Item.v, Item.h, Item.vs
    one = select(Item).where(Item.id == 1).subquery()
    expressions: dict[str, Any] = {
        "label": select(v.label("x")).order_by(Item.id).limit(1),
        "subquery": select(one.c.v),
        "avg": select(func.avg(v)).where(Item.id < 3),
        "avg of halves": select(func.avg(h)).where(Item.id < 3),
        "sum": select(func.sum(v)).where(Item.id < 3),
        "avg of none": select(func.avg(v)).where(Item.id == 4),
        "array_agg": select(func.array_agg(postgresql.aggregate_order_by(v, Item.id))),
        "filtered": select(func.array_agg(h).filter(Item.id == 1)),
        "array": select(postgresql.array([v, v])).where(Item.id == 1),
        "nested": select(cast([[A, B], [B, A]], ARRAY(Vector(3), dimensions=2))),
        "element": select(vs[2]).where(Item.id == 1),
        "slice": select(vs[1:1]).where(Item.id == 1),
        "unnest": select(func.unnest(vs)).where(Item.id == 2),
        "window": select(func.first_value(v).over(order_by=Item.id)),
        "subvector": select(func.subvector(v, 2, 2)).where(Item.id == 1),
        "normalised": select(func.l2_normalize(literal([3.0, 0.0, 4.0], Vector(3)))),
        "plus": select(v + B).where(Item.id == 1),
        "concatenated": select(v.concat([7.0])).where(Item.id == 1),
        "case": select(case((Item.id == 1, v), else_=literal(B, Vector(3)))).order_by(Item.id).limit(1),
        "coalesce": select(func.coalesce(v, literal(C, Vector(3)))).where(Item.id == 4),
        "returning": insert(ITEM).values(id=9, v=C).returning(ITEM.c.v),
        "streamed": select(v).order_by(Item.id).execution_options(stream_results=True),
        "many": select(func.array_agg(v)).select_from(func.generate_series(1, 300)).where(Item.id == 1),
    }
    return {name: connection.scalar(statement) for name, statement in expressions.items()}


OUT: dict[str, Any] = {
    "label": A,
    "subquery": A,
    "avg": [0.5, 1.5, 0.5],
    "avg of halves": [0.5, 1.5, 0.5],
    "sum": [1.0, 3.0, 1.0],
    "avg of none": None,
    "array_agg": [A, B, A, None],
    "filtered": [B],
    "array": [A, A],
    "nested": [[A, B], [B, A]],
    "element": B,
    "slice": [A],
    "unnest": A,
    "window": A,
    "subvector": [2.5, -3.0],
    "normalised": [0.6, 0.0, 0.8],
    "plus": [1.0, 3.0, 1.0],
    "concatenated": [*A, 7.0],
    "case": A,
    "coalesce": C,
    "returning": C,
    "streamed": A,
    "many": [A] * 300,
}


def test_expressions_give_arrays(road: Road) -> None:
    found = road.run(_out)
    assert {name for name, value in found.items() if not same(value, OUT[name])} == set()


def test_comparisons_find_the_rows_and_distances_are_floats(road: Road) -> None:
    def compare(connection: Connection) -> None:
        _in(connection)
        conditions = [
            (Item.v == A, [1, 3]),
            (Item.v != np.array(A), [2]),
            (Item.v.in_([A, np.array(B)]), [1, 2, 3]),
            (Item.v.is_(None), [4]),
            (Item.v > B, [1, 3]),
            (Item.h == B, [1]),
            (Item.vs == [A, B], [1]),
            (Item.vs.contains([np.array(C)]), [3]),
            (literal(B, Vector(3)) == any_(Item.vs), [1]),
            (Item.v.l2_distance(A) < 1, [1, 3]),
        ]
        for condition, ids in conditions:
            assert connection.scalars(select(Item.id).where(condition).order_by(Item.id)).all() == ids
        distance = connection.scalar(select(Item.v.l2_distance(B)).where(Item.id == 1))
        assert isinstance(distance, float)
        assert distance == pytest.approx(np.linalg.norm(np.array(A) - B))

    road.run(compare)


#: On asyncpg, pgvector's own column sends a text, which pgvector's own codec refuses.
@pytest.mark.parametrize("name", sorted(ROADS.keys() - {"asyncpg, adapters"}))
def test_columns_of_pgvector_stand_beside_ours(items: URL, name: str) -> None:
    def both(connection: Connection) -> None:
        with Session(connection) as session:
            session.add(Item(id=1, v=A, theirs=B))
            session.flush()
            session.expire_all()
            item = session.get_one(Item, 1)
            assert same(item.v, A)
            assert list(item.theirs) == B

    Road(items, *ROADS[name]).run(both)


def test_objects_are_compared_changed_and_copied(road: Road) -> None:
    def change(connection: Connection) -> None:
        with Session(connection, expire_on_commit=False) as session:
            session.add(Item(id=1, v=A, vs=[A, B]))
            session.flush()
            session.expire_all()
            item = session.get_one(Item, 1)
            item.v, item.vs = np.array(A), [np.array(A), B]
            assert not session.is_modified(item)
            item.vs = [A, None]
            assert session.is_modified(item)
            session.flush()
            session.refresh(item)
            assert same(item.vs, [A, None])
            row = session.execute(select(Item.v, Item.vs)).one()
            for copied in (pickle.loads(pickle.dumps(tuple(row))), copy.deepcopy(tuple(row))):
                assert np.array_equal(copied[0], row[0])
            with pytest.raises(ValueError, match="read-only"):
                row[0][0] = 1

    road.run(change)


@pytest.mark.parametrize(
    ("column", "value"),
    [("v", [1, 2]), ("v", [1, 2, np.inf]), ("h", [1, 2, 70000]), ("h", [1, 2, -65520.0]), ("vs", [A, [1]])],
)
def test_what_a_column_cannot_hold_is_refused_before_it_is_sent(items: URL, column: str, value: Any) -> None:
    def write(connection: Connection) -> None:
        with pytest.raises(ValueError, match="the vector h"):
            connection.execute(insert(ITEM).values(**{column: value}))

    Road(items, "psycopg", {}, False).run(write)


def test_connections_that_were_open_before(items: URL) -> None:
    """A program may have opened its engine before it imports pgembed."""
    code = f"""
from sqlalchemy import create_engine, literal, select
engine = create_engine({items.render_as_string(hide_password=False)!r}, pool_size=1)
engine.connect().close()
from pgembed import Vector
with engine.connect() as connection:
    print(connection.scalar(select(literal([1, 2.5], Vector(2)))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1.  2.5]\n"


def test_a_table_of_arrays_alone_brings_the_extension(empty_url: URL) -> None:
    engine = create_engine(empty_url)
    table = Table("only", MetaData(), Column("id", Integer), Column("vs", ARRAY(Vector(3))))
    table.create(engine)
    with engine.connect() as connection:
        assert connection.scalar(select(func.to_regtype("vector").is_not(None)))
    engine.dispose()
