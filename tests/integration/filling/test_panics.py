"""Encoders that raise what is no ``Exception``, as Rust code does when it panics: failures like any other."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgembed import Encoder, semantic_search
from pgembed.exc import EncoderPanicError
from pgembed.filling import Worker, backfill, failures
from pgembed.filling.bisection import BrokenEncoderError
from pgembed.testing import HashEncoder
from tests.commands import wait_for

from .conftest import FAST, Articles


class RustPanic(BaseException):
    """As ``pyo3_runtime.PanicException``, which is no ``Exception`` either."""


every_panic = pytest.mark.parametrize(
    "panic", [RustPanic("index out of bounds"), SystemExit(0), GeneratorExit("over")], ids=repr
)


class Panicking(HashEncoder):
    """Raises what is no ``Exception`` when it is given the word *poison*, or any text while it is broken."""

    def __init__(self, panic: BaseException, dimensions: int = 8) -> None:
        super().__init__(dimensions)
        self.panic = panic
        self.broken = False

    def encode_documents(self, texts: Any) -> Any:
        if self.broken or any("poison" in text for text in texts):
            raise self.panic
        return super().encode_documents(texts)


def titles(articles: Articles) -> set[str | None]:
    """The titles of the rows that have a vector."""
    with articles.engine.connect() as connection:
        return set(connection.scalars(text("SELECT title FROM article WHERE embedding IS NOT NULL")))


@every_panic
def test_the_bad_row_is_set_aside_and_the_others_are_filled(engine: Engine, panic: BaseException) -> None:
    articles = Articles(engine, Panicking(panic))
    articles.insert("a", "poison", "b", "c")
    counts = backfill(engine, articles.model.embedding, settings=FAST)
    assert (counts.written, counts.failed) == (3, 1)
    assert titles(articles) == {"a", "b", "c"}
    with engine.begin() as connection:
        (failure,) = failures.listed(connection)
    assert failure.key == "[2]"
    assert (
        failure.error == f"EncoderPanicError: encoder 'hash' broke off with {type(panic).__name__}: {panic}"
    )


@every_panic
def test_a_worker_says_that_something_was_left(
    engine: Engine, panic: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    articles = Articles(engine, Panicking(panic))
    articles.insert("a", "poison")
    assert Worker(engine, [articles.embedding], settings=FAST).run(once=True) is False
    assert titles(articles) == {"a"}
    assert "event=left column='public.article.embedding' rows=1" in caplog.text
    # It is not tried again before its time, and still it is left.
    assert Worker(engine, [articles.embedding], settings=FAST).run(once=True) is False
    articles.encoder.panic = None  # type: ignore[attr-defined]
    with engine.begin() as connection:
        connection.execute(text("UPDATE article SET title = 'mended' WHERE title = 'poison'"))
    assert Worker(engine, [articles.embedding], settings=FAST).run(once=True) is True


@every_panic
def test_a_broken_encoder_is_its_columns_error(
    engine: Engine, panic: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Panicking(panic)
    encoder.broken = True
    articles = Articles(engine, encoder)
    articles.insert("a", "b")
    with pytest.raises(BrokenEncoderError) as broken:
        backfill(engine, articles.model.embedding, settings=FAST)
    assert broken.value.__cause__ is not None
    assert broken.value.__cause__.__cause__ is panic
    assert Worker(engine, [articles.embedding], settings=FAST).run(once=True) is False
    assert "event=error column='public.article.embedding'" in caplog.text

    worker = Worker(engine, [articles.embedding], settings=FAST)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        encoder.broken = False  # whatever it meets, it tries again
        wait_for(lambda: titles(articles) == {"a", "b"})
    finally:
        worker.stop()
        thread.join()


@every_panic
@pytest.mark.parametrize("on_error", ["raise", "pending"])
def test_flushes_and_statements(
    engine: Engine, panic: BaseException, on_error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    articles = Articles(engine, Panicking(panic), on_error=on_error)
    with Session(engine) as session:
        for write in (
            lambda: (session.add(articles.model(title="poison")), session.flush()),
            lambda: session.execute(insert(articles.model), [{"title": "poison"}]),
        ):
            if on_error == "raise":
                with pytest.raises(EncoderPanicError) as raised:
                    write()
                assert raised.value.__cause__ is panic
                session.rollback()
            else:
                write()
        session.commit()
    assert articles.count() == (0 if on_error == "raise" else 2)
    assert len(articles.pending()) == articles.count()
    assert ("stay pending" in caplog.text) == (on_error == "pending")


@every_panic
async def test_under_asyncio(engine: Engine, panic: BaseException) -> None:
    articles = Articles(engine, Panicking(panic))
    asynchronous = create_async_engine(engine.url)
    async with AsyncSession(asynchronous) as session:
        session.add(articles.model(title="poison"))
        with pytest.raises(EncoderPanicError):
            await session.flush()
        await session.rollback()
        with pytest.raises(EncoderPanicError):
            await session.execute(semantic_search(articles.model.embedding, "poison"))
    await asynchronous.dispose()


class Panics:
    """What an opened encoder is made of."""

    def encode(self, texts: Any, kind: Any) -> Any:
        raise RustPanic("no such token")


def test_an_encoder_used_alone(minilm_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Encoder(minilm_folder) as encoder:
        monkeypatch.setattr(encoder, "_backend", Panics())
        for use in (encoder.encode_documents, encoder.encode_queries):
            with pytest.raises(EncoderPanicError, match="broke off with RustPanic: no such token"):
                use(["a"])


class Signalled(HashEncoder):
    """Meets a signal in the middle of its work."""

    def encode_documents(self, texts: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return super().encode_documents(texts)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_a_signal_raises_is_for_the_program(engine: Engine, error: BaseException) -> None:
    articles = Articles(engine, Signalled())
    articles.insert("a")

    def handler(*_: Any) -> None:
        raise error

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(type(error)):
            backfill(engine, articles.model.embedding, settings=FAST)
        with Session(engine) as session:
            session.add(articles.model(title="b"))
            with pytest.raises(type(error)):
                session.flush()
    finally:
        signal.signal(signal.SIGUSR1, before)
    with engine.begin() as connection:
        assert failures.listed(connection) == []
        assert connection.scalar(select(articles.embedding.pending()).limit(1)) is True
