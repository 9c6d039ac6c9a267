"""A changed encoder: the exact text of each revision of the series, run both ways, and nothing left to do."""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import Any

import pytest
from alembic import command
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Column, Text, text

from pgembed import HNSW, embedding_column
from pgembed.columns import embeddings_of
from pgembed.indexes import create_concurrently
from pgembed.migrations import MigrationError
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations, Revision
from tests.migrations.models import (
    BEFORE,
    CHANGED,
    CREATE_OLD_PENDING,
    FINISHED,
    NEW,
    OLD,
    SWITCHED,
    article,
    fill,
    pending,
    switched,
    two_columns,
    with_rows,
    without_hashes,
)

CREATE_NEW_PENDING = (
    CREATE_OLD_PENDING.replace("ix_article_embedding_", "ix_article_embedding_2_")
    .replace("embedding IS", "embedding_2 IS")
    .replace("embedding_digest", "embedding_2_digest")
    .replace("'column': 'embedding'", "'column': 'embedding_2'")
    .replace("'encoder': 'old'", "'encoder': 'new'")
    .replace("    registration=", "    concurrently=True,\n    registration=")
    .replace("        'fill': 'flush',\n", "        'fill': 'flush',\n        'replaces': 'embedding',\n")
)
ADD = """\
op.lock_table('article')
op.add_column('article', sa.Column('embedding_2', VECTOR(4), nullable=True), if_not_exists=True)
op.add_column('article', sa.Column('embedding_2_digest', sa.UUID(), nullable=True), if_not_exists=True)
"""
INDEX = """\
# The migration stops here until workers, or `pgembed backfill`, have filled the column.
op.assert_backfilled('article', 'embedding_2', share=0.99)
op.create_vector_index(
    'ix_article_embedding_2_hnsw',
    'article',
    'embedding_2',
    using='hnsw',
    opclass='vector_cosine_ops',
    parameters={'m': 16, 'ef_construction': 64},
    concurrently=True,
)"""


def lines_of(body: str) -> str:
    """A text in which the digests' columns may be wrapped differently: without line breaks and quotes."""
    return "".join(body.split()).replace("'\"", "").replace("\"'", "").replace("''", "")


def test_a_changed_encoder_is_a_series(migrations: Migrations, caplog: pytest.LogCaptureFixture) -> None:
    with_rows(migrations, article(**BEFORE))

    add, index = migrations.generate_series(article(**CHANGED))

    comment = [line for line in add.upgrade.splitlines() if line.startswith("#")]
    assert without_hashes("\n".join(comment)) == (
        """\
# The encoder of article.embedding changes from 'old' (HASH) to 'new' (HASH). So that
# every search is answered from one space, the new vectors get a column of their own:
# 1. This revision adds embedding_2. Workers fill it while the application goes on as it is.
# 2. The next revision builds its index. `pgembed reembed status` says when all is ready.
# 3. Release the application with name="embedding_2", replaces="embedding" in its
# embedding_column(): it writes and searches the new column, by the new encoder.
# 4. When the old application is gone, take replaces= away: embedding is dropped.
# To change the vectors in place instead: alembic -x reembed=in_place revision --autogenerate"""
    )
    rest = without_hashes("\n".join(add.upgrade.splitlines()[len(comment) :]))
    assert lines_of(rest) == lines_of(ADD + CREATE_NEW_PENDING)
    assert rest.startswith(ADD)
    assert add.downgrade == (
        """\
op.drop_pending_index('ix_article_embedding_2_pending', 'article', concurrently=True)
op.lock_table('article')
op.drop_column('article', 'embedding_2_digest', if_exists=True)
op.drop_column('article', 'embedding_2', if_exists=True)"""
    )
    assert index == Revision(
        INDEX,
        "op.drop_vector_index('ix_article_embedding_2_hnsw', 'article', concurrently=True)",
        ["from alembic import op", "import sqlalchemy as sa"],
    )

    # The upgrade goes as far as it can, and on when there is something to index.
    with pytest.raises(MigrationError, match=r"article\.embedding_2: 3 rows are pending, at most 0 may be"):
        migrations.upgrade()
    assert pending(migrations) == {"embedding": 0, "embedding_2": 3}
    fill(migrations, article(**SWITCHED))
    migrations.upgrade()
    with caplog.at_level(logging.WARNING):
        migrations.check()
    assert "write name='embedding_2', replaces='embedding'" in caplog.text
    assert pending(migrations) == {"embedding": 0, "embedding_2": 0}

    migrations.downgrade()
    migrations.downgrade()
    migrations.metadata = article(**BEFORE)
    migrations.check_downgraded()
    migrations.upgrade("0001")
    fill(migrations, article(**SWITCHED))
    migrations.upgrade()
    migrations.metadata = article(**SWITCHED)
    migrations.check()


