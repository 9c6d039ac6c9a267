"""keyword_search: BM25 in SQL equals BM25 by its formula, for any question, and finds all that there is."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import Computed, Text, bindparam, func, insert, select, text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from pgembed import Vector, Words, embedding_column
from pgembed.exc import LateClauseError, QueryError
from pgembed.filling import refresh_words
from pgembed.queries import hybrid_search, keyword_search
from pgembed.queries.words import bm25
from pgembed.testing import HashEncoder


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column("headline", Text)
    body: Mapped[str | None]
    section: Mapped[int] = mapped_column(default=0)
    embedding: Mapped[Vector | None] = embedding_column(
        "title", encoder=HashEncoder(8), words=Words("title", "body", k1=1.5, b=0.6), fill="worker"
    )


TABLE = Note.__table__


@pytest.fixture
def session(engine):
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session


def zipf(rows: int, words: int = 200, seed: int = 1) -> list[dict[str, Any]]:
    """Texts of up to 60 words, the n-th with a frequency like 1/n; every seventh has no body."""
    random.seed(seed)
    vocabulary = [f"w{number}x" for number in range(words)]
    weights = [1 / (number + 1) for number in range(words)]
    return [
        {
            "id": key,
            "title": " ".join(random.choices(vocabulary, weights, k=random.randrange(1, 9))),
            "body": " ".join(random.choices(vocabulary, weights, k=random.randrange(60)))
            if key % 7
            else None,
            "section": key % 3,
        }
        for key in range(1, rows + 1)
    ]


def by_formula(
    session, question: str, *, section: int | None = None, k1=1.5, b=0.6
) -> list[tuple[int, float]]:
    """Keys and scores by BM25 as bm25s's method "lucene" has it, over the same tokens, best first."""
    documents: dict[int, Counter[str]] = {key: Counter() for key in session.scalars(select(Note.id))}
    rows = session.execute(text("SELECT id, u.* FROM note, unnest(embedding_words) AS u"))
    for key, lexeme, positions, _ in rows:
        documents[key][lexeme] = len(positions)
    mean = sum(sum(counts.values()) for counts in documents.values()) / len(documents)
    asked = session.execute(
        text("SELECT u.* FROM unnest(to_tsvector('english', :question)) AS u"), {"question": question}
    )
    scores: dict[int, float] = Counter()
    for lexeme, positions, _ in asked:
        n = sum(lexeme in counts for counts in documents.values())
        idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
        for key, counts in documents.items():
            if lexeme in counts:
                norm = k1 * (1 - b + b * sum(counts.values()) / mean)
                scores[key] += len(positions) * idf * counts[lexeme] / (counts[lexeme] + norm)
    keys = {row["id"] for row in zipf(len(documents)) if section is None or row["section"] == section}
    return sorted(((k, s) for k, s in scores.items() if k in keys), key=lambda hit: (-hit[1], hit[0]))


def found(session, question: Any, parameters: Any = None, **options: Any) -> list[tuple[int, float]]:
    options.setdefault("limit", 1000)
    rows = session.execute(keyword_search(Note.embedding, question, **options), parameters or {}).all()
    return [(row.Note.id, row.score) for row in rows]


def same(one, other) -> None:
    assert [key for key, _ in one] == [key for key, _ in other]
    assert [score for _, score in one] == pytest.approx([score for _, score in other], rel=1e-9)


def in_sql(session, question: str, k: int) -> list[tuple[int, float]]:
    called = text("SELECT key ->> 'id', score FROM pgembed.keyword_search('note', 'embedding', :q, :k)")
    return [(int(key), score) for key, score in session.execute(called, {"q": question, "k": k})]


QUESTIONS = [
    "w150x",
    "w0x",
    "w3x w70x w70x w199x",
    "w0x w1x w2x",
    " ".join(f"w{n}x" for n in range(0, 60, 5)),
]


