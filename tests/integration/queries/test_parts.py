"""Searches of what has parts: each row once, by its best part, whatever crowds around the query."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    URL,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Text,
    create_engine,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, relationship

from pgembed import (
    HNSW,
    Vector,
    count_within,
    diversify,
    embedding_column,
    explain_search,
    facets,
    hybrid_search,
    keyword_search,
    knn_classify,
    near_duplicates,
    passages,
    recommend,
    rerank,
    search_many,
    semantic_search,
)
from pgembed.exc import QueryError
from pgembed.indexes import create
from pgembed.parts import Part, embedding_parts, parts_of
from pgembed.testing import HashEncoder

ENCODER = HashEncoder(16)
BOOKS = 120
LARGE = 77  # the book that has a thousand pages beside the query
RNG = np.random.default_rng(5)
QUERY = RNG.normal(size=16).astype(np.float32)


class Base(DeclarativeBase):
    pass


class Book(Base):
    __tablename__ = "book"
    tenant: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    section: Mapped[str | None]
    pages: Mapped[list[Page]] = relationship(back_populates="book", order_by="Page.number")


class Page(Base):
    __tablename__ = "page"
    __table_args__ = (ForeignKeyConstraint(["tenant", "book_id"], ["book.tenant", "book.id"]),)
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int]
    book_id: Mapped[int]
    number: Mapped[int]
    text: Mapped[str | None] = mapped_column(Text)
    embedding: Mapped[Vector | None] = embedding_column("text", encoder=ENCODER, index=HNSW())
    book: Mapped[Book] = relationship(back_populates="pages")


class Shelf:
    """The books, and their pages with vectors for brute force."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.books: list[dict[str, Any]] = []
        self.pages: list[dict[str, Any]] = []
        for key in range(1, BOOKS + 1):
            section = ("help", "news", None)[key % 3]
            book = {"tenant": key % 4, "id": key // 4, "title": f"book {key}", "section": section}
            self.books.append(book)
            for number in range(1000 if key == LARGE else key % 5):
                vector = RNG.normal(size=16) + (3 * QUERY if key == LARGE else 0)
                self.pages.append(
                    {
                        "id": len(self.pages) + 1,
                        "tenant": book["tenant"],
                        "book_id": book["id"],
                        "number": number,
                        "text": f"page {number} of {key}",
                        "embedding": vector.astype(np.float32) if number != 2 else None,
                    }
                )

    def best(self, query: Any, best: int, keep: Any = lambda book, page: True) -> list[tuple[Any, ...]]:
        """``(book, page, distance)``, by brute force."""
        books = {(book["tenant"], book["id"]): book for book in self.books}
        groups: dict[Any, list[tuple[float, int]]] = {}
        for page in self.pages:
            key = page["tenant"], page["book_id"]
            if page["embedding"] is None or not keep(books[key], page):
                continue
            vector = page["embedding"].astype(np.float64)
            cosine = vector @ query / np.linalg.norm(vector) / np.linalg.norm(query)
            groups.setdefault(key, []).append((1 - float(cosine), page["id"]))
        found = sorted((sorted(pages)[:best], key) for key, pages in groups.items())
        return [(key, page, distance) for pages, key in found for distance, page in pages]


@pytest.fixture(scope="module")
def shelf(server: URL, admin: Engine, template: str) -> Iterator[Shelf]:
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE pgembed_parts TEMPLATE {template}"))
    engine = create_engine(server.set(database="pgembed_parts"))
    Base.metadata.create_all(engine)
    shelf = Shelf(engine)
    with Session(engine) as session:
        session.execute(insert(Book.__table__), shelf.books)
        session.execute(insert(Page.__table__), shelf.pages)
        create(session.connection(), Page.embedding)
        session.commit()
        session.execute(text("ANALYZE"))
        session.commit()
    yield shelf
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE pgembed_parts WITH (FORCE)"))


@pytest.fixture
def session(shelf: Shelf) -> Iterator[Session]:
    with Session(shelf.engine) as session:
        yield session


def found(rows: Any) -> list[tuple[Any, ...]]:
    return [((book.tenant, book.id), page.id) for book, page, *_ in rows]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.one_of(st.none(), st.integers(0, 10**6)),
    best=st.sampled_from([1, 1, 2, 3]),
    limit=st.integers(1, 130),
    offset=st.sampled_from([0, 0, 1, 30]),
    mode=st.sampled_from(["auto", "exact"]),
    of_book=st.booleans(),
    of_page=st.booleans(),
)
def test_books_equal_brute_force(
    shelf: Shelf,
    seed: int | None,
    best: int,
    limit: int,
    offset: int,
    mode: Any,
    of_book: bool,
    of_page: bool,
) -> None:
    query = QUERY if seed is None else np.random.default_rng(seed).normal(size=16)
    conditions = [Book.section == "help"] * of_book + [Page.number != 1] * of_page
    statement = semantic_search(
        Book.pages, query, best=best, limit=limit, offset=offset, mode=mode, where=conditions
    )
    expected = shelf.best(
        query,
        best,
        lambda book, page: (
            (not of_book or book["section"] == "help") and (not of_page or page["number"] != 1)
        ),
    )
    books = list(dict.fromkeys(key for key, _, _ in expected))[offset : offset + limit]
    expected = [row for row in expected if row[0] in books]
    with Session(shelf.engine) as session:
        rows = session.execute(statement).all()
    assert found(rows) == [row[:2] for row in expected]
    assert [row.distance for row in rows] == pytest.approx([row[2] for row in expected], abs=1e-5)
    assert [row.score for row in rows] == pytest.approx([1 - row[2] for row in expected], abs=1e-5)


