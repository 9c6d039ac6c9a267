"""Searches under conditions: as good as without, never short, and hardly dearer than reading the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import HNSW, Vector, embedding_column, semantic_search
from pgembed.indexes import create
from pgembed.metrics import BY_NAME
from pgembed.testing import HashEncoder

ROWS, DIMENSIONS, QUERIES = 4_000, 24, 60


class Base(DeclarativeBase):
    pass


class Point(Base):
    """Its vector lies around one of 40 centres; ``place`` is random, ``centre`` is not."""

    __tablename__ = "point"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    place: Mapped[int]
    centre: Mapped[int]
    embedding: Mapped[Vector | None] = embedding_column(
        "title", encoder=HashEncoder(DIMENSIONS), index=HNSW(m=8), fill="worker"
    )


@pytest.fixture(scope="module")
def queries(corpus: Any) -> Iterator[np.ndarray]:
    """Queries around the centres; the table is in the corpus's database."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(40, DIMENSIONS))
    chosen = random.integers(40, size=ROWS + QUERIES)
    vectors = (centres[chosen] + 0.7 * random.normal(size=(len(chosen), DIMENSIONS))).astype(np.float32)
    places = random.permutation(ROWS)
    engine: Engine = corpus.engine
    with Session(engine) as session:
        Base.metadata.create_all(session.connection())
        rows = [
            {
                "id": key,
                "title": "",
                "place": int(places[key]),
                "centre": int(chosen[key]),
                "embedding": vector,
            }
            for key, vector in enumerate(vectors[:ROWS])
        ]
        session.execute(insert(Point.__table__), rows)
        create(session.connection(), Point.embedding)
        session.execute(text("ANALYZE point"))
        session.commit()
    yield vectors[ROWS:]
    Base.metadata.drop_all(engine)


@pytest.fixture
def searching(corpus: Any, queries: np.ndarray) -> Iterator[Session]:
    with Session(corpus.engine) as session:
        yield session


def found(session: Session, query: Any, where: Any, **options: Any) -> list[tuple[int, float]]:
    statement = semantic_search(Point.embedding, query, where=where, base=select(Point.id), **options)
    return [(row.id, row.distance) for row in session.execute(statement)]


def prefer_the_index(session: Session) -> None:
    """As for larger tables."""
    session.execute(text("SET LOCAL enable_sort = off"))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_recall_is_high(searching: Session, queries: np.ndarray, explain: Any, share: float) -> None:
    where = Point.place < share * ROWS
    prefer_the_index(searching)
    recalls = []
    for query in queries:
        best = {key for key, _ in found(searching, query, where, mode="exact")}
        searching.execute(text("SET LOCAL hnsw.ef_search = 40"))
        recalls.append(len(best & {key for key, _ in found(searching, query, where)}) / len(best))
    plan = explain(searching.connection(), semantic_search(Point.embedding, queries[0], where=where))
    assert "Index Scan using ix_point_embedding_hnsw" in plan
    assert "Seq Scan on point point_1 (never executed)" in plan
    assert searching.scalar(text("SELECT current_setting('hnsw.iterative_scan')")) == "relaxed_order"
    assert searching.scalar(text("SELECT current_setting('hnsw.ef_search')")) == "40"
    assert np.mean(recalls) >= 0.95


def test_a_condition_that_few_rows_fulfil_reads_the_table_once(
    searching: Session, queries: np.ndarray, explain: Any
) -> None:
    for where, number in ((Point.place < 4, 4), (Point.place < 0, 0)):
        assert len(found(searching, queries[0], where)) == number
        plan = explain(searching.connection(), semantic_search(Point.embedding, queries[0], where=where))
        assert "ix_point_embedding_hnsw" not in plan
        assert "Seq Scan on point point_1 (never executed)" in plan


def test_a_scan_that_gives_up_is_not_believed(searching: Session, queries: np.ndarray, explain: Any) -> None:
    """The rows of another centre are far from the query: those that the index returns are any of them."""
    prefer_the_index(searching)
    for query in queries[:3]:
        distance = BY_NAME["cosine"].between(Point.embedding, query)
        where = Point.centre == searching.scalar(select(Point.centre).order_by(distance.desc()).limit(1))
        expected = [key for key, _ in found(searching, query, where, mode="exact")]
        assert [key for key, _ in found(searching, query, where)] == expected
        plan = explain(searching.connection(), semantic_search(Point.embedding, query, where=where))
        assert "Index Scan using ix_point_embedding_hnsw" in plan
        assert "Seq Scan on point point_1 (never executed)" not in plan
    most = searching.scalar(text("SELECT current_setting('hnsw.max_scan_tuples')"))
    assert int(most) == 2000


@pytest.mark.parametrize("unknown", ["statistics", "partitions"])
def test_where_scans_are_not_counted_no_row_is_missed(
    searching: Session, queries: np.ndarray, unknown: str
) -> None:
    prefer_the_index(searching)
    if unknown == "statistics":
        searching.execute(text("SET LOCAL track_counts = off"))
    else:
        searching.execute(text("CREATE TEMP TABLE child () INHERITS (point)"))
    where = Point.centre == 7
    for query in queries[:4]:
        assert len(found(searching, query, where)) == 10
        assert len(found(searching, query, Point.place < 3)) == 3


def test_the_right_to_read_the_columns_is_enough(searching: Session, queries: np.ndarray) -> None:
    searching.execute(text("CREATE ROLE reads_columns"))
    searching.execute(text("GRANT SELECT (id, place, embedding) ON point TO reads_columns"))
    searching.execute(text("SET LOCAL ROLE reads_columns"))
    assert len(found(searching, queries[0], Point.place < ROWS / 2)) == 10


def test_a_table_of_any_name_is_searched(corpus: Any, queries: np.ndarray) -> None:
    """In a schema that the statement does not name, with quotes and percent signs."""
    with corpus.engine.connect() as connection:
        connection.execute(text("""CREATE SCHEMA "it's 100 %" """))
        connection.execute(text("""CREATE TABLE "it's 100 %".point (LIKE point INCLUDING ALL)"""))
        connection.execute(text("""INSERT INTO "it's 100 %".point SELECT * FROM point"""))
        connection.execute(text("DROP TABLE point CASCADE"))
        translated = {"schema_translate_map": {None: "it's 100 %"}}
        statement = semantic_search(
            Point.embedding, queries[0], where=Point.place < ROWS / 2, base=select(Point.id)
        )
        assert len(connection.execute(statement, execution_options=translated).all()) == 10
