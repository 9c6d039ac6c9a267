"""Every kind of model: the embedding is created, filled, changed and searched like any other column."""

from __future__ import annotations

import importlib
import uuid
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.ext.declarative import AbstractConcreteBase, DeferredReflection
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    configure_mappers,
    declared_attr,
    mapped_column,
    registry,
)
from sqlmodel import Field, SQLModel

from pgembed import HNSW, Vector, embedding_column, semantic_search
from pgembed.columns import bound, embeddings_of
from pgembed.columns.hooks.mapped import mapped_embeddings
from pgembed.database import install
from pgembed.exc import DeclarationError
from pgembed.filling import backfill
from pgembed.testing import HashEncoder
from tests.tables import model

ENCODER = HashEncoder(8)


def exercise(engine: Engine, model: Any, make: Any = None, attribute: str = "words") -> None:
    """Insert, edit and search objects of ``model``; its embedding is the one of the mapper."""
    make = make or (lambda words: model(words=words))
    (mapped,) = mapped_embeddings(inspect(model))
    embedding = mapped.embedding
    with engine.begin() as connection:
        embedding.table.metadata.create_all(connection)
    with Session(engine) as session:
        session.add_all([make("alpha beta"), make("gamma delta"), make("epsilon")])
        session.commit()
        edited = session.scalars(select(model).order_by(getattr(model, attribute)).limit(1)).one()
        setattr(edited, attribute, "zeta eta")
        session.commit()
        pending = select(func.count()).select_from(embedding.table).where(embedding.pending())
        assert session.scalar(pending) == 0
        vector = getattr(model, mapped.vector)
        found = session.execute(semantic_search(vector, "gamma delta", limit=1)).one()
        assert getattr(found[0], attribute) == "gamma delta"
        assert found.score == pytest.approx(1)
        stored = session.execute(select(getattr(model, attribute), vector)).all()
        for words, value in stored:
            assert np.array_equal(value, ENCODER.encode_documents([words])[0])
        assert mapped.vector in inspect(session.scalars(select(model)).first()).unloaded


def test_mixin_and_declared_attr(engine: Engine, Base: Any) -> None:
    class Mixin:
        words: Mapped[str]

        @declared_attr
        def vec(cls) -> Mapped[Vector | None]:
            return embedding_column("words", encoder=ENCODER, index=HNSW())

    class Note(Mixin, Base):
        __tablename__ = "note"
        __table_args__ = ({"comment": "tuple arguments"},)
        id: Mapped[int] = mapped_column(primary_key=True)

    exercise(engine, Note)


def test_abstract_base_and_naming_convention(engine: Engine) -> None:
    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention={"ix": "idx__%(table_name)s__%(column_0_name)s", "pk": "pk_x"})

    class Searchable(Base):
        __abstract__ = True
        words: Mapped[str]
        vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW())

    class Note(Searchable):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)

    exercise(engine, Note)
    names = {index["name"] for index in inspect(engine).get_indexes("note")}
    assert names == {"ix_note_vec_pending"}


def test_joined_inheritance(engine: Engine, Base: Any) -> None:
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        words: Mapped[str]
        vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW())
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}  # noqa: RUF012

    class Book(Item):
        __tablename__ = "book"
        id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
        pages: Mapped[int | None]
        __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012

    exercise(engine, Item, lambda words: Book(words=words))
    assert embeddings_of(Book.__table__) == ()  # type: ignore[arg-type]


def test_joined_inheritance_with_the_embedding_on_the_child(engine: Engine, Base: Any) -> None:
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]

    class Book(Item):
        __tablename__ = "book"
        id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
        words: Mapped[str]
        vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW())

    exercise(engine, Book, lambda words: Book(words=words, title="t"))

    with pytest.raises(DeclarationError, match="'title' belongs to the table item"):

        class Film(Item):
            __tablename__ = "film"
            id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
            vec: Mapped[Vector | None] = embedding_column("title", encoder=ENCODER)


