"""What docs/columns.md says of tests: :mod:`pgembed.testing`, and databases without vectors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import JSON, Column, Integer, MetaData, Table, Text, create_engine, insert, inspect, select
from sqlalchemy.dialects import mssql, mysql, oracle, postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

import pgembed.testing
from pgembed import HNSW, Vector, embedding_column, semantic_search
from pgembed.columns import bound, embeddings_of, types
from pgembed.exc import UnsupportedDialectError
from pgembed.testing import HashEncoder
from tests.tables import model

GUIDE = Path(__file__).parents[2] / "docs" / "columns.md"


@pytest.fixture
def encoder() -> HashEncoder:
    return HashEncoder(384)


def test_texts_that_share_words_are_near(encoder: HashEncoder) -> None:
    texts = ["reset my password", "password forgotten", "the printer smokes", "reset my password"]
    vectors = encoder.encode_documents(texts)
    assert vectors.shape == (4, 384)
    assert vectors[0].tolist() == vectors[3].tolist()
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert encoder.calls == [tuple(texts)]


def test_another_process_computes_the_same(encoder: HashEncoder) -> None:
    code = (
        "from pgembed.testing import HashEncoder as H; print(H(384).encode_queries(['a word'])[0].tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(encoder.encode_documents(["a word"])[0].tolist())


def test_it_takes_the_place_of_an_encoder(encoder: HashEncoder) -> None:
    column = embedding_column("words", encoder=encoder, name="vec").column
    table = Table("note", MetaData(), Column("id", Integer, primary_key=True), Column("words", Text), column)
    (embedding,) = embeddings_of(table)
    assert embedding.declaration.encoder.fingerprint == encoder.fingerprint


def _note(**options: Any) -> Any:
    return model(HashEncoder(4), table="note", source="words", vector="vec", **options)


@pytest.mark.parametrize("dialect", ["sqlite", "mysql", "mssql", "oracle"])
def test_embedding_columns_need_postgres(dialect: str) -> None:
    table = _note().__table__
    kind = {"sqlite": sqlite, "mysql": mysql, "mssql": mssql, "oracle": oracle}[dialect]
    with pytest.raises(UnsupportedDialectError) as error:
        str(CreateTable(table).compile(dialect=kind.dialect()))
    assert error.value.dialect == dialect


def test_create_all_says_which_column_needs_postgres() -> None:
    engine = create_engine("sqlite://")
    with pytest.raises(UnsupportedDialectError, match=r"note.vec .* needs Postgres.*allow_dialect.'sqlite'"):
        _note().metadata.create_all(engine)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_tables_on_sqlite_where_an_application_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second example of the section."""
    monkeypatch.setattr(types, "TEXT_DIALECTS", set())
    monkeypatch.setattr(pgembed.testing, "TEXT_DIALECTS", types.TEXT_DIALECTS)
    section = GUIDE.read_text(encoding="utf-8").partition("## In your tests")[2]
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[1], {"pgembed": pgembed})
    note = _note(index=HNSW(build="immediate"))
    engine = create_engine("sqlite://")
    note.metadata.create_all(engine)
    assert inspect(engine).get_indexes("note") == []
    with Session(engine) as session:
        session.add(note(words="some words"))
        session.commit()
        session.execute(insert(note), [{"words": "other"}])
        stored = session.scalars(select(note).order_by(note.id)).all()
        expected = HashEncoder(4).encode_documents(["some words", "other"])
        assert np.array_equal([each.vec for each in stored], expected)
        stored[0].words = "changed"
        session.commit()
        assert stored[0].vec_digest == bound(note.__table__.c.vec).declaration.digest(("changed",))  # type: ignore[union-attr]
        with pytest.raises(UnsupportedDialectError, match="a search needs Postgres"):
            session.execute(semantic_search(note.vec, "some words"))
    engine.dispose()


def test_a_variant_for_sqlite() -> None:
    kind = Vector(3).with_variant(JSON(), "sqlite")
    table = Table("plain", MetaData(), Column("id", Integer, primary_key=True), Column("vec", kind))
    engine = create_engine("sqlite://")
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(table).values(vec=[1, 2, 3]))
        assert connection.scalar(select(table.c.vec)) == [1, 2, 3]
    engine.dispose()
    assert "VECTOR(3)" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
