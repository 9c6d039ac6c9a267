"""What type checkers know of the rows that statements give: checked by mypy (``make check``), never run."""

from __future__ import annotations

from typing import Any, assert_type

from sqlalchemy import Column, Integer, MetaData, Row, Table, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlmodel import Field, SQLModel, col
from sqlmodel import Session as ModelSession
from sqlmodel import select as model_select

from pgembed import (
    Vector,
    cluster,
    count_within,
    duplicate_groups,
    duplicates_of,
    embedding_column,
    explain_search,
    facets,
    hybrid_search,
    keep_list,
    knn_classify,
    knn_classify_many,
    label_issues,
    match,
    mine_pairs,
    near_duplicates,
    passages,
    recommend,
    search_many,
    semantic_search,
    topics,
    zero_shot,
)
from pgembed.columns import VectorType
from pgembed.testing import HashEncoder


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    embedding: Mapped[Vector | None] = embedding_column("title", encoder=HashEncoder(8))


class Note(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    words: str
    embedding: Vector | None = Field(
        default=None, sa_column=embedding_column("words", encoder=HashEncoder(8)).column
    )


TABLE = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType(8)))


def searches(session: Session) -> None:
    search = semantic_search(Article.embedding, "x")
    article, distance, score = session.execute(search).one()
    assert_type((distance, score), tuple[float, float])
    same: Article = article  # whose class the column does not tell: it passes for any
    print(same.title, article.title)
    for row in session.execute(search.with_for_update()):
        assert_type(row[1], float)
    near = session.execute(semantic_search(Article.embedding, "x", base=select(Article))).one()
    assert_type(near[0], Article)
    base = select(Article.id, Article.title)
    some = session.execute(semantic_search(Article.embedding, "x", base=base)).one()
    assert_type((some[0], some[1], some[2], some[3]), tuple[int, str, float, float])
    of_each = session.execute(search_many(Article.embedding, ["x"], base=base)).one()
    assert_type((of_each[1], of_each[3], of_each[5]), tuple[int, float, int])
    liked = session.execute(recommend(Article.embedding, [1], base=base)).one()
    assert_type((liked[0], liked[2], liked[3]), tuple[int, float, float])
    grouped = session.execute(semantic_search(Article.embedding, "x", per=Article.title, base=base)).one()
    assert_type((grouped[1], grouped[3]), tuple[str, float])
    value, number = session.execute(facets(search, Article.title)).one()
    assert_type((value, number), tuple[str, int])
    assert_type(session.scalar(count_within(Article.embedding, "x", 0.3)), int | None)
    best = session.execute(hybrid_search(Article.embedding, "x", text=[Article.title])).one()
    assert_type((best[1], best[2], best[3]), tuple[float, int | None, int | None])
    for explained in (search, best_of_each := search_many(Article.embedding, ["x"], base=base)):
        assert_type(explain_search(session, explained).legs[0].index, str | None)
    assert_type(passages(session, best_of_each, "x", Article.embedding), list[Row[Any]])
    for id_, _vector, _distance, _score in session.execute(semantic_search(TABLE.c.v, [1.0] * 8)):
        assert_type(id_, Any)


def labels_and_duplicates(session: Session) -> None:
    votes = knn_classify(Article.embedding, "x", label=Article.title)
    label, share, count = session.execute(votes.limit(1)).one()
    assert_type((label, share, count), tuple[str, float, int])
    many = knn_classify_many(Article.embedding, queries=["x"], label=Article.title)
    _, given, part, heads, margin, nearest, reason = session.execute(many).one()
    assert_type((given, part, heads), tuple[str | None, float | None, int])
    assert_type((margin, nearest, reason), tuple[float | None, float | None, str | None])
    texts = zero_shot(Article.embedding, {"help": "x", "news": ["y"]})
    _, kind, _, lead, _, why = session.execute(texts.limit(1)).one()
    assert_type((kind, lead, why), tuple[str | None, float | None, str | None])
    issues = label_issues(Article.embedding, label=Article.title)
    _, has, suggested, part_of_own, _ = session.execute(issues).one()
    assert_type((has, suggested, part_of_own), tuple[str, str, float])
    left, _right, alike = session.execute(near_duplicates(Article.embedding, min_score=0.9).limit(9)).one()
    key: int = left
    assert_type((key, alike), tuple[int, float])
    group, _key = session.execute(duplicate_groups(Article.embedding, min_score=0.9)).one()
    assert_type(group, int)
    inner = session.execute(duplicate_groups(Article.embedding, min_score=0.9, inner=True)).one()
    assert_type((inner[0], inner[2], inner[3]), tuple[int, int, float | None])
    row = session.execute(keep_list(Article.embedding, min_score=0.9, keep=Article.title)).one()
    assert_type((row[1], row[3]), tuple[bool, float | None])
    near = session.execute(duplicates_of(Article.embedding, "x", min_score=0.9)).one()
    assert_type((near[1], near[2]), tuple[float, float])
    matched = session.execute(match(Article.embedding, Article.embedding)).one()
    assert_type((matched[2], matched[3]), tuple[float, float])
    found = cluster(Article.embedding, min_score=0.9)
    gathered = session.execute(found).one()
    assert_type((gathered[0], gathered[2]), tuple[int, float])
    about = session.execute(topics(Article.embedding, found, text=Article.title)).one()
    assert_type((about[1], about[2]), tuple[int, list[str]])
    assert_type(session.execute(mine_pairs(Article.embedding)).one()[2], float)


async def asynchronous(session: AsyncSession) -> None:
    _, distance, score = (await session.execute(semantic_search(Article.embedding, "x"))).one()
    assert_type((distance, score), tuple[float, float])


def sqlmodel(session: ModelSession) -> None:
    vector, words = col(Note.embedding), col(Note.words)
    note, distance, score = session.exec(semantic_search(vector, "x")).one()
    assert_type((distance, score), tuple[float, float])
    same: Note = note
    print(same.words)
    near = session.exec(semantic_search(vector, "x", base=model_select(Note))).one()
    assert_type((near[0], near[1]), tuple[Note, float])
    best = session.exec(hybrid_search(vector, "x", text=[words])).one()
    assert_type((best[1], best[2]), tuple[float, int | None])
    label, share, count = session.exec(knn_classify(vector, "x", label=words)).one()
    assert_type((label, share, count), tuple[str, float, int])
    assert_type(session.exec(near_duplicates(vector, min_score=0.9)).one()[2], float)
    assert_type(session.exec(duplicate_groups(vector, min_score=0.9)).one()[0], int)
