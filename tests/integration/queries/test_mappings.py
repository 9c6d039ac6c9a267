"""Searches over inheritance, other drivers, and tables whose schema is decided at execution."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column
from sqlmodel import Field, SQLModel, col
from sqlmodel import Session as ModelSession

from pgembed import HNSW, Vector, embedding_column
from pgembed.columns.types import VectorType
from pgembed.queries import duplicate_groups, hybrid_search, knn_classify, near_duplicates, semantic_search
from pgembed.testing import HashEncoder


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    embedding: Mapped[Vector | None] = embedding_column("name", encoder=HashEncoder(16), index=HNSW())
    __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "item"}


class Book(Item):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
    pages: Mapped[int]
    __mapper_args__: ClassVar = {"polymorphic_identity": "book"}


class Gift(Item):
    __mapper_args__: ClassVar = {"polymorphic_identity": "gift"}


class Remark(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    words: str
    embedding: Vector | None = Field(
        default=None, sa_column=embedding_column("words", encoder=HashEncoder(16)).column
    )


def test_sqlmodel(engine):
    """Its text columns are TypeDecorators, and its session executes by exec()."""
    SQLModel.metadata.create_all(engine, [Remark.__table__])
    with ModelSession(engine) as session:
        session.add_all(Remark(words=f"thing {n} of many") for n in range(9))
        session.commit()
        note, distance, score = session.exec(
            semantic_search(col(Remark.embedding), "thing 5 of many")
        ).first()
        assert (note.words, distance, score) == ("thing 5 of many", pytest.approx(0), pytest.approx(1))
        found = session.exec(hybrid_search(col(Remark.embedding), "thing 5", text=[Remark.words])).all()
        assert (found[0].Remark.words, found[0].text_rank) == ("thing 5 of many", 1)
        label = session.exec(
            knn_classify(col(Remark.embedding), "thing 5", label=col(Remark.words), k=1)
        ).one()
        assert label.votes == 1


@pytest.fixture
def shop(engine):
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for n in range(60):
            name = f"thing {n % 20}"
            kinds = [Item(name=name), Gift(name=name), Book(name=name, pages=n)]
            session.add(kinds[n % 3])
        session.commit()
        yield session


@pytest.mark.parametrize("mode", ["approximate", "exact"])
def test_a_subclass_is_searched_alone(shop, mode):
    for cls in (Item, Book, Gift):
        for entity in (cls, aliased(cls)):
            rows = shop.execute(semantic_search(entity.embedding, "thing 5", limit=60, mode=mode)).all()
            assert len(rows) == (60 if cls is Item else 20)
            assert all(isinstance(row[0], cls) for row in rows)
            assert rows[0][0].name == "thing 5"
    books = semantic_search(Book.embedding, "thing 5", where=Book.pages < 10, mode=mode)
    assert {row.Book.pages for row in shop.execute(books)} == {2, 5, 8}


def test_rows_of_a_hierarchy_as_queries(shop):
    book = shop.query(Book).first()
    for entity in (Item, Book):
        rows = shop.execute(semantic_search(entity.embedding, book, limit=60)).all()
        assert len(rows) == (59 if entity is Item else 19)
        assert book.id not in {row[0].id for row in rows}


def test_siblings_that_share_the_column_are_queries_of_each_other(shop):
    """A row of one class asks for rows of another one, whose vectors stand in the same column."""
    gift, book = (shop.query(cls).filter_by(name="thing 4").first() for cls in (Gift, Book))
    for entity, row in ((Gift, book), (Book, gift), (aliased(Gift), book)):
        rows = shop.execute(semantic_search(entity.embedding, row, limit=3)).all()
        assert rows[0][0].name == row.name
        assert row.id not in {found.id for found, *_ in rows}


def test_duplicates_and_labels_of_a_subclass(shop):
    pairs = shop.execute(near_duplicates(Book.embedding, min_score=0.99)).all()
    books = {book.id: book.name for book in shop.query(Book)}
    assert all(books[row.left_key] == books[row.right_key] for row in pairs)
    groups = shop.execute(duplicate_groups(Item.embedding, min_score=0.99)).all()
    assert len(groups) == 60
    assert max(row.group_id for row in groups) == 20
    rows = shop.execute(knn_classify(Item.embedding, "thing 5", label=Item.kind, k=3)).all()
    assert sorted(row.label for row in rows) == ["book", "gift", "item"]


def test_a_schema_that_is_decided_at_execution(engine):
    table = Table(
        "point",
        MetaData(schema="tenant"),
        Column("id", Integer, primary_key=True),
        Column("vector", VectorType(4)),
        HNSW("vector", metric="l2", build="immediate"),
    )
    translated = engine.execution_options(schema_translate_map={"tenant": "tenant_7"})
    vectors = np.eye(4)[[0, 1, 2, 3, 0]]
    with translated.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant_7"))
        table.metadata.create_all(connection)
        connection.execute(insert(table), [{"id": n, "vector": vector} for n, vector in enumerate(vectors)])
        rows = connection.execute(semantic_search(table.c.vector, [1, 0, 0, 0], limit=2)).all()
        assert [row.id for row in rows] == [0, 4]
        for mode in ("auto", "approximate"):
            pairs = connection.execute(near_duplicates(table.c.vector, min_score=0.9, mode=mode)).all()
            assert pairs == [(0, 4, 1.0)]
        assert connection.execute(duplicate_groups(table.c.vector, min_score=0.9)).all() == [(1, 0), (1, 4)]


def test_psycopg2(corpus):
    pytest.importorskip("psycopg2")
    engine = create_engine(corpus.url.set(drivername="postgresql+psycopg2"))
    article = corpus.article
    vector = corpus.encoder.encode_queries(["w5 v17 u120"])[0]
    with Session(engine) as session:
        for query in ("w5 v17 u120", vector):
            rows = session.execute(semantic_search(article.embedding, query)).all()
            assert [(row[0].id, row.distance) for row in rows] == corpus.nearest(vector, 10)
        assert session.execute(knn_classify(article.embedding, "w5", label=article.section)).all()
        few = article.id < 100
        assert session.execute(near_duplicates(article.embedding, min_score=0.5, where=few)).all()
        assert session.execute(duplicate_groups(article.embedding, min_score=0.5, where=few)).all()
    engine.dispose()
