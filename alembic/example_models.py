"""The models of the worked example."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgembed import HNSW, Vector, embedding_column
from pgembed.testing import HashEncoder

#: An encoder without weights, so that the example runs anywhere. Yours is Encoder("all-MiniLM-L6-v2").
#: Revisions 0002 and 0003 are those of HashEncoder(16, "example"), whose place it has taken in 0004 to 0006.
encoder = HashEncoder(dimensions=24, name="example-2")


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str | None]
    # Between 0004 and 0006 with replaces="embedding".
    embedding: Mapped[Vector | None] = embedding_column(
        "title", "body", encoder=encoder, index=HNSW(), name="embedding_2"
    )
