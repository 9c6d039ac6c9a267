"""rerank: the rows of any statement in the order of a real cross-encoder, entities and all."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import bindparam, func, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import aliased

from pgembed import Encoder, Reranker, arerank, export_onnx, hybrid_search, rerank, semantic_search
from pgembed.exc import QueryError, TextError
from tests.unit.encoders.wire import serving

RERANKERS = Path(__file__).parents[2] / "golden" / "rerankers"
QUERY = "w5 v17 u120"
#: Words that the small model knows; it does not know those of the titles.
WORDS = "one two three passwords reset the printer, on fire: zebra"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerankers")
    return {name: export_onnx(RERANKERS / name, folder / name) for name in ("bert", "bert-nli")}


@pytest.fixture(scope="module")
def reranker(folders):
    with Reranker(folders["bert"]) as opened:
        yield opened


class Lengths:
    """A reranker of one's own: the longer text is the better one."""

    def __init__(self):
        self.pairs = []
        self.threads = set()

    def predict(self, pairs):
        self.pairs += pairs
        self.threads.add(threading.current_thread())
        return np.array([len(text) for _, text in pairs], dtype=np.float32)


@pytest.fixture(scope="module")
def remote(reranker):
    with serving(None, rerankers=[reranker]) as server:
        yield Reranker.remote(f"http://127.0.0.1:{server.server_port}")


def words_of(article):
    """Another part of the words for each row; every 37th has the same."""
    return func.substr(WORDS, article.id % 37 + 1)


def by_hand(reranker, rows):
    """Keys and scores in the order that they should have."""
    scores = reranker.predict([(QUERY, WORDS[row[0].id % 37 :]) for row in rows]).tolist()
    ordered = sorted(zip(scores, range(len(rows)), strict=True), key=lambda item: (-item[0], item[1]))
    return [(rows[place][0].id, score) for score, place in ordered]


def test_rows_of_a_search_in_the_order_of_the_scores(corpus, session, reranker):
    statement = semantic_search(corpus.article.embedding, QUERY, limit=50)
    before = session.execute(statement).all()
    rows = rerank(session, statement, QUERY, reranker, text=words_of(corpus.article), limit=20)
    assert [(row.Article.id, row.rerank_score) for row in rows] == by_hand(reranker, before)[:20]
    assert [row[0].id for row in rows] != [row[0].id for row in before[:20]]
    assert rows[0]._fields == ("Article", "distance", "score", "rerank_score")
    assert len({row.rerank_score for row in rows}) > 10
    known = {row.Article.id: tuple(row) for row in before}
    assert all(tuple(row)[:3] == known[row.Article.id] for row in rows)
    assert rows[0].Article in session


def test_of_hybrid_search_a_plain_select_columns_and_aliases(corpus, session, reranker):
    article = corpus.article
    fused = hybrid_search(article.embedding, QUERY, text=article.title, limit=20)
    found = rerank(session, fused, QUERY, reranker, text=words_of(article))
    assert [(row[0].id, row[-1]) for row in found] == by_hand(reranker, session.execute(fused).all())[:10]
    other = aliased(article)
    plain = select(other).where(other.id <= 30).order_by(other.id)
    found = rerank(session, plain, QUERY, reranker, text=words_of(other), limit=None)
    assert [(row[0].id, row[-1]) for row in found] == by_hand(reranker, session.execute(plain).all())
    columns = select(article.id, article.title).where(article.id <= 30).order_by(article.id)
    assert [(row.id, row[-1]) for row in rerank(
        session.connection(), columns, QUERY, reranker, text=words_of(article), limit=None
    )] == [(row[0].id, row[-1]) for row in found]  # fmt: skip


def test_texts_of_expressions_and_functions(corpus, session):
    article = corpus.article
    statement = select(article).where(article.id <= 40).order_by(article.id)
    longest = func.repeat("x", 41 - article.id)
    for text_ in (longest, lambda row: "x" * (41 - row.Article.id)):
        rows = rerank(session, statement, QUERY, Lengths(), text=text_, limit=3)
        assert [(row.Article.id, row.rerank_score) for row in rows] == [(1, 40.0), (2, 39.0), (3, 38.0)]
    titles = Lengths()
    rerank(session, statement.limit(2), QUERY, titles, text=article.title)
    assert titles.pairs == [(QUERY, "w1 v1 u1"), (QUERY, "w2 v2 u2")]


