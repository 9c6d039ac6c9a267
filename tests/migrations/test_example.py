"""The worked example in ``alembic/``: up, down and up again, with data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Column, Engine, Integer, MetaData, String, Table, create_engine, text
from sqlalchemy.orm import Session

from pgembed import embedding_column, semantic_search
from pgembed.filling import backfill
from pgembed.migrations import MigrationError
from pgembed.testing import HashEncoder

FOLDER = Path(__file__).parents[2] / "alembic"


@pytest.fixture
def example(empty_url: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine on the database that the example's ``env.py`` is pointed at."""
    monkeypatch.setenv("DATABASE_URL", empty_url.render_as_string(hide_password=False))
    monkeypatch.syspath_prepend(FOLDER)
    engine = create_engine(empty_url)
    yield engine
    engine.dispose()


def status(engine: Engine) -> Any:
    """Fresh and pending rows, and the index, by column."""
    statement = "SELECT column_name::text, fresh, pending, index FROM pgembed.status"
    with engine.connect() as connection:
        return {row[0]: tuple(row[1:]) for row in connection.execute(text(statement))}


def fill(engine: Engine, encoder: HashEncoder, column: str) -> None:
    """Do a worker's work."""
    table = Table(
        "article",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("title", String),
        Column("body", String),
        embedding_column("title", "body", encoder=encoder, name=column).column,
    )
    backfill(engine, table.c[column])


def test_up_down_and_up_again_with_data(example: Engine) -> None:
    old, new = HashEncoder(16, "example"), HashEncoder(24, "example-2")
    config = Config(FOLDER / "alembic.ini")
    command.upgrade(config, "0001")
    with example.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('red apple'), ('black cable')"))

    for _ in range(2):
        with pytest.raises(MigrationError, match=r"embedding: 2 rows are pending"):
            command.upgrade(config, "head")
        assert status(example) == {"embedding": (0, 2, "none")}
        fill(example, old, "embedding")
        with pytest.raises(MigrationError, match=r"embedding_2: 2 rows are pending"):
            command.upgrade(config, "head")
        assert status(example) == {"embedding": (2, 0, "hnsw"), "embedding_2": (0, 2, "none")}
        fill(example, new, "embedding_2")
        command.upgrade(config, "head")
        command.check(config)
        assert status(example) == {"embedding_2": (2, 0, "hnsw")}

        from example_models import Article  # type: ignore[import-not-found,unused-ignore]

        with Session(example) as session:
            found = session.execute(semantic_search(Article.embedding, "apple", limit=1)).one()
            assert found.Article.title == "red apple"

        command.downgrade(config, "0005")
        # What was dropped comes back empty, and is filled again.
        assert status(example) == {"embedding": (0, 2, "hnsw"), "embedding_2": (2, 0, "hnsw")}
        command.downgrade(config, "0001")
        with example.connect() as connection:
            titles = connection.scalars(text("SELECT title FROM article ORDER BY id")).all()
            extensions = connection.scalars(text("SELECT extname FROM pg_extension")).all()
        assert titles == ["red apple", "black cable"]
        assert "vector" not in extensions
    command.downgrade(config, "base")
