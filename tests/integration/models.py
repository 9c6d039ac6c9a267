"""The model that the tests of filling share."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from sqlalchemy import Text, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import Vector, embedding_column
from pgembed.columns import bound
from pgembed.testing import HashEncoder


class Models:
    """One declarative base a test, so that encoders count their own calls."""

    def __init__(self, **options: Any) -> None:
        class Base(DeclarativeBase):
            pass

        class Article(Base):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str] = mapped_column(Text, unique=True)
            body: Mapped[str | None]
            views: Mapped[int] = mapped_column(default=0)
            embedding: Mapped[Vector | None] = embedding_column("title", "body", **options)
            embedding_digest: Mapped[uuid.UUID | None]

        self.base = Base
        self.article = Article
        self.encoder: HashEncoder = options["encoder"]
        embedding = bound(Article.__table__.c.embedding)
        assert embedding is not None
        self.embedding = embedding

    def check(self, session: Session) -> None:
        """Every row is fresh, and its vector is that of its text, encoded again."""
        calls = len(self.encoder.calls)
        rows = session.execute(
            select(self.article.title, self.article.body, self.article.embedding, self.embedding.pending())
        )
        for title, body, vector, pending in rows:
            words = self.embedding.declaration.compose((title, body))
            assert not pending
            if words:
                assert np.array_equal(vector, self.encoder.encode_documents([words])[0])
            else:
                assert vector is None
        del self.encoder.calls[calls:]

    def pending(self, session: Session) -> int:
        return session.scalar(select(func.count()).where(self.embedding.pending())) or 0
