"""Operations written by hand: concurrently, offline, and what they refuse."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from alembic.util import CommandError
from sqlalchemy import Column, Integer, MetaData, Table, Text, event, inspect, text
from sqlalchemy.exc import DBAPIError

from pgembed import HNSW
from pgembed.database.scripts import REVISION
from pgembed.filling import backfill
from pgembed.migrations import MigrationError
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations
from tests.migrations.models import article

ENCODER = HashEncoder(4)
BUILD = (
    "op.create_vector_index('near', 'article', 'embedding', opclass='vector_cosine_ops', "
    "parameters={'m': 8}, concurrently=True)"
)
REPLACE = BUILD.replace("create", "replace")


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
    migrations.write(REPLACE.replace("8", "4"))

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


@pytest.mark.parametrize("name", ["near_new", "near_old"])
def test_a_replacement_leaves_indexes_of_its_temporary_names_alone(migrations: Migrations, name: str) -> None:
    article(encoder=ENCODER, index=HNSW(name="near", build="immediate")).create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text(f"CREATE INDEX {name} ON article (title)"))
    migrations.write(REPLACE)

    with pytest.raises(MigrationError, match=rf"'{name}': there is one, which pgembed did not leave"):
        migrations.upgrade()

    assert sorted(indexes(migrations)) == ["near", name]


def test_a_replacement_takes_no_index_of_another_table(migrations: Migrations) -> None:
    metadata = article(encoder=ENCODER, index=HNSW(name="near", build="immediate"))
    Table("other", metadata, Column("near_new", Integer, primary_key=True))
    metadata.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("CREATE INDEX near_new ON other (near_new)"))
    migrations.write(REPLACE)

    with pytest.raises(
        MigrationError, match="'near_new': there is one, and it does not belong to this table"
    ):
        migrations.upgrade()

    assert indexes(migrations) == ["near"]
    assert [index["name"] for index in inspect(migrations.engine).get_indexes("other")] == ["near_new"]


@pytest.mark.parametrize(("failing", "left"), [("ALTER INDEX", "near_new"), ("DROP INDEX", "near_old")])
def test_a_replacement_that_failed_is_run_again(migrations: Migrations, failing: str, left: str) -> None:
    article(encoder=ENCODER, index=HNSW(name="near", build="immediate")).create_all(migrations.engine)
    migrations.write(REPLACE)

    def fail(*arguments: Any) -> None:
        if failing in arguments[2]:
            raise RuntimeError("the connection is lost")

    event.listen(migrations.engine, "before_cursor_execute", fail)
    with pytest.raises(RuntimeError):
        migrations.upgrade()
    event.remove(migrations.engine, "before_cursor_execute", fail)
    assert sorted(indexes(migrations)) == ["near", left]

    migrations.upgrade()
    assert indexes(migrations) == ["near"]
    with migrations.engine.connect() as connection:
        found = text("SELECT reloptions::text, obj_description(oid) FROM pg_class WHERE relname = 'near'")
        assert connection.execute(found).one() == ("{m=8}", None)


def test_a_replacement_builds_an_index_that_is_missing(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    migrations.write(REPLACE)
    migrations.upgrade()
    assert indexes(migrations) == ["near"]


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
    migrations.options["pgembed_reembed"] = "in_place"
    other = article(encoder=HashEncoder(4, "other"), index=HNSW(m=8))
    assert migrations.generate(other).upgrade.count("concurrently=True") == 1
    migrations.there_and_back(article(encoder=ENCODER, index=HNSW(m=8)))
    with migrations.engine.connect() as connection:
        left = connection.scalars(text("SELECT relname FROM pg_class WHERE relname LIKE 'ix_article%'")).all()
    assert sorted(left) == ["ix_article_embedding_hnsw", "ix_article_embedding_pending"]


def test_assert_backfilled(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('one'), ('two'), (NULL)"))
    migrations.write("op.assert_backfilled('article', 'embedding', allowed=2)")
    migrations.write("op.assert_backfilled('article', 'embedding')")
    migrations.upgrade("0001")

    with pytest.raises(MigrationError, match=r"article\.embedding: 2 rows are pending, at most 0 may be"):
        migrations.upgrade()
    script = migrations.offline("0001:0002").split("BEGIN;", 1)[1].split("UPDATE alembic")[0]
    with migrations.engine.connect() as connection, pytest.raises(DBAPIError, match="2 rows are pending"):
        connection.exec_driver_sql(script, execution_options={"no_parameters": True})

    with migrations.engine.begin() as connection:
        connection.execute(text("DELETE FROM article"))
    migrations.upgrade()


def test_assert_backfilled_by_share(migrations: Migrations) -> None:
    metadata = article(encoder=ENCODER)
    metadata.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) SELECT 'filled' FROM generate_series(1, 8)"))
    backfill(migrations.engine, metadata.tables["article"].c.embedding)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('one'), ('two'), (NULL)"))
    migrations.write("op.assert_backfilled('article', 'embedding', share=0.8)")
    migrations.write("op.assert_backfilled('article', 'embedding', share=0.81)")
    script = migrations.offline("base:0001").split("BEGIN;")[-1].split("INSERT INTO alembic")[0]
    with migrations.engine.connect() as connection:
        connection.exec_driver_sql(script, execution_options={"no_parameters": True})

    migrations.upgrade("0001")
    with pytest.raises(MigrationError, match="2 rows are pending, at most 1 may be"):
        migrations.upgrade()
    script = migrations.offline("0001:0002").split("BEGIN;", 1)[1].split("UPDATE alembic")[0]
    with migrations.engine.connect() as connection, pytest.raises(DBAPIError, match="2 rows are pending"):
        connection.exec_driver_sql(script, execution_options={"no_parameters": True})


def test_a_lock_is_waited_for_briefly_and_often(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    migrations.write(
        "op.lock_table('article', timeout=0.2, attempts=2); "
        "op.add_column('article', sa.Column('n', sa.Integer()))"
    )

    with migrations.engine.connect() as reader:
        reader.execute(text("SELECT * FROM article"))
        with pytest.raises(MigrationError, match=r"kept article locked during 2 attempts of 0\.2 s"):
            migrations.upgrade()
        # The reader ends while the lock is not even asked for.
        ended = threading.Timer(0.3, reader.rollback)
        ended.start()
        migrations.upgrade()
        ended.join()
    assert "n" in {column["name"] for column in inspect(migrations.engine).get_columns("article")}


def test_others_wait_behind_a_lock_no_longer_than_its_timeout(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    migrations.write("op.lock_table('article', timeout=0.3, attempts=4)")
    waits = []

    def refused() -> None:
        with pytest.raises(MigrationError):
            migrations.upgrade()

    with migrations.engine.connect() as reader, migrations.engine.connect() as other:
        reader.execute(text("SELECT * FROM article"))
        upgrade = threading.Thread(target=refused)
        upgrade.start()
        while upgrade.is_alive():
            started = time.perf_counter()
            other.execute(text("SELECT * FROM article"))
            other.rollback()
            waits.append(time.perf_counter() - started)
            time.sleep(0.01)
        upgrade.join()
    # They get through between two attempts. (A busy machine adds to the timeout.)
    assert sum(wait > 0.1 for wait in waits) > 1
    assert max(waits) < 5


def test_a_lock_by_hand(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    migrations.write("op.lock_table('article', timeout=0.1, attempts=2)")
    script = migrations.offline("0000:head").split("BEGIN;", 1)[1].split("UPDATE alembic")[0]
    with migrations.engine.connect() as connection:
        connection.exec_driver_sql(script, execution_options={"no_parameters": True})
        mode = connection.scalar(
            text("SELECT mode FROM pg_locks WHERE relation = 'article'::regclass AND pid = pg_backend_pid()")
        )
        assert mode == "AccessExclusiveLock"
        assert connection.scalar(text("SHOW lock_timeout")) == "0"


def test_not_null_by_steps(migrations: Migrations) -> None:
    article(encoder=ENCODER).create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('one'), (NULL)"))
    migrations.write(
        "op.set_not_null('article', 'title')", "op.alter_column('article', 'title', nullable=True)"
    )

    with pytest.raises(MigrationError, match=r"article\.title: there are rows with NULL"):
        migrations.upgrade()
    with migrations.engine.begin() as connection:
        connection.execute(text("DELETE FROM article WHERE title IS NULL"))
    migrations.upgrade()
    assert [c["nullable"] for c in inspect(migrations.engine).get_columns("article")][:2] == [False, False]
    assert inspect(migrations.engine).get_check_constraints("article") == []
    script = migrations.offline()
    assert script.index("NOT VALID") < script.index("VALIDATE") < script.index("SET NOT NULL")
    migrations.downgrade()


def test_a_pending_index_is_replaced_without_a_gap(migrations: Migrations) -> None:
    metadata = article(encoder=ENCODER)
    metadata.create_all(migrations.engine)
    name = "ix_article_embedding_pending"
    operation = f"op.replace_pending_index('{name}', 'article', ['id'], where='id > 5', registration=FACTS"
    operation = operation.replace("FACTS", repr({"pgembed": 1, "column": "embedding"}))
    migrations.write(f"{operation}, concurrently=True)")

    listed = "SELECT count(*) FROM pg_description WHERE description LIKE '{\"pgembed\":%'"
    counts = set()
    stop = threading.Event()

    def watch() -> None:
        with migrations.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not stop.is_set():
                counts.add(connection.scalar(text(listed)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    migrations.upgrade()
    stop.set()
    watcher.join()

    assert counts == {1}
    with migrations.engine.connect() as connection:
        predicate = connection.scalar(
            text(f"SELECT pg_get_expr(indpred, indrelid) FROM pg_index WHERE indexrelid = '{name}'::regclass")
        )
    assert predicate == "(id > 5)"


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
