"""``pooling="late"``: parts whose vectors know the text around them, by both roads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import Encoder
from pgembed.columns import TextEncoder
from pgembed.encoders import export_onnx
from pgembed.exc import DeclarationError, EncoderOptionError
from pgembed.filling import backfill
from pgembed.filling.backfill import pending
from pgembed.parts import Part, declared_as, embedding_parts, parts_of
from pgembed.testing import HashEncoder, encoder_swapped
from tests.tables import execute
from tests.unit.encoders.models import MODELS

SENTENCES = [f"This is sentence {i} of many, {'and so on' * (i % 3)}.\n\n" for i in range(30)]


def declaration_of(article: Any, name: str = "parts") -> Any:
    bound = parts_of(getattr(article, name))
    assert bound is not None
    return bound.declaration


@pytest.fixture
def encoder() -> HashEncoder:
    return HashEncoder(max_tokens=12)


def model(engine: Engine, encoder: TextEncoder) -> Any:
    class Base(DeclarativeBase):
        pass

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str | None] = mapped_column(Text)
        parts: Mapped[list[Part]] = embedding_parts("body", encoder=encoder, pooling="late")
        plain: Mapped[list[Part]] = embedding_parts("body", encoder=encoder)

    Base.metadata.create_all(engine)
    return Article


def check(session: Session, article: Any, encoder: Any) -> int:
    """How many parts there are; each has the vector of its span, and in the other table that of its text."""
    assert pending(session.get_bind(), article.parts) == 0  # type: ignore[arg-type]
    count = 0
    for row in session.scalars(select(article)):
        spans = [(part.start, part.end) for part in row.parts]
        assert spans == [(part.start, part.end) for part in row.plain]
        (expected,) = encoder.encode_spans([row.body], [spans])
        alone = encoder.encode_documents([row.body[start:end] for start, end in spans])
        for part, plain, late, vector in zip(row.parts, row.plain, expected, alone, strict=True):
            assert part.text == row.body[part.start : part.end]
            assert np.abs(part.embedding - late).max() < 1e-6
            assert np.abs(plain.embedding - vector).max() < 1e-6
            assert len(spans) == 1 or np.abs(late - vector).max() > 1e-3
        count += len(spans)
    session.rollback()
    return count


def test_both_roads(engine: Engine, encoder: HashEncoder) -> None:
    """Sentences that two texts share have two vectors; an edit encodes all parts of its text again."""
    article = model(engine, encoder)
    with Session(engine) as session:
        session.add_all([article(body="".join(SENTENCES[:20])), article(body="".join(SENTENCES[5:25]))])
        session.commit()
        assert check(session, article, HashEncoder()) > 30
        encoder.calls.clear()
        execute(engine, "UPDATE article SET body = body || 'One more sentence at the end.' WHERE id = 1")
        backfill(engine, article.parts)
        encoded = sum(len(call) for call in encoder.calls)
        backfill(engine, article.plain)
        session.expire_all()
        assert encoded == len(session.get_one(article, 1).parts) > 15
        assert check(session, article, HashEncoder()) > 30
        session.get_one(article, 2).body = "A short text."
        session.commit()
        check(session, article, HashEncoder())


def test_with_a_real_encoder(engine: Engine, tmp_path: Any) -> None:
    with Encoder(export_onnx(MODELS / "bert", tmp_path / "tiny")) as encoder:
        article = model(engine, encoder)
        with Session(engine) as session:
            session.add(article(body="".join(SENTENCES)))
            session.commit()
            check(session, article, encoder)
            with encoder_swapped(article.metadata) as stand_ins:
                session.add(article(id=7, body="one two three"))
                session.commit()
                assert stand_ins[0].calls


def test_recipes_differ_and_are_registered(engine: Engine, encoder: HashEncoder) -> None:
    article = model(engine, encoder)
    late, plain = declaration_of(article), declaration_of(article, "plain")
    assert late.recipe != plain.recipe
    assert late.how != plain.how
    for keeps in (True, False):
        made = (
            declaration_of(article)
            if keeps
            else embedding_parts("body", encoder=encoder, pooling="late", text=False).info["pgembed.parts"]
        )
        found = declared_as(made.how, ("body",), encoder=encoder)
        assert (found.late, found.keeps_text, found.recipe) == (True, keeps, made.recipe)
    assert not declared_as(plain.how, ("body",), encoder=encoder).late


def test_what_is_refused(encoder: HashEncoder, tmp_path: Any) -> None:
    with pytest.raises(DeclarationError, match="pooling='max'; expected 'late'"):
        embedding_parts("body", encoder=encoder, pooling="max")
    with pytest.raises(DeclarationError, match="expected one of the two"):
        embedding_parts("body", encoder=encoder, pooling="late", context="title")
    first_token = Encoder(export_onnx(MODELS / "modernbert", tmp_path / "tiny"))
    with pytest.raises(EncoderOptionError, match="pooling is 'cls and normalize', expected mean"):
        embedding_parts("body", encoder=first_token, pooling="late")

    class Plain:
        name, dimensions, fingerprint, max_tokens = "plain", 8, "plain", 12
        encode_documents = encode_queries = HashEncoder().encode_documents
        count_tokens = encoder.count_tokens

    with pytest.raises(DeclarationError, match="has no encode_spans"):
        embedding_parts("body", encoder=Plain(), pooling="late")
