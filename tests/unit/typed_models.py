"""What type checkers see of vectors in models: checked by ``mypy`` together with the package, never run."""

from __future__ import annotations

from typing import assert_type

import numpy as np
from pydantic import BaseModel
from sqlalchemy import ARRAY, select
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column
from sqlmodel import Field, SQLModel

from pgembed import HNSW, Part, Vector, embedding_column, embedding_parts
from pgembed.columns import Array, VectorType
from pgembed.testing import HashEncoder

ENCODER = HashEncoder(3)


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str]
    vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW())
    own: Mapped[Vector] = mapped_column(VectorType(3))
    half: Mapped[Vector | None] = mapped_column(VectorType(3, "halfvec"))
    many: Mapped[list[Vector]] = mapped_column(ARRAY(VectorType(3)))
    parts: Mapped[list[Part]] = embedding_parts("words", encoder=ENCODER, index=HNSW())


class DataBase(MappedAsDataclass, DeclarativeBase):
    pass


class Data(DataBase):
    __tablename__ = "data"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    words: Mapped[str]
    vec: Mapped[Vector | None] = embedding_column(
        "words", encoder=ENCODER, init=False, repr=False, compare=False
    )


class Note(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    words: str
    vec: Vector | None = Field(
        default=None,
        exclude=True,
        repr=False,
        sa_column=embedding_column("words", encoder=ENCODER, name="vec").column,
    )


class Answer(BaseModel):
    vec: Vector
    other: Vector | None = None


def attributes(article: Article, note: Note, answer: Answer, data: Data) -> None:
    assert_type(article.vec, Array | None)
    assert_type(article.own, Array)
    assert_type(article.many, list[Array])
    assert_type(note.vec, Array | None)
    assert_type(answer.vec, Array)
    assert_type(data.vec, Array | None)
    article.vec = note.vec = np.zeros(3, dtype=np.float32)
    article.half = None


def constructed() -> None:
    Data(words="some")
    Note(words="some", vec=np.zeros(3, dtype=np.float32))
    Answer(vec=np.zeros(3, dtype=np.float32))


def loaded(session: Session) -> None:
    row = session.execute(select(Article.id, Article.vec)).one()
    assert_type(row[1], Array | None)
    assert_type(session.scalars(select(Article.own)).one(), Array)
