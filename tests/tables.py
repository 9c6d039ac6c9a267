"""The table that most tests need, with a text and its embedding, and plain statements on a database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, ForeignKey, Integer, Row, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from pgembed import Vector, embedding_column


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


def library(encoder: Any, *sources: str, **options: Any) -> tuple[Any, Any, Any]:
    """A base, authors, and their articles with an embedding of ``sources``.

    :param options: of the embedding column.
    """

    class Base(DeclarativeBase):
        pass

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        body: Mapped[str | None]
        section: Mapped[str | None]
        hidden: Mapped[bool] = mapped_column(default=False)
        author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
        embedding: Mapped[Vector | None] = embedding_column(*sources, encoder=encoder, **options)
        author: Mapped[Author | None] = relationship()

    return Base, Author, Article


def execute(engine: Engine, *statements: str) -> None:
    """One transaction."""
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def rows(engine: Engine, statement: str) -> list[Row[Any]]:
    with engine.connect() as connection:
        return list(connection.execute(text(statement)).all())
