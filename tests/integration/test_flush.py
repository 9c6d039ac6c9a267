"""The flush hook on a real server: what is encoded, how often, and what the rows hold afterwards."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from sqlalchemy import CHAR, Engine, event, func, insert, inspect, null, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, load_only, mapped_column, undefer

from pgembed import HNSW, Vector, embedding_column, semantic_search
from pgembed.columns import bound
from pgembed.exc import DimensionMismatchError, EncoderError, TextError, VectorValueError
from pgembed.testing import HashEncoder
from tests.integration.models import Models


@pytest.fixture
def models(engine: Engine, hash_encoder: HashEncoder) -> Models:
    models = Models(encoder=hash_encoder)
    models.base.metadata.create_all(engine)
    return models


def test_a_flush_of_new_objects_is_one_batch(session: Session, models: Models) -> None:
    session.add_all(models.article(title=f"title {i}", body=f"body {i}") for i in range(300))
    session.commit()
    assert [len(call) for call in models.encoder.calls] == [300]
    assert models.encoder.calls[0][0] == "title 0\nbody 0"
    models.check(session)


def test_new_and_changed_objects_share_a_batch_and_unrelated_changes_cause_none(
    session: Session, models: Models
) -> None:
    articles = [models.article(title=f"t{i}", body="b") for i in range(3)]
    session.add_all(articles)
    session.commit()
    models.encoder.calls.clear()

    articles[0].title = "changed"  # after the commit, body is expired
    articles[1].views = 7
    session.add(models.article(title="new"))
    session.commit()
    assert sorted(models.encoder.calls[0]) == ["changed\nb", "new"]
    assert len(models.encoder.calls) == 1
    models.check(session)


def test_vector_and_digest_are_not_loaded_with_the_entity(session: Session, models: Models) -> None:
    session.add(models.article(title="a"))
    session.commit()
    session.expunge_all()
    article = session.scalars(select(models.article)).one()
    assert {"embedding", "embedding_digest"} <= inspect(article).unloaded
    article.views = 1
    session.flush()
    article.title = "b"
    loads = []
    event.listen(session, "do_orm_execute", loads.append)
    session.flush()
    assert loads == []
    models.check(session)


def test_values_load_as_read_only_float32(session: Session, models: Models) -> None:
    session.add(models.article(title="a"))
    session.commit()
    vector = session.scalars(select(models.article.embedding)).one()
    assert vector.dtype == np.float32
    assert vector.shape == (8,)
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1


def test_sources_set_to_null_clear_the_vector(session: Session, models: Models) -> None:
    article = models.article(title="", body="text")
    session.add(article)
    session.commit()
    models.encoder.calls.clear()
    article.body = None
    session.commit()
    assert models.encoder.calls == []
    assert article.embedding is None
    assert article.embedding_digest is None
    models.check(session)


def test_rollback_and_savepoint_restore_vector_and_digest(session: Session, models: Models) -> None:
    article = models.article(title="kept")
    session.add(article)
    session.commit()
    with session.begin_nested() as savepoint:
        article.title = "dropped"
        session.flush()
        savepoint.rollback()
    assert article.title == "kept"
    models.check(session)


def test_objects_added_by_later_listeners_are_filled_in_one_more_batch(
    session: Session, models: Models
) -> None:
    @event.listens_for(session, "before_flush")
    def add_more(session: Session, context: Any, instances: Any) -> None:
        session.add_all(models.article(title=f"late {i}") for i in range(5))
        for article in session.new:
            if article.title == "first":
                article.title = "changed by a listener"

    session.add(models.article(title="first"))
    session.commit()
    assert [len(call) for call in models.encoder.calls] == [1, 6]
    models.check(session)


def test_a_text_that_a_mapper_event_changes_is_pending(session: Session, models: Models) -> None:
    def strip(_mapper: object, _connection: object, article: Any) -> None:
        article.title = article.title.strip()

    event.listen(models.article, "before_insert", strip)
    session.add_all([models.article(title=" padded "), models.article(title="plain")])
    session.commit()
    assert models.pending(session) == 1
    assert [len(call) for call in models.encoder.calls] == [2]


def test_more_expired_objects_than_a_statement_takes_parameters(session: Session, models: Models) -> None:
    articles = [models.article(title=f"t{i}", body="b") for i in range(1_100)]
    session.add_all(articles)
    session.commit()
    models.encoder.calls.clear()
    bound_at_once: list[int] = []

    def count(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT") and "title" in statement.partition("FROM")[0]:
            bound_at_once.append(len(parameters))

    event.listen(session.get_bind(), "before_cursor_execute", count)
    for i, article in enumerate(articles):
        article.title = f"new {i}"
    session.commit()
    assert bound_at_once == [1000, 100]
    assert [len(call) for call in models.encoder.calls] == [1_100]
    models.check(session)


def test_keys_that_postgres_gives_back_in_another_form(
    engine: Engine, hash_encoder: HashEncoder, Base: Any
) -> None:
    class Note(Base):
        __tablename__ = "note"
        code: Mapped[str] = mapped_column(CHAR(6), primary_key=True)
        title: Mapped[str]
        body: Mapped[str]
        vec: Mapped[Vector | None] = embedding_column("title", "body", encoder=hash_encoder)

    Base.metadata.create_all(engine)
    embedding = bound(Note.__table__.c.vec)
    assert embedding is not None
    with Session(engine) as session:
        note = Note(code="ab", title="t", body="b")
        session.add(note)
        session.commit()
        note.title = "changed"
        session.commit()
        assert session.scalar(select(embedding.pending()))


def test_a_failed_flush_leaves_no_vector_of_an_older_text(session: Session, models: Models) -> None:
    session.add(models.article(title="taken"))
    session.commit()
    again = models.article(title="taken")
    session.add(again)
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()
    assert again.embedding is not None  # left over from the flush that failed
    again.title = "free"
    session.add(again)
    session.commit()
    models.check(session)


def test_a_vector_of_ones_own_wins_unless_the_text_changed(session: Session, models: Models) -> None:
    own = np.arange(8, dtype=np.float32)
    article = models.article(title="mine", embedding=own)
    session.add(article)
    session.commit()
    assert models.encoder.calls == []
    assert np.array_equal(article.embedding, own)
    assert models.pending(session) == 0

    article.embedding = own + 1  # title and body are expired: the row gives the digest
    session.commit()
    assert np.array_equal(article.embedding, own + 1)
    assert models.encoder.calls == []
    assert models.pending(session) == 0

    session.refresh(article)
    article.title, article.embedding = "other", own + 2
    session.commit()
    models.check(session)

    article.title, article.embedding = "third", own
    article.embedding_digest = models.embedding.declaration.digest(("third", None))
    session.commit()
    assert np.array_equal(article.embedding, own)
    assert models.pending(session) == 0


def test_a_vector_taken_away_is_pending_not_falsely_fresh(session: Session, models: Models) -> None:
    article = models.article(title="a")
    session.add(article)
    session.commit()
    article.embedding = None
    session.commit()
    assert models.pending(session) == 1


def test_a_loaded_vector_that_is_merged_claims_no_text(session: Session, models: Models) -> None:
    session.add(models.article(id=1, title="a"))
    session.commit()
    session.execute(text("UPDATE article SET title = 'psql'"))
    session.commit()
    detached = session.get_one(models.article, 1)
    assert detached.embedding is not None
    session.expunge_all()
    session.merge(detached)
    session.commit()
    models.check(session)

    session.execute(text("UPDATE article SET title = 'again'"))
    session.commit()
    session.expunge_all()
    detached = session.get_one(models.article, 1, options=[undefer(models.article.embedding)])
    session.expunge_all()
    session.merge(detached)
    session.commit()
    models.check(session)


def test_a_digest_left_by_a_failed_flush_vouches_for_no_other_vector(
    session: Session, models: Models
) -> None:
    session.add(models.article(id=1, title="a"))
    session.commit()
    article = session.get_one(models.article, 1)
    fail = [True]

    @event.listens_for(session, "before_flush")
    def late(session: Session, context: Any, instances: Any) -> None:
        if fail:
            fail.pop()
            raise RuntimeError

    article.title = "one"
    with pytest.raises(RuntimeError):
        session.flush()
    article.embedding = np.ones(8, dtype=np.float32)
    session.commit()
    models.check(session)


def test_a_vector_put_by_a_later_listener_loses_to_a_changed_text(session: Session, models: Models) -> None:
    session.add(models.article(id=1, title="a"))
    session.commit()

    @event.listens_for(session, "before_flush")
    def late(session: Session, context: Any, instances: Any) -> None:
        for article in session.dirty:
            article.embedding = np.ones(8, dtype=np.float32)

    session.get_one(models.article, 1).title = "changed"
    session.commit()
    models.check(session)


def test_nulls_and_defaults_are_what_the_insert_makes_of_them(engine: Engine, Base: Any) -> None:
    encoder = HashEncoder()

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        words: Mapped[str | None] = mapped_column(default="by default")
        vec: Mapped[Vector | None] = embedding_column("words", encoder=encoder)

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Note(), Note(words=None), Note(words=null()), Note(words="x", vec=null())])
        session.execute(insert(Note), [{"words": None}, {"words": "y"}])
        session.commit()
        assert session.scalar(text("SELECT pending FROM pgembed.status")) == 0
        assert session.scalar(select(func.count()).where(Note.vec.is_not(None))) == 5


@pytest.mark.parametrize("shape", [(0, 8), (8,), (1, 7), "nan"])
def test_nonsense_from_an_encoder_is_its_error(engine: Engine, shape: Any) -> None:
    class Broken(HashEncoder):
        def encode_documents(self, texts: Any) -> Any:
            return np.full((1, 8), np.nan) if shape == "nan" else np.zeros(shape)

    for on_error in ("raise", "pending"):
        models = Models(encoder=Broken(), on_error=on_error)
        models.base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(models.article(title="a"))
            if on_error == "raise":
                with pytest.raises(EncoderError, match=r"article\.embedding: encoder 'hash' returned"):
                    session.commit()
            else:
                session.commit()
                assert models.pending(session) == 1


def test_unknown_texts_leave_the_row_pending(session: Session, models: Models) -> None:
    session.add_all([models.article(title=func.upper("sql")), models.article(title="plain")])
    session.commit()
    assert models.encoder.calls == [("plain",)]
    assert models.pending(session) == 1
    # a changed source whose neighbour was never loaded: no hidden load, and no stale digest
    session.expunge_all()
    article = session.scalars(
        select(models.article).where(models.article.title == "plain").options(load_only(models.article.title))
    ).one()
    article.title = "changed"
    session.commit()
    assert models.pending(session) == 2


@pytest.mark.parametrize(
    "write",
    [
        "UPDATE article SET title = 'raw'",
        "UPDATE article SET body = 'raw'",
        "UPDATE article SET embedding = NULL",
        "UPDATE article SET embedding_digest = NULL",
        "UPDATE article SET title = '', body = NULL",
        "INSERT INTO article (title, views) VALUES ('inserted', 0)",
    ],
)
def test_raw_sql_leaves_the_row_pending(session: Session, models: Models, write: str) -> None:
    session.add(models.article(title="a"))
    session.commit()
    session.execute(text(write))
    assert models.pending(session) == 1
    assert session.scalar(text("SELECT pending FROM pgembed.status")) == 1


def test_copy_and_core_bulk_insert_leave_rows_pending(
    engine: Engine, session: Session, models: Models
) -> None:
    raw = engine.raw_connection()
    with raw.cursor() as cursor, cursor.copy("COPY article (title, views) FROM STDIN") as copy:
        copy.write_row(("copied", 0))
        copy.write_row(("copied too", 0))
    raw.commit()
    raw.close()
    session.execute(models.article.__table__.insert(), [{"title": "c1"}, {"title": "c2"}])
    session.execute(update(models.article).values(views=3))
    session.commit()
    assert session.execute(text("SELECT total, fresh, pending FROM pgembed.status")).one() == (4, 0, 4)


def test_errors_of_the_encoder_stop_the_flush_or_leave_rows_pending(engine: Engine) -> None:
    class Broken(HashEncoder):
        def encode_documents(self, texts: Any) -> Any:
            raise RuntimeError("no weights")

    models = Models(encoder=Broken())
    models.base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(models.article(title="a"))
        with pytest.raises(RuntimeError, match="no weights"):
            session.commit()
        session.rollback()
        assert session.scalar(select(func.count(models.article.id))) == 0
    models.base.metadata.drop_all(engine)

    models = Models(encoder=Broken(), on_error="pending")
    models.base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(models.article(title="a"))
        session.commit()
        assert models.pending(session) == 1


def test_fill_by_the_worker_encodes_nothing_in_the_flush(engine: Engine, hash_encoder: HashEncoder) -> None:
    models = Models(encoder=hash_encoder, fill="worker")
    models.base.metadata.create_all(engine)
    with Session(engine) as session:
        article = models.article(title="a")
        session.add(article)
        session.commit()
        assert hash_encoder.calls == []
        assert models.pending(session) == 1
        article.title = ""
        session.commit()
        assert models.pending(session) == 0


def test_bad_vectors_and_texts_are_refused_with_their_facts(session: Session, models: Models) -> None:
    session.add(models.article(title="a", embedding=[1.0, 2.0]))
    with pytest.raises(DimensionMismatchError) as dimensions:
        session.flush()
    assert (dimensions.value.found, dimensions.value.expected) == (2, 8)
    session.rollback()
    session.add(models.article(title="a", embedding=[float("nan")] * 8))
    with pytest.raises(VectorValueError, match="NaN"):
        session.flush()
    session.rollback()
    session.add(models.article(title="lone \ud800 surrogate"))
    with pytest.raises(TextError, match="surrogates not allowed at character 5"):
        session.flush()


def test_a_column_that_says_raise_has_its_way_beside_one_that_says_pending(engine: Engine) -> None:
    class Broken(HashEncoder):
        def encode_documents(self, texts: Any) -> Any:
            raise RuntimeError("broken")

    encoder = Broken()

    class Base(DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        one: Mapped[Vector | None] = embedding_column("title", encoder=encoder, on_error="pending")
        two: Mapped[Vector | None] = embedding_column("title", encoder=encoder)

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Page(title="a"))
        with pytest.raises(RuntimeError, match="broken"):
            session.commit()


def test_a_text_that_the_server_gives_is_not_guessed(
    engine: Engine, hash_encoder: HashEncoder, Base: Any
) -> None:
    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        body: Mapped[str | None] = mapped_column(server_default="the server's")
        vec: Mapped[Vector | None] = embedding_column("title", "body", encoder=hash_encoder)

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Page(title="flush"))
        session.commit()
        session.execute(insert(Page), [{"title": "bulk"}])
        session.bulk_insert_mappings(Page, [{"title": "legacy"}])  # type: ignore[arg-type]
        session.commit()
        assert hash_encoder.calls == []
        assert session.scalar(text("SELECT pending FROM pgembed.status")) == 3
        session.add(Page(title="given", body="too"))
        session.commit()
        assert hash_encoder.calls == [("given\ntoo",)]


def test_composite_keys_schemas_and_renamed_columns(
    engine: Engine, hash_encoder: HashEncoder, Base: Any
) -> None:
    class Page(Base):
        __tablename__ = "Odd page"
        __table_args__ = {"schema": "my schema"}  # noqa: RUF012
        book: Mapped[str] = mapped_column("Book", primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        vec: Mapped[Vector | None] = embedding_column(
            "words",
            encoder=hash_encoder,
            index=HNSW(build="immediate"),
            name="Vec",
            template="passage: {words}",
        )
        words: Mapped[str | None] = mapped_column("page text")

    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "my schema"'))
        Base.metadata.create_all(connection)
    with Session(engine) as session:
        session.add_all(Page(book=book, number=i, words=f"{book} {i}") for book in "ab" for i in range(3))
        session.commit()
        assert [len(call) for call in hash_encoder.calls] == [6]
        assert hash_encoder.calls[0][0].startswith("passage: ")
        page = session.get_one(Page, ("b", 1), options=[undefer(Page.vec)])
        assert np.array_equal(page.vec, hash_encoder.encode_documents(["passage: b 1"])[0])
        session.commit()
        for page in session.scalars(select(Page)):
            page.words = "all new"
        session.commit()
        row = session.execute(text("SELECT * FROM pgembed.status")).mappings().one()
        assert row["relation"] == '"my schema"."Odd page"'
        assert (row["fresh"], row["pending"], row["index"]) == (6, 0, "hnsw")


async def test_async_sessions_do_not_wait_for_the_default_executor(engine: Engine, models: Models) -> None:
    """Flushes and searches have threads of their own, whatever else of the program blocks."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    released = threading.Event()
    blocked = [asyncio.create_task(asyncio.to_thread(released.wait)) for _ in range(40)]
    async_engine = create_async_engine(engine.url.set(drivername="postgresql+psycopg_async"))
    try:
        async with asyncio.timeout(60), AsyncSession(async_engine) as session:
            session.add(models.article(title="a word"))
            await session.commit()
            found = await session.scalars(semantic_search(models.article.embedding, "a word"))
            assert [article.title for article in found] == ["a word"]
            assert not released.is_set()
    finally:
        released.set()
        await asyncio.gather(*blocked)
        await async_engine.dispose()