def test_single_table_inheritance_with_the_embedding_on_a_subclass(engine: Engine, Base: Any) -> None:
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}  # noqa: RUF012

    class Book(Item):
        words: Mapped[str | None]
        vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW())
        __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012

    exercise(engine, Book)
    with Session(engine) as session:
        session.add(Item())
        session.commit()
        embedding = embeddings_of(Item.__table__)[0]  # type: ignore[arg-type]
        assert session.scalar(select(func.count()).where(embedding.pending())) == 0


def test_concrete_inheritance(engine: Engine, Base: Any) -> None:
    class Searchable:
        """SQLAlchemy takes no deferred column on the AbstractConcreteBase itself, so a mixin brings it."""

        words: Mapped[str]
        vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW())

    class Item(AbstractConcreteBase, Base):
        strict_attrs = True
        name: Mapped[str | None]

    class Book(Searchable, Item):
        __tablename__ = "book"
        id: Mapped[int] = mapped_column(primary_key=True)
        __mapper_args__ = {"concrete": True, "polymorphic_identity": "book"}  # noqa: RUF012

    configure_mappers()
    exercise(engine, Book)


def test_imperative_mapping(engine: Engine) -> None:
    class Note:
        def __init__(self, words: str) -> None:
            self.text = words

    mappers = registry()
    table = Table(
        "note",
        mappers.metadata,
        Column("id", Integer, primary_key=True),
        Column("words", Text),
        embedding_column("text", encoder=ENCODER, name="vec", index=HNSW()).column,
    )
    mappers.map_imperatively(Note, table, properties={"text": table.c.words})
    exercise(engine, Note, Note, attribute="text")


def test_dataclass_mapping(engine: Engine) -> None:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        words: Mapped[str]
        vec: Mapped[Vector | None] = embedding_column(
            "words", encoder=ENCODER, index=HNSW(), init=False, default=None
        )

    exercise(engine, Note, Note)


def test_hybrid_declarative_table(engine: Engine, Base: Any) -> None:
    class Note(Base):
        __table__ = Table(
            "note",
            Base.metadata,
            Column("id", Integer, primary_key=True),
            Column("words", Text),
            embedding_column("words", encoder=ENCODER, name="vec", index=HNSW()).column,
        )

    exercise(engine, Note)


