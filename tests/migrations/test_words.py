"""Words beside an embedding: their column, index and table are migrated both ways, and found again."""

from __future__ import annotations

import warnings

from sqlalchemy import MetaData, text

from pgembed import Words
from tests.migrations.conftest import Migrations
from tests.migrations.models import OLD, article


def words(**options: object) -> MetaData:
    return article(encoder=OLD, words=Words(**options))


def stored(migrations: Migrations) -> str | None:
    with migrations.engine.connect() as connection:
        return connection.scalar(text("SELECT embedding_words::text FROM article"))


def test_words_are_added_to_a_table_with_rows_and_taken_away(migrations: Migrations) -> None:
    before, after = article(encoder=OLD), words()
    before.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('cats and dogs')"))

    revision = migrations.generate(after)

    assert revision.upgrade.startswith(
        """\
op.create_table('article_embedding_words',
sa.Column('lexeme', sa.Text(collation='C'), nullable=False),
sa.Column('rows', sa.BigInteger(), nullable=False),
sa.Column('mean_length', sa.Float(precision=53), nullable=True),
sa.Column('refreshed_at', sa.DateTime(timezone=True), nullable=True),
sa.PrimaryKeyConstraint('lexeme'),
comment='how many rows have a word, as of the last refresh; written by pgembed'
)
op.add_column('article', sa.Column('embedding_words', postgresql.TSVECTOR(), """
        """sa.Computed("to_tsvector(CAST('english' AS REGCONFIG), """
    )
    assert (
        "op.create_index(op.f('ix_article_embedding_words'), 'article', ['embedding_words'], unique=False, "
        "postgresql_using='gin')" in revision.upgrade
    )
    assert "'words': {" in revision.upgrade.partition("op.register_embedding(")[2]
    migrations.upgrade()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        migrations.check()
    assert stored(migrations) == "'cat':1 'dog':3"
    migrations.downgrade()
    migrations.metadata = before
    migrations.check_downgraded()
    migrations.metadata = after
    migrations.upgrade()
    migrations.check()


def test_another_configuration_generates_the_words_anew(migrations: Migrations) -> None:
    before, after = words(), words(config="simple")
    before.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('cats and dogs')"))

    revision = migrations.generate(after)

    calls = [line.partition("(")[0] for line in revision.upgrade.splitlines() if line.startswith("op.")]
    assert calls == [
        "op.drop_index",
        "op.drop_column",
        "op.add_column",
        "op.create_index",
        "op.register_embedding",
    ]
    migrations.upgrade()
    migrations.check()
    assert stored(migrations) == "'and':2 'cats':1 'dogs':3"
    migrations.downgrade()
    assert stored(migrations) == "'cat':1 'dog':3"
    migrations.metadata = before
    migrations.check_downgraded()


def test_constants_of_the_ranking_change_the_registration_alone(migrations: Migrations) -> None:
    before, after = words(), words(k1=0.9, b=0.4)
    before.create_all(migrations.engine)
    revision = migrations.generate(after)
    calls = [line.partition("(")[0] for line in revision.upgrade.splitlines() if line.startswith("op.")]
    assert calls == ["op.register_embedding"]
    migrations.there_and_back(before)