async def test_async_sessions_encode_off_the_event_loop(engine: Engine) -> None:
    encoding, released = threading.Event(), threading.Event()

    class Waiting(HashEncoder):
        """Is done when the event loop says so."""

        def encode_documents(self, texts: Any) -> Any:
            encoding.set()
            assert released.wait(60)
            return super().encode_documents(texts)

    models = Models(encoder=Waiting())
    models.base.metadata.create_all(engine)

    async def release() -> None:
        while not encoding.is_set():
            await asyncio.sleep(0.01)
        released.set()

    releasing = asyncio.create_task(release())
    async_engine = create_async_engine(engine.url.set(drivername="postgresql+psycopg_async"))
    async with AsyncSession(async_engine) as session:
        session.add(models.article(title="a"))
        await session.commit()
    await async_engine.dispose()
    await releasing
    assert len(models.encoder.calls) == 1
    with Session(engine) as sync:
        models.encoder = HashEncoder()
        models.check(sync)


def test_a_buffer_that_is_filled_again_is_another_vector(engine: Engine, models: Models) -> None:
    with Session(engine, expire_on_commit=False) as session:
        buffer = np.zeros(8, dtype=np.float32)
        articles = []
        for number in range(3):
            buffer[:] = number
            articles.append(models.article(title=f"t{number}", embedding=buffer))
            articles[-1].body = "later"
        session.add_all(articles)
        session.commit()
        stored = session.scalars(select(models.article.embedding).order_by(models.article.id)).all()
        assert [vector[0] for vector in stored if vector is not None] == [0, 1, 2]
        assert models.pending(session) == 0


@pytest.mark.parametrize("given", [np.ones(8), [1.0] * 8], ids=["array", "list"])
def test_a_flushed_vector_is_read_only_as_one_that_is_loaded(
    engine: Engine, models: Models, given: Any
) -> None:
    """Whether it was changed in place cannot be seen."""
    with Session(engine, expire_on_commit=False) as session:
        article = models.article(title="mine", embedding=given)
        session.add(article)
        session.commit()
        assert article.embedding.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            article.embedding[0] = 2
        given[0] = 2
        assert article.embedding[0] == 1
        assert not session.is_modified(article)
        article.embedding = article.embedding * 2
        session.commit()
        stored = session.scalars(select(models.article.embedding)).one()
        assert stored is not None
        assert stored[0] == 2
        assert models.pending(session) == 0
