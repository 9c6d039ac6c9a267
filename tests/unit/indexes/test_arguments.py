"""What functions on indexes say of arguments of the wrong kind, before any database is asked."""

from __future__ import annotations

import pytest
from sqlalchemy import Integer, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from pgembed import HNSW, Vector, database, embedding_column, indexes, measuring
from pgembed.exc import DeclarationError
from pgembed.testing import HashEncoder

#: Connects to nothing.
ENGINE = create_engine("postgresql+psycopg://nobody@localhost:1/nothing")


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    embedding: Mapped[Vector | None] = embedding_column("name", encoder=HashEncoder(8), index=HNSW())
    same: Mapped[list[Product]] = relationship(
        primaryjoin="foreign(Product.name) == remote(Product.name)", viewonly=True
    )


ON_CONNECTIONS = {
    "create": lambda given, target: indexes.create(given, target),
    "plan": lambda given, target: indexes.plan(given, target),
    "is_built": lambda given, target: indexes.is_built(given, target),
    "check": lambda given, target: indexes.check(given, target),
    "recall": lambda given, target: measuring.recall(given, target),
    "sweep": lambda given, target: measuring.sweep(given, target),
    "tune": lambda given, target: measuring.tune(given, target),
    "explain": lambda given, target: indexes.explain(given, "SELECT 1"),
    "install": lambda given, target: database.install(given),
    "check_server": lambda given, target: database.check_server(given),
    "ensure_extension": lambda given, target: database.ensure_extension(given),
}
ON_ENGINES = {
    "create_concurrently": indexes.create_concurrently,
    "reindex": indexes.reindex,
    "drop": indexes.drop,
}


@pytest.mark.parametrize("name", ON_CONNECTIONS)
def test_a_connection_is_needed(name):
    ways = {
        ENGINE: r"expected a Connection, got Engine\(.*: with engine.begin\(\) as connection",
        Session(ENGINE): r"expected a Connection, got .*: session.connection\(\)",
        create_async_engine(ENGINE.url): "expected a Connection, got .*: await connection.run_sync",
        "postgresql://": "expected a Connection, got 'postgresql://'",
    }
    for given, message in ways.items():
        with pytest.raises(DeclarationError, match=message):
            ON_CONNECTIONS[name](given, Product.embedding)


@pytest.mark.parametrize("name", ON_ENGINES)
def test_an_engine_is_needed(name):
    for given in (Session(ENGINE), "postgresql://"):
        with pytest.raises(DeclarationError, match=r"expected an Engine, .* got .*is connection\.engine"):
            ON_ENGINES[name](given, Product.embedding)


@pytest.mark.parametrize(
    "target",
    ["Product.embedding", Product, Product.__table__, Product.same, Product.embedding == None, Integer(), 1],  # noqa: E711
)
def test_an_index_or_a_column_is_needed(target):
    with pytest.raises(
        DeclarationError, match=r"expected an index, or the column that it is declared on .* got"
    ):
        indexes.drop(ENGINE, target)


def test_of_a_column_without_an_index():
    with pytest.raises(DeclarationError, match=r"no vector index is declared on product\.name"):
        indexes.drop(ENGINE, Product.name)