@pytest.mark.parametrize("how", ["automap", "deferred"])
def test_reflection(engine: Engine, how: str) -> None:
    """A table that is in the database; the class adds the embedding to what is reflected."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE note (id serial PRIMARY KEY, words text)"))
    if how == "automap":
        base: Any = automap_base()

        class Note(base):
            __tablename__ = "note"
            vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW())

        base.prepare(autoload_with=engine)
    else:

        class Base(DeferredReflection, DeclarativeBase):
            pass

        class Note(Base):  # type: ignore[no-redef]
            __tablename__ = "note"
            vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW())

        Base.prepare(engine)
    configure_mappers()
    embedding = bound(Note.__table__.c.vec)
    assert embedding is not None
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE note"))
    exercise(engine, Note)


def test_two_embeddings_with_encoders_of_their_own(engine: Engine) -> None:
    small, large = HashEncoder(4, name="small"), HashEncoder(16, name="large")

    class Base(DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
        title: Mapped[str | None]
        body: Mapped[str | None]
        by_title: Mapped[Vector | None] = embedding_column("title", encoder=small)
        by_both: Mapped[Vector | None] = embedding_column("title", "body", encoder=large, type="halfvec")

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Note(title=f"t{i}", body=f"b{i}") for i in range(5))
        session.commit()
        assert (len(small.calls), len(large.calls)) == (1, 1)
        note = session.scalars(select(Note)).first()
        assert note is not None
        note.body = "changed"
        session.commit()
        assert (len(small.calls), len(large.calls)) == (1, 2)
        assert session.scalar(text("SELECT sum(pending) FROM pgembed.status")) == 0
        assert note.by_both is not None
        np.testing.assert_allclose(
            note.by_both, large.encode_documents([f"{note.title}\nchanged"])[0], atol=1e-3
        )


def test_copies_in_another_metadata_are_created_as_the_original(engine: Engine, Base: Any) -> None:
    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        words: Mapped[str] = mapped_column("the_words")
        vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW(build="immediate"))

    copied = MetaData()
    assert isinstance(Note.__table__, Table)
    Note.__table__.to_metadata(copied, schema="public", name="copied")
    copied.create_all(engine)
    with Session(engine) as session:
        names = {index["name"] for index in inspect(engine).get_indexes("copied")}
        assert names == {"ix_copied_vec_pending", "ix_copied_vec_hnsw"}
        session.execute(text("INSERT INTO copied (the_words) VALUES ('x')"))
        assert session.scalar(text("SELECT pending FROM pgembed.status")) == 1


def test_a_schema_of_its_own_for_each_tenant(engine: Engine) -> None:
    Note = model(ENCODER, table="note", source="words", vector="vec")
    for tenant in ("one", "two"):
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {tenant}"))
        own = engine.execution_options(schema_translate_map={None: tenant})
        Note.metadata.create_all(own)
        with Session(own) as session:
            session.add(Note(words="by the flush"))
            session.commit()
            session.connection().execute(insert(Note.__table__), [{"words": tenant}])  # type: ignore[arg-type]
            session.commit()
        assert backfill(own, Note.vec).written == 1
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT relation::text, total, pending FROM pgembed.status"))
        assert rows.all() == [("one.note", 2, 0), ("two.note", 2, 0)]


def test_sqlmodel(engine: Engine) -> None:
    class Note(SQLModel, table=True):
        id: int | None = Field(default=None, primary_key=True)
        words: str
        vec: Vector | None = Field(
            default=None,
            sa_column=embedding_column("words", encoder=ENCODER, name="vec", index=HNSW()).column,
            exclude=True,
            repr=False,
        )

    exercise(engine, Note)


def register_adapters(engine: Engine) -> None:
    """pgvector's own, on every connection, as its documentation has it."""
    driver = engine.dialect.driver
    module = importlib.import_module(f"pgvector.{driver}")

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        if driver == "asyncpg":
            connection.run_async(module.register_vector)
        elif engine.dialect.is_async:
            connection.run_async(module.register_vector_async)
        else:
            module.register_vector(connection)


@pytest.mark.parametrize(("driver", "adapters"), [("psycopg2", False), ("psycopg2", True), ("psycopg", True)])
def test_drivers(engine: Engine, driver: str, adapters: bool) -> None:
    Note = model(ENCODER, table="note", source="words", vector="vec", index=HNSW())
    other = create_engine(engine.url.set(drivername=f"postgresql+{driver}"))
    if adapters:
        register_adapters(other)
    exercise(other, Note)
    with other.begin() as connection:
        connection.execute(insert(Note.__table__), [{"words": "by a backfill"}])  # type: ignore[arg-type]
    assert backfill(other, Note.vec).written == 1
    other.dispose()


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
async def test_async_drivers(engine: Engine, driver: str, adapters: bool) -> None:
    Note = model(ENCODER, table="note", source="words", vector="vec", index=HNSW(build="immediate"))
    url = engine.url.set(drivername=f"postgresql+{driver}")
    if driver == "asyncpg" and not url.host:
        url = url.set(host=str(url.query["host"])).set(query={})
    other = create_async_engine(url)
    if adapters:
        register_adapters(other.sync_engine)
    async with other.begin() as connection:
        assert not await connection.run_sync(install)
        await connection.run_sync(Note.metadata.create_all)
    async with AsyncSession(other, expire_on_commit=False) as session:
        session.add_all([Note(words="alpha beta"), Note(words="gamma")])
        await session.commit()
        await session.execute(insert(Note), [{"words": "delta"}])
        found = (await session.execute(semantic_search(Note.vec, "gamma", limit=2))).all()
        assert found[0][0].words == "gamma"
        assert found[0].score == pytest.approx(1)
        vectors = (await session.scalars(select(Note.vec).order_by(Note.id))).all()
        expected = ENCODER.encode_documents(["alpha beta", "gamma", "delta"])
        assert np.array_equal(np.array(vectors), expected)
        assert await session.scalar(text("SELECT pending FROM pgembed.status")) == 0
    await other.dispose()