@pytest.mark.parametrize("refreshed", [True, False])
def test_scores_are_those_of_the_formula(session, refreshed):
    """To the last digits, with statistics; and without, counted for the question (and the mean of all rows,
    which are no more than are sampled)."""
    session.execute(insert(TABLE), [row | {"headline": row.pop("title")} for row in zipf(180)])
    if refreshed:
        statistics = refresh_words(session.connection(), Note.embedding)
        assert (statistics.rows, statistics.words) == (180, 200)
    for question in QUESTIONS:
        expected = by_formula(session, question)
        assert expected
        same(found(session, question), expected)
        same(in_sql(session, question, 7), expected[:7])
        same(found(session, question, limit=7, offset=5), expected[5:12])
    expected = by_formula(session, QUESTIONS[2], section=1)
    same(found(session, QUESTIONS[2], where=Note.section == 1), expected)


def test_few_candidates_are_as_good_and_never_too_few(session):
    """Where the rare words and sets of words choose the candidates, the best rows are among them; and where
    those are fewer than the rows asked for, all words do."""
    session.execute(insert(TABLE), [row | {"headline": row.pop("title")} for row in zipf(5000)])
    refresh_words(session.connection(), Note.embedding)
    for question in QUESTIONS:
        for section in (None, 1):
            where = None if section is None else Note.section == section
            expected = by_formula(session, question, section=section)
            candidates = found(session, question, limit=10, where=where)
            assert len({key for key, _ in candidates} & {key for key, _ in expected[:10]}) >= 9
            same(found(session, question, where=where), expected[:1000])
            scores = dict(expected)
            assert all(score == pytest.approx(scores[key], rel=1e-9) for key, score in candidates)


def test_of_frequent_words_the_rows_that_have_several_are_read(session, explain):
    """Each word is in half the rows: no row is read for one of them or for two, and the best are found."""
    of_word = {n: "".join(f" w{word}x" for word in range(5) if n >> word & 1) for n in range(32)}
    rows = [
        {"id": n, "headline": "text" + of_word[n % 32], "body": "more " * (n % 50)} for n in range(1, 6001)
    ]
    session.execute(insert(TABLE), rows)
    session.execute(text("SELECT gin_clean_pending_list('ix_note_embedding_words')"))
    session.execute(text("ANALYZE note"))
    refresh_words(session.connection(), Note.embedding)
    question = "w0x w1x w2x w3x w4x"
    plan = explain(session.connection(), keyword_search(Note.embedding, question))
    read = re.findall(r"Bitmap Index Scan on ix_note_embedding_words \(actual rows=(\d+)", plan)
    assert 187 <= max(map(int, read)) <= 6000 / 4
    same(found(session, question, limit=10), by_formula(session, question)[:10])
    same(in_sql(session, question, 10), by_formula(session, question)[:10])


def test_the_frequency_is_read_exactly_from_a_rank(session):
    """Of all that a tsvector can hold of one word."""
    rows = [{"id": n, "headline": "word " * n + "apple " * (300 - n)} for n in range(1, 301)]
    session.execute(insert(TABLE), rows)
    rank = func.ts_rank(bm25._ONES, TABLE.c.embedding_words, text("'word'::tsquery"))
    frequency = func.round(bm25._LIMIT / (1 - rank) - 0.5)
    length = func.round(
        func.ts_rank(TABLE.c.embedding_words, text("'word'::tsquery"))
        / func.ts_rank(TABLE.c.embedding_words, text("'word'::tsquery"), text("2"))
    )
    counted = list(session.execute(select(frequency, length).order_by(TABLE.c.id)))
    assert counted == [(min(n, 255), min(n, 255) + min(300 - n, 255)) for n in range(1, 301)]


