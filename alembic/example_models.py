"""The models of the worked example."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgembed import HNSW, Vector, embedding_column
from pgembed.testing import HashEncoder

#: An encoder without weights, so that the example runs anywhere. Yours is Encoder("all-MiniLM-L6-v2").
encoder = HashEncoder(dimensions=16, name="example")


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str | None]
    embedding: Mapped[Vector | None] = embedding_column("title", "body", encoder=encoder, index=HNSW())
