"""Tables of clustered vectors, in a database of their own for each module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from sqlalchemy import URL, Column, Engine, Index, Integer, MetaData, Table, create_engine, insert

from pgembed.columns.types import VectorType

DIMENSIONS = 32


def clustered(rows: int, dimensions: int = DIMENSIONS, seed: int = 0) -> np.ndarray:
    """Vectors around twenty centres, all different."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(20, dimensions))
    return (centres[random.integers(0, 20, rows)] + 0.6 * random.normal(size=(rows, dimensions))).astype(
        np.float32
    )


@pytest.fixture
def engine(module_url: URL) -> Iterator[Engine]:
    """An engine of its own for each test, on the database of the module, without the tables of others."""
    engine = create_engine(module_url)
    with engine.begin() as connection:
        connection.exec_driver_sql('DROP TABLE IF EXISTS "Item", unbuilt')
    yield engine
    engine.dispose()


@pytest.fixture
def fill(engine: Engine) -> Callable[..., Table]:
    """``fill(index, rows)``: a table with that index declared, and with that many rows."""
    return partial(fill_table, engine)


def fill_table(
    engine: Engine, *indexes: Index, rows: int = 3000, dimensions: int = DIMENSIONS, name: str = "Item"
) -> Table:
    """A new table with its rows, and indexes that are declared and not built."""
    columns = Column("id", Integer, primary_key=True), Column("vector", VectorType(dimensions))
    table = Table(name, MetaData(), *columns, *indexes)
    with engine.begin() as connection:
        table.create(connection)
        values = [{"id": key, "vector": vector} for key, vector in enumerate(clustered(rows, dimensions))]
        if values:
            connection.execute(insert(table), values)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f'ANALYZE "{name}"')
    return table
