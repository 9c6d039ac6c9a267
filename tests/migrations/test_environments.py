"""Environments unlike the plain one: databases prepared by hand, batches, tenants, plain pgvector columns."""

from __future__ import annotations

from typing import Any

import pytest
from pgvector.sqlalchemy import BIT, HALFVEC, VECTOR
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text, create_engine, inspect, text
from sqlalchemy.schema import CreateSchema

from pgembed import HNSW
from pgembed.database import install
from pgembed.database.scripts import REVISION
from pgembed.exc import ExtensionError
from pgembed.filling import backfill
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations
from tests.migrations.models import article

OLD, NEW, WIDE = HashEncoder(4, "old"), HashEncoder(4, "new"), HashEncoder(6, "wide")
INSTALL = f"op.install_pgembed(revision={REVISION})"


def pgvector_only(type_: Any) -> MetaData:
    """A column of pgvector's own with an index of pgembed's."""
    metadata = MetaData()
    metric = {"metric": "hamming"} if isinstance(type_, BIT) else {}
    index = HNSW("v", build="immediate", **metric)
    Table("item", metadata, Column("id", Integer, primary_key=True), Column("v", type_), index)
    return metadata


def test_what_was_installed_by_hand_is_written_all_the_same(empty_migrations: Migrations) -> None:
    with empty_migrations.engine.begin() as connection:
        install(connection)

    revision = empty_migrations.generate(article(encoder=OLD))

    assert revision.upgrade.startswith(INSTALL + "\nop.create_table(")
    assert revision.downgrade.endswith("\nop.uninstall_pgembed()")
    empty_migrations.upgrade()
    empty_migrations.check()
    name = empty_migrations.engine.url.database
    admin = create_engine(empty_migrations.engine.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    empty_migrations.engine.dispose()
    with admin.connect() as connection:  # the next database has nothing
        connection.execute(text(f"DROP DATABASE {name}"))
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
    admin.dispose()
    empty_migrations.there_and_back(MetaData())


def test_an_installation_that_is_written_is_not_written_again(migrations: Migrations) -> None:
    (migrations.folder / "versions" / "0000_step.py").rename(migrations.folder / "versions" / "first.py")

    revision = migrations.generate(article(encoder=OLD))

    assert "install_pgembed" not in revision.upgrade + revision.downgrade


def test_one_in_a_downgrade_does_not_count(migrations: Migrations) -> None:
    (path,) = (migrations.folder / "versions").glob("*.py")
    code = path.read_text()
    code = code.replace("op.install_pgembed()", "pass").replace("-> None:\n    pass", "-> None:\n    _()", 1)
    path.write_text(code.replace("    pass", "    op.install_pgembed()").replace("    _()", "    pass"))

    assert migrations.generate(article(encoder=OLD)).upgrade.startswith(INSTALL)


@pytest.mark.parametrize("type_", [VECTOR(8), HALFVEC(8), BIT(8)], ids=str)
def test_a_column_of_pgvectors_own(empty_migrations: Migrations, type_: Any) -> None:
    revision = empty_migrations.generate(pgvector_only(type_))

    assert revision.upgrade.startswith(INSTALL)
    empty_migrations.there_and_back(MetaData())


@pytest.mark.parametrize("type_", [VECTOR(8), HALFVEC(8), BIT(8)], ids=str)
def test_create_all_of_a_column_of_pgvectors_own(empty_migrations: Migrations, type_: Any) -> None:
    pgvector_only(type_).create_all(empty_migrations.engine)

    assert [index["name"] for index in inspect(empty_migrations.engine).get_indexes("item")] == [
        "ix_item_v_hnsw"
    ]


CHANGES = {
    "a table": (MetaData(), article(encoder=OLD, index=HNSW()), 1),
    "a column": (article(), article(encoder=OLD, index=HNSW()), 2),
    "a column, and another": (
        article(encoder=OLD),
        article(Column("note", Text), encoder=OLD, index=HNSW()),
        1,
    ),
    "an index": (article(encoder=OLD), article(encoder=OLD, index=HNSW()), 1),
    "other parameters": (
        article(encoder=OLD, index=HNSW(build="immediate")),
        article(encoder=OLD, index=HNSW(m=8)),
        1,
    ),
    "another type": (article(encoder=OLD), article(encoder=OLD, type="halfvec"), 1),
    "another template": (article(encoder=OLD), article(encoder=OLD, template="about {title}"), 1),
    "another metric": (article(encoder=OLD), article(encoder=OLD, metric="l2"), 1),
    "not null": (article(encoder=OLD), article(encoder=OLD, nullable=False), 1),
    "another encoder": (
        article(encoder=OLD, index=HNSW(build="immediate")),
        article(encoder=NEW, index=HNSW(), name="embedding_2", replaces="embedding"),
        2,
    ),
    "no column": (article(encoder=OLD, index=HNSW(build="immediate")), article(), 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_in_batches(migrations: Migrations, change: str) -> None:
    before, after, revisions = CHANGES[change]
    before.create_all(migrations.engine)
    migrations.options["render_as_batch"] = True

    assert len(migrations.generate_series(after)) == revisions

    migrations.there_and_back(before, steps=revisions)


def test_batches_hold_what_alembic_knows(migrations: Migrations) -> None:
    before, after, _ = CHANGES["a column, and another"]
    before.create_all(migrations.engine)
    migrations.options["render_as_batch"] = True

    revision = migrations.generate(after)

    assert revision.upgrade == (
        """\
with op.batch_alter_table('article', schema=None) as batch_op:
    batch_op.add_column(sa.Column('note', sa.Text(), nullable=True))

op.create_vector_index(
    'ix_article_embedding_hnsw',
    'article',
    'embedding',
    using='hnsw',
    opclass='vector_cosine_ops',
    parameters={'m': 16, 'ef_construction': 64},
)"""
    )
    assert revision.downgrade == (
        """\
op.drop_vector_index('ix_article_embedding_hnsw', 'article')
with op.batch_alter_table('article', schema=None) as batch_op:
    batch_op.drop_column('note')
"""
    )


def test_in_place_in_batches(migrations: Migrations) -> None:
    before = article(encoder=OLD, index=HNSW(build="immediate"))
    before.create_all(migrations.engine)
    migrations.options |= {"render_as_batch": True, "pgembed_reembed": "in_place"}

    migrations.generate(article(encoder=WIDE, index=HNSW()))

    migrations.there_and_back(before)


def test_an_index_comes_after_the_backfill_of_its_column(migrations: Migrations) -> None:
    article().create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('one'), ('two')"))
    after = article(encoder=OLD, index=HNSW())

    columns, index = migrations.generate_series(after)

    assert "op.add_column('article', sa.Column('embedding'" in columns.upgrade
    assert "op.create_pending_index(" in columns.upgrade
    assert "vector_index" not in columns.upgrade
    assert index.upgrade == (
        """\
# The migration stops here until workers, or `pgembed backfill`, have filled the column.
op.assert_backfilled('article', 'embedding', share=0.99)
op.create_vector_index(
    'ix_article_embedding_hnsw',
    'article',
    'embedding',
    using='hnsw',
    opclass='vector_cosine_ops',
    parameters={'m': 16, 'ef_construction': 64},
    concurrently=True,
)"""
    )
    with pytest.raises(Exception, match="2 rows are pending"):
        migrations.upgrade()
    backfill(migrations.engine, after.tables["article"].c.embedding)
    migrations.upgrade()
    migrations.check()
    migrations.downgrade("-2")
    migrations.metadata = article()
    migrations.check_downgraded()


def translated(engine: Engine) -> Engine:
    return engine.execution_options(schema_translate_map={None: "t1", "tenant": 't"2 %'})


@pytest.mark.parametrize("schema", [None, "tenant"])
def test_operations_under_a_schema_translate_map(migrations: Migrations, schema: str | None) -> None:
    with migrations.engine.begin() as connection:
        connection.execute(CreateSchema("t1"))
        connection.execute(CreateSchema('t"2 %'))
    old, new = article(encoder=OLD, schema=schema), article(encoder=NEW, schema=schema)
    plain, migrations.engine = migrations.engine, translated(migrations.engine)
    migrations.options["version_table_schema"] = "public"
    old.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(
            old.tables["article" if schema is None else "tenant.article"].insert().values(id=1)
        )
    (index,) = old.sorted_tables[0].indexes
    (other,) = new.sorted_tables[0].indexes
    names, args = f"'{index.name}', 'article'", f"schema={schema!r}"
    where = {
        each: str(
            each.dialect_options["postgresql"]["where"].compile(compile_kwargs={"include_table": False})
        )
        for each in (index, other)
    }
    facts = {each: repr(_registration(each)) for each in (index, other)}

    def written(function: str, each: Any) -> str:
        return f"{function}({names}, ['id'], where={where[each]!r}, registration={facts[each]}, {args})"

    migrations.write(f"op.drop_pending_index({names}, {args})")
    migrations.write(written("op.create_pending_index", index))
    migrations.write(written("op.replace_pending_index", other))
    migrations.write(f"op.register_embedding('{index.name}', {facts[other]}, {args})")
    migrations.write(f"op.lock_table('article', {args})")
    migrations.write(f"op.assert_backfilled('article', 'embedding', {args})")
    migrations.write(
        f"op.create_vector_index('hnsw', 'article', 'embedding', opclass='vector_l2_ops', {args})"
    )
    migrations.write(
        "op.replace_vector_index('hnsw', 'article', 'embedding', opclass='vector_l2_ops', "
        f"parameters={{'m': 4}}, concurrently=True, {args})"
    )
    migrations.write(f"op.drop_vector_index('hnsw', 'article', concurrently=True, {args})")
    migrations.write(
        "import pgvector.sqlalchemy as p; op.alter_vector_column('article', 'embedding', p.HALFVEC(4), "
        f"existing_type=p.VECTOR(4), {args})"
    )
    migrations.write(f"op.set_not_null('article', 'id', {args})")
    migrations.upgrade()

    with plain.connect() as connection:
        found = connection.execute(
            text("SELECT relation::text, fingerprint FROM pgembed.embedding_columns")
        ).one()
        assert found == ("t1.article" if schema is None else '"t""2 %".article', NEW.fingerprint)
        assert (
            connection.scalar(
                text(
                    "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attname = 'embedding' "
                    "AND attrelid = CAST(:relation AS regclass)"
                ),
                {"relation": found.relation},
            )
            == "halfvec(4)"
        )


def _registration(index: Any) -> dict[str, Any]:
    from pgembed.columns.registration import RegisterEmbedding

    return RegisterEmbedding(index).facts


def test_the_extension_is_for_every_tenant(empty_migrations: Migrations) -> None:
    metadata = article(encoder=OLD)
    engine = empty_migrations.engine
    for tenant in ("t1", "t2"):
        with engine.begin() as connection:
            connection.execute(CreateSchema(tenant))
            connection.execute(text(f"SET LOCAL search_path = {tenant}, public"))
            metadata.create_all(connection)
    with engine.connect() as connection:
        assert (
            connection.scalar(
                text("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'")
            )
            == "public"
        )


def test_migrations_of_every_tenant(empty_migrations: Migrations) -> None:
    empty_migrations.generate(article(encoder=OLD, index=HNSW()))
    for tenant in ("t1", "t2"):
        with empty_migrations.engine.begin() as connection:
            connection.execute(CreateSchema(tenant))
        empty_migrations.engine.dispose()
        empty_migrations.engine = create_engine(
            empty_migrations.engine.url, connect_args={"options": f"-csearch_path={tenant},public"}
        )
        empty_migrations.upgrade()
        empty_migrations.check()
    names = inspect(empty_migrations.engine)
    assert names.has_table("article", "t1")
    assert names.has_table("article", "t2")
    empty_migrations.engine.dispose()


def test_an_extension_out_of_sight_is_told(empty_migrations: Migrations) -> None:
    metadata = article(encoder=OLD)
    with empty_migrations.engine.begin() as connection:
        connection.execute(CreateSchema("t1"))
        connection.execute(CreateSchema("t2"))
        connection.execute(text("SET LOCAL search_path = t1"))
        metadata.create_all(connection)  # there is no other place that it would see
    with empty_migrations.engine.begin() as connection:
        connection.execute(text("SET LOCAL search_path = t2"))
        with pytest.raises(ExtensionError, match=r"in the schema 't1', expected a schema of the search_path"):
            metadata.create_all(connection)
