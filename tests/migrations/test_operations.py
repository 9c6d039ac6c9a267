"""Operations written by hand: concurrently, offline, and what they refuse."""

from __future__ import annotations

import pytest
from alembic.util import CommandError
from sqlalchemy import Column, Integer, MetaData, Table, Text, inspect, text
from sqlalchemy.exc import DBAPIError

from pgembed import HNSW
from pgembed.database.scripts import REVISION
from pgembed.migrations import MigrationError
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations
from tests.migrations.models import article

ENCODER = HashEncoder(4)
BUILD = (
    "op.create_vector_index('near', 'article', 'embedding', opclass='vector_cosine_ops', "
    "parameters={'m': 8}, concurrently=True)"
)


def indexes(migrations: Migrations) -> list[str]:
    """The vector indexes of the table."""
    return [
        str(index["name"])
        for index in inspect(migrations.engine).get_indexes("article")
        if "pending" not in str(index["name"])
    ]


def test_concurrently(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    migrations.write(BUILD, "op.drop_vector_index('near', 'article', concurrently=True)")
    migrations.write(BUILD.replace("create", "replace").replace("8", "4"))

    migrations.upgrade()
    assert indexes(migrations) == ["near"]
    with migrations.engine.connect() as connection:
        options = connection.scalar(text("SELECT reloptions::text FROM pg_class WHERE relname = 'near'"))
    assert options == "{m=4}"
    migrations.downgrade("base")
    assert indexes(migrations) == []


def test_what_a_failed_build_left_is_dropped_first(migrations: Migrations) -> None:
    article(encoder=ENCODER, index=HNSW(name="near", build="immediate")).create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'near'::regclass"))
    migrations.write(BUILD)

    migrations.upgrade()

    with migrations.engine.connect() as connection:
        assert connection.scalar(text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'near'::regclass"))


def test_concurrently_is_refused_inside_a_transaction_of_others(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    migrations.write(BUILD)
    migrations.statement = "SET search_path = public"

    with pytest.raises(MigrationError, match=r"'near' .* in a transaction before Alembic began"):
        migrations.upgrade()


def test_concurrently_is_refused_on_a_partitioned_table(migrations: Migrations) -> None:
    with migrations.engine.begin() as connection:
        connection.execute(text("CREATE TABLE article (id int, embedding vector(4)) PARTITION BY RANGE (id)"))
    migrations.write(BUILD)

    with pytest.raises(MigrationError, match="article is partitioned"):
        migrations.upgrade()


def test_autogenerate_writes_concurrently_when_asked(migrations: Migrations) -> None:
    article(encoder=ENCODER, index=HNSW(build="immediate")).create_all(migrations.engine)
    migrations.options["pgembed_concurrently"] = True

    revision = migrations.generate(article(encoder=ENCODER, index=HNSW(m=8)))

    assert revision.upgrade.endswith("    concurrently=True,\n)")
    migrations.upgrade()
    migrations.check()
    other = article(encoder=HashEncoder(4, "other"), index=HNSW(m=8))
    assert migrations.generate(other).upgrade.count("concurrently=True") == 2
    migrations.there_and_back(article(encoder=ENCODER, index=HNSW(m=8)))


def test_assert_backfilled(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('one'), ('two'), (NULL)"))
    migrations.write("op.assert_backfilled('article', 'embedding', allowed=2)")
    migrations.write("op.assert_backfilled('article', 'embedding')")
    migrations.upgrade("0001")

    with pytest.raises(MigrationError, match=r"article\.embedding: 2 rows are pending, allowed are 0"):
        migrations.upgrade()
    script = migrations.offline("0001:0002").split("BEGIN;", 1)[1].split("UPDATE alembic")[0]
    with migrations.engine.connect() as connection, pytest.raises(DBAPIError, match="2 rows are pending"):
        connection.exec_driver_sql(script, execution_options={"no_parameters": True})

    with migrations.engine.begin() as connection:
        connection.execute(text("DELETE FROM article"))
    migrations.upgrade()


def test_assert_backfilled_names_what_is_missing(migrations: Migrations) -> None:
    article().create_all(migrations.engine)
    migrations.write("op.assert_backfilled('article', 'title')")

    with pytest.raises(CommandError, match=r"article\.title is not an embedding column"):
        migrations.upgrade()


def test_other_dimensions_need_discard(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    migrations.write(
        "from pgvector.sqlalchemy import VECTOR; "
        "op.alter_vector_column('article', 'embedding', VECTOR(5), existing_type=VECTOR(4))"
    )

    with pytest.raises(MigrationError, match="4 dimensions cannot become vectors of 5"):
        migrations.upgrade()


def test_an_older_package_refuses_the_migration(migrations: Migrations) -> None:
    migrations.write("op.install_pgembed(revision=1000)")

    with pytest.raises(MigrationError, match="needs revision 1000"):
        migrations.upgrade()


def test_a_vector_index_needs_a_column_or_an_expression(migrations: Migrations) -> None:
    migrations.write("op.create_vector_index('near', 'article')")

    with pytest.raises(MigrationError, match="either a column or an expression"):
        migrations.upgrade()


def test_the_offline_script_does_what_the_upgrade_does(empty_migrations: Migrations) -> None:
    metadata = article(encoder=ENCODER, index=HNSW(), template='100%: "{title}" it\'s')
    Table("other", metadata, Column("id", Integer, primary_key=True), Column("a:b", Text))
    empty_migrations.generate(metadata)
    empty_migrations.write(
        "op.create_vector_index('near', 'article', expression='embedding::halfvec(4)', "
        "opclass='halfvec_l2_ops', concurrently=True)",
        "op.drop_vector_index('near', 'article', concurrently=True)",
    )
    script = "\n" + empty_migrations.offline()

    with empty_migrations.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        for part in script.split("\nCOMMIT;\n"):
            for statement in part.split("\nBEGIN;\n"):
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        installed = connection.execute(text("SELECT revision FROM pgembed.version")).all()
        template = connection.scalar(text("SELECT template FROM pgembed.embedding_columns"))

    assert installed == [(REVISION,)]
    assert template == '100%: "{title}" it\'s'
    empty_migrations.downgrade("-1")
    empty_migrations.check_downgraded()
    empty_migrations.downgrade("base")
    empty_migrations.metadata = MetaData()
    empty_migrations.check_downgraded()
