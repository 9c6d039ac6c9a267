"""The table that most tests need, with a text and its embedding, and plain statements on a database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, Integer, Row, Text, text
from sqlalchemy.orm import DeclarativeBase, mapped_column

from pgembed import embedding_column


def model(
    encoder: Any, *, table: str = "article", source: str = "title", vector: str = "embedding", **options: Any
) -> Any:
    """A mapped class with ``id``, a text and its embedding, on a base of its own.

    :param options: of the embedding column.
    """

    class Base(DeclarativeBase):
        pass

    columns = {
        "id": mapped_column(Integer, primary_key=True),
        source: mapped_column(Text),
        vector: embedding_column(source, encoder=encoder, **options),
    }
    return type(table.capitalize(), (Base,), {"__tablename__": table, **columns})


def execute(engine: Engine, *statements: str) -> None:
    """One transaction."""
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def rows(engine: Engine, statement: str) -> list[Row[Any]]:
    with engine.connect() as connection:
        return list(connection.execute(text(statement)).all())