HOSTILE = {
    "the of and": set(),
    "": set(),
    " \t\n": set(),
    "& | ! ' :* <-> \\": set(),
    "🙂": set(),
    "dog/cat": {1, 2, 3},
    "dog.cat": {1, 2, 3},
    "http://dog.example.com/cat?x=1": {1, 2, 3},
    "dog-cat_dog@cat.example": {1, 2, 3},
    "/usr/share/cat": {2, 3},
    "<cat>": {2, 3},
    "cat\0dog": {1, 2, 3},
    "it's a 'cat' \"dog\\": {1, 2, 3},
    "кошка": {4},
    "naïve ' quote": {5},
    "zzz " * 1250 + "dog": set(),  # beyond the characters that count
    "dog " + "zzz " * 1250: {1, 2},
    " ".join(f"q{n}" for n in range(1000)) + " dog": set(),
    "dog " + " ".join(f"q{n}" for n in range(1000)): {1, 2},
}


@pytest.mark.parametrize("question", HOSTILE)
def test_no_question_breaks_a_search(session, question):
    texts = ["a dog", "dog and cat", "cats", "кошка", "naïve quotes' '"]
    session.add_all([Note(id=n, title=title) for n, title in enumerate(texts, 1)])
    session.flush()
    for refreshed in (False, True):
        if refreshed:
            refresh_words(session.connection(), Note.embedding)
        assert {key for key, _ in found(session, question)} >= HOSTILE[question]
        assert {key for key, _ in found(session, question)} <= HOSTILE[question] | (
            {5} if "quot" in question else set()
        )
        if "\0" not in question:
            same(in_sql(session, question, 1000), found(session, question))
        bound = found(session, bindparam("q"), {"q": question})
        assert bound == found(session, question)


def test_texts_of_any_length_and_kind_are_stored(session):
    """More words than a tsvector holds, more bytes than a word may have, paths and hosts."""
    dense = {
        1: "needle " + " ".join(f"{n:05x}" for n in range(300_000)),
        2: "needle "
        + " ".join(chr(0x20000 + n % 40000) + chr(0x20000 + n * 7 % 40000) for n in range(300_000)),
        3: "needle " + " ".join(chr(0x20000 + n) for n in range(40_000)) * 8,
        4: "needle " + "x" * 1_500_000,
        5: "needle " + "a-" * 400_000,
        6: "src/needle.txt",
        7: "see needle.example.com:80",
    }
    session.execute(insert(TABLE), [{"id": key, "headline": title} for key, title in dense.items()])
    refresh_words(session.connection(), Note.embedding)
    assert {key for key, _ in found(session, "needle")} == set(dense)


def test_statistics_are_of_the_last_refresh(session):
    """Words that have come since count as rare; others keep their frequency; a second refresh sees all."""
    session.add_all([Note(id=n, title="common" if n % 2 else "common apple") for n in range(1, 41)])
    session.flush()
    connection = session.connection()
    assert refresh_words(connection, Note.embedding).rows == 40
    session.add_all([Note(id=n, title="common novelty") for n in range(41, 81)])
    session.flush()
    best = found(session, "novelty apple", limit=1)[0][0]
    assert best > 40
    statistics = text("SELECT lexeme, rows FROM note_embedding_words ORDER BY lexeme")
    assert connection.execute(statistics).all() == [("", 40), ("appl", 20), ("common", 40)]
    refresh_words(connection, Note.embedding)
    assert connection.execute(statistics).all() == [("", 80), ("appl", 20), ("common", 80), ("novelti", 40)]
    assert found(session, "novelty apple", limit=1)[0][0] <= 40
    session.execute(TABLE.delete())
    refresh_words(connection, Note.embedding)
    assert connection.execute(statistics).all() == [("", 0)]
    assert found(session, "common") == []


