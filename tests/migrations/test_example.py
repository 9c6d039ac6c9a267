"""The worked example in ``alembic/``: up, down and up again, with data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Engine, create_engine, select, text
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from pgembed import semantic_search
from pgembed.migrations import MigrationError

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
    """Fresh and pending rows, and the index."""
    with engine.connect() as connection:
        return connection.execute(text("SELECT fresh, pending, index FROM pgembed.status")).one()


def fill(engine: Engine) -> None:
    """Have the flush hook encode what is pending."""
    from example_models import Article  # type: ignore[import-not-found,unused-ignore]

    with Session(engine) as session:
        for article in session.scalars(select(Article)):
            flag_modified(article, "title")
        session.commit()


def test_up_down_and_up_again_with_data(example: Engine) -> None:
    config = Config(FOLDER / "alembic.ini")
    command.upgrade(config, "0001")
    with example.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('red apple'), ('black cable')"))

    with pytest.raises(MigrationError, match="2 rows are pending"):
        command.upgrade(config, "head")
    assert status(example) == (0, 2, "none")
    fill(example)
    command.upgrade(config, "head")
    command.check(config)
    assert status(example) == (2, 0, "hnsw")

    command.downgrade(config, "0002")
    assert status(example) == (2, 0, "none")
    command.downgrade(config, "0001")
    with example.connect() as connection:
        assert connection.scalars(text("SELECT title FROM article ORDER BY id")).all() == [
            "red apple",
            "black cable",
        ]
        assert connection.scalar(text("SELECT count(*) FROM pg_extension WHERE extname = 'vector'")) == 0

    command.upgrade(config, "0002")
    fill(example)
    command.upgrade(config, "head")
    command.check(config)
    from example_models import Article

    with Session(example) as session:
        found = session.execute(semantic_search(Article.embedding, "apple", limit=1)).one()
        assert found.Article.title == "red apple"
    command.downgrade(config, "base")
