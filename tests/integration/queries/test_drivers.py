"""All statements of classification and duplicates through each driver: their rows are those of psycopg."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    URL,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    func,
    insert,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

import pgembed
from pgembed import HNSW, Vector, embedding_column, softmax
from pgembed.exc import DuplicateMeaningError
from pgembed.testing import HashEncoder

ENCODER = HashEncoder(16)
ABOUT = {"red": "red rose", "blue": ["blue sky", "sea"]}


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    colour: Mapped[str | None]
    tags: Mapped[list[str]] = mapped_column(ARRAY(String))
    price: Mapped[float]
    embedding: Mapped[Vector | None] = embedding_column(
        "body", encoder=ENCODER, index=HNSW(build="immediate")
    )

    def __repr__(self) -> str:
        return f"Note {self.id}"


class Reply(Base):
    __tablename__ = "reply"
    id: Mapped[int] = mapped_column(primary_key=True)
    note_id: Mapped[int] = mapped_column(ForeignKey(Note.id))
    body: Mapped[str]
    embedding: Mapped[Vector | None] = embedding_column("body", encoder=ENCODER)


class Rule(Base):
    __tablename__ = "rule"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[Vector | None] = embedding_column("body", encoder=ENCODER, unique_within=0.95)


PAIR = Table(
    "pair",
    MetaData(),
    Column("left_key", Integer),
    Column("right_key", Integer),
    Column("score", Float),
    prefixes=["TEMPORARY"],
)


@pytest.fixture(scope="module")
def notes(module_url: URL) -> URL:
    engine = create_engine(module_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for key in range(60):
            colour = ("red rose", "blue sky")[key % 2]
            session.add(
                Note(
                    id=key,
                    body=f"{colour} {colour} {colour} w{key // 4 if key < 40 else key}",
                    colour=None if key % 7 == 0 else "red" if key % 2 == 0 or key == 9 else "blue",
                    tags=[colour[:3], f"t{key % 3}"],
                    price=float(key),
                )
            )
        session.flush()
        session.add_all(
            Reply(id=key, note_id=key, body=f"{key % 2} blue sky w{key // 4}") for key in range(20)
        )
        session.add(Rule(id=1, body="red rose"))
    engine.dispose()
    return module_url


def asked(session: Session) -> dict[str, Any]:
    """What each statement answers."""
    note, reply = Note.embedding, Reply.embedding
    texts = ["red rose", "blue sky w3"]
    labelled = select(
        Note.id.label("left_key"), (Note.id + 2).label("right_key"), (Note.id % 4 < 2).label("duplicate")
    )
    labelled = labelled.where(Note.id < 40)
    clusters = pgembed.cluster(note, min_score=0.97, min_size=2)
    kept = pgembed.keep_list(note, min_score=0.999, keep=Note.price.desc())
    PAIR.create(session.connection())
    pairs = pgembed.near_duplicates(note, min_score=0.95)
    session.execute(insert(PAIR).from_select(["left_key", "right_key", "score"], pairs))
    stored = pgembed.keep_list(note, min_score=0.99, pairs=PAIR)
    statements = {
        "texts": pgembed.knn_classify_many(
            note, queries=texts, label=Note.colour, k=5, weights=softmax(0.1), prior="balanced", min_share=0.3
        ),
        "table": pgembed.knn_classify_many(note, queries=reply, label=Note.colour, max_distance=0.5),
        "own rows": pgembed.knn_classify_many(
            note, queries=Note.colour.is_(None), label=Note.colour, mode="exact"
        ),
        "several labels": pgembed.knn_classify_many(note, queries=reply, label=Note.tags, k=5),
        "numbers": pgembed.knn_classify_many(note, queries=texts, label=Note.price, k=5),
        "zero_shot": pgembed.zero_shot(note, ABOUT, where=Note.id < 9, min_margin=0.01),
        "zero_shot of texts": pgembed.zero_shot(note, ABOUT, queries=texts),
        "centroids": pgembed.centroid_classify(reply, queries=note, label=Reply.note_id % 2, min_share=0.4),
        "centroids and texts": pgembed.centroid_classify(
            note, queries=texts, label=Note.colour, texts=ABOUT, mix=0.3
        ),
        "label_issues": pgembed.label_issues(note, label=Note.colour, k=5, apart=0.999),
        "outliers": pgembed.outliers(note, k=3).limit(5),
        "representatives": pgembed.representatives(note, k=3),
        "duplicates_of a text": pgembed.duplicates_of(note, texts[1], min_score=0.8),
        "duplicates_of a row": pgembed.duplicates_of(note, session.get_one(Note, 3), min_score=0.8),
        "near_duplicates": pgembed.near_duplicates(note, min_score=0.9, max_score=0.9999),
        "near_duplicates of two": pgembed.near_duplicates(note, reply, min_score=0.6, where=Note.id > 3),
        "duplicate_groups": pgembed.duplicate_groups(note, min_score=0.999, inner=True),
        "keep_list": kept,
        "keep_list of pairs": stored,
        "rethreshold": pgembed.rethreshold(PAIR, min_score=0.98, searched_with=0.95),
        "match": pgembed.match(note, reply, min_score=0.3, margin=1.001),
        "match of many": pgembed.match(note, reply, one_to_one=False),
        "mine_pairs": pgembed.mine_pairs(note, limit=20),
        "mine_pairs of two": pgembed.mine_pairs(note, reply, limit=20),
        "cluster": clusters,
        "topics": pgembed.topics(note, clusters, text=Note.body, words=3),
        "hard_negatives": pgembed.hard_negatives(
            reply, note, positive=Note.id == Reply.note_id, k=2, max_score=0.9
        ),
    }
    found: dict[str, Any] = {
        name: sorted(map(repr, session.execute(each))) for name, each in statements.items()
    }
    found["evaluate"] = pgembed.evaluate(session, note, label=Note.colour, k=5, ks=(1, 3), apart=0.999)
    found["threshold"] = pgembed.suggest_threshold(session, note, labelled, precision=0.5)
    found["threshold without labels"] = pgembed.suggest_threshold(session, note, sample=60)
    found["dry run"] = pgembed.merge_duplicates(session, kept)
    found["merge"] = pgembed.merge_duplicates(session, kept, dry_run=False)
    found["left"] = [session.scalar(select(func.count()).select_from(each)) for each in (Note, Reply)]
    with pytest.raises(DuplicateMeaningError) as caught:
        session.execute(insert(Rule), [{"id": 2, "body": "red rose"}])
    return found | {"guard": caught.value.key}


def through(url: URL, driver: str) -> dict[str, Any]:
    url = url.set(drivername=f"postgresql+{driver}")
    if driver not in ("asyncpg", "psycopg_async"):
        with Session(create_engine(url, poolclass=NullPool)) as session:
            return asked(session)

    async def run() -> dict[str, Any]:
        async with AsyncSession(create_async_engine(url, poolclass=NullPool)) as session:
            return await session.run_sync(asked)

    return asyncio.run(run())


@pytest.fixture(scope="module")
def expected(notes: URL) -> dict[str, Any]:
    return through(notes, "psycopg")


def test_there_is_something_to_compare(expected: dict[str, Any]) -> None:
    assert [name for name, rows in expected.items() if not rows] == []
    assert expected["guard"] == 1
    assert expected["dry run"] == expected["merge"]
    assert expected["left"] == [
        len(expected["keep_list"]) - sum("False" in row for row in expected["keep_list"]),
        20,
    ]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg_async", "asyncpg"])
def test_rows_are_those_of_psycopg(notes: URL, expected: dict[str, Any], driver: str) -> None:
    found = through(notes, driver)
    assert found.keys() == expected.keys()
    for name, rows in found.items():
        assert rows == expected[name], name
