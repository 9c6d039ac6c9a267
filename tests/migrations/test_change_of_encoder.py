"""From one encoder to another by a second column, as in docs/migrations.md: written by autogenerate."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.attributes import flag_modified

from pgembed import HNSW, Vector, embedding_column, semantic_search
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations

OLD, NEW = HashEncoder(4, "old"), HashEncoder(6, "new")


def model(*, old: bool = True, new: bool = True, index: HNSW | None = None) -> Any:
    """The model at one step of the series."""

    class Base(DeclarativeBase):
        pass

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        if old:
            embedding: Mapped[Vector | None] = embedding_column("title", encoder=OLD, index=HNSW())
        if new:
            embedding_2: Mapped[Vector | None] = embedding_column("title", encoder=NEW, index=index)

    return Article


def nearest(migrations: Migrations, column: Any) -> str:
    """The title that a search of a column finds first."""
    with Session(migrations.engine) as session:
        title: str = session.execute(semantic_search(column, "red apple", limit=1)).one()[0].title
        return title


def test_every_search_is_answered_from_one_space(migrations: Migrations) -> None:
    first, both, built, last = (
        model(new=False),
        model(),
        model(index=HNSW()),
        model(old=False, index=HNSW()),
    )
    migrations.generate(first.metadata)
    migrations.upgrade()
    with Session(migrations.engine) as session:
        session.add_all([first(title="red apple"), first(title="black cable")])
        session.commit()

    added = migrations.generate(both.metadata).upgrade.splitlines()
    assert [line for line in added if line.startswith("op.")] == [
        "op.add_column('article', sa.Column('embedding_2', VECTOR(6), nullable=True))",
        "op.add_column('article', sa.Column('embedding_2_digest', sa.UUID(), nullable=True))",
        "op.create_pending_index(",
    ]
    migrations.there_and_back(first.metadata)
    assert nearest(migrations, both.embedding) == "red apple"

    with Session(migrations.engine) as session:
        for article in session.query(both):
            flag_modified(article, "title")
        session.commit()
    migrations.generate(built.metadata)
    migrations.there_and_back(both.metadata)
    assert nearest(migrations, built.embedding) == nearest(migrations, built.embedding_2) == "red apple"

    dropped = migrations.generate(last.metadata).upgrade.splitlines()
    assert dropped[:2] == [
        "op.drop_vector_index('ix_article_embedding_hnsw', 'article')",
        "op.drop_pending_index('ix_article_embedding_pending', 'article')",
    ]
    assert sorted(dropped[2:]) == [
        "op.drop_column('article', 'embedding')",
        "op.drop_column('article', 'embedding_digest')",
    ]
    migrations.there_and_back(built.metadata)
    assert nearest(migrations, last.embedding_2) == "red apple"
    with migrations.engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT column_name, encoder, pending FROM pgembed.status "
                "JOIN pgembed.embedding_columns USING (relation, column_name, encoder)"
            )
        ).all()
    assert rows == [("embedding_2", "new", 0)]
