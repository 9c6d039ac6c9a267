"""Autogenerate of vector indexes in all their forms: exact text, both ways, and nothing left to do."""

from __future__ import annotations

from typing import Any

import pytest
from pgvector.sqlalchemy import BIT, SPARSEVEC, VECTOR
from sqlalchemy import Column, Integer, MetaData, Table, Text, text

from pgembed import HNSW, IVFFlat
from pgembed.indexes import VectorIndex
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations
from tests.migrations.models import article

OLD = HashEncoder(4)


def plain(*indexes: Any, type_: Any = None) -> MetaData:
    """A table without an embedding column."""
    metadata = MetaData()
    columns = Column("id", Integer, primary_key=True), Column("section", Text)
    Table("item", metadata, *columns, Column("v", type_ or VECTOR(8)), *indexes)
    return metadata


FORMS: dict[str, tuple[VectorIndex, Any, str]] = {
    "half": (
        HNSW("v", quantize="half"),
        VECTOR(8),
        """\
op.create_vector_index(
    'ix_item_v_hnsw_half',
    'item',
    expression='CAST(v AS HALFVEC(8))',
    using='hnsw',
    opclass='halfvec_cosine_ops',
    parameters={'m': 16, 'ef_construction': 64},
)""",
    ),
    "bit": (
        HNSW("v", quantize="bit", where="section = 'help'"),
        VECTOR(8),
        """\
op.create_vector_index(
    'ix_item_v_hnsw_bit',
    'item',
    expression='CAST(binary_quantize(v) AS BIT(8))',
    using='hnsw',
    opclass='bit_hamming_ops',
    parameters={'m': 16, 'ef_construction': 64},
    where="section = 'help'",
)""",
    ),
    "part": (
        IVFFlat("v", dimensions=4, metric="l2", lists=2),
        VECTOR(8),
        """\
op.create_vector_index(
    'ix_item_v_ivfflat_4',
    'item',
    expression='CAST(subvector(v, 1, 4) AS VECTOR(4))',
    using='ivfflat',
    opclass='vector_l2_ops',
    parameters={'lists': 2},
)""",
    ),
    "bits": (
        HNSW("v", metric="jaccard"),
        BIT(8),
        """\
op.create_vector_index(
    'ix_item_v_hnsw',
    'item',
    'v',
    using='hnsw',
    opclass='bit_jaccard_ops',
    parameters={'m': 16, 'ef_construction': 64},
)""",
    ),
    "sparse": (
        HNSW("v", metric="l1"),
        SPARSEVEC(8),
        """\
op.create_vector_index(
    'ix_item_v_hnsw',
    'item',
    'v',
    using='hnsw',
    opclass='sparsevec_l1_ops',
    parameters={'m': 16, 'ef_construction': 64},
)""",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_index_appears(migrations: Migrations, form: str) -> None:
    index, type_, upgrade = FORMS[form]
    before = plain(type_=type_)
    before.create_all(migrations.engine)
    # A declaration is for one table: a copy of it for each test.
    copy = type(index)("v", **{**index._arguments(), "metric": index.metric.name})

    revision = migrations.generate(plain(copy, type_=type_))

    assert revision.upgrade == upgrade
    assert revision.downgrade == f"op.drop_vector_index('{copy.name}', 'item')"
    migrations.there_and_back(before)
    assert migrations.generate().upgrade == "pass"


@pytest.mark.parametrize("type_", [BIT(8), SPARSEVEC(8)])
def test_tables_of_bits_and_sparse_vectors_import_their_type(migrations: Migrations, type_: Any) -> None:
    revision = migrations.generate(plain(type_=type_))

    name = type(type_).__name__
    assert f"from pgvector.sqlalchemy import {name}" in revision.imports
    assert f"sa.Column('v', {name}(8), nullable=True)" in revision.upgrade
    migrations.there_and_back(MetaData())


def test_quantizing_replaces_the_index_both_ways(migrations: Migrations) -> None:
    before = article(encoder=OLD, index=HNSW(name="near", build="immediate"))
    before.create_all(migrations.engine)

    revision = migrations.generate(
        article(encoder=OLD, index=HNSW(name="near", quantize="bit", m=8, where="title <> ''"))
    )

    assert revision.upgrade == (
        """\
op.replace_vector_index(
    'near',
    'article',
    expression='CAST(binary_quantize(embedding) AS BIT(4))',
    using='hnsw',
    opclass='bit_hamming_ops',
    parameters={'m': 8, 'ef_construction': 64},
    where="title <> ''",
)"""
    )
    assert revision.downgrade == (
        """\
op.replace_vector_index(
    'near',
    'article',
    'embedding',
    using='hnsw',
    opclass='vector_cosine_ops',
    parameters={'m': 16, 'ef_construction': 64},
)"""
    )
    migrations.there_and_back(before)


def test_an_expression_is_written_back_as_it_was(migrations: Migrations) -> None:
    before = article(encoder=OLD, index=HNSW(name="near", quantize="half", where="id > 5", build="immediate"))
    before.create_all(migrations.engine)

    revision = migrations.generate(article(encoder=OLD, index=HNSW(name="near", quantize="bit")))

    assert revision.downgrade == (
        """\
op.replace_vector_index(
    'near',
    'article',
    expression='((embedding)::halfvec(4))',
    using='hnsw',
    opclass='halfvec_cosine_ops',
    parameters={'m': 16, 'ef_construction': 64},
    where='(id > 5)',
)"""
    )
    migrations.there_and_back(before)


def add_rows(migrations: Migrations, first: int, last: int) -> None:
    with migrations.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO item (id, v) SELECT n, CAST(array_fill(n, ARRAY[8]) AS vector) "
                "FROM generate_series(CAST(:a AS integer), CAST(:b AS integer)) AS n"
            ),
            {"a": first, "b": last},
        )


def lists(migrations: Migrations) -> str | None:
    with migrations.engine.connect() as connection:
        found: str | None = connection.scalar(
            text("SELECT reloptions[1] FROM pg_class WHERE relname = 'ix_item_v_ivfflat'")
        )
    return found


def test_lists_are_counted_when_the_migration_runs(migrations: Migrations) -> None:
    before = plain()
    before.create_all(migrations.engine)
    add_rows(migrations, 1, 3500)

    revision = migrations.generate(plain(IVFFlat("v", lists="auto")))

    assert revision.upgrade == (
        """\
op.create_vector_index(
    'ix_item_v_ivfflat',
    'item',
    'v',
    using='ivfflat',
    opclass='vector_cosine_ops',
    parameters={'lists': 'auto'},
)"""
    )
    script = migrations.offline()
    assert "CREATE INDEX ix_item_v_ivfflat ON item USING ivfflat (v vector_cosine_ops);" in script
    migrations.there_and_back(before)
    assert lists(migrations) == "lists=3"
    add_rows(migrations, 3501, 9000)
    migrations.check()

    revision = migrations.generate(plain(IVFFlat("v", lists=7)))

    assert "parameters={'lists': 7}" in revision.upgrade
    assert "parameters={'lists': 3}" in revision.downgrade


def test_lists_that_were_counted_by_a_predicate(migrations: Migrations) -> None:
    plain().create_all(migrations.engine)
    add_rows(migrations, 1, 3500)
    migrations.generate(plain(IVFFlat("v", lists="auto", where="id <= 2000")))
    migrations.upgrade()
    assert lists(migrations) == "lists=2"
    migrations.check()
