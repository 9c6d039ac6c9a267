"""The view ``pgembed.status``: exact where it is cheap, sampled where tables are large, never fatal."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from pgembed import HNSW, Encoder, Vector, embedding_column, indexes
from pgembed.encoders.onnx.graph_files import MODEL_FILE
from pgembed.exc import EncoderFilesError
from pgembed.filling import backfill
from pgembed.filling.cuts import Cuts, count_cuts
from pgembed.filling.failures import record
from pgembed.filling.targets import registered_targets
from pgembed.testing import HashEncoder

from .conftest import Articles

#: Rows with the vectors that they want, written by SQL alone.
_ROWS = """
INSERT INTO article (title, embedding, embedding_digest)
SELECT t, '[1,0]', {wanted} FROM generate_series(1, {rows}) AS i, LATERAL (SELECT 'title ' || i) AS s (t)
"""


@pytest.fixture
def small(engine: Engine) -> Articles:
    return Articles(engine, HashEncoder(2))


def status(engine: Engine) -> dict[str, Any]:
    """The view's one row."""
    with engine.connect() as connection:
        return dict(connection.execute(text("SELECT * FROM pgembed.status")).mappings().one())


def execute(engine: Engine, *statements: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def rows(articles: Articles, number: int) -> str:
    wanted = articles.embedding.wanted().compile(articles.engine, compile_kwargs={"literal_binds": True})
    return _ROWS.format(rows=number, wanted=str(wanted).replace("article.title", "t"))


def test_every_figure_of_a_small_table_is_exact(small: Articles) -> None:
    small.insert("a", "b", "c", None, "")
    backfill(small.engine, small.model.embedding)
    small.insert("d", "e")
    with small.engine.begin() as connection:
        digest = small.embedding.declaration.digest(("d",))
        record(connection, small.target, "[6]", digest, "refused", pause=timedelta(hours=1))
    found = status(small.engine)
    assert (found["relation"], found["column_name"]) == ("article", "embedding")
    assert (found["encoder"], found["fingerprint"]) == ("hash", HashEncoder(2).fingerprint)
    assert [found[name] for name in ("total", "fresh", "pending", "failed")] == [7, 5, 2, 1]
    assert (found["index"], found["problem"]) == ("none", None)


#: Rows that fill half a page each, on 17,000 pages: more than are counted.
_WIDE = (
    "ALTER TABLE article SET (fillfactor = 10, autovacuum_enabled = false)",
    "ALTER TABLE article ALTER title SET STORAGE PLAIN",
    "INSERT INTO article (title) SELECT repeat('x', 1000) FROM generate_series(1, 17000)",
)


def test_after_mass_updates_every_figure_is_true(small: Articles) -> None:
    """Statistics would say four times the rows: dead ones fill the pages, and nothing was vacuumed."""
    engine = small.engine
    execute(
        engine,
        "ALTER TABLE article SET (autovacuum_enabled = false)",
        rows(small, 120_000),
        "ANALYZE article",
        *("UPDATE article SET title = title || 'x'" for _ in range(3)),
    )
    found = status(engine)
    assert [found[name] for name in ("total", "fresh", "pending")] == [120_000, 0, 120_000]
    assert found["estimated"] is False


def test_a_large_table_is_sampled_and_says_so(small: Articles) -> None:
    """Pending rows are exact, from their index; what is not pending is estimated, without statistics."""
    engine = small.engine
    execute(engine, *_WIDE)
    found = status(engine)
    assert [found[name] for name in ("pending", "fresh", "total")] == [17_000, 0, 17_000]
    assert (found["estimated"], found["problem"]) == (True, None)
    wanted = small.embedding.wanted().compile(engine, compile_kwargs={"literal_binds": True})
    filled = f"UPDATE article SET embedding = '[1,0]', embedding_digest = {wanted} WHERE id <= 12000"
    execute(engine, filled)
    found = status(engine)
    assert (found["pending"], found["estimated"]) == (5_000, True)
    assert found["fresh"] == pytest.approx(12_000, rel=0.15)
    assert found["total"] == found["fresh"] + 5_000


def test_the_state_of_the_index_is_told(engine: Engine) -> None:
    articles = Articles(engine, HashEncoder(2), index=HNSW())
    assert status(engine)["index"] == "none"
    with engine.begin() as connection:
        indexes.create(connection, articles.model.embedding)
    assert status(engine)["index"] == "hnsw"
    execute(
        engine,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_article_embedding_hnsw'::regclass",
    )
    assert status(engine)["index"] == "hnsw (invalid)"


def test_partitions_are_added_up(engine: Engine, Base: Any) -> None:
    class Article(Base):
        __tablename__ = "article"
        __table_args__ = {"postgresql_partition_by": "LIST (part)"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        part: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        embedding: Mapped[Vector | None] = embedding_column("title", encoder=HashEncoder(2))

    Base.metadata.create_all(engine)
    execute(
        engine,
        *(f"CREATE TABLE article_{i} PARTITION OF article FOR VALUES IN ({i})" for i in range(3)),
        "INSERT INTO article SELECT i, mod(i, 3) FROM generate_series(1, 3000) AS i",
        "UPDATE article SET title = 'x' WHERE id <= 5",
    )
    found = status(engine)
    assert [found[name] for name in ("total", "fresh", "pending")] == [3000, 2995, 5]
    assert (found["problem"], found["estimated"]) == (None, False)


def test_a_table_that_is_locked_is_named_and_the_others_are_shown(small: Articles) -> None:
    """By status, and the registry that workers read does not even wait."""
    engine = small.engine
    other = MetaData()
    Table(
        "other",
        other,
        Column("id", Integer, primary_key=True),
        Column("words", Text),
        embedding_column("words", encoder=HashEncoder(2), name="vec").column,
    )
    other.create_all(engine)
    with engine.begin() as connection, engine.begin() as reader:
        connection.execute(text("LOCK TABLE article IN ACCESS EXCLUSIVE MODE"))
        reader.execute(text("SET LOCAL lock_timeout = '10ms'"))
        assert len(registered_targets(reader)) == 2
        reader.execute(text("SET LOCAL lock_timeout = 0"))
        locked, free = reader.execute(text("SELECT * FROM pgembed.status")).mappings()
    assert (locked["relation"], locked["encoder"], locked["total"]) == ("article", "hash", None)
    assert locked["problem"] == "canceling statement due to lock timeout"
    assert (free["relation"], free["total"], free["problem"]) == ("other", 0, None)


@pytest.fixture
def without_weights(minilm_folder: Path, tmp_path: Path) -> Encoder:
    """The real encoder's spec and tokenizer, and a model that cannot be opened."""
    for file in minilm_folder.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, tmp_path)
    (tmp_path / MODEL_FILE).touch()
    return Encoder(tmp_path)


def test_cut_texts_are_counted_by_the_tokenizer_alone(
    engine: Engine, without_weights: Encoder, minilm: Encoder
) -> None:
    articles = Articles(engine, without_weights)  # type: ignore[arg-type]
    texts = ["short", "word " * 254, "word " * 255, "long " * 1000, "ünïcode " * 300, None, ""]
    articles.insert(*texts)
    already = minilm.cut
    minilm.encode_documents(text for text in texts if text)
    with engine.begin() as connection:
        cuts = count_cuts(connection, articles.target, total=7)
    assert cuts == Cuts(sampled=5, cut=3)
    assert cuts.cut == minilm.cut - already
    with pytest.raises(EncoderFilesError):
        without_weights.encode_documents(["x"])


def test_the_sample_of_a_large_table_is_small_and_from_all_of_it(
    engine: Engine, without_weights: Encoder
) -> None:
    articles = Articles(engine, without_weights)  # type: ignore[arg-type]
    execute(
        engine,
        "INSERT INTO article (title) "
        "SELECT CASE WHEN mod(i, 4) > 0 THEN 'short' ELSE repeat('long ', 300) END "
        "FROM generate_series(1, 20000) AS i",
    )
    with engine.begin() as connection:
        cuts = count_cuts(connection, articles.target, total=20_000, rows=400)
        read = connection.scalar(text("SELECT pg_stat_get_xact_tuples_returned('article'::regclass)"))
    assert 100 <= cuts.sampled <= 400
    assert 0.1 < cuts.cut / cuts.sampled < 0.4  # it is a quarter, with a deviation of 0.03
    assert read < 3000