def test_a_column_that_the_model_names(migrations: Migrations) -> None:
    with_rows(migrations, article(**BEFORE))

    add, index = migrations.generate_series(article(**SWITCHED))

    comment, rest = add.upgrade.split("op.", 1)
    assert comment == (
        """\
# embedding_2 takes the place of article.embedding: workers fill it while the application goes
# on as it is, the next revision builds its index, and `pgembed reembed status` says when to
# switch.
"""
    )
    assert lines_of(without_hashes("op." + rest)) == lines_of(ADD + CREATE_NEW_PENDING)
    assert index.upgrade == INDEX
    migrations.upgrade("0001")
    fill(migrations, article(**SWITCHED))
    migrations.upgrade()
    migrations.check()


def test_the_old_column_is_dropped_when_nothing_replaces_it_any_more(migrations: Migrations) -> None:
    switched(migrations, article(**BEFORE), article(**SWITCHED))

    revision = migrations.generate(article(**FINISHED))

    upgrade, register = revision.upgrade.split("op.register_embedding")
    assert upgrade == (
        """\
# The migration stops here until workers, or `pgembed backfill`, have filled the column that
# takes its place.
op.assert_backfilled('article', 'embedding_2', share=0.99)
op.drop_vector_index('ix_article_embedding_hnsw', 'article', concurrently=True)
op.drop_pending_index('ix_article_embedding_pending', 'article', concurrently=True)
op.lock_table('article')
op.drop_column('article', 'embedding', if_exists=True)
op.drop_column('article', 'embedding_digest', if_exists=True)
"""
    )
    assert "replaces" not in register
    calls = [line.rstrip("(") for line in revision.downgrade.splitlines() if line.startswith("op.")]
    assert [call[:40] for call in calls] == [
        "op.register_embedding",
        "op.lock_table('article')",
        "op.add_column('article', sa.Column('embedding_digest'"[:40],
        "op.add_column('article', sa.Column('embedding', VECTOR"[:40],
        "op.create_pending_index",
        "op.create_vector_index",
    ]
    assert revision.downgrade.count("if_not_exists=True") == 2
    assert revision.downgrade.count("concurrently=True") == 2
    migrations.there_and_back(article(**SWITCHED))
    assert pending(migrations) == {"embedding_2": 0}


def test_each_revision_can_be_run_again_where_it_failed(migrations: Migrations) -> None:
    """Concurrent operations commit: what they committed is there already at the next attempt."""

    def twice(revision: str, previous: str) -> None:
        migrations.upgrade(revision)
        command.stamp(migrations.config, previous)
        migrations.upgrade(revision)

    with_rows(migrations, article(**BEFORE))
    migrations.generate_series(article(**SWITCHED))
    twice("0001", "base")
    fill(migrations, article(**SWITCHED))
    twice("0002", "0001")
    migrations.check()
    migrations.generate(article(**FINISHED))
    twice("0003", "0002")
    migrations.check()
    migrations.downgrade()
    command.stamp(migrations.config, "0003")
    migrations.downgrade()
    migrations.metadata = article(**SWITCHED)
    migrations.check_downgraded()


def test_required_columns(migrations: Migrations) -> None:
    """The new application does not write the old column, nor the old application the new one."""
    metadata = article(**BEFORE, nullable=False)
    metadata.create_all(migrations.engine)

    add, _ = migrations.generate_series(article(**SWITCHED, nullable=False))

    assert add.upgrade.splitlines()[3:7] == [
        *ADD.splitlines(),
        "op.alter_column('article', 'embedding',",
    ]
    assert "           nullable=True)" in add.upgrade
    migrations.upgrade()
    migrations.check()
    last, required = migrations.generate_series(article(**FINISHED, nullable=False))
    assert "set_not_null" not in last.upgrade
    assert required.upgrade == "op.set_not_null('article', 'embedding_2')"
    assert required.downgrade == (
        "op.alter_column('article', 'embedding_2',\n"
        "           existing_type=VECTOR(4),\n"
        "           nullable=True)"
    )
    migrations.upgrade()
    migrations.check()
    migrations.downgrade("base")
    migrations.metadata = metadata
    migrations.check_downgraded()


