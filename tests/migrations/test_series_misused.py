"""A change of encoder whose steps are done wrongly, or in another order: what is in use stays as it is."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, text

from pgembed import HNSW, embedding_column
from pgembed.columns import embeddings_of
from pgembed.exc import DeclarationError, NotInstalledError
from pgembed.migrations import MigrationError
from pgembed.reembedding.change import Change, changes
from pgembed.reembedding.costs import next_name
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations
from tests.migrations.models import (
    BEFORE,
    CHANGED,
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
)

THIRD: dict[str, Any] = {"encoder": HashEncoder(4, "third"), "index": HNSW()}


def story(**options: Any) -> MetaData:
    """The table under another name."""
    metadata = MetaData()
    columns = [Column("id", Integer, primary_key=True), Column("title", Text)]
    Table("story", metadata, *columns, embedding_column("title", **options).column)
    return metadata


def both(old: HashEncoder, **options: Any) -> MetaData:
    """Both columns in the models."""
    new = embedding_column("title", name="embedding_2", encoder=NEW, index=HNSW(), **options)
    return article(new.column, encoder=old, index=HNSW())


def gate(migrations: Migrations, metadata: MetaData) -> list[Change]:
    (table,) = metadata.tables.values()
    with migrations.engine.begin() as connection:
        return changes(connection, embeddings_of(table), min_recall=0.5, queries=2)


def refused(migrations: Migrations, metadata: MetaData, *words: str) -> None:
    with pytest.raises(MigrationError, match=".*".join(map(re.escape, words))):
        migrations.generate_series(metadata)


def test_given_up_for_a_third_encoder(migrations: Migrations) -> None:
    """The column in use stays, whoever was to take its place."""
    switched(migrations, article(**BEFORE), article(**SWITCHED))
    third = article(**THIRD, name="embedding_3", replaces="embedding")

    migrations.generate_series(third)

    with pytest.raises(MigrationError, match=r"embedding_3: 3 rows are pending"):
        migrations.upgrade()
    assert pending(migrations) == {"embedding": 0, "embedding_3": 3}
    fill(migrations, third)
    migrations.upgrade()
    migrations.check()


@pytest.mark.parametrize(
    "after",
    [
        {**THIRD, "name": "embedding_3", "replaces": "embedding_2"},
        {**THIRD, "name": "embedding_2"},
        {"encoder": OLD, "index": HNSW(), "replaces": "embedding_2"},
    ],
    ids=["a third column", "finished by it", "back to the first"],
)
def test_a_change_begun_before_the_last_one_is_finished(
    migrations: Migrations, after: dict[str, Any]
) -> None:
    switched(migrations, article(**BEFORE), article(**SWITCHED))
    refused(
        migrations, article(**after), "from 'embedding' to 'embedding_2' is not finished", "finish it first"
    )


def test_another_encoder_for_the_new_column(migrations: Migrations) -> None:
    """Whether it is searched already, nobody here knows."""
    switched(migrations, article(**BEFORE), article(**SWITCHED))
    other = article(**{**SWITCHED, **THIRD})

    refused(migrations, other, "'embedding' with the encoder 'new'", "another name")

    migrations.options["pgembed_reembed"] = "in_place"
    migrations.generate(other)
    migrations.upgrade()
    assert pending(migrations) == {"embedding": 0, "embedding_2": 3}


@pytest.mark.parametrize("name", ["embeding", "title", "subtitle", "id", "embedding_digest"])
def test_what_is_replaced_is_a_vector_column(migrations: Migrations, name: str) -> None:
    article(Column("subtitle", Text), **BEFORE).create_all(migrations.engine)
    refused(
        migrations,
        article(**{**SWITCHED, "replaces": name}),
        f"replaces={name!r} is not a vector column",
        "there are 'embedding'",
    )


def test_two_columns_for_one(migrations: Migrations) -> None:
    with_rows(migrations, two_columns())
    refused(
        migrations,
        two_columns(suffix="_2", title="of_title", all="of_title"),
        "of_title_2 and article.of_all_2 both take the place of 'of_title'",
    )


def test_both_columns_in_the_models(migrations: Migrations) -> None:
    with_rows(migrations, article(**BEFORE))
    right = both(OLD, replaces="embedding")
    migrations.generate_series(right)
    migrations.upgrade("0001")
    fill(migrations, right)
    migrations.upgrade()
    migrations.check()
    assert gate(migrations, right)[0].obstacles == ()

    # The old column with the new encoder.
    for wrong in (both(NEW, replaces="embedding"), both(NEW)):
        refused(migrations, wrong, "has the encoder of 'embedding_2', which takes its place")
    with pytest.raises(NotInstalledError, match=r"article\.embedding: the model has"):
        gate(migrations, both(NEW, replaces="embedding"))


def test_the_table_is_renamed_in_the_middle(migrations: Migrations) -> None:
    switched(migrations, article(**BEFORE), article(**SWITCHED))
    with migrations.engine.begin() as connection:
        connection.execute(text("ALTER TABLE article RENAME TO story"))

    migrations.generate_series(story(**SWITCHED))

    migrations.upgrade()
    migrations.check()
    assert pending(migrations) == {"embedding": 0, "embedding_2": 0}
    assert gate(migrations, story(**SWITCHED))[0].obstacles == ()
    migrations.generate(story(**FINISHED))
    migrations.upgrade()
    migrations.check()
    assert pending(migrations) == {"embedding_2": 0}


def test_table_and_encoder_at_once(migrations: Migrations) -> None:
    with_rows(migrations, article(**BEFORE))
    with migrations.engine.begin() as connection:
        connection.execute(text("ALTER TABLE article RENAME TO story"))
    refused(migrations, story(name="embedding", **CHANGED), "'ix_article_embedding_pending'", "('old') first")
    migrations.generate(story(name="embedding", **{**BEFORE, "index": HNSW()}))
    migrations.upgrade()
    add, _ = migrations.generate_series(story(name="embedding", **CHANGED))
    assert "'embedding_2'" in add.upgrade


def test_the_old_column_stays_until_the_new_one_is_filled(migrations: Migrations) -> None:
    """Without an index there is no other revision that waits for it."""
    new = {"encoder": NEW, "name": "embedding_2"}
    with_rows(migrations, article(encoder=OLD))
    migrations.generate(article(**new, replaces="embedding"))
    migrations.upgrade()
    migrations.generate(article(**new))

    with pytest.raises(MigrationError, match=r"embedding_2: 3 rows are pending"):
        migrations.upgrade()

    assert pending(migrations) == {"embedding": 0, "embedding_2": 3}
    fill(migrations, article(**new, replaces="embedding"))
    migrations.upgrade()
    migrations.check()


def test_the_gate_before_the_migration(migrations: Migrations) -> None:
    with_rows(migrations, article(**BEFORE))
    with pytest.raises(NotInstalledError, match=r"embedding_2: .* or a migration"):
        gate(migrations, article(**SWITCHED))
    with pytest.raises(NotInstalledError, match="migrate the database"):
        gate(migrations, article(**CHANGED))
    assert gate(migrations, article(**BEFORE)) == []


def test_few_rows_have_a_text(migrations: Migrations) -> None:
    """Those without one are not filled, and don't count as filled."""
    before, after = article(**BEFORE), article(**SWITCHED)
    with_rows(migrations, before)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (id) SELECT generate_series(10, 1000)"))
    migrations.generate_series(after)
    with pytest.raises(MigrationError, match=r"embedding_2: 3 rows are pending, at most 0 may be"):
        migrations.upgrade()
    (change,) = gate(migrations, after)
    assert (change.filled, change.rows) == (0, 3)
    assert "(3 of 3 rows are pending)" in change.next_step
    fill(migrations, after)
    migrations.upgrade()
    assert gate(migrations, after)[0].obstacles == ()


