"""``op.create_meaning_guard`` and ``op.drop_meaning_guard``, and as autogenerate writes them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, text

from pgembed.exc import DeclarationError, DuplicateMeaningError, MetricNotSupportedError
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations
from tests.migrations.models import BEFORE, CHANGED, FINISHED, OLD, SWITCHED, article, fill, with_rows

CREATE = "op.create_meaning_guard('article', 'embedding', {score})"
ADD = text("INSERT INTO article (embedding) VALUES ('[1,2,3,4]'), ('[1,2,3,4]')")


def test_up_and_down(migrations: Migrations) -> None:
    article(encoder=HashEncoder(4)).create_all(migrations.engine)
    migrations.write(CREATE.format(score=0.95), "op.drop_meaning_guard('article', 'embedding')")
    assert (
        "CREATE TRIGGER pgembed_guard_embedding AFTER INSERT OR UPDATE OF embedding ON article FOR EACH ROW "
        "WHEN (NEW.embedding IS NOT NULL) EXECUTE FUNCTION pgembed.guard_meaning('0.95', 'cosine');"
    ) in migrations.offline()
    migrations.upgrade()
    with migrations.engine.connect() as connection, pytest.raises(DuplicateMeaningError):
        connection.execute(ADD)
    migrations.downgrade("base")
    with migrations.engine.connect() as connection:
        connection.execute(ADD)


def test_what_is_no_score(migrations: Migrations) -> None:
    article(encoder=HashEncoder(4)).create_all(migrations.engine)
    migrations.write(CREATE.format(score=2))
    with pytest.raises(DeclarationError, match="unique_within=2"):
        migrations.upgrade()


def test_a_metric_of_bits(migrations: Migrations) -> None:
    migrations.write("op.create_meaning_guard('article', 'embedding', 0.9, metric='hamming')")
    with pytest.raises(MetricNotSupportedError, match="hamming"):
        migrations.upgrade()


def guarded(*per: str, tenant: Any = Integer, **options: Any) -> MetaData:
    return article(Column("tenant_id", tenant), encoder=OLD, unique_within=0.95, unique_per=per, **options)


def guards(migrations: Migrations) -> list[str]:
    with migrations.engine.connect() as connection:
        found = connection.scalars(text("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"))
        return list(found)


def calls(body: str) -> list[str]:
    return [line.partition("(")[0] for line in body.splitlines() if line.startswith("op.")]


def test_a_guard_comes_and_goes(migrations: Migrations) -> None:
    before = article(Column("tenant_id", Integer), encoder=OLD)
    before.create_all(migrations.engine)
    create = "op.create_meaning_guard('article', 'embedding', 0.95, unique_per=['tenant_id'])"
    drop = "op.drop_meaning_guard('article', 'embedding')"

    revision = migrations.generate(guarded("tenant_id"))

    assert (revision.upgrade, revision.downgrade) == (create, drop)
    migrations.there_and_back(before)
    assert guards(migrations) == ["pgembed_guard_embedding"]
    revision = migrations.generate(before)
    assert (revision.upgrade, revision.downgrade) == (drop, create)
    migrations.there_and_back(guarded("tenant_id"))
    assert guards(migrations) == []


@pytest.mark.parametrize(
    ("changed", "created"),
    [
        (guarded(), "op.create_meaning_guard('article', 'embedding', 0.95)"),
        (
            article(
                Column("tenant_id", Integer),
                encoder=OLD,
                unique_within=0.5,
                unique_per=["title", "tenant_id"],
            ),
            "op.create_meaning_guard('article', 'embedding', 0.5, unique_per=['title', 'tenant_id'])",
        ),
        (
            guarded("tenant_id", metric="l2"),
            "op.create_meaning_guard('article', 'embedding', 0.95, unique_per=['tenant_id'], metric='l2')",
        ),
    ],
)
def test_a_changed_guard_is_replaced(migrations: Migrations, changed: MetaData, created: str) -> None:
    before = guarded("tenant_id")
    before.create_all(migrations.engine)
    revision = migrations.generate(changed)
    ours = [line for line in revision.upgrade.splitlines() if "meaning_guard" in line]
    assert ours == ["op.drop_meaning_guard('article', 'embedding')", created]
    ours = [line for line in revision.downgrade.splitlines() if "meaning_guard" in line]
    assert ours == [
        "op.drop_meaning_guard('article', 'embedding')",
        "op.create_meaning_guard('article', 'embedding', 0.95, unique_per=['tenant_id'])",
    ]
    migrations.there_and_back(before)


def test_a_guard_comes_with_its_column_and_goes_before_it(migrations: Migrations) -> None:
    before, after = article(Column("tenant_id", Integer)), guarded("tenant_id")
    before.create_all(migrations.engine)
    revision = migrations.generate(after)
    assert calls(revision.upgrade) == [
        "op.add_column",
        "op.add_column",
        "op.create_pending_index",
        "op.create_meaning_guard",
    ]
    assert calls(revision.downgrade) == [
        "op.drop_meaning_guard",
        "op.drop_pending_index",
        "op.drop_column",
        "op.drop_column",
    ]
    migrations.there_and_back(before)
    assert calls(migrations.generate(before).upgrade)[0] == "op.drop_meaning_guard"
    migrations.there_and_back(after)


def test_a_guard_comes_and_goes_with_its_table(empty_migrations: Migrations) -> None:
    after = guarded(schema="sh op")
    with empty_migrations.engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "sh op"'))
    empty_migrations.options["include_schemas"] = True
    revision = empty_migrations.generate(after)
    assert calls(revision.upgrade) == [
        "op.install_pgembed",
        "op.create_table",
        "op.create_pending_index",
        "op.create_meaning_guard",
    ]
    assert calls(revision.downgrade)[0] == "op.drop_meaning_guard"
    assert revision.upgrade.endswith("op.create_meaning_guard('article', 'embedding', 0.95, schema='sh op')")
    empty_migrations.there_and_back(MetaData())
    revision = empty_migrations.generate(MetaData())
    assert calls(revision.upgrade) == ["op.drop_meaning_guard", "op.drop_pending_index", "op.drop_table"]
    empty_migrations.there_and_back(after)
    empty_migrations.downgrade()
    assert guards(empty_migrations) == ["pgembed_guard_embedding"]


def test_types_of_guarded_columns_change_without_their_guard(migrations: Migrations) -> None:
    before = guarded("tenant_id", tenant=String(5))
    before.create_all(migrations.engine)
    for after in (
        guarded("tenant_id", tenant=String(9)),
        guarded("tenant_id", tenant=String(9), type="halfvec"),
    ):
        revision = migrations.generate(after)
        assert [calls(revision.upgrade)[0], calls(revision.upgrade)[-1]] == [
            "op.drop_meaning_guard",
            "op.create_meaning_guard",
        ]
        migrations.there_and_back(before)
        before = after
    assert guards(migrations) == ["pgembed_guard_embedding"]


def test_a_column_that_replaces_another_is_guarded_once_it_is_filled(migrations: Migrations) -> None:
    guard: dict[str, Any] = {"unique_within": 0.95}
    with_rows(migrations, article(**BEFORE, **guard))

    add, index = migrations.generate_series(article(**CHANGED, **guard))

    assert "guard" not in add.upgrade
    assert calls(index.upgrade) == [
        "op.assert_backfilled",
        "op.create_vector_index",
        "op.lock_table",
        "op.create_meaning_guard",
    ]
    migrations.upgrade("0001")
    fill(migrations, article(**SWITCHED))
    migrations.upgrade()
    migrations.check()
    migrations.metadata = article(**SWITCHED, **guard)
    migrations.check()
    assert guards(migrations) == ["pgembed_guard_embedding", "pgembed_guard_embedding_2"]
    revisions = migrations.generate_series(article(**FINISHED, **guard))
    dropped = calls(revisions[-1].upgrade)
    assert dropped.index("op.lock_table") < dropped.index("op.drop_meaning_guard")
    assert dropped.index("op.drop_meaning_guard") < dropped.index("op.drop_column")
    migrations.upgrade()
    migrations.check()
    assert guards(migrations) == ["pgembed_guard_embedding_2"]
    migrations.downgrade()
    assert guards(migrations) == ["pgembed_guard_embedding", "pgembed_guard_embedding_2"]


def test_the_guard_of_a_renamed_column(migrations: Migrations) -> None:
    before, after = (
        article(encoder=OLD, name="vector", unique_within=0.95),
        article(encoder=OLD, name="vector"),
    )
    article(encoder=OLD, unique_within=0.95).create_all(migrations.engine)
    migrations.write(
        "op.alter_column('article', 'embedding', new_column_name='vector');"
        "op.alter_column('article', 'embedding_digest', new_column_name='vector_digest')"
    )
    migrations.upgrade()
    migrations.generate(before)
    migrations.upgrade()
    assert guards(migrations) == ["pgembed_guard_embedding"]
    revision = migrations.generate(after)
    assert (revision.upgrade, revision.downgrade) == (
        "op.drop_meaning_guard('article', 'vector', trigger='pgembed_guard_embedding')",
        "op.create_meaning_guard('article', 'vector', 0.95, trigger='pgembed_guard_embedding')",
    )
    migrations.there_and_back(before)


def test_a_partitioned_table_has_one_guard(migrations: Migrations) -> None:
    metadata = guarded()
    metadata.tables["article"].dialect_options["postgresql"].update(partition_by="RANGE (id)")
    metadata.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("CREATE TABLE part PARTITION OF article FOR VALUES FROM (0) TO (9)"))
    migrations.options["include_name"] = lambda name, kind, _: kind != "table" or name == "article"
    migrations.metadata = metadata
    migrations.check()
    migrations.generate(article(Column("tenant_id", Integer), encoder=OLD))
    migrations.there_and_back(metadata)


def test_a_column_that_the_environment_ignores_keeps_its_guard(migrations: Migrations) -> None:
    guarded().create_all(migrations.engine)
    migrations.options["include_object"] = lambda _o, name, _k, _r, _c: (
        not name.startswith(("embedding", "ix_article_embedding"))
    )
    migrations.metadata = article(Column("tenant_id", Integer))
    migrations.check()


LINK: dict[str, Any] = {"unique_within": 0.95, "on_duplicate": "return", "duplicate_of": "same_as"}


def linked(**options: Any) -> MetaData:
    return article(Column("same_as", Integer), **({"encoder": OLD} | LINK | options))


def test_a_guard_that_links(migrations: Migrations) -> None:
    before, after = article(encoder=OLD), linked()
    before.create_all(migrations.engine)
    migrations.options["compare_server_default"] = True

    revision = migrations.generate(after)

    assert calls(revision.upgrade) == [
        "op.add_column",
        "op.replace_pending_index",
        "op.create_meaning_guard",
    ]
    assert revision.upgrade.startswith(
        "op.add_column('article', sa.Column('same_as', sa.Integer(), nullable=True))\n"
    )
    assert "'CASE WHEN (embedding IS NOT NULL OR same_as IS NOT NULL) THEN '\n" in revision.upgrade
    assert "'duplicate_of': ['same_as']," in revision.upgrade
    assert revision.upgrade.endswith(
        """\