def test_ties_aliases_bases_and_late_clauses(session):
    session.add_all([Note(id=n, title="same words", body="more") for n in (5, 3, 9, 1)])
    session.flush()
    assert [key for key, _ in found(session, "words")] == [1, 3, 5, 9]
    other = aliased(Note)
    statement = keyword_search(
        other.embedding, "words", where=other.id > 1, base=select(other.id, other.body)
    )
    rows = session.execute(statement).all()
    assert [(row.id, row.body) for row in rows] == [(3, "more"), (5, "more"), (9, "more")]
    assert rows[0]._fields == ("id", "body", "score")
    core = session.execute(keyword_search(TABLE.c.embedding, "words", limit=2)).all()
    assert [row.id for row in core] == [1, 3]
    with pytest.raises(LateClauseError, match=r"pass where= to keyword_search\(\)"):
        statement.where(other.id == 1)
    with pytest.raises(QueryError, match="config='german' is for text="):
        keyword_search(Note.embedding, "words", config="german")


def test_rare_words_are_found_through_the_index(session, explain):
    session.execute(insert(TABLE), [row | {"headline": row.pop("title")} for row in zipf(3000)])
    session.execute(text("SELECT gin_clean_pending_list('ix_note_embedding_words')"))
    session.execute(text("ANALYZE note"))
    refresh_words(session.connection(), Note.embedding)
    plan = explain(session.connection(), keyword_search(Note.embedding, "w190x w199x"))
    assert "Bitmap Index Scan on ix_note_embedding_words" in plan
    # The other leg, of all words, and counting are there and not executed.
    assert "never executed" in plan.partition("Append")[2]


def test_without_words_texts_are_ranked_by_postgres(engine, Base):
    """By ts_rank with the length, over the sources or the columns that are named."""

    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        body: Mapped[str]
        stored: Mapped[Any] = mapped_column(
            TSVECTOR, Computed("to_tsvector('english', body)", persisted=True)
        )
        embedding: Mapped[Vector | None] = embedding_column("title", encoder=HashEncoder(8), fill="worker")

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            [Page(id=1, title="cat " + "filler " * 20, body="x"), Page(id=2, title="a cat", body="cat.dog")]
        )
        session.flush()
        ranked = session.execute(keyword_search(Page.embedding, "pets/cat", base=select(Page.id))).all()
        expected = session.execute(
            text(
                "SELECT id, ts_rank(to_tsvector('english', title), 'pet | cat | pets/cat', 1) FROM page "
                "ORDER BY 2 DESC"
            )
        ).all()
        assert [tuple(row) for row in ranked] == [(key, pytest.approx(rank)) for key, rank in expected]
        for columns in (Page.stored, [Page.title, Page.body]):
            statement = keyword_search(Page.embedding, "cat.dog", text=columns, base=select(Page.id))
            assert 2 in session.scalars(statement).all()


def test_the_hybrid_of_sql_agrees(session):
    encoder = HashEncoder(8)
    for row in zipf(120):
        session.add(
            Note(**row, embedding=encoder.encode_documents([row["title"]])[0] if row["id"] % 9 else None)
        )
    session.flush()
    refresh_words(session.connection(), Note.embedding)
    vector, terms = encoder.encode_queries(["w3x w40x"])[0], "w3x w70x"
    called = text("SELECT * FROM pgembed.hybrid_search('note', 'embedding', :terms, CAST(:v AS vector), 20)")
    rows = session.execute(called, {"terms": terms, "v": str(vector.tolist())}).all()
    statement = hybrid_search(Note.embedding, vector, terms=terms, limit=20)
    expected = session.execute(statement).all()
    assert [(row.key["id"], row.vector_rank, row.text_rank) for row in rows] == [
        (row.Note.id, row.vector_rank, row.text_rank) for row in expected
    ]
    for name in ("score", "vector_score", "text_score"):
        assert [getattr(row, name) for row in rows] == [
            None if getattr(row, name) is None else pytest.approx(getattr(row, name)) for row in expected
        ]


def test_sql_says_what_is_missing(session):
    session.execute(text("DROP TABLE note_embedding_words"))
    with pytest.raises(DBAPIError, match=r"column embedding of table public.note has no words") as refused:
        in_sql(session, "cat", 5)
    assert "words=Words(...)" in str(refused.value)
