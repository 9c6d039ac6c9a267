"""Models that worker processes import, with an encoder that does as the environment says."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgembed import HNSW, Vector, embedding_column
from pgembed.columns import Array
from pgembed.parts import Part, embedding_parts
from pgembed.testing import HashEncoder

#: What commands are told to import.
MODELS = "tests.acceptance.filling.models:Base"
LONG_MODELS = "tests.acceptance.filling.models:LongBase"


class ProcessEncoder(HashEncoder):
    """Takes ``ENCODER_SECONDS`` per batch, refuses poison, and logs its texts to the file ``ENCODER_LOG``."""

    def encode_documents(self, texts: Sequence[str]) -> Array:
        time.sleep(float(os.environ.get("ENCODER_SECONDS", "0")))
        if any("poison" in text for text in texts):
            raise RuntimeError("poison")
        vectors = super().encode_documents(texts)
        if log := os.environ.get("ENCODER_LOG"):
            with open(log, "a") as file:
                file.writelines(f"{text}\n" for text in texts)
        return vectors


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    body: Mapped[str | None]
    embedding: Mapped[Vector | None] = embedding_column(
        "title", "body", encoder=ProcessEncoder(32), index=HNSW(build="immediate"), fill="worker"
    )


class LongBase(DeclarativeBase):
    pass


class LongArticle(LongBase):
    __tablename__ = "long_article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    body: Mapped[str | None]
    parts: Mapped[list[Part]] = embedding_parts(
        "body",
        context="title",
        encoder=ProcessEncoder(16, max_tokens=24),
        index=HNSW(build="immediate"),
    )