op.create_meaning_guard(
    'article',
    'embedding',
    0.95,
    on_duplicate='return',
    duplicate_of='same_as',
)"""
    )
    assert calls(revision.downgrade) == [
        "op.drop_meaning_guard",
        "op.replace_pending_index",
        "op.drop_column",
    ]
    assert (
        "BEFORE INSERT OR UPDATE OF embedding, same_as, embedding_digest ON article FOR EACH ROW "
        "EXECUTE FUNCTION pgembed.guard_meaning('0.95', 'cosine', '1');"
    ) in migrations.offline("0000:head")
    migrations.there_and_back(before)
    with migrations.engine.begin() as connection:
        connection.execute(ADD)
        assert connection.scalars(text("SELECT same_as FROM article ORDER BY id")).all() == [None, 1]


def test_another_answer_to_duplicates_is_another_guard(migrations: Migrations) -> None:
    before = article(Column("same_as", Integer), encoder=OLD, unique_within=0.95, unique_per=["title"])
    before.create_all(migrations.engine)
    revision = migrations.generate(linked(unique_per=["title"]))
    ours = [line for line in revision.upgrade.splitlines() if "meaning_guard" in line]
    assert ours == ["op.drop_meaning_guard('article', 'embedding')", "op.create_meaning_guard("]
    assert revision.upgrade.endswith("    on_duplicate='return',\n    duplicate_of='same_as',\n)")
    assert revision.downgrade.endswith(
        "op.create_meaning_guard('article', 'embedding', 0.95, unique_per=['title'])"
    )
    migrations.there_and_back(before)


def test_a_link_is_written_by_one_guard_alone(migrations: Migrations) -> None:
    """While a column replaces another, both would set and clear it."""
    with_rows(migrations, linked(**BEFORE))
    add, index = migrations.generate_series(linked(**CHANGED))
    assert "meaning_guard" not in add.upgrade + index.upgrade
    migrations.upgrade("0001")
    fill(migrations, linked(**SWITCHED))
    migrations.upgrade()
    migrations.metadata = linked(**SWITCHED)
    migrations.check()
    assert guards(migrations) == ["pgembed_guard_embedding"]
    revisions = migrations.generate_series(linked(**FINISHED))
    assert calls(revisions[-1].upgrade) == [
        "op.assert_backfilled",
        "op.drop_vector_index",
        "op.drop_pending_index",
        "op.lock_table",
        "op.drop_meaning_guard",
        "op.drop_column",
        "op.drop_column",
        "op.create_meaning_guard",
        "op.register_embedding",
    ]
    migrations.upgrade()
    migrations.check()
    assert guards(migrations) == ["pgembed_guard_embedding_2"]
    migrations.downgrade()
    assert guards(migrations) == ["pgembed_guard_embedding"]
