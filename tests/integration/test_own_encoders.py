"""Encoders of users' own: which answers are taken, and what is said of one that breaks the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from pgembed import filling, semantic_search
from pgembed.columns import answered
from pgembed.exc import DeclarationError, EncoderAnswerError, EncoderError
from pgembed.filling.bisection import BrokenEncoderError
from pgembed.testing import HashEncoder
from tests.integration.models import Models

Answer = Callable[[np.ndarray], Any]

TAKEN: dict[str, Answer] = {
    "lists": lambda vectors: vectors.tolist(),
    "a list of arrays": list,
    "a tuple": lambda vectors: tuple(map(tuple, vectors.tolist())),
    "float64": lambda vectors: vectors.astype(np.float64),
    "transposed": lambda vectors: np.asfortranarray(vectors),
}
REFUSED: dict[str, tuple[Answer, str]] = {
    "one too few": (lambda vectors: vectors[1:], r"an array of the shape \(0, 8\)"),
    "one too many": (lambda vectors: np.concatenate([vectors, vectors]), r"an array of the shape \(2, 8\)"),
    "too few dimensions": (lambda vectors: vectors[:, 1:], r"an array of the shape \(1, 7\)"),
    "one vector alone": (lambda vectors: vectors[0], r"an array of the shape \(8,\)"),
    "vectors of tokens": (lambda vectors: vectors[:, None], r"an array of the shape \(1, 1, 8\)"),
    "a ragged list": (lambda vectors: [[1.0], [1.0, 2.0]], "a list that is not an array"),
    "nothing": (lambda vectors: None, "a NoneType"),
    "a generator": (iter, "a list_iterator|a NoneType|an? .*iterator"),
    "a dict": (lambda vectors: {"data": vectors}, "a dict"),
    "texts": (lambda vectors: vectors.astype(str), "an array of <U"),
    "objects": (lambda vectors: vectors.astype(object), "an array of object"),
    "complex numbers": (lambda vectors: vectors.astype(complex), "an array of complex128"),
    "truths": (lambda vectors: vectors > 0, "an array of bool"),
}
NOT_FINITE: dict[str, Answer] = {
    "NaN": lambda vectors: vectors * np.nan,
    "infinity": lambda vectors: np.full_like(vectors, -np.inf),
    "too large for float32": lambda vectors: vectors.astype(np.float64) * 1e39,
}


class Own(HashEncoder):
    """One that answers in a form of its own."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def encode_documents(self, texts: Any) -> Any:
        return self.answer(super().encode_documents(texts))


def expected(found: str) -> str:
    numbers = r"expected finite numbers in a float32 array of the shape \(1, 8\)"
    return rf"(^|public\.)article\.embedding: encoder 'hash' returned ({found}).* for 1 text; {numbers}$"


def made(engine: Engine, answer: Answer) -> Models:
    models = Models(encoder=Own(answer))
    models.base.metadata.create_all(engine)
    return models


@pytest.mark.parametrize("form", TAKEN)
def test_what_numpy_reads_as_vectors_is_taken(engine: Engine, form: str) -> None:
    models = made(engine, TAKEN[form])
    with Session(engine) as session:
        session.add_all(models.article(title=title) for title in ("one", "two"))
        session.execute(text("INSERT INTO article (title, views) VALUES ('three', 0)"))
        session.commit()
        filling.backfill(engine, models.article.embedding)
        (found,) = session.execute(semantic_search(models.article.embedding, "three", limit=1)).all()
        assert (found.Article.title, round(found.score, 6)) == ("three", 1)
        models.check(session)


@pytest.mark.parametrize("form", [*REFUSED, *NOT_FINITE])
def test_an_answer_that_breaks_the_protocol_is_one_error(engine: Engine, form: str) -> None:
    """It names encoder and column, in flushes, bulk statements and searches; the session goes on."""
    answer, found = REFUSED.get(form) or (NOT_FINITE[form], "NaN or infinity in vector 0")
    models = made(engine, answer)
    with Session(engine) as session:
        for write in (
            lambda: (session.add(models.article(title="one")), session.flush()),
            lambda: session.execute(insert(models.article), [{"title": "one"}]),
            lambda: session.execute(semantic_search(models.article.embedding, "one")),
        ):
            with pytest.raises(EncoderAnswerError, match=expected(found)) as error:
                write()
            assert (error.value.encoder, error.value.column) == ("hash", "article.embedding")
            session.rollback()
        assert session.scalar(text("SELECT count(*) FROM article")) == 0


@pytest.mark.parametrize("form", REFUSED)
def test_a_worker_says_the_same(engine: Engine, form: str) -> None:
    models = made(engine, REFUSED[form][0])
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title, views) VALUES ('one', 0)"))
    with pytest.raises(BrokenEncoderError, match=f"EncoderAnswerError: {expected(REFUSED[form][1])}"):
        filling.backfill(engine, models.article.embedding)


def test_the_position_of_what_is_not_finite() -> None:
    vectors = np.ones((4, 8))
    vectors[2, 5] = np.inf
    with pytest.raises(EncoderError, match="returned NaN or infinity in vector 2 for 4 texts"):
        answered(HashEncoder(8), vectors, 4, column="a.b")
    refused: dict[int, EncoderAnswerError] = {}
    taken = answered(HashEncoder(8), vectors, 4, column="a.b", refuse=refused.__setitem__)
    assert taken.dtype == np.float32
    assert refused.keys() == {2}


@pytest.mark.parametrize("fingerprint", [None, b"bytes", "", 7])
def test_a_fingerprint_is_a_text(fingerprint: Any) -> None:
    encoder = HashEncoder()
    encoder.fingerprint = fingerprint
    with pytest.raises(DeclarationError, match=r"encoder 'hash' has the fingerprint .* expected a text"):
        Models(encoder=encoder)
