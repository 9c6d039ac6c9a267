"""A table to fill, and encoders that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, Text, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgembed import Vector, embedding_column
from pgembed.columns import EmbeddingColumn, bound
from pgembed.filling.cycle import Settings
from pgembed.filling.targets import Target, target_of
from pgembed.testing import HashEncoder

#: Without the pauses of a long-running worker.
FAST = Settings(poll=0.02, patience=5)


class Picky(HashEncoder):
    """Refuses batches with the word *poison*, and others on request; counts what it was given."""

    def __init__(self, refuses: Callable[[list[str]], bool] = lambda texts: False, **options: Any) -> None:
        super().__init__(**options)
        self.refuses = refuses

    def encode_documents(self, texts: Any) -> Any:
        if any("poison" in text for text in texts) or self.refuses(list(texts)):
            self.calls.append(tuple(texts))
            raise RuntimeError(f"cannot encode these {len(texts)}")
        return super().encode_documents(texts)

    def times(self, text: str) -> int:
        """How many times a text was encoded or refused."""
        return sum(call.count(text) for call in self.calls)


class Articles:
    """A table ``article`` with an embedding, and what tests ask about it."""

    def __init__(
        self, engine: Engine, encoder: HashEncoder, sources: tuple[str, ...] = ("title",), **options: Any
    ) -> None:
        class Base(DeclarativeBase):
            pass

        class Article(Base):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str | None] = mapped_column(Text)
            body: Mapped[str | None] = mapped_column(Text)
            touched: Mapped[int | None] = mapped_column(onupdate=1)
            embedding: Mapped[Vector | None] = embedding_column(*sources, encoder=encoder, **options)

        Base.metadata.create_all(engine)
        self.base, self.model, self.engine, self.encoder = Base, Article, engine, encoder
        found = bound(Article.__table__.c.embedding)
        assert found is not None
        self.embedding: EmbeddingColumn = found

    @property
    def target(self) -> Target:
        with self.engine.begin() as connection:
            return target_of(connection, self.embedding)

    def insert(self, *titles: str | None) -> None:
        """Rows as a client without pgembed writes them; ids count from 1."""
        with self.engine.begin() as connection:
            connection.execute(insert(self.model.__table__), [{"title": title} for title in titles])

    def pending(self) -> set[int]:
        with self.engine.connect() as connection:
            return set(connection.scalars(select(self.model.id).where(self.embedding.pending())))

    def check(self) -> None:
        """Every row that is not pending has the vector of its text, encoded again; no text, no vector."""
        fresh = HashEncoder(self.encoder.dimensions, self.encoder.name)
        columns = (self.model.title, self.embedding.vector, self.embedding.digest)
        with self.engine.connect() as connection:
            rows = connection.execute(select(*columns).where(~self.embedding.pending())).all()
        bodies = [None] * (len(self.embedding.sources) - 1)
        for title, vector, digest in rows:
            assert digest == self.embedding.declaration.digest((title, *bodies))
            if title:
                assert vector.tolist() == fresh.encode_documents([title])[0].tolist()
            else:
                assert vector is None

    def count(self) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(self.model.__table__)) or 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that stay locked are given up at once, not after two seconds."""
    monkeypatch.setattr("pgembed.filling.writes._RETRIES", (0.01, 0.01, 0.01))


@pytest.fixture
def articles(engine: Engine) -> Articles:
    return Articles(engine, Picky())
