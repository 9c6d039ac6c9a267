"""A table that embeds itself, searched, classified and deduplicated; on the embedded Postgres server.

Run it with ``.venv/bin/python examples/articles.py`` after ``make demo`` has made the encoder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import (
    HNSW,
    Encoder,
    Vector,
    database,
    duplicate_groups,
    embedding_column,
    indexes,
    knn_classify,
    semantic_search,
)

minilm = Encoder("all-MiniLM-L6-v2")


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str | None]
    section: Mapped[str | None]
    embedding: Mapped[Vector | None] = embedding_column("title", "body", encoder=minilm, index=HNSW())


ARTICLES = [
    Article(
        title="I forgot my password", body="Choose 'send me a link' below the login form.", section="account"
    ),
    Article(title="Change your e-mail address", body="Open the settings of your profile.", section="account"),
    Article(title="Close your account", body="Your data is deleted after thirty days.", section="account"),
    Article(title="The printer smokes", body="Pull the plug, then call the hotline.", section="hardware"),
    Article(title="The screen stays black", body="Check the cable and the power supply.", section="hardware"),
    Article(
        title="The screen remains black", body="Check the cable and the power supply.", section="hardware"
    ),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, database.embedded(Path(folder) / "data") as url:
        engine = create_engine(url)
        with engine.begin() as connection:
            database.install(connection)
            Base.metadata.create_all(connection)
        with Session(engine) as session:
            session.add_all(ARTICLES)
            session.commit()  # one encoder batch for the whole flush
            indexes.create(session.connection(), Article.embedding)

            print("reset my password")
            for article, _distance, score in session.execute(
                semantic_search(Article.embedding, "reset my password", limit=2)
            ):
                print(f"  {score:.2f}  {article.title}")

            print("printer on fire")
            for label, share, votes in session.execute(
                knn_classify(Article.embedding, "printer on fire", label=Article.section, k=3)
            ):
                print(f"  {share:.2f}  {label} ({votes} votes)")

            print("near-duplicates")
            for group, key in session.execute(duplicate_groups(Article.embedding, min_score=0.9)):
                print(f"  group {group}: article {key}")
        engine.dispose()


if __name__ == "__main__":
    main()