def test_the_gate_of_a_table_without_texts(migrations: Migrations) -> None:
    article(**BEFORE).create_all(migrations.engine)
    migrations.generate_series(article(**SWITCHED))
    migrations.upgrade()
    assert gate(migrations, article(**SWITCHED))[0].obstacles == ()


def test_the_gate_after_the_revision_was_edited(migrations: Migrations) -> None:
    with_rows(migrations, article(**BEFORE))
    migrations.generate_series(article(**SWITCHED))
    (path,) = migrations.folder.glob("versions/0001*")
    path.write_text(re.sub(r".*'replaces'.*\n", "", path.read_text()))
    migrations.upgrade("0001")
    fill(migrations, article(**SWITCHED))
    migrations.upgrade()

    with pytest.raises(DeclarationError, match="the database does not know of it: alembic revision"):
        gate(migrations, article(**SWITCHED))

    migrations.generate(article(**SWITCHED))
    migrations.upgrade()
    assert gate(migrations, article(**SWITCHED))[0].obstacles == ()


def test_back_to_a_required_column(migrations: Migrations) -> None:
    """It came back empty: NOT NULL waits until it is filled."""
    before, after = article(**BEFORE, nullable=False), article(**SWITCHED)
    with_rows(migrations, article(**BEFORE))
    with migrations.engine.begin() as connection:
        connection.execute(text("ALTER TABLE article ALTER embedding SET NOT NULL"))
    migrations.metadata = before
    migrations.check()
    migrations.generate_series(after)
    migrations.upgrade("0001")
    fill(migrations, after)
    migrations.upgrade()
    migrations.generate(article(**FINISHED))
    migrations.upgrade()

    with pytest.raises(MigrationError, match=r"article\.embedding: 3 rows are pending"):
        migrations.downgrade("base")

    assert pending(migrations) == {"embedding": 3, "embedding_2": 0}
    fill(migrations, article(**BEFORE))
    migrations.downgrade("base")
    migrations.metadata = before
    migrations.check_downgraded()


def test_the_new_name_fits_with_that_of_its_digest() -> None:
    assert next_name("x" * 56, set()) == "x" * 54 + "_2"
    assert next_name("ä" * 28, {"ä" * 27 + "_2"}) == "ä" * 27 + "_3"