@pytest.mark.parametrize(
    ("before", "after", "name", "added"),
    [
        ({}, {"encoder": HashEncoder(6, "new")}, "embedding_2", "VECTOR(6)"),
        ({"type": "halfvec"}, {"type": "halfvec"}, "embedding_2", "HALFVEC(4)"),
        ({"schema": "My Docs"}, {"schema": "My Docs"}, "embedding_2", "VECTOR(4)"),
        ({"name": "vector_9"}, {"name": "vector_9"}, "vector_10", "VECTOR(4)"),
        (
            {"naming_convention": {"ix": "idx_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"}},
            {"naming_convention": {"ix": "idx_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"}},
            "embedding_2",
            "VECTOR(4)",
        ),
        (
            {"index": HNSW(name="near", build="immediate")},
            {"index": HNSW(name="near")},
            "embedding_2",
            "VECTOR(4)",
        ),
    ],
    ids=["dimensions", "halfvec", "schema", "numbered", "naming convention", "named index"],
)
def test_kinds_of_columns(
    migrations: Migrations, before: dict[str, Any], after: dict[str, Any], name: str, added: str
) -> None:
    if "schema" in before:
        with migrations.engine.begin() as connection:
            connection.execute(text('CREATE SCHEMA "My Docs"'))
        migrations.options["include_schemas"] = True
    first = article(**{**BEFORE, **before})
    with_rows(migrations, first)

    add, index = migrations.generate_series(article(**{**CHANGED, **after}))

    assert f"sa.Column('{name}', {added}, nullable=True)" in add.upgrade
    assert index.upgrade.count("op.create_vector_index(") == 1
    migrations.upgrade("0001")
    options = {**CHANGED, **after, "name": name, "replaces": before.get("name", "embedding")}
    if "index" in after:
        assert "'near_2'" in index.upgrade
        options["index"] = HNSW(name="near_2")
    switched_to = article(**options)
    fill(migrations, switched_to)
    migrations.upgrade()
    migrations.check()
    migrations.metadata = switched_to
    migrations.check()
    del options["replaces"]
    migrations.generate(article(**options))
    migrations.there_and_back(switched_to)
    migrations.downgrade("base")
    migrations.metadata = first
    migrations.check_downgraded()


def test_an_index_of_the_new_column_with_the_name_of_the_old_one_is_refused(migrations: Migrations) -> None:
    with_rows(migrations, article(**{**BEFORE, "index": HNSW(name="near", build="immediate")}))

    with pytest.raises(MigrationError, match="'near' has the name of the index of 'embedding'"):
        migrations.generate_series(article(**{**SWITCHED, "index": HNSW(name="near")}))


def test_other_changes_of_the_table_have_a_revision_of_their_own(migrations: Migrations) -> None:
    """They could not be run again if a concurrent build failed behind them."""
    with_rows(migrations, article(**BEFORE))
    more = Column("subtitle", Text, index=True)

    other, add, index = migrations.generate_series(article(more, **CHANGED))

    assert other.upgrade == (
        """\
op.add_column('article', sa.Column('subtitle', sa.Text(), nullable=True))
op.create_index(op.f('ix_article_subtitle'), 'article', ['subtitle'], unique=False)"""
    )
    assert "subtitle" not in add.upgrade + index.upgrade
    migrations.upgrade("0002")
    fill(migrations, article(Column("subtitle", Text, index=True), **SWITCHED))
    migrations.upgrade()
    migrations.check()


def test_a_change_that_is_given_up(migrations: Migrations) -> None:
    with_rows(migrations, article(**BEFORE))
    migrations.generate_series(article(**CHANGED))
    migrations.upgrade("0001")
    (migrations.folder / "versions" / "0002_step_index.py").unlink()

    revision = migrations.generate_series(article(**BEFORE))[0]

    assert "op.drop_pending_index('ix_article_embedding_2_pending', 'article')" in revision.upgrade
    assert revision.upgrade.count("drop_column") == 2
    migrations.upgrade()
    migrations.check()


def test_columns_side_by_side_in_the_model(migrations: Migrations) -> None:
    """An application may write both columns, and choose at run time which one to search."""
    with_rows(migrations, article(**BEFORE))
    old = embedding_column("title", name="embedding", encoder=OLD, index=HNSW())
    both = article(old.column, **SWITCHED)
    assert len(embeddings_of(both.tables["article"])) == 2

    add, index = migrations.generate_series(both)

    assert ADD in add.upgrade
    assert index.upgrade == INDEX
    migrations.upgrade("0001")
    fill(migrations, both)
    migrations.upgrade()
    migrations.check()
    migrations.generate(article(**FINISHED))
    migrations.there_and_back(both)


def test_other_columns_go_before_the_series(migrations: Migrations) -> None:
    with_rows(migrations, article(Column("subtitle", Text), **BEFORE))

    other, add, _ = migrations.generate_series(article(**SWITCHED))

    assert other.upgrade == "op.drop_column('article', 'subtitle')"
    assert add.upgrade.count("drop_column") == 0


