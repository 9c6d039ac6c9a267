"""The models of the tests of migrations, and what is done and written with them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, Text, text
from sqlalchemy.dialects.postgresql import insert

from pgembed import HNSW, embedding_column
from pgembed.columns import TextEncoder, embeddings_of
from pgembed.columns.digest import recipe
from pgembed.filling import backfill
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations

OLD, NEW = HashEncoder(4, "old"), HashEncoder(4, "new")

CREATE_OLD_PENDING = """\
op.create_pending_index(
    'ix_article_embedding_pending',
    'article',
    ['id'],
    where=(
        'CASE WHEN (embedding IS NOT NULL) THEN coalesce(embedding_digest, '
        "'00000000-0000-0000-0000-000000000000'::uuid) END IS DISTINCT FROM CASE WHEN "
        '(coalesce(pg_catalog.octet_length(title), 0) > 0) THEN '
        "CAST(pg_catalog.md5('RECIPE' || "
        "pg_catalog.md5(coalesce(title, ''))) AS UUID) END"
    ),
    registration={
        'pgembed': 1,
        'column': 'embedding',
        'digest': 'embedding_digest',
        'sources': ['title'],
        'template': None,
        'encoder': 'old',
        'fingerprint': 'FINGERPRINT',
        'dimensions': 4,
        'metric': 'cosine',
        'fill': 'flush',
    },
)"""

BEFORE: dict[str, Any] = {"encoder": OLD, "index": HNSW(build="immediate")}
CHANGED: dict[str, Any] = {"encoder": NEW, "index": HNSW()}
SWITCHED: dict[str, Any] = {**CHANGED, "name": "embedding_2", "replaces": "embedding"}
FINISHED: dict[str, Any] = {**CHANGED, "name": "embedding_2"}


def without_hashes(body: str) -> str:
    """The text of a migration with the hashes of the encoders replaced by words."""
    for encoder in (OLD, NEW):
        body = body.replace(recipe(encoder.fingerprint, None), "RECIPE")
        body = body.replace(encoder.fingerprint, "FINGERPRINT").replace(encoder.fingerprint[:8], "HASH")
    return body


def article(
    *items: Any,
    encoder: TextEncoder | None = None,
    schema: str | None = None,
    naming_convention: dict[str, str] | None = None,
    name: str = "embedding",
    **options: Any,
) -> MetaData:
    """A table with an embedding column; ``encoder=None`` leaves the embedding column out."""
    metadata = MetaData(naming_convention=naming_convention)
    columns: list[Any] = [Column("id", Integer, primary_key=True), Column("title", Text)]
    if encoder is not None:
        columns.append(embedding_column("title", encoder=encoder, name=name, **options).column)
    Table("article", metadata, *columns, *items, schema=schema)
    return metadata


def with_rows(migrations: Migrations, metadata: MetaData, rows: int = 3) -> None:
    """The tables, with rows that are fresh."""
    metadata.create_all(migrations.engine)
    (table,) = metadata.tables.values()
    with migrations.engine.begin() as connection:
        connection.execute(insert(table), [{"id": i, "title": f"title {i}"} for i in range(rows)])
    fill(migrations, metadata)


def fill(migrations: Migrations, metadata: MetaData) -> None:
    """Let a worker do its work."""
    (table,) = metadata.tables.values()
    for embedding in embeddings_of(table):
        backfill(migrations.engine, embedding)


def pending(migrations: Migrations) -> Any:
    """Pending rows of each column."""
    with migrations.engine.connect() as connection:
        rows = connection.execute(text("SELECT column_name::text, pending FROM pgembed.status")).all()
    return {row.column_name: row.pending for row in rows}


def switched(migrations: Migrations, before: MetaData, after: MetaData) -> None:
    """Both columns exist, filled and indexed."""
    with_rows(migrations, before)
    revisions = migrations.generate_series(after)
    migrations.upgrade("0001")
    fill(migrations, after)
    migrations.upgrade()
    assert len(revisions) == 2
    migrations.check()


def two_columns(**options: Any) -> MetaData:
    """A table with two embedding columns."""
    metadata = MetaData()
    columns = [
        embedding_column("title", name="of_title", encoder=OLD, index=HNSW()),
        embedding_column("title", "body", name="of_all", encoder=OLD, index=HNSW()),
    ]
    if options:
        columns = [
            embedding_column(
                "title",
                name="of_title" + options["suffix"],
                encoder=NEW,
                index=HNSW(),
                replaces=options.get("title"),
            ),
            embedding_column(
                "title",
                "body",
                name="of_all" + options["suffix"],
                encoder=NEW,
                index=HNSW(),
                replaces=options.get("all"),
            ),
        ]
    key, title, body = Column("id", Integer, primary_key=True), Column("title", Text), Column("body", Text)
    Table("article", metadata, key, title, body, *(column.column for column in columns))
    return metadata