def test_equal_scores_stay_in_order_and_rows_without_text_come_last(corpus, session):
    article = corpus.article
    statement = select(article.id).where(article.id.between(496, 502)).order_by(article.id.desc())
    given = func.nullif(func.left(article.title, article.id % 2), "")
    odd = func.substr("text", 1, 1)
    cases = {501: "aa", 499: "aa", 500: None, 498: "b", 502: None, 497: "b", 496: "aaa"}
    made = lambda row: cases[row.id]  # noqa: E731
    rows = rerank(session, statement, QUERY, Lengths(), text=made)
    assert [(row.id, row.rerank_score) for row in rows] == [
        (496, 3.0), (501, 2.0), (499, 2.0), (498, 1.0), (497, 1.0), (502, None), (500, None),
    ]  # fmt: skip
    assert [row.id for row in rerank(session, statement, QUERY, Lengths(), text=odd)] == [
        *range(502, 495, -1)
    ]
    nulls = rerank(session, statement, QUERY, Lengths(), text=func.nullif(given, given), limit=2)
    assert [tuple(row) for row in nulls] == [(502, None), (501, None)]


def test_no_rows_and_a_score_of_the_statement_itself(corpus, session, reranker):
    article = corpus.article
    assert rerank(session, select(article).where(article.id < 0), QUERY, reranker, text=article.title) == []
    (row,) = rerank(
        session,
        select(article.id.label("rerank_score")).where(article.id == 7),
        QUERY,
        Lengths(),
        text=article.title,
    )
    assert (row.rerank_score, row.rerank_score_1) == (7, 8.0)


def test_parameters_of_the_statement(corpus, session, reranker):
    article = corpus.article
    statement = semantic_search(article.embedding, bindparam("q"), limit=5)
    rows = rerank(session, statement, QUERY, reranker, text=article.title, params={"q": QUERY})
    expected = session.execute(statement, {"q": QUERY}).all()
    assert {row[0].id for row in rows} == {row[0].id for row in expected}


def test_one_of_several_labels(corpus, session, folders):
    article = corpus.article
    statement = select(article).where(article.id <= 12).order_by(article.id)
    with Reranker(folders["bert-nli"]) as nli:
        rows = rerank(session, statement, QUERY, nli, text=words_of(article), label="entailment", limit=None)
        scores = nli.predict([(QUERY, WORDS[row.Article.id % 37 :]) for row in rows])
        assert [row.rerank_score for row in rows] == scores[:, 1].tolist()
        assert [row.rerank_score for row in rows] == sorted(scores[:, 1].tolist(), reverse=True)
        for wrong in (None, "maybe"):
            with pytest.raises(QueryError, match=f"label={wrong!r}; the reranker has 'contradiction', 'ent"):
                rerank(session, statement, QUERY, nli, text=article.title, label=wrong)


def test_a_remote_reranker_orders_as_the_model_does(corpus, session, reranker, remote):
    article = corpus.article
    statement = semantic_search(article.embedding, QUERY, limit=40)
    rows = rerank(session, statement, QUERY, remote, text=words_of(article), limit=None)
    expected = rerank(session, statement, QUERY, reranker, text=words_of(article), limit=None)
    assert [row.Article.id for row in rows] == [row.Article.id for row in expected]
    scores = [row.rerank_score for row in expected]
    assert [row.rerank_score for row in rows] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_async_sessions_keep_the_loop_running(corpus, reranker, driver):
    article = corpus.article
    statement = semantic_search(article.embedding, QUERY, limit=30)
    engine = create_async_engine(corpus.url.set(drivername=f"postgresql+{driver}"))

    class Slow(Lengths):
        @property
        def labels(self):  # which a remote one asks its server for
            self.threads.add(threading.current_thread())
            return ()

        def predict(self, pairs):
            assert running.wait(30)  # only a loop that runs meanwhile sets it
            return super().predict(pairs)

    running = threading.Event()
    slow = Slow()
    async with AsyncSession(engine) as session:
        rows = await arerank(session, statement, QUERY, reranker, text=words_of(article), limit=5)
        before = (await session.execute(statement)).all()
        assert [(row[0].id, row[-1]) for row in rows] == by_hand(reranker, before)[:5]
        waiting = asyncio.create_task(arerank(session, statement, QUERY, slow, text=article.title))
        begin = time.monotonic()
        while not slow.pairs and not waiting.done() and time.monotonic() < begin + 30:
            await asyncio.sleep(0.01)
            running.set()
        assert len(await waiting) == 10
    assert slow.threads
    assert threading.main_thread() not in slow.threads
    await engine.dispose()


