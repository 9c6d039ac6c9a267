"""Databases that were made and filled with other encoders in place leave nothing for a migration to do."""

from __future__ import annotations

from sqlalchemy import select, text

from pgembed import HNSW, Encoder, filling
from pgembed.columns import embeddings_of
from pgembed.testing import encoder_swapped
from tests.migrations.conftest import Migrations
from tests.migrations.models import article


def test_alembic_check_has_nothing_to_say(migrations: Migrations) -> None:
    """Neither within the block nor after it, and no row is pending in either."""
    declared = Encoder("all-MiniLM-L6-v2", fingerprint="f" * 32, dimensions=8, max_tokens=64)
    migrations.metadata = metadata = article(encoder=declared, index=HNSW(build="immediate"))
    table = metadata.tables["article"]
    (embedding,) = embeddings_of(table)
    with encoder_swapped(metadata) as (stand_in,):
        metadata.create_all(migrations.engine)
        with migrations.engine.begin() as connection:
            connection.execute(text("INSERT INTO article (title) VALUES ('one'), ('two')"))
        assert filling.backfill(migrations.engine, table.c.embedding).written == 2
        assert [len(call) for call in stand_in.calls] == [2]
        migrations.check()
    migrations.check()
    with migrations.engine.connect() as connection:
        assert connection.scalar(select(table.c.embedding).limit(1)).shape == (8,)
        assert connection.scalars(select(embedding.pending())).all() == [False, False]
