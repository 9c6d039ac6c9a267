"""Tables and columns that are called as parts of our SQL are, as whatever column they stand."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Column, Engine, MetaData, Table, Text, insert, select, text, update
from sqlalchemy.dialects import postgresql

from pgembed.columns import EmbeddingColumn, embedding_column, embeddings_of
from pgembed.filling import backfill, estimate, failures
from pgembed.filling.backfill import pending
from pgembed.filling.statements import Statements
from pgembed.filling.targets import Target, find_targets

from .conftest import FAST, Articles, Picky

ENCODER = Picky()


def statements(target: Target) -> list[Any]:
    made = Statements(target)
    named = [name for name in dir(made) if not name.startswith("_") and name != "key"]
    return [getattr(made, name)() for name in named] + [
        made.claim(after=True),
        made.claim(after=True, newest=True),
        made.pending_count(claimed=False),
    ]


def own_names(target: Target) -> list[str]:
    """What our SQL calls its columns, aliases, common table expressions and parameters."""
    found: set[str] = set()
    for statement in statements(target):
        compiled = statement.compile(dialect=postgresql.dialect(), column_keys=[])
        sql = str(compiled)
        found |= {*compiled.bind_names.values(), *re.findall(r"\bAS \"?([a-z]\w*)", sql)}
        found |= set(re.findall(r"\bWITH (\w+) AS ", sql))
        for columns in re.findall(r"\bAS pgembed_given\((.*?)\)", sql):
            found |= set(columns.split(", "))
    return sorted(found - {"article", "id", "title", "embedding", "embedding_digest"})


def table(name: str, keys: list[str], sources: list[str], vector: str) -> EmbeddingColumn:
    made = Table(
        name,
        MetaData(),
        *(Column(key, Text, primary_key=True) for key in keys),
        *(Column(source, Text) for source in sources),
        embedding_column(*sources, encoder=ENCODER, name=vector).column,
    )
    (embedding,) = embeddings_of(made)
    return embedding


def test_columns_and_tables_of_the_same_names(articles: Articles, engine: Engine) -> None:
    names = own_names(articles.target)
    assert {"keys", "digests", "vectors", "key", "after", "octets", "key_0", "k", "d", "e", "t"} <= set(names)
    articles.base.metadata.drop_all(engine)
    columns = [*names, "failure", "lease", "relation", "digest", "column_name"]
    third = len(columns) // 3
    for turn in range(3):  # each name in each role
        columns = columns[third:] + columns[:third]
        keys, sources, vector = columns[:third], columns[third:-1], columns[-1]
        fill(engine, table(names[turn], keys, sources, vector))
    for name in (name for name in names if name.startswith("pgembed_") or name in ("p", "q", "t")):
        fill(engine, table(name, ["id"], [name], "embedding"))


def fill(engine: Engine, embedding: EmbeddingColumn) -> None:
    """All that a worker says of a table, through models and through the registry."""
    made, vector = embedding.table, embedding.vector
    (key, *others), source = made.primary_key.columns, embedding.sources[0]
    made.metadata.create_all(engine)
    rows = [
        {key.key: str(n), source.key: title, **{o.key: "" for o in others}} for n, title in enumerate(TITLES)
    ]
    quick = replace(FAST, retry=timedelta(0))
    with engine.begin() as connection:
        connection.execute(insert(made), rows)
        (target,) = find_targets(connection, [embedding])
        (of_registry,) = find_targets(connection)
    assert isinstance(target, Target)
    assert isinstance(of_registry, Target)
    where = f"\"{key.name}\" <> '0' AND \"{source.name}\" <> ''"
    assert estimate(engine, target, where=f"{where} AND \"{source.name}\" <> 'poison'").rows == 3
    assert backfill(engine, target, where=where, settings=FAST).written == 3
    with engine.begin() as connection:
        object.__setattr__(of_registry.embedding.declaration, "encoder", ENCODER)
        connection.execute(update(made).where(key != "3").values({vector: None}))
        connection.execute(update(made).where(source == "poison").values({source: "mended"}))
        assert failures.sweep(connection, target, Statements(target)) == 1
    assert backfill(engine, of_registry, settings=quick).written == 4
    assert pending(engine, of_registry) == 0
    with engine.begin() as connection:
        found = dict(connection.execute(select(key, vector)).all())
        assert found["0"].tolist() == ENCODER.encode_documents(["a"])[0].tolist()
        connection.execute(text(f'DROP TABLE "{made.name}"'))


TITLES = ("a", "b", "poison", "c", "d")