async def test_the_kind_of_session(corpus, session, reranker):
    article = corpus.article
    engine = create_async_engine(corpus.url)
    async with AsyncSession(engine) as other:
        with pytest.raises(
            QueryError, match=r"expected a Session or a Connection, got .*: use `await arerank"
        ):
            rerank(other, select(article), QUERY, reranker, text=article.title)
    with pytest.raises(QueryError, match=r"expected an AsyncSession .*: use rerank\("):
        await arerank(session, select(article), QUERY, reranker, text=article.title)
    with pytest.raises(QueryError, match="expected a Session or a Connection, got Engine"):
        rerank(corpus.engine, select(article), QUERY, reranker, text=article.title)
    await engine.dispose()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": " "}, "query=' '; expected a text"),
        ({"query": None}, "query=None; expected a text"),
        ({"limit": 0}, "limit=0; expected a whole number of at least 1"),
        ({"reranker": "ms-marco"}, "reranker='ms-marco'; expected a Reranker"),
        ({"text": "title"}, "text='title' is not a column"),
        ({"label": "yes"}, "label='yes'; the reranker has no names of labels"),
    ],
)
def test_wrong_arguments(corpus, session, arguments, message):
    given = {"query": QUERY, "reranker": Lengths(), "text": corpus.article.title} | arguments
    with pytest.raises(QueryError, match=message):
        rerank(session, select(corpus.article).limit(3), **given)


def test_texts_that_cannot_be_had(corpus, session, minilm_folder):
    article, author = corpus.article, corpus.author
    some = select(article).where(article.id <= 3)
    cases = [
        (some, article.id, "is of the type Integer"),
        (some, author.name, "of a table that the statement does not select from"),
        (select(article.section).distinct(), article.title, "DISTINCT or GROUP BY"),
        (select(article.section).group_by(article.section), article.title, "DISTINCT or GROUP BY"),
        (union_all(some, some), article.title, "not a select"),
        (text("SELECT 1"), article.title, "not a select"),
        (
            some,
            lambda row: row.Article.id,
            "text= gives something of the type int for row 0",
        ),
    ]
    for statement, given, message in cases:
        with pytest.raises(QueryError, match=message):
            rerank(session, statement, QUERY, Lengths(), text=given)
    made = rerank(
        session, text("SELECT 'a' AS word UNION ALL SELECT 'bb'"), QUERY, Lengths(), text=lambda row: row.word
    )
    assert [tuple(row) for row in made] == [("bb", 2.0), ("a", 1.0)]
    with pytest.raises(QueryError, match="expected a Reranker"):
        rerank(session, some, QUERY, Encoder(minilm_folder), text=article.title)
    with pytest.raises(TextError, match="lone surrogate"):
        rerank(session, some, "\ud800", Lengths(), text=article.title)


@pytest.mark.parametrize(
    "answer", [[[1.0], [2.0], [3.0]], [1.0, 2.0], [1.0, float("nan"), 2.0], ["a", "b", "c"]]
)
def test_answers_that_are_no_scores(corpus, session, answer):
    class Odd:
        def predict(self, pairs):
            return np.array(answer)

    with pytest.raises(QueryError, match=r"for 3 pairs; expected finite numbers in the shape \(3,\)"):
        rerank(session, select(corpus.article).limit(3), QUERY, Odd(), text=corpus.article.title)
