"""A database with somebody in it whom nobody trusts, and what her tables try."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from pgembed.testing import HashEncoder

#: What her function does where it can, without a word where it cannot.
_REACH = """
CREATE OR REPLACE FUNCTION {schema}.reach() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    ALTER ROLE {schema} SUPERUSER;
EXCEPTION WHEN OTHERS THEN NULL;
END
$$
"""
#: It counts as immutable, as what stands in an index must, and so it runs when a query is planned.
_GRASP = """
CREATE OR REPLACE FUNCTION {schema}.grasp() RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    {act};
    RETURN true;
END
$$
"""
_TABLE = """
CREATE TABLE {schema}.{table} (
    id int PRIMARY KEY, title text, embedding {vector}, embedding_digest uuid
)
"""


def facts(**changes: Any) -> dict[str, Any]:
    """A registration as create_all writes it."""
    encoder = HashEncoder(3)
    return {
        "pgembed": 1,
        "column": "embedding",
        "digest": "embedding_digest",
        "sources": ["title"],
        "template": None,
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "dimensions": 3,
        "metric": "cosine",
        "fill": "worker",
    } | changes


@dataclass
class Mallory:
    """A role that may make tables in a schema of her own, and was granted nothing of pgembed.

    :ivar owner: an engine of the superuser who runs status and workers.
    """

    name: str
    owner: Engine
    engine: Engine

    @property
    def schema(self) -> str:
        return self.name

    def execute(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def is_superuser(self) -> bool:
        with self.owner.connect() as connection:
            asked = text("SELECT rolsuper FROM pg_roles WHERE rolname = :name")
            return bool(connection.scalar(asked, {"name": self.name}))

    def lay_trap(self, table: str = "trap", **changes: Any) -> None:
        """A table with rows and a registered index, whose predicate and trigger call her function."""
        named = f"{self.schema}.{table}"
        self.execute(
            _TABLE.format(schema=self.schema, table=table, vector="public.vector(3)"),
            f"INSERT INTO {named} VALUES (1, 'a'), (2, 'b')",
            _GRASP.format(schema=self.schema, act="NULL"),
            f"CREATE INDEX {table}_pending ON {named} (id) WHERE {self.schema}.grasp() AND title IS NOT NULL",
            f"COMMENT ON INDEX {self.schema}.{table}_pending IS $${json.dumps(facts(**changes))}$$",
            _REACH.format(schema=self.schema),
            _GRASP.format(schema=self.schema, act=f"PERFORM {self.schema}.reach()"),
            f"CREATE FUNCTION {self.schema}.{table}_trigger() RETURNS trigger LANGUAGE plpgsql AS "
            f"'BEGIN PERFORM {self.schema}.grasp(); RETURN NEW; END'",
            f"CREATE TRIGGER grasp BEFORE UPDATE ON {named} FOR EACH ROW "
            f"EXECUTE FUNCTION {self.schema}.{table}_trigger()",
        )


def role_on(owner: Engine, admin: Engine, prefix: str) -> Iterator[tuple[str, Engine]]:
    """A role with a schema of its name, and an engine whose sessions are its own; both go afterwards."""
    name = f"{prefix}_{uuid.uuid4().hex[:8]}"
    with owner.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN")
        connection.exec_driver_sql(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
    engine = create_engine(owner.url)

    @event.listens_for(engine, "connect")
    def _become(raw: Any, _record: Any) -> None:
        with raw.cursor() as cursor:
            cursor.execute(f"SET SESSION AUTHORIZATION {name}")
        raw.commit()

    yield name, engine
    engine.dispose()
    with owner.begin() as connection:
        connection.exec_driver_sql(f"REASSIGN OWNED BY {name} TO CURRENT_USER")
        connection.exec_driver_sql(f"DROP OWNED BY {name}")
    owner.dispose()
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP ROLE {name}")


@pytest.fixture
def mallory(engine: Engine, admin: Engine) -> Iterator[Mallory]:
    for name, own in role_on(engine, admin, "mallory"):
        yield Mallory(name, engine, own)


@pytest.fixture
def app(engine: Engine, admin: Engine) -> Iterator[Mallory]:
    """Another such role, of an application, whom one may come to trust."""
    for name, own in role_on(engine, admin, "app"):
        yield Mallory(name, engine, own)


def problems(connection: Connection) -> dict[str, str | None]:
    rows = connection.execute(text("SELECT relation::text AS relation, problem FROM pgembed.status"))
    return {row.relation: row.problem for row in rows}