def test_a_large_book_crowds_no_other_out(shelf: Shelf, session: Session) -> None:
    """Its thousand pages are nearer than all others, and more than the index is asked for."""
    rows = session.execute(semantic_search(Book.pages, QUERY, limit=BOOKS)).all()
    assert (rows[0].Book.tenant, rows[0].Book.id) == (LARGE % 4, LARGE // 4)
    assert (
        len({(book.tenant, book.id) for book, *_ in rows})
        == len(rows)
        == sum(
            any(
                page["embedding"] is not None
                for page in shelf.pages
                if (page["tenant"], page["book_id"]) == key
            )
            for key in {(book["tenant"], book["id"]) for book in shelf.books}
        )
    )
    nearest = semantic_search(Book.pages, QUERY, limit=500, parts="all")
    assert {book.title for book, *_ in session.execute(nearest)} == {f"book {LARGE}"}


def test_the_index_is_used(shelf: Shelf, session: Session, explain: Any) -> None:
    session.execute(text("SET LOCAL enable_sort = off"))  # as for larger tables
    query = shelf.pages[0]["embedding"]
    for options in ({}, {"parts": "all"}, {"where": Page.number >= 0}):
        plan = explain(session.connection(), semantic_search(Book.pages, query, limit=3, **options))
        assert "Index Scan using ix_page_embedding_hnsw" in plan
        assert all("never executed" in line for line in plan.splitlines() if "Seq Scan on page" in line)


def test_all_parts(shelf: Shelf, session: Session) -> None:
    query = np.random.default_rng(1).normal(size=16)
    statement = semantic_search(
        Book.pages, query, parts="all", limit=40, offset=3, mode="exact", where=Book.section.is_(None)
    )
    expected = shelf.best(query, 2000, lambda book, page: book["section"] is None)
    expected = sorted(expected, key=lambda row: (row[2], row[1]))[3:43]
    assert found(session.execute(statement)) == [row[:2] for row in expected]
    counted = semantic_search(
        Book.pages, query, parts="all", mode="exact", total=True, where=Book.section.is_(None)
    )
    total = len(shelf.best(query, 2000, lambda book, page: book["section"] is None))
    assert session.execute(counted).first().total == total


def test_texts_pages_and_vectors_are_searched_for(shelf: Shelf, session: Session) -> None:
    text_ = shelf.pages[30]["text"]
    expected = [row[:2] for row in shelf.best(ENCODER.encode_queries([text_])[0], 1)]
    assert found(session.execute(semantic_search(Book.pages, text_))) == expected[:10]
    page = session.get(Page, 5)
    expected = [
        row[:2] for row in shelf.best(shelf.pages[4]["embedding"], 1, lambda book, page: page["id"] != 5)
    ]
    assert found(session.execute(semantic_search(Book.pages, page))) == expected[:10]


def test_what_is_selected(session: Session) -> None:
    plain = found(session.execute(semantic_search(Book.pages, QUERY)))
    based = select(Book.title, Page.id).join(Book.pages)
    rows = session.execute(semantic_search(Book.pages, QUERY, base=based)).all()
    assert [row.id for row in rows] == [page for _, page in plain]
    rows = session.execute(semantic_search(Book.pages, QUERY, base=select(Book.id))).all()
    assert [row.id for row in rows] == [book[1] for book, _ in plain]
    rows = session.execute(semantic_search(Book.pages, QUERY, base=select(Page.id))).all()
    assert [row.id for row in rows] == [page for _, page in plain]
    of_subquery = semantic_search(Book.pages, QUERY).subquery()
    assert session.execute(select(of_subquery.c.id_1)).scalars().all() == [page for _, page in plain]


def test_aliases(session: Session) -> None:
    book, page = aliased(Book), aliased(Page)
    options = {"where": [book.section == "help"], "best": 2}
    plain = semantic_search(Book.pages, QUERY, where=Book.section == "help", best=2)
    expected = found(session.execute(plain))
    assert found(session.execute(semantic_search(book.pages, QUERY, **options))) == expected
    also = [book.section == "help", page.number != 1]
    typed = semantic_search(book.pages.of_type(page), QUERY, where=also, best=2)
    plain = semantic_search(Book.pages, QUERY, where=[Book.section == "help", Page.number != 1], best=2)
    assert found(session.execute(typed)) == found(session.execute(plain))


def test_stale_parts_are_left_out(session: Session) -> None:
    """Vectors here are none of the texts', so that all pages are stale."""
    assert session.execute(semantic_search(Book.pages, QUERY, stale="exclude")).all() == []


def test_conditions_over_both(session: Session) -> None:
    statement = semantic_search(Book.pages, QUERY, parts="all", limit=50, where=Page.number == Book.id % 5)
    rows = session.execute(statement).all()
    assert rows
    assert all(page.number == book.id % 5 for book, page, *_ in rows)


def test_other_helpers_take_parts(shelf: Shelf, session: Session) -> None:
    """Each part is a row by itself; labels and groups can be those of what has them."""
    votes = session.execute(knn_classify(Book.pages, QUERY, label=Book.title, k=20)).all()
    assert [(row.label, row.votes) for row in votes] == [(f"book {LARGE}", 20)]
    by_section = semantic_search(Book.pages, QUERY, parts="all", per=Book.section, best=2, mode="exact")
    sections = [book.section for book, *_ in session.execute(by_section)]
    assert sections == [sections[0]] * 2 + [sections[2]] * 2
    assert {*sections} == {"help", "news"}
    boosted = semantic_search(Book.pages, QUERY, parts="all", boost=-Book.id, boosting="add", mode="exact")
    ids = [book.id for book, *_ in session.execute(boosted)]
    assert ids == sorted(ids)
    many = search_many(Book.pages, [QUERY, "page 1 of 31"], limit=2, where=Book.section == "help")
    for query, rows in enumerate((QUERY, "page 1 of 31")):
        one = semantic_search(Book.pages, rows, limit=2, parts="all", where=Book.section == "help")
        assert [row[1:] for row in session.execute(many) if row.query == query] == [
            (*row, rank) for rank, row in enumerate(session.execute(one), 1)
        ]


MATCHES = text(
    "SELECT tenant, book_id, id, score FROM (SELECT DISTINCT ON (tenant, book_id) * FROM ("
    "SELECT *, ts_rank(to_tsvector('english', text), q, 1) AS score "
    "FROM page, CAST(:words AS tsquery) AS q WHERE to_tsvector('english', text) @@ q) AS matches "
    "ORDER BY tenant, book_id, score DESC, id) AS best ORDER BY score DESC, id"
)


@pytest.mark.parametrize("mode", ["auto", "exact"])
def test_hybrid_searches_fuse_books(shelf: Shelf, session: Session, mode: Any) -> None:
    """By the rank of the best page of each, by vector and by words; with the page of the better share."""
    near = shelf.best(QUERY, 1)
    words = session.execute(MATCHES, {"words": "31 | 83 | 77"}).all()
    shares: dict[Any, list[tuple[float, int]]] = {}
    for leg in ([(key, page) for key, page, _ in near], [(tuple(row[:2]), row.id) for row in words]):
        for rank, (key, page) in enumerate(leg[:400], 1):
            shares.setdefault(key, []).append((1 / (60 + rank), page))
    expected = sorted(shares, key=lambda key: (-sum(share for share, _ in shares[key]), key))
    statement = hybrid_search(Book.pages, QUERY, terms="31 83 77", limit=100, candidates=400, mode=mode)
    rows = session.execute(statement).all()
    assert found(rows) == [(key, max(shares[key], key=lambda each: each[0])[1]) for key in expected[:100]]
    assert [row.score for row in rows] == pytest.approx(
        [sum(share for share, _ in shares[key]) for key in expected[:100]]
    )
    assert {row.text_rank for row in rows if row.text_rank} == set(range(1, len(words) + 1))
    page = hybrid_search(Book.pages, QUERY, terms="31 83 77", limit=5, offset=2, candidates=400, mode=mode)
    assert session.execute(page).all() == rows[2:7]


def test_words_find_each_book_once(shelf: Shelf, session: Session) -> None:
    """A thousand pages of one book share a word with the question, and one of another."""
    expected = session.execute(MATCHES, {"words": "77 | 83"}).all()
    assert len(expected) == 2
    rows = session.execute(keyword_search(Book.pages, "77 83", limit=5)).all()
    assert [(book.tenant, book.id, page.id) for book, page, _ in rows] == [tuple(row[:3]) for row in expected]
    assert [row.score for row in rows] == pytest.approx([row.score for row in expected])
    (second,) = session.execute(keyword_search(Book.pages, "77 83", limit=5, offset=1))
    assert second == rows[1]


def test_helpers_of_a_search_take_that_of_parts(session: Session) -> None:
    search = semantic_search(Book.pages, QUERY, limit=50, where=Book.section.is_not(None))
    sections = Counter(book.section for book, *_ in session.execute(search))
    assert dict(session.execute(facets(search, Book.section)).all()) == sections
    based = semantic_search(Book.pages, QUERY, limit=50, base=select(Book.id).join(Book.pages))
    assert session.execute(facets(based, Page.number)).first().count > 1
    each = semantic_search(Book.pages, QUERY, parts="all", limit=5)
    chosen = session.execute(diversify(each)).all()
    assert found(chosen)[0] == found(session.execute(each))[0]
    assert [row.rank for row in chosen] == [1, 2, 3, 4, 5]
    with pytest.raises(QueryError, match=r'of parts with parts="all"'):
        diversify(search)
    like = session.execute(recommend(Book.pages, [QUERY], limit=5)).all()
    assert found(like) == found(session.execute(each))
    (count,) = session.execute(
        count_within(Book.pages, QUERY, 0.5, where=Book.title == f"book {LARGE}")
    ).one()
    assert count == 999
    left, right, _ = session.execute(near_duplicates(Book.pages, min_score=0.9)).first()
    assert session.get(Page, left).book.title == session.get(Page, right).book.title == f"book {LARGE}"


class Longer:
    """Scores pairs by the length of the text."""

    def predict(self, pairs: Any) -> Any:
        return np.array([float(len(text)) for _, text in pairs], dtype=np.float32)


def test_the_texts_of_parts_are_reranked(session: Session) -> None:
    statement = semantic_search(Book.pages, QUERY, limit=50)
    rows = rerank(session, statement, "any", Longer(), text=Page.text, limit=None)
    lengths = [len(page.text) for _, page, *_ in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert {page.id for _, page, *_ in rows} == {page for _, page in found(session.execute(statement))}


class Guides:
    """Two texts with parts, in a database of their own; the parts are those that filling makes."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        class Base(DeclarativeBase):
            pass

        class Guide(Base):
            __tablename__ = "guide"
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str]
            body: Mapped[str | None] = mapped_column(Text)
            parts: Mapped[list[Part]] = embedding_parts(
                "body", encoder=HashEncoder(16, max_tokens=20), context="title", fill="worker", **options
            )

        self.guide: Any = Guide
        bound = parts_of(Guide.parts)
        assert bound is not None
        self.bound: Any = bound
        self.part: Any = Guide.parts.property.entity.class_
        Base.metadata.create_all(engine)
        self.engine = engine

    def fill(self, key: int, title: str, body: str) -> None:
        declaration, table = self.bound.declaration, self.bound.table
        cuts = declaration.cut([body, title])
        vectors = declaration.encoder.encode_documents([cut.encoded for cut in cuts])
        with self.engine.begin() as connection:
            connection.execute(
                insert(table),
                {"id": key, "title": title, "body": body, "parts_digest": declaration.digest([body, title])},
            )
            rows = [
                {**cut._asdict(), "guide_id": key, "embedding": vector}
                for cut, vector in zip(cuts, vectors, strict=True)
            ]
            for row in rows:
                del row["encoded"]
                row["text"] = row["text"] if declaration.keeps_text else None
            connection.execute(insert(self.bound.parts), rows)


BODIES = [
    " ".join(f"Sentence {number} of the first guide has words." for number in range(9)),
    "".join(f"Line {number} of the second, é and 日本.\n\n" for number in range(9)),
]


@pytest.fixture
def guides(engine: Engine, request: pytest.FixtureRequest) -> Guides:
    made = Guides(engine, **getattr(request, "param", {}))
    for key, body in enumerate(BODIES, 1):
        made.fill(key, f"title {key}", body)
    return made


class Lines:
    """A splitter that leaves out blank lines."""

    name, version = "lines", 1

    def __call__(self, source: str) -> Iterator[tuple[int, int]]:
        return (found.span() for found in re.finditer(r"[^\n]+", source))


def test_the_encoder_is_that_of_the_declaration(guides: Guides) -> None:
    with Session(guides.engine) as session:
        (guide, part, distance, score), other = session.execute(
            semantic_search(guides.guide.parts, "title 2 Line 7 of the second, é and 日本.")
        )
        assert (guide.id, other[0].id) == (2, 1)
        assert BODIES[1][part.start : part.end] == part.text == "Line 7 of the second, é and 日本.\n\n"
        assert distance == pytest.approx(0, abs=1e-6)
        assert score == pytest.approx(1, abs=1e-6)
        statement = semantic_search(
            guides.part.embedding, "title 2 Line 7 of the second, é and 日本.", limit=1
        )
        assert session.execute(statement).one()[0].id == part.id


@pytest.mark.parametrize("guides", [{}, {"text": False}, {"overlap": 3}], indirect=True)
@pytest.mark.parametrize("neighbours", [0, 1, 3, 100])
def test_the_text_around_a_part(guides: Guides, neighbours: int) -> None:
    with Session(guides.engine) as session:
        rows = session.execute(
            semantic_search(guides.guide.parts, "of", parts="all", limit=100, neighbours=neighbours)
        ).all()
        parts = {(guide.id, part.number): part for guide, part, *_ in rows}
        assert len(parts) == len(rows) > 10
        for guide, part, _, _, text_ in rows:
            first = parts[guide.id, max(part.number - neighbours, 0)]
            last = max(number for key, number in parts if key == guide.id)
            last_ = parts[guide.id, min(part.number + neighbours, last)]
            assert text_ == BODIES[guide.id - 1][first.start : last_.end]


@pytest.mark.parametrize("guides", [{"splitter": Lines()}], indirect=True)
def test_texts_between_which_blanks_are_left_out(guides: Guides) -> None:
    alias = aliased(guides.part)
    statement = semantic_search(
        guides.guide.parts.of_type(alias), "Line 4", where=alias.number == 4, limit=1, neighbours=1
    )
    with Session(guides.engine) as session:
        (row,) = session.execute(statement)
    assert row.text == "".join(f"Line {number} of the second, é and 日本.\n" for number in (3, 4, 5)).rstrip()


@pytest.mark.parametrize(("guides", "kept"), [({}, True), ({"text": False}, False)], indirect=["guides"])
def test_no_text_is_cut_by_the_offsets_of_another(guides: Guides, kept: bool) -> None:
    """What is stored is what was encoded; the source has changed since, and is shifted."""
    with Session(guides.engine) as session:
        before = semantic_search(guides.guide.parts, "Line 4", where=guides.part.number == 4, neighbours=1)
        texts = {row[0].id: row.text for row in session.execute(before)}
        session.execute(update(guides.guide).where(guides.guide.id == 2).values(body="New. " + BODIES[1]))
        assert {row[0].id: row.text for row in session.execute(before)} == {
            1: texts[1],
            2: texts[2] if kept else None,
        }
        for column in (guides.guide.parts, guides.part.embedding):
            fresh = semantic_search(column, "Line 4", limit=100, stale="exclude")
            assert {getattr(row[0], "guide_id", row[0].id) for row in session.execute(fresh)} == {1}
        session.execute(update(guides.guide).where(guides.guide.id == 2).values(body=BODIES[1]))
        both = semantic_search(guides.guide.parts, "Line 4", stale="exclude", where=guides.guide.id > 0)
        assert len(session.execute(both).all()) == 2


@pytest.mark.parametrize("guides", [{}, {"text": False}], indirect=True)
def test_words_of_parts(guides: Guides) -> None:
    """Those of the texts that are stored."""
    parts = guides.guide.parts
    if not guides.bound.declaration.keeps_text:
        with pytest.raises(QueryError, match=r"parts of guide\.parts are stored without their texts"):
            hybrid_search(parts, "second of the line")
        return
    with Session(guides.engine) as session:
        rows = session.execute(hybrid_search(parts, "second of the line")).all()
        assert [guide.id for guide, *_ in rows] == [2, 1]
        assert "second" in rows[0][1].text
        assert (rows[0].text_rank, rows[1].text_rank) == (1, None)


def test_the_nearest_sentence_of_a_part(guides: Guides) -> None:
    parts, query = guides.guide.parts, "Sentence 4 of guide"
    with Session(guides.engine) as session:
        search = semantic_search(parts, query, neighbours=0)
        rows = passages(session, search, query, parts, text=lambda row: row.text)
        assert {row[0].id: row.passages[0].text for row in rows} == {
            1: "Sentence 4 of the first guide has words.",
            2: "Line 4 of the second, é and 日本.",
        }
        (stored,) = passages(session, select(guides.part).limit(1), query, parts, text=guides.part.text)
        assert stored.passages[0].text in stored[0].text
        with pytest.raises(QueryError, match="are made of parts of texts: pass the text"):
            passages(session, search, query, parts)


@pytest.mark.parametrize("guides", [{"index": HNSW(build="immediate")}], indirect=True)
def test_searches_of_parts_are_explained(guides: Guides) -> None:
    parts = guides.guide.parts
    with Session(guides.engine) as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        session.execute(text("SET LOCAL enable_sort = off"))
        session.execute(text("SET LOCAL enable_bitmapscan = off"))
        for statement in (
            semantic_search(parts, "of", limit=2),
            semantic_search(parts, "of", limit=2, parts="all"),
            hybrid_search(parts, "of", limit=2),
        ):
            found = explain_search(session, statement)
            leg = found.legs[0]
            assert (leg.column, leg.pending) == ("guide_parts.embedding", 0)
            assert leg.index is not None
            assert leg.index.startswith("ix_guide_parts_embedding")
            assert found.rows == 2
        session.execute(update(guides.guide).where(guides.guide.id == 2).values(body="New."))
        (leg,) = explain_search(session, semantic_search(parts, "of")).legs
        assert leg.pending == 1


def test_only_parts_have_neighbours() -> None:
    with pytest.raises(QueryError, match=r"neighbours=1 needs parts declared with embedding_parts\(\)"):
        semantic_search(Book.pages, QUERY, neighbours=1)


class Shelved(Base):
    __tablename__ = "shelved"
    id: Mapped[int] = mapped_column(primary_key=True)
    page_id: Mapped[int] = mapped_column(ForeignKey("page.id"))
    one: Mapped[Vector | None] = embedding_column("note", encoder=ENCODER)
    two: Mapped[Vector | None] = embedding_column("note", encoder=ENCODER)
    note: Mapped[str]
    page: Mapped[Page] = relationship(backref="shelved")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: semantic_search(Page.book, QUERY), "Page.book is a relationship .* expected one to many"),
        (
            lambda: semantic_search(Page.shelved, QUERY),
            "leads to Shelved, whose vectors are: one, two; expected",
        ),
        (lambda: semantic_search(Book.pages, QUERY, best=0), "best=0; expected a whole number"),
        (lambda: semantic_search(Book.pages, QUERY, parts="some"), 'parts=.some.; expected "best" or "all"'),
        (lambda: semantic_search(Page.embedding, QUERY, parts="all"), 'parts="all" has no effect on Page'),
        (lambda: semantic_search(Book.pages, QUERY, parts="all", best=2), "best=2 has no effect"),
        (
            lambda: semantic_search(Book.pages, QUERY, boost=Book.id),
            'parts="best" and boost= .* pass parts="all"',
        ),
        (
            lambda: semantic_search(Book.pages, QUERY, total=True),
            'parts="best" and total= .* pass parts="all"',
        ),
        (lambda: semantic_search(Book.pages, QUERY, where=Shelved.note == ""), "where= refers to shelved"),
        (
            lambda: semantic_search(Book.pages, QUERY, base=select(Shelved.id)),
            "base= does not select from page",
        ),
    ],
)
def test_what_is_refused(build: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        build()


@pytest.mark.parametrize("guides", [{}, {"index": HNSW(build="immediate")}], indirect=True)
@pytest.mark.parametrize("form", ["vector", "halfvec", "text"])
def test_parts_in_sql(guides: Guides, form: str) -> None:
    vector = guides.bound.declaration.encoder.encode_queries(["Line 7 of guide"])[0]
    call = text(
        'SELECT key, number, start, "end", text, distance, score FROM pgembed.search_parts('
        f"'guide', 'parts', CAST(:q AS {form}), 5, best => :best, exact => :exact)"
    )
    with Session(guides.engine) as session:
        for best, exact in ((1, True), (3, True), (1, False), (2, False)):
            values = {"q": str(vector.tolist()), "best": best, "exact": exact}
            rows = session.execute(call, values).all()
            expected = session.execute(semantic_search(guides.guide.parts, vector, best=best, limit=5)).all()
            assert [row[:5] for row in rows] == [
                ({"id": guide.id}, part.number, part.start, part.end, part.text)
                for guide, part, *_ in expected
            ]
            tolerance = 1e-3 if form == "halfvec" else 1e-6
            assert [row.distance for row in rows] == pytest.approx(
                [row.distance for row in expected], abs=tolerance
            )
            assert [row.score for row in rows] == pytest.approx([1 - row.distance for row in rows])
        for name in ("embedding", "other"):
            with (
                pytest.raises(DBAPIError, match=f"guide has no parts called {name}") as caught,
                session.begin_nested(),
            ):
                session.execute(text(f"SELECT FROM pgembed.search_parts('guide', '{name}', '[1]')"))
            assert "Its parts: parts." in str(caught.value)


class Leaf(DeclarativeBase):
    pass


class Tome(Leaf):
    __tablename__ = "a tome"
    part: Mapped[int] = mapped_column("the part", primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[str]
    leaves: Mapped[list[Part]] = embedding_parts(
        "body", encoder=HashEncoder(16, max_tokens=8), metric="l2", text=False
    )


def test_composite_keys(engine: Engine) -> None:
    Leaf.metadata.create_all(engine)
    with Session(engine) as session:
        for number in range(3):
            for name in ("a", "b"):
                body = " ".join(f"word{number}{name}{place} and" for place in range(20))
                session.add(Tome(part=number, name=name, body=body))
        session.commit()
        rows = session.execute(
            semantic_search(Tome.leaves, "word1b7 and", limit=20, best=2, neighbours=1)
        ).all()
        assert [(tome.part, tome.name) for tome, *_ in rows[:2]] == [(1, "b")] * 2
        assert len(rows) == 12
        assert all(row.text in row.Tome.body for row in rows)
        assert all("word1b7" in row.text for row in rows[:1])
        vector = HashEncoder(16).encode_queries(["word1b7 and"])[0]
        in_sql = session.execute(
            text("SELECT * FROM pgembed.search_parts('\"a tome\"', 'leaves', :q, 20, 2)"),
            {"q": str(vector.tolist())},
        ).all()
        assert [(row.key, row.number, row.text) for row in in_sql] == [
            ({"the part": tome.part, "name": tome.name}, part.number, None) for tome, part, *_ in rows
        ]
        assert [row.distance for row in in_sql] == pytest.approx([row.distance for row in rows])
        keys = session.execute(
            semantic_search(Tome.leaves, "and", stale="exclude", where=Tome.part < 2)
        ).all()
        assert {(row.Tome.part, row.Tome.name) for row in keys} == {(0, "a"), (0, "b"), (1, "a"), (1, "b")}


class Written(DeclarativeBase):
    pass


class Document(Written):
    __tablename__ = "document"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    title: Mapped[str]
    __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "document"}


class Report(Document):
    __tablename__ = "report"
    __table_args__: ClassVar = {"schema": "far"}
    __mapper_args__: ClassVar = {"polymorphic_identity": "report"}
    id: Mapped[int] = mapped_column(ForeignKey("document.id"), primary_key=True)
    section: Mapped[str]
    body: Mapped[str]
    parts: Mapped[list[Part]] = embedding_parts(
        "body", encoder=HashEncoder(16, max_tokens=8), index=HNSW(build="immediate")
    )


class Annual(Report):
    __mapper_args__: ClassVar = {"polymorphic_identity": "annual"}


@pytest.fixture
def reports(engine: Engine) -> Engine:
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA far"))
        Written.metadata.create_all(connection)
    with Session(engine) as session:
        for number in range(6):
            body = " ".join(f"w{number}x{place}" for place in range(30))
            section = "help" if number < 3 else "news"
            session.add((Report, Annual)[number % 2](title=f"title {number}", section=section, body=body))
        session.commit()
    return engine


@pytest.mark.parametrize("mode", ["auto", "exact"])
def test_classes_of_a_hierarchy(reports: Engine, mode: Any) -> None:
    """Conditions over both tables; of a subclass, no row of another class takes a place."""

    def titles(column: Any, *where: Any, **options: Any) -> list[str]:
        search = semantic_search(column, "w2x5", where=where, stale="exclude", mode=mode, **options)
        with Session(reports) as session:
            return [row[0].title[-1] for row in session.execute(search)]

    assert titles(Report.parts, limit=2)[0] == "2"
    assert sorted(titles(Report.parts)) == list("012345")
    assert sorted(titles(Report.parts, Report.section == "help")) == list("012")
    assert titles(Report.parts, Document.title == "title 4") == ["4"]
    assert sorted(titles(Report.parts, Report.title != "title 1", Report.section == "help")) == list("02")
    assert sorted(titles(Annual.parts, limit=3)) == list("135")
    assert sorted(titles(Annual.parts, Annual.section == "help")) == ["1"]
    report = aliased(Report)
    assert sorted(titles(report.parts, report.section == "help")) == list("012")


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_sessions(reports: Engine, driver: str) -> None:
    async def run() -> None:
        engine = create_async_engine(reports.url.set(drivername=f"postgresql+{driver}"))
        async with AsyncSession(engine) as session:
            search = semantic_search(
                Report.parts, "w2x5", where=Report.section == "help", best=2, neighbours=1, stale="exclude"
            )
            rows = (await session.execute(search)).all()
            assert (rows[0].Report.title, len(rows)) == ("title 2", 6)
            assert all(row.text in row.Report.body for row in rows)
            (first, *_) = (await session.execute(hybrid_search(Report.parts, "w2x5"))).all()
            assert (first.Report.title, first.vector_rank, first.text_rank) == ("title 2", 1, 1)
        await engine.dispose()

    asyncio.run(run())
