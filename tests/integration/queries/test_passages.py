"""passages: the sentences nearest to a query, against what numpy makes of the encoder's own vectors."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise

import numpy as np
import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgembed import (
    Reranker,
    apassages,
    hybrid_search,
    passages,
    rerank,
    search_many,
    semantic_search,
)
from pgembed.exc import EncoderAnswerError, QueryError, TextError
from pgembed.parts import FORMATS
from pgembed.queries import Passage
from pgembed.testing import HashEncoder
from tests.integration.queries.test_guide import RERANKERS
from tests.tables import library, model

ENCODER = HashEncoder(24)
QUERY = "how to reset a password"
SENTENCES = [
    "Dr. Miller turned the printer on.",
    "It smokes,\nand nobody knows why!",
    "To reset a password, open the login page.",
    "Ein Satz über Umlaute, 3.5 Zeilen lang?",
    "你好。",
    "The printer was off 👩‍🚀 all day…",
]
Base, Author, Article = library(ENCODER, "title")


@pytest.fixture(scope="module")
def engine(module_url):
    engine = create_engine(module_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for number in range(12):
            chosen = [SENTENCES[(number * step) % len(SENTENCES)] for step in (1, 2, 5)]
            body = (
                None if number == 3 else " \n\t" if number == 4 else f"  {' '.join(chosen)}\n\nPart {number}"
            )
            session.add(Article(title=f"reset printer {number}", body=body))
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def calls():
    ENCODER.calls.clear()
    return ENCODER.calls


def by_hand(body, query=QUERY, *, metric="cosine"):
    """Text, place and score of each sentence, best first."""
    places = [0, *(place for place, _ in FORMATS["text"](body)), len(body)]
    texts = dict.fromkeys(body[start:end].strip() for start, end in pairwise(places))
    vector = ENCODER._vector(query).astype(np.float64)
    found, at = [], 0
    for text in texts:
        if text:
            at = body.index(text, at)
            other = ENCODER._vector(text).astype(np.float64)
            score = {
                "cosine": other @ vector / np.linalg.norm(other) / np.linalg.norm(vector),
                "l2": 1 / (1 + np.linalg.norm(other - vector)),
                "l1": 1 / (1 + np.abs(other - vector).sum()),
                "inner_product": other @ vector,
            }[metric]
            found.append((float(score), at, text))
    return sorted(found, key=lambda each: (-each[0], each[1]))


def same(row, body, expected):
    assert [part.text for part in row.passages] == [text for _, _, text in expected]
    assert [part.start for part in row.passages] == [at for _, at, _ in expected]
    assert [part.score for part in row.passages] == pytest.approx(
        [score for score, _, _ in expected], abs=1e-6
    )
    assert all(body[part.start : part.end] == part.text for part in row.passages)


@pytest.mark.parametrize("best", [1, 2, 50])
def test_sentences_scores_and_places(engine, best):
    with Session(engine) as session:
        statement = semantic_search(Article.embedding, QUERY, limit=12)
        before = session.execute(statement).all()
        rows = passages(session, statement, QUERY, Article.embedding, text=Article.body, best=best)
        assert [tuple(row)[:3] for row in rows] == [tuple(row) for row in before]
        assert rows[0]._fields == ("Article", "distance", "score", "passages")
        for row in rows:
            body = row.Article.body or ""
            same(row, body, by_hand(body)[:best])
        assert {len(row.passages) for row in rows} >= {0, min(best, 4)}


def test_one_batch_and_each_sentence_once(engine, calls):
    with Session(engine) as session:
        statement = select(Article).order_by(Article.id)
        rows = passages(session, statement, QUERY, Article.embedding, text=Article.body, best=9)
    documents, query = calls
    assert query == (QUERY,)
    assert len(documents) == len(set(documents))
    assert set(documents) == {part.text for row in rows for part in row.passages}
    assert len(documents) < sum(len(row.passages) for row in rows)


def test_of_other_statements_of_rows_and_of_a_vector(engine, tmp_path):
    from pgembed import export_onnx

    vector = ENCODER._vector(QUERY)
    with Session(engine) as session:
        expected = {each.id: by_hand(each.body)[:1] for each in session.scalars(select(Article)) if each.body}
        fused = hybrid_search(Article.embedding, QUERY, text=Article.title, limit=3)
        many = search_many(Article.embedding, [QUERY, "smoke"], limit=2)
        plain = select(Article).where(Article.body.is_not(None))
        for statement in (fused, many, plain):
            for row in passages(session, statement, vector, Article.embedding, text=Article.body):
                same(row, row.Article.body or "", expected[row.Article.id])
        columns = select(Article.id, Article.title.label("passages")).where(Article.id == 1)
        (row,) = passages(session.connection(), columns, QUERY, Article.embedding, text=Article.body)
        assert row.passages == "reset printer 0"
        assert row.passages_1[0].text == expected[1][0][2]
        with Reranker(export_onnx(RERANKERS / "bert", tmp_path / "bert")) as reranker:
            ranked = rerank(session, plain, QUERY, reranker, text=Article.body, limit=4)
        rows = passages(session, ranked, QUERY, Article.embedding, text=lambda row: row.Article.body)
        assert [tuple(row)[:2] for row in rows] == [tuple(row) for row in ranked]
        for row in rows:
            same(row, row.Article.body, expected[row.Article.id])
        assert passages(session, [], QUERY, Article.embedding, text=lambda row: row.Article.body) == []


def test_the_source_of_the_column_is_the_text(engine):
    with Session(engine) as session:
        statement = select(Article).order_by(Article.id).limit(2)
        rows = passages(session, statement, QUERY, Article.embedding)
        assert [row.passages[0].text for row in rows] == ["reset printer 0", "reset printer 1"]
        shown = passages(session, statement, QUERY, Article.embedding, text=func.upper(Article.title))
        assert shown[0].passages[0].text == "RESET PRINTER 0"


@pytest.mark.parametrize("metric", ["l2", "inner_product", "l1"])
def test_scores_are_those_of_the_columns_metric(engine, metric):
    Note = model(ENCODER, table="note", metric=metric)
    with Session(engine) as session:  # never committed
        Note.metadata.create_all(session.connection())
        session.add_all([Note(title=" ".join(SENTENCES)), Note(title="alone")])
        session.flush()
        (row,) = passages(session, select(Note).where(Note.id == 1), QUERY, Note.embedding, best=9)
        same(row, row.Note.title, by_hand(row.Note.title, metric=metric))
        # A text of one sentence has the score that the search gives it.
        scores = {
            row.Note.id: (row.passages[0].score, row.score)
            for row in passages(session, semantic_search(Note.embedding, QUERY), QUERY, Note.embedding)
        }
        assert scores[2][0] == pytest.approx(scores[2][1], abs=1e-6)


def test_long_texts_and_long_sentences_are_bounded(engine, calls):
    whole = "".join(f"Sentence {number} of many. " for number in range(20_000))
    endless = " ".join(f"word{number}" for number in range(1_500))
    unbroken = "".join(chr(0x4E00 + number) for number in range(5_000))
    with Session(engine) as session:
        statement = select(Article.id).where(Article.id == 1)

        def found(text, **options):
            (row,) = passages(session, statement, QUERY, Article.embedding, text=lambda _: text, **options)
            return row.passages

        parts = found(whole, best=10_000)
        assert len(parts) == len(calls[0]) < 1_000
        assert max(part.end for part in parts) == 20_000
        assert all(whole[part.start : part.end] == part.text for part in parts)
        assert len(found(whole, best=10_000, characters=100)) == 5
        for text in (endless, unbroken):
            parts = sorted(found(text, best=10_000), key=lambda part: part.start)
            assert max(len(part.text) for part in parts) <= 1_100
            assert "".join(part.text for part in parts).replace(" ", "") == text.replace(" ", "")


def test_formats(engine):
    guide = "# Printers\n\nTurn it on.\n\n```\nnot prose. at all.\n```\n"
    with Session(engine) as session:
        statement = select(Article.id).where(Article.id == 1)
        text = lambda _: guide  # noqa: E731
        (row,) = passages(session, statement, QUERY, Article.embedding, text=text, best=9, format="markdown")
    found = {part.text for part in row.passages}
    assert found == {"# Printers", "Turn it on.", "```\nnot prose. at all.\n```"}


def test_under_asyncio_off_the_event_loop(engine, module_url, calls):
    threads = set()

    class Watched(HashEncoder):
        def encode_documents(self, texts):
            threads.add(threading.current_thread())
            return super().encode_documents(texts)

    _, _author, watched = library(Watched(24), "title")
    statement = semantic_search(watched.embedding, QUERY, limit=5)

    async def asked():
        engine = create_async_engine(module_url)
        async with AsyncSession(engine) as session:
            rows = await apassages(session, statement, QUERY, watched.embedding, text=watched.body, best=2)
            again = await apassages(session, rows, QUERY, watched.embedding, text=lambda row: row[0].title)
            with pytest.raises(QueryError, match=r"got .*AsyncSession.*: use `await apassages\(...\)`"):
                passages(session, statement, QUERY, watched.embedding)
            with pytest.raises(QueryError, match=r"expected an AsyncSession .*: use passages\(...\)"):
                await apassages(session.sync_session, statement, QUERY, watched.embedding)
            shown = [(row[0].body or "", row.passages) for row in rows], [row[-1][0].text for row in again]
        await engine.dispose()
        return shown

    (rows, titles) = asyncio.run(asked())
    assert len(rows) == 5
    for body, found in rows:
        assert [part.text for part in found] == [text for _, _, text in by_hand(body)[:2]]
    assert all(title.startswith("reset printer") for title in titles)
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": 0}, "best=0; expected a whole number"),
        ({"characters": 0}, "characters=0; expected a whole number"),
        ({"format": "pdf"}, "format='pdf'; expected one of text, markdown"),
        ({"query": "  "}, "the text is '  '; expected one that says"),
        (
            {"text": lambda row: row.id},
            "text= gives something of the type int for row 0",
        ),
        ({"text": Author.name}, "text=Author.name is of a table that the statement does not select from"),
        ({"statement": []}, "of rows that have been read already, no column can be selected: pass text="),
    ],
)
def test_what_is_refused(engine, options, message):
    given = {
        "statement": select(Article.id).limit(1),
        "query": QUERY,
        "column": Article.embedding,
        "text": Article.body,
    }
    with Session(engine) as session, pytest.raises(QueryError, match=message):
        passages(session, **given | options)


def test_columns_and_encoders_that_will_not_do(engine):
    _, _author, Two = library(ENCODER, "title", "body")
    with Session(engine) as session:
        with pytest.raises(QueryError, match=r"are made of title, body: pass the text .* text=Article.body"):
            passages(session, select(Two), QUERY, Two.embedding)
        (row,) = passages(session, select(Two).limit(1), QUERY, Two.embedding, text=Two.title)
        assert row.passages
        plain = Article.__table__.to_metadata(type(Base.metadata)())
        plain.c.embedding.info.clear()
        with pytest.raises(QueryError, match="is not declared with embedding_column"):
            passages(session, select(plain), QUERY, plain.c.embedding, text=plain.c.title)
        with pytest.raises(TextError):
            passages(session, select(Article).limit(1), QUERY, Article.embedding, text=lambda _: "\ud800")
        with pytest.raises(QueryError, match=r"expected a Session or a Connection, got None"):
            passages(None, select(Article), QUERY, Article.embedding)

    class Wrong(HashEncoder):
        def encode_documents(self, texts):
            return super().encode_documents(texts)[:, :3]

    _, _other_author, wrong = library(Wrong(24), "title")
    with Session(engine) as session, pytest.raises(EncoderAnswerError):
        passages(session, select(wrong), ENCODER._vector(QUERY), wrong.embedding)


def test_a_passage_is_a_frozen_value(engine):
    part = Passage("a", 0, 1, 0.5)
    assert part == Passage("a", 0, 1, 0.5)
    with pytest.raises(AttributeError):
        part.score = 1