def test_two_columns_of_a_table_change_together(migrations: Migrations) -> None:
    before = two_columns()
    with_rows(migrations, before)
    migrations.generate(before)
    migrations.upgrade()
    migrations.check()
    changed, after = two_columns(suffix=""), two_columns(suffix="_2", title="of_title", all="of_all")

    add, index = migrations.generate_series(changed)

    assert add.upgrade.count("op.add_column(") == add.downgrade.count("op.drop_column(") == 4
    assert index.upgrade.count("op.create_vector_index(") == index.upgrade.count("assert_backfilled") == 2
    migrations.upgrade("0002")
    fill(migrations, after)
    migrations.upgrade()
    migrations.check()
    migrations.metadata = after
    migrations.check()
    last = migrations.generate(two_columns(suffix="_2"))
    assert last.upgrade.count("op.drop_column(") == 4
    migrations.there_and_back(after)
    assert pending(migrations) == {"of_title_2": 0, "of_all_2": 0}


def test_a_column_that_was_filled_by_hand_is_replaced(migrations: Migrations) -> None:
    """From one's own vectors, which nothing says how they were made, to an embedding column."""
    before = article(Column("vectors", VECTOR(3), nullable=False))
    before.create_all(migrations.engine)
    after = article(encoder=NEW, index=HNSW(), replaces="vectors")

    add, _ = migrations.generate_series(after)

    assert add.upgrade.count("op.add_column(") == 2
    assert "op.alter_column('article', 'vectors'" in add.upgrade
    migrations.upgrade()
    migrations.check()
    last = migrations.generate(article(**CHANGED))
    assert "op.drop_column('article', 'vectors', if_exists=True)" in last.upgrade
    migrations.there_and_back(after)
    migrations.downgrade("base")
    migrations.metadata = before
    migrations.check_downgraded()


def test_a_partitioned_table(migrations: Migrations) -> None:
    """Postgres changes no index of it concurrently."""
    before, changed = article(**BEFORE), article(**CHANGED)
    after, last = article(**SWITCHED), article(**FINISHED)
    for metadata in (before, changed, after, last):
        metadata.tables["article"].dialect_options["postgresql"].update(partition_by="RANGE (id)")
    before.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("CREATE TABLE part PARTITION OF article FOR VALUES FROM (0) TO (100)"))
        connection.execute(text("INSERT INTO article (id, title) VALUES (1, 'one')"))
    migrations.options["include_name"] = lambda name, kind, _: not (kind == "table" and name == "part")

    add, index = migrations.generate_series(changed)

    assert "concurrently" not in add.upgrade + index.upgrade
    migrations.upgrade("0001")
    fill(migrations, after)
    migrations.upgrade()
    migrations.check()
    migrations.metadata = after
    migrations.check()
    assert "concurrently" not in migrations.generate(last).upgrade
    migrations.there_and_back(after)


def test_an_index_that_was_built_beforehand_is_found(migrations: Migrations) -> None:
    with_rows(migrations, article(**BEFORE))
    after = article(**SWITCHED)
    migrations.generate_series(after)
    migrations.upgrade("0001")
    fill(migrations, after)
    create_concurrently(migrations.engine, after.tables["article"].c.embedding_2)
    oid = "SELECT 'ix_article_embedding_2_hnsw'::regclass::oid"
    with migrations.engine.connect() as connection:
        built = connection.scalar(text(oid))

    migrations.upgrade()

    with migrations.engine.connect() as connection:
        assert connection.scalar(text(oid)) == built
    migrations.check()


def test_the_series_as_a_script(migrations: Migrations) -> None:
    article(**BEFORE).create_all(migrations.engine)
    migrations.generate_series(article(**SWITCHED))
    script = migrations.offline("0000:head")
    assert "ADD COLUMN IF NOT EXISTS embedding_2" in script
    with migrations.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        for part in ("\n" + script).split("\nCOMMIT;\n"):
            for statement in part.split("\nBEGIN;\n"):
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    migrations.check()
    migrations.generate(article(**FINISHED))
    migrations.there_and_back(article(**SWITCHED))


def test_in_place_by_flag(migrations: Migrations) -> None:
    with_rows(migrations, article(**BEFORE))
    migrations.arguments = Namespace(x=["reembed=in_place"])

    revision = migrations.generate(article(**CHANGED))

    assert "op.replace_pending_index(" in revision.upgrade
    migrations.upgrade()
    migrations.check()
    assert pending(migrations) == {"embedding": 3}
    migrations.arguments = Namespace(x=["reembed=somehow"])
    with pytest.raises(MigrationError, match='\'somehow\'; expected "beside" or "in_place"'):
        migrations.generate(article(**BEFORE))


def test_a_template_changes_in_place(migrations: Migrations) -> None:
    """The space of its vectors is the same."""
    with_rows(migrations, article(**BEFORE))

    revision = migrations.generate(article(**{**BEFORE, "template": "title: {title}"}))

    assert revision.upgrade.startswith("# What article.embedding is made from changes")
