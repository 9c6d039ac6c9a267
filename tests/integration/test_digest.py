"""The digest is the same in Python and in SQL, for every text that Postgres can hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, Column, Connection, Integer, MetaData, Table, Text, create_engine, insert, select

from pgembed import embedding_column
from pgembed.columns import embeddings_of
from pgembed.testing import HashEncoder

#: Texts that an injective encoding must tell apart, mixed with arbitrary Unicode (surrogates and NUL are
#: no text to Postgres).
SEPARATORS = st.lists(
    st.sampled_from(["", "a", "\x1f", "|", "\\", "'", '"', "\n", "{b}", "\u0301", "\U0001f600"])
)
TEXTS = (
    st.none()
    | SEPARATORS.map("".join)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
)

encoder = HashEncoder(2)
table = Table(
    "texts",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("a", Text),
    Column("b", Text),
    Column("c", Text),
    embedding_column("a", "b", "c", encoder=encoder, name="vec").column,
)
(embedding,) = embeddings_of(table)


@pytest.fixture(scope="module")
def connection(module_url: URL) -> Iterator[Connection]:
    engine = create_engine(module_url)
    with engine.begin() as connection:
        table.metadata.create_all(connection)
        yield connection
    engine.dispose()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=20))
def test_python_and_sql_agree(connection: Connection, rows: list[tuple[Any, Any, Any]]) -> None:
    connection.execute(table.delete())
    connection.execute(insert(table), [{"id": i, "a": a, "b": b, "c": c} for i, (a, b, c) in enumerate(rows)])
    found = connection.execute(
        select(table.c.a, table.c.b, table.c.c, embedding.wanted(), embedding.pending()).order_by(table.c.id)
    ).all()
    for row, (a, b, c, wanted, pending) in zip(rows, found, strict=True):
        assert (a, b, c) == row
        assert wanted == embedding.declaration.digest(row)
        assert (wanted is None) == (not any(row))
        assert pending == (wanted is not None)
    texts = {tuple(text or "" for text in row) for row in rows if any(row)}
    assert len({wanted for *_, wanted, _ in found if wanted is not None}) == len(texts)


def test_pending_rows_are_read_from_their_index(connection: Connection) -> None:
    connection.execute(table.delete())
    connection.execute(
        insert(table), [{"id": i, "a": "x", "vec": [0, 1], "vec_digest": None} for i in range(5000)]
    )
    connection.execute(table.update().values(vec_digest=embedding.wanted()).where(table.c.id > 3))
    query = select(table.c.id).where(embedding.pending()).order_by(table.c.id).limit(512)
    assert connection.scalars(query).all() == [0, 1, 2, 3]
    statement = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
    connection.exec_driver_sql("ANALYZE texts")
    plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}").scalars())
    assert "ix_texts_vec_pending" in plan
    assert "Sort" not in plan
