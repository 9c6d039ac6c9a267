"""Fixtures of all tests: one Postgres server, and a database of its own for each test.

``PGEMBED_TEST_DSN`` names a server to use (a role that may create databases); without it the embedded server
is started once, on a temporary folder. Databases are copies of a template that has pgembed installed.
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.orm import DeclarativeBase, Session

from pgembed import Encoder
from pgembed.database import embedded, install
from pgembed.encoders import packaged
from pgembed.testing import HashEncoder

# In CI the examples are the same each time, and a slow machine is no failure.
hypothesis.settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands that run inside a test set up logging for their process, which the next test is in as well."""
    logger = logging.getLogger("pgembed")
    level, propagates, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate, logger.handlers = propagates, handlers


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A folder for an embedded server.

    Not pytest's own: run as root, the server has a user of its own, and every session of pytest takes away
    the right of others to enter its folder.
    """
    with tempfile.TemporaryDirectory(prefix="pgembed-") as folder:
        yield Path(folder) / "data"


@pytest.fixture(scope="session")
def server() -> Iterator[URL]:
    """The URL of the server's database for administration."""
    if dsn := os.environ.get("PGEMBED_TEST_DSN"):
        # Before Postgres 18, a plan without what enable_* forbids costs 1e10, and a server with LLVM compiles
        # each such statement for a second. The embedded server has none.
        os.environ.setdefault("PGOPTIONS", "-c jit=off")
        url = make_url(dsn)
        yield url if "+" in url.drivername else url.set(drivername="postgresql+psycopg")
        return
    version = os.environ.get("PGEMBED_TEST_POSTGRES")
    with (
        tempfile.TemporaryDirectory(prefix="pgembed-") as folder,
        embedded(Path(folder) / "data", postgres_version=int(version) if version else None) as url,
    ):
        _without_waiting_for_the_disk(url)
        yield url


def _without_waiting_for_the_disk(url: URL) -> None:
    """What is lost when the machine fails is no loss here. Tests that kill servers start their own."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()


@pytest.fixture(scope="session")
def admin(server: URL) -> Iterator[Engine]:
    """An engine that may create databases, in autocommit."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def template(server: URL, admin: Engine) -> Iterator[str]:
    """The name of the database that the tests' databases are copies of."""
    name = f"pgembed_template_{os.getpid()}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0"))
    engine = create_engine(server.set(database=name))
    with engine.begin() as connection:
        install(connection)
    engine.dispose()
    yield name
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _database(server: URL, admin: Engine, template: str) -> Iterator[URL]:
    name = f"pgembed_test_{os.getpid()}_{next(_numbers)}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE {template}"))
    yield server.set(database=name)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def url(server: URL, admin: Engine, template: str) -> Iterator[URL]:
    """A new database with pgembed installed."""
    yield from _database(server, admin, template)


@pytest.fixture
def empty_url(server: URL, admin: Engine) -> Iterator[URL]:
    """A new database with nothing in it, not even the extension."""
    yield from _database(server, admin, "template0")


@pytest.fixture(scope="module")
def module_url(server: URL, admin: Engine, template: str) -> Iterator[URL]:
    """A database with pgembed installed that the tests of a module share, to be read from."""
    yield from _database(server, admin, template)


@pytest.fixture
def engine(url: URL) -> Iterator[Engine]:
    """An engine on a new database with pgembed installed."""
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session on a new database with pgembed installed."""
    with Session(engine) as session:
        yield session


@pytest.fixture
def Base() -> Any:
    """A declarative base of the test's own."""

    class Base(DeclarativeBase):
        pass

    return Base


@pytest.fixture
def hash_encoder() -> HashEncoder:
    """An encoder of 8 dimensions without weights, which counts its calls."""
    return HashEncoder(8)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The folder of the real all-MiniLM-L6-v2, exported once per checkout."""
    return packaged("all-MiniLM-L6-v2", into=Path(__file__).parents[1] / ".encoders")


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Iterator[Encoder]:
    """The real all-MiniLM-L6-v2."""
    with Encoder(minilm_folder) as encoder:
        yield encoder
