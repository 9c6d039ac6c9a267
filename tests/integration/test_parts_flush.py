"""Parts that a flush fills: one batch for all objects, and never falsely fresh."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from sqlalchemy import (
    CHAR,
    Engine,
    ForeignKeyConstraint,
    Text,
    create_engine,
    event,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed.exc import DeclarationError
from pgembed.filling import backfill
from pgembed.filling.backfill import pending
from pgembed.parts import Part, PartsTable, embedding_parts, parts_of
from pgembed.testing import HashEncoder
from tests.tables import execute, rows


class Refusing(HashEncoder):
    """Refuses texts with the word *poison*."""

    def encode_documents(self, texts: Any) -> Any:
        if any("poison" in text for text in texts):
            raise RuntimeError("no poison")
        return super().encode_documents(texts)


def model(encoder: HashEncoder, **options: Any) -> Any:
    class Base(DeclarativeBase):
        pass

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None] = mapped_column(Text)
        body: Mapped[str | None] = mapped_column(Text)
        views: Mapped[int] = mapped_column(default=0)
        parts: Mapped[list[Part]] = embedding_parts("body", context="title", encoder=encoder, **options)

    return Article


@pytest.fixture
def encoder() -> HashEncoder:
    return Refusing(max_tokens=12)


@pytest.fixture
def article(engine: Engine, encoder: HashEncoder) -> Any:
    found = model(encoder)
    found.metadata.create_all(engine)
    return found


def table_of(article: Any) -> PartsTable:
    bound = parts_of(article.parts)
    assert bound is not None
    return bound


def prose(count: int, word: str = "paragraph") -> str:
    return "".join(f"This is {word} number {i} about subject {i * 7919 % 997}.\n\n" for i in range(count))


def check(engine: Engine, article: Any) -> None:
    """Every fresh row has the parts of its text, with their vectors."""
    bound = table_of(article)
    p, fresh = bound.parts.c, HashEncoder()
    with engine.connect() as connection:
        columns = (article.id, article.body, article.title)
        for key, body, title in connection.execute(select(*columns).where(~bound.pending())):
            columns_of_parts = (p.number, p.start, p.end, p.text, p.digest, p.embedding)
            found = connection.execute(
                select(*columns_of_parts).where(p.article_id == key).order_by(p.number)
            )
            wanted = bound.declaration.cut((body, title))
            for part, cut in zip(found, wanted, strict=True):
                assert tuple(part)[:5] == (cut.number, cut.start, cut.end, cut.text, cut.digest)
                assert part.embedding.tolist() == fresh.encode_documents([cut.encoded])[0].tolist()


def test_parts_that_go_while_a_flush_runs_leave_their_row_pending(engine: Engine, article: Any) -> None:
    """Whatever is done with its text after that: parts that are left are not taken for those of no text."""
    with Session(engine) as session:
        session.add(article(title="a title", body=prose(5)))
        session.commit()
        found = session.scalars(select(article)).one()
        found.body = prose(5) + prose(1, "chapter")

        @event.listens_for(session, "before_flush")
        def take(*_: Any) -> None:
            execute(engine, "DELETE FROM article_parts WHERE number = 1")

        session.commit()
    assert len(rows(engine, "SELECT 1 FROM article_parts")) == 4
    assert pending(engine, article.parts) == 1
    execute(engine, "UPDATE article SET title = NULL, body = NULL")
    assert pending(engine, article.parts) == 1
    backfill(engine, article.parts)
    assert rows(engine, "SELECT 1 FROM article_parts") == []


def test_one_batch_for_all_objects_and_parts_with_the_rows(
    engine: Engine, article: Any, encoder: HashEncoder
) -> None:
    with Session(engine) as session:
        session.add_all([article(title="a title", body=prose(count)) for count in (5, 3, 0)])
        session.add(article(title="a title"))
        session.commit()
        assert len(encoder.calls) == 1
        assert len(set(encoder.calls[0])) == len(encoder.calls[0]) == 5
        first = session.scalars(select(article)).first()
        assert [part.number for part in first.parts] == list(range(5))
        assert "".join(part.text for part in first.parts) == first.body
        assert first.parts[2].embedding.shape == (8,)
        assert first.parts_digest == table_of(article).declaration.digest((first.body, first.title))
    assert pending(engine, article.parts) == 0
    check(engine, article)


def test_an_edit_encodes_what_it_touches_and_the_rest_keeps_its_key(
    engine: Engine, article: Any, encoder: HashEncoder
) -> None:
    body = prose(60)
    with Session(engine) as session:
        one = article(title="a title", body=body)
        session.add(one)
        session.commit()
        before = {part.id: part.text for part in one.parts}
        encoder.calls.clear()
        one.body = "A new beginning.\n\n" + body.replace("number 30 ", "number thirty ")
        session.flush()
        assert sum(map(len, encoder.calls)) <= 4
        after = {part.id: part.text for part in one.parts}  # loaded before, and outdated by the flush
        assert len(after.keys() & before.keys()) >= 58
        assert all(after[key] == before[key] for key in after.keys() & before.keys())
        session.rollback()
        assert {part.id: part.text for part in one.parts} == before
        one.body = body[: len(body) // 2]
        session.commit()
        encoder.calls.clear()
        one.views = 5
        session.commit()
        assert encoder.calls == []
        check(engine, article)
        one.title = "another title"
        session.commit()
        assert len(encoder.calls) == 1
    assert pending(engine, article.parts) == 0
    check(engine, article)


def test_texts_that_are_cleared_or_gone_leave_no_parts(engine: Engine, encoder: HashEncoder) -> None:
    for fill in ("flush", "worker"):
        article = model(encoder, fill=fill)
        article.metadata.create_all(engine)
        with Session(engine) as session:
            session.add_all([article(title="a title", body=prose(4)) for _ in range(4)])
            session.commit()
            backfill(engine, article.parts)
            one, two, three, _ = session.scalars(select(article))
            one.body = None
            two.body = ""
            session.delete(three)
            session.commit()
        check(engine, article)
        assert pending(engine, article.parts) == 0
        assert rows(engine, "SELECT DISTINCT article_id FROM article_parts") == [(4,)]
        article.metadata.drop_all(engine)


def test_a_worker_s_rows_are_left_to_it(engine: Engine, encoder: HashEncoder) -> None:
    article = model(encoder, fill="worker")
    article.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(article(title="a title", body=prose(4)))
        session.commit()
    assert encoder.calls == []
    assert pending(engine, article.parts) == 1


def test_what_the_database_alone_knows_stays_pending(
    engine: Engine, article: Any, encoder: HashEncoder
) -> None:
    with Session(engine) as session:
        session.add(article(title="t", body=func.repeat("word ", 30)))
        session.add(article(title="t", body=prose(2)))
        session.commit()
        session.execute(insert(article), [{"title": "t", "body": prose(3)}])
        session.execute(update(article).where(article.id == 2).values(body="core"))
        session.commit()
        assert pending(engine, article.parts) == 3
        (second,) = session.scalars(select(article).where(article.id == 2))
        second.body = literal("some text").concat(" and more")
        session.commit()
    check(engine, article)
    assert pending(engine, article.parts) == 3
    backfill(engine, article.parts)
    check(engine, article)
    assert pending(engine, article.parts) == 0


def test_an_expired_title_is_read_with_the_new_text(engine: Engine, article: Any) -> None:
    with Session(engine) as session:
        session.add_all([article(title=f"title {i}", body=prose(2)) for i in range(3)])
        session.commit()
        for one in session.scalars(select(article)).all():
            session.expire(one)
            one.body = prose(3)
        session.commit()
    assert pending(engine, article.parts) == 0
    check(engine, article)


def test_a_failing_encoder_fails_the_flush_or_leaves_the_row_pending(
    engine: Engine, article: Any, encoder: HashEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with Session(engine) as session:
        session.add(article(title="t", body="some poison"))
        with pytest.raises(RuntimeError, match="no poison"):
            session.commit()
        session.rollback()
        assert session.scalar(select(func.count()).select_from(article)) == 0
    lenient = model(encoder, on_error="pending")
    with Session(engine) as session, caplog.at_level(logging.WARNING):
        one = lenient(title="t", body=prose(2))
        session.add(one)
        session.commit()
        one.body = "some poison"
        session.add(lenient(title="t", body="more poison"))
        session.commit()
        assert "2 rows stay pending: encoder 'hash' failed: no poison" in caplog.text
        assert pending(engine, article.parts) == 2
        assert "".join(part.text for part in one.parts) == prose(2)  # stale ones go on answering
        one.body = "harmless"
        session.commit()
    assert pending(engine, article.parts) == 1
    check(engine, article)


def test_objects_that_another_listener_changes_or_adds_are_filled(engine: Engine, article: Any) -> None:
    with Session(engine) as session:

        @event.listens_for(session, "before_flush")
        def change(session: Session, *_: Any) -> None:
            for each in list(session.new):
                each.body = prose(3, "changed")
                session.add(article(title="added", body=prose(2, "added")))

        session.add(article(title="t", body=prose(2)))
        session.commit()
    assert pending(engine, article.parts) == 0
    check(engine, article)
    assert rows(engine, "SELECT count(*) FROM article_parts") == [(5,)]


def test_an_object_that_takes_the_place_of_a_deleted_one(engine: Engine, article: Any) -> None:
    with Session(engine) as session:
        one = article(id=7, title="t", body=prose(4))
        session.add(one)
        session.commit()
        session.delete(one)
        session.add(article(id=7, title="t", body=prose(2, "other")))
        session.commit()
    assert pending(engine, article.parts) == 0
    check(engine, article)


def test_parts_lost_between_the_two_looks_leave_the_row_pending(engine: Engine, article: Any) -> None:
    with Session(engine) as session:
        one = article(title="t", body=prose(5))
        session.add(one)
        session.commit()

        @event.listens_for(article, "before_update")
        def lose(*_: Any) -> None:
            execute(engine, "DELETE FROM article_parts WHERE number = 1")

        one.body = prose(6)
        session.commit()
    assert pending(engine, article.parts) == 1
    backfill(engine, article.parts)
    check(engine, article)
    assert pending(engine, article.parts) == 0


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_session(engine: Engine, article: Any, driver: str) -> None:
    async def run() -> None:
        asynchronous = create_async_engine(engine.url.set(drivername=f"postgresql+{driver}"))
        async with AsyncSession(asynchronous, expire_on_commit=False) as session:
            one = article(title="a title", body=prose(4))
            session.add(one)
            await session.commit()
            one.body = prose(6)
            await session.commit()
            await session.refresh(one, ["parts"])
            assert len(one.parts) == 6
        await asynchronous.dispose()

    asyncio.run(run())
    assert pending(engine, article.parts) == 0
    check(engine, article)


def test_another_driver(engine: Engine, article: Any) -> None:
    other = create_engine(engine.url.set(drivername="postgresql+psycopg2"))
    with Session(other) as session:
        one = article(title="a title", body=prose(4) + "100 % %s \\ ' \" :x")
        session.add(one)
        session.commit()
        one.body = "First.\n\n" + one.body
        session.commit()
    assert pending(other, article.parts) == 0
    execute(engine, "UPDATE article SET body = body || ' more'")
    assert backfill(other, article.parts).written == 1
    check(engine, article)
    other.dispose()


def test_a_statement_reads_no_vector_of_a_part(engine: Engine, article: Any) -> None:
    with Session(engine) as session:
        session.add(article(title="a title", body=prose(4)))
        session.commit()
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda c, cu, sql, *rest: statements.append(sql))
        (one,) = session.scalars(select(article))
        assert len(one.parts) == 4
        assert statements
        assert not any("embedding" in sql or "article.parts_digest" in sql for sql in statements)
        joined = select(article.id, table_of(article).parts.c.number).join(article.parts)
        assert len(session.execute(joined).all()) == 4
        assert session.scalar(text("SELECT count(*) FROM article_parts")) == 4


def test_merging_an_object_with_parts_that_are_gone_inserts_none(engine: Engine, article: Any) -> None:
    with Session(engine) as session:
        session.add(article(title="a title", body=prose(4)))
        session.commit()
        (detached,) = session.scalars(select(article))
        assert len(detached.parts) == 4
        session.expunge_all()
        execute(engine, "UPDATE article SET body = 'short'")
        backfill(engine, article.parts)
        session.merge(detached, load=True).views = 7
        session.commit()
    assert pending(engine, article.parts) == 0
    check(engine, article)
    assert rows(engine, "SELECT count(*) FROM article_parts") == [(4,)]  # merging wrote the old text again


def test_parts_are_not_assigned(engine: Engine, article: Any) -> None:
    part = article.parts.property.entity.class_
    with pytest.raises(DeclarationError, match="written by pgembed alone"):
        article(title="a title", parts=[part()])
    with Session(engine) as session:
        session.add(article(title="a title", body=prose(2)))
        session.commit()
        (one,) = session.scalars(select(article))
        with pytest.raises(DeclarationError, match="written by pgembed alone"):
            one.parts.clear()


def test_subclasses_composite_keys_and_keys_that_change(engine: Engine, encoder: HashEncoder) -> None:
    class Base(DeclarativeBase):
        pass

    class Document(Base):
        __tablename__ = "document"
        tenant: Mapped[str] = mapped_column(CHAR(5), primary_key=True)
        place: Mapped[int] = mapped_column("nr", primary_key=True)
        body: Mapped[str | None] = mapped_column(Text)
        parts: Mapped[list[Part]] = embedding_parts("body", encoder=encoder)

    class Review(Document):
        __tablename__ = "review"
        __table_args__ = (ForeignKeyConstraint(["tenant", "nr"], [Document.tenant, Document.place]),)
        tenant: Mapped[str] = mapped_column(CHAR(5), primary_key=True)
        place: Mapped[int] = mapped_column("nr", primary_key=True)
        verdict: Mapped[str | None] = mapped_column(Text)
        reasons: Mapped[list[Part]] = embedding_parts("verdict", encoder=encoder)

    elsewhere = engine.execution_options(schema_translate_map={None: "elsewhere"})
    execute(engine, "CREATE SCHEMA elsewhere")
    Base.metadata.create_all(elsewhere)
    with Session(elsewhere) as session:
        session.add(Document(tenant="a", place=1, body=prose(3)))
        session.add(Review(tenant="b", place=1, body=prose(2), verdict=prose(4, "reason")))
        session.commit()
        assert [len(encoded) for encoded in encoder.calls] == [7]
        review = session.scalars(select(Review)).one()
        assert (len(review.parts), len(review.reasons)) == (2, 4)
        assert (review.reasons[3].text or "").startswith("This is reason number 3 ")
        encoder.calls.clear()
        review.verdict = prose(5, "reason")
        session.commit()
        assert [len(encoded) for encoded in encoder.calls] == [1]
        assert len(review.reasons) == 5
        document = session.scalars(select(Document).where(Document.tenant == "a")).one()
        document.place, document.body = 7, prose(4)
        session.commit()
        assert [part.number for part in document.parts] == [0, 1, 2, 3]
        session.delete(review)
        session.commit()
    for attribute in (Document.parts, Review.reasons):
        assert pending(elsewhere, attribute) == 0
    assert rows(engine, "SELECT document_nr, count(*) FROM elsewhere.document_parts GROUP BY 1") == [(7, 4)]
    assert rows(engine, "SELECT * FROM elsewhere.review_reasons") == []
