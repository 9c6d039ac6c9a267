"""Each kind of change: the exact text of upgrade and downgrade, then both are run, then nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Column, Connection, Index, Integer, MetaData, Table, Text, cast, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.schema import CreateSchema

from pgembed import HNSW, Encoder, IVFFlat
from pgembed.database.scripts import REVISION
from pgembed.filling.targets import Target, registered_targets
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations
from tests.migrations.models import CREATE_OLD_PENDING, NEW, OLD, article, without_hashes


def fill(connection: Connection, metadata: MetaData, encoder: HashEncoder) -> None:
    """Rows of which one is fresh and one has no text."""
    table = metadata.tables["article"]
    declaration = table.c.embedding.info["pgembed"]
    connection.execute(
        insert(table),
        [
            {
                "id": 1,
                "title": "one",
                "embedding": encoder.encode_documents(["one"])[0],
                "embedding_digest": declaration.digest(["one"]),
            },
            {"id": 2, "title": None, "embedding": None, "embedding_digest": None},
        ],
    )


def test_first_revision_of_an_empty_database(empty_migrations: Migrations) -> None:
    metadata = article(encoder=OLD, index=HNSW())

    revision = empty_migrations.generate(metadata)

    assert revision.imports == [
        "from alembic import op",
        "import sqlalchemy as sa",
        "from pgvector.sqlalchemy import VECTOR",
    ]
    assert without_hashes(revision.upgrade) == (
        f"op.install_pgembed(revision={REVISION})\n"
        """\
op.create_table('article',
sa.Column('id', sa.Integer(), nullable=False),
sa.Column('title', sa.Text(), nullable=True),
sa.Column('embedding', VECTOR(4), nullable=True),
sa.Column('embedding_digest', sa.UUID(), nullable=True),
sa.PrimaryKeyConstraint('id')
)
op.create_vector_index(
    'ix_article_embedding_hnsw',
    'article',
    'embedding',
    using='hnsw',
    opclass='vector_cosine_ops',
    parameters={'m': 16, 'ef_construction': 64},
)
""" + CREATE_OLD_PENDING
    )
    assert revision.downgrade == (
        """\
op.drop_pending_index('ix_article_embedding_pending', 'article')
op.drop_vector_index('ix_article_embedding_hnsw', 'article')
op.drop_table('article')
op.uninstall_pgembed(extension=True)"""
    )
    empty_migrations.upgrade()
    empty_migrations.check()
    with empty_migrations.engine.begin() as connection:
        fill(connection, metadata, OLD)
        assert connection.execute(
            text(
                "SELECT relation::text, column_name, encoder, pending_index::text "
                "FROM pgembed.embedding_columns"
            )
        ).all() == [("article", "embedding", "old", "ix_article_embedding_pending")]
        assert connection.execute(text("SELECT fresh, pending, index FROM pgembed.status")).all() == [
            (2, 0, "hnsw")
        ]
    empty_migrations.downgrade()
    with empty_migrations.engine.connect() as connection:
        left = connection.scalars(
            text(
                "SELECT nspname FROM pg_namespace WHERE nspname = 'pgembed' UNION SELECT extname FROM "
                "pg_extension WHERE extname = 'vector' UNION SELECT relname FROM pg_class WHERE relname "
                "LIKE '%article%'"
            )
        ).all()
    assert left == []
    empty_migrations.upgrade()
    empty_migrations.check()


def test_an_embedding_column_on_a_table_with_rows(migrations: Migrations) -> None:
    before, after = article(), article(encoder=OLD)
    before.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES ('one'), (NULL)"))

    revision = migrations.generate(after)

    assert without_hashes(revision.upgrade) == (
        """\
op.add_column('article', sa.Column('embedding', VECTOR(4), nullable=True))
op.add_column('article', sa.Column('embedding_digest', sa.UUID(), nullable=True))
"""
        + CREATE_OLD_PENDING
    )
    assert revision.downgrade == (
        """\
op.drop_pending_index('ix_article_embedding_pending', 'article')
op.drop_column('article', 'embedding_digest')
op.drop_column('article', 'embedding')"""
    )
    migrations.there_and_back(before)
    with migrations.engine.connect() as connection:
        assert connection.execute(text("SELECT fresh, pending FROM pgembed.status")).all() == [(1, 1)]


def test_an_embedding_column_is_removed(migrations: Migrations) -> None:
    before, after = article(encoder=OLD, index=HNSW(build="immediate")), article()
    before.create_all(migrations.engine)

    revision = migrations.generate(after)

    # Alembic drops columns in no particular order.
    lines = revision.upgrade.splitlines()
    assert "\n".join(lines[:2] + sorted(lines[2:])) == (
        """\
op.drop_vector_index('ix_article_embedding_hnsw', 'article')
op.drop_pending_index('ix_article_embedding_pending', 'article')
op.drop_column('article', 'embedding')
op.drop_column('article', 'embedding_digest')"""
    )
    migrations.there_and_back(before)


@pytest.mark.parametrize(
    ("old", "new", "shown", "restored"),
    [
        (
            HNSW(build="immediate"),
            HNSW(m=8),
            "using='hnsw', opclass='vector_cosine_ops', parameters={'m': 8, 'ef_construction': 64}",
            "using='hnsw', opclass='vector_cosine_ops', parameters={'m': 16, 'ef_construction': 64}",
        ),
        (
            HNSW(build="immediate", name="near"),
            IVFFlat(lists=10, name="near"),
            "using='ivfflat', opclass='vector_cosine_ops', parameters={'lists': 10}",
            "using='hnsw', opclass='vector_cosine_ops', parameters={'m': 16, 'ef_construction': 64}",
        ),
    ],
    ids=["parameters", "access method"],
)
def test_a_vector_index_changes(
    migrations: Migrations, old: HNSW, new: HNSW | IVFFlat, shown: str, restored: str
) -> None:
    before, after = article(encoder=OLD, index=old), article(encoder=OLD, index=new)
    before.create_all(migrations.engine)

    revision = migrations.generate(after)

    name = new.declared_name or "ix_article_embedding_hnsw"
    start = f"op.replace_vector_index('{name}', 'article', 'embedding', "
    assert flat(revision.upgrade) == f"{start}{shown})"
    assert flat(revision.downgrade) == f"{start}{restored})"
    migrations.there_and_back(before)


def half_index(opclass: str, where: str) -> MetaData:
    """A table with a partial index on an expression."""
    metadata = MetaData()
    vector = Column("embedding", VECTOR(4))
    half = cast(vector, HALFVEC(4)).label("half")
    options = {
        "postgresql_using": "hnsw",
        "postgresql_ops": {"half": opclass},
        "postgresql_where": text(where),
    }
    key = Column("id", Integer, primary_key=True)
    Table("plain", metadata, key, Column("kind", Text), vector, Index("near", half, **options))
    return metadata


def test_expressions_and_predicates_are_compared_by_meaning(migrations: Migrations) -> None:
    half_index("halfvec_l2_ops", "kind IN ('a', 'b') AND embedding IS NOT NULL").create_all(migrations.engine)

    same = half_index("halfvec_l2_ops", "kind = ANY (ARRAY['a','b']) AND NOT embedding IS NULL")

    assert migrations.generate(same).upgrade == "pass"


def test_operator_class_and_predicate_change(migrations: Migrations) -> None:
    before, after = half_index("halfvec_l2_ops", "id > 5"), half_index("halfvec_cosine_ops", "id > 6")
    before.create_all(migrations.engine)

    revision = migrations.generate(after)

    assert revision.upgrade == (
        """\
op.replace_vector_index(
    'near',
    'plain',
    expression='CAST(embedding AS HALFVEC(4))',
    using='hnsw',
    opclass='halfvec_cosine_ops',
    where='id > 6',
)"""
    )
    assert revision.downgrade == (
        """\
op.replace_vector_index(
    'near',
    'plain',
    expression='((embedding)::halfvec(4))',
    using='hnsw',
    opclass='halfvec_l2_ops',
    where='(id > 5)',
)"""
    )
    migrations.there_and_back(before)


def test_storage_changes_and_vectors_are_kept(migrations: Migrations) -> None:
    before = article(encoder=OLD, index=HNSW(build="immediate"))
    after = article(encoder=OLD, index=HNSW(), type="halfvec")
    before.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        fill(connection, before, OLD)

    revision = migrations.generate(after)

    assert revision.upgrade == (
        """\
op.drop_vector_index('ix_article_embedding_hnsw', 'article')
op.alter_vector_column('article', 'embedding', HALFVEC(4), existing_type=VECTOR(4))
op.create_vector_index(
    'ix_article_embedding_hnsw',
    'article',
    'embedding',
    using='hnsw',
    opclass='halfvec_cosine_ops',
    parameters={'m': 16, 'ef_construction': 64},
)"""
    )
    assert revision.downgrade == (
        revision.upgrade.replace(
            "HALFVEC(4), existing_type=VECTOR(4)", "VECTOR(4), existing_type=HALFVEC(4)"
        ).replace("halfvec_cosine_ops", "vector_cosine_ops")
    )
    migrations.there_and_back(before)
    with migrations.engine.connect() as connection:
        assert connection.execute(text("SELECT fresh, pending FROM pgembed.status")).all() == [(2, 0)]


def test_dimensions_change_and_rows_are_pending(migrations: Migrations) -> None:
    before, after = article(encoder=OLD), article(encoder=HashEncoder(5, "old"))
    before.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        fill(connection, before, OLD)

    migrations.options["pgembed_reembed"] = "in_place"
    revision = migrations.generate(after)

    assert without_hashes(revision.upgrade).startswith(
        """\
op.drop_pending_index('ix_article_embedding_pending', 'article')
# Vectors of other dimensions cannot be converted: those in article.embedding are set to NULL,
# and searches find nothing until their rows are filled again. The table is rewritten, and
# nobody reads it meanwhile.
op.alter_vector_column('article', 'embedding', VECTOR(5), existing_type=VECTOR(4), discard=True)
op.create_pending_index("""
    )
    migrations.there_and_back(before)
    with migrations.engine.connect() as connection:
        assert connection.execute(text("SELECT fresh, pending FROM pgembed.status")).all() == [(1, 1)]


def test_another_encoder_makes_rows_pending_and_keeps_vectors(migrations: Migrations) -> None:
    before, after = article(encoder=OLD), article(encoder=NEW)
    before.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        fill(connection, before, OLD)

    migrations.options["pgembed_reembed"] = "in_place"
    revision = migrations.generate(after)

    assert without_hashes(revision.upgrade) == (
        """\
# The encoder of article.embedding changes from 'old' (HASH) to 'new' (HASH): every row
# is pending until it is embedded again, in place. Until then old vectors are compared with new
# queries; a second embedding column keeps the two apart.
"""
        + CREATE_OLD_PENDING.replace("'old'", "'new'").replace("create_pending", "replace_pending")
    )
    assert without_hashes(revision.downgrade).startswith(
        "# The encoder of article.embedding changes from 'new' (HASH) to 'old' (HASH): every row\n"
    )
    migrations.upgrade()
    migrations.check()
    with migrations.engine.connect() as connection:
        assert connection.execute(text("SELECT pending FROM pgembed.status")).all() == [(1,)]
        assert connection.scalar(text("SELECT count(embedding) FROM article")) == 1
    migrations.downgrade()
    with migrations.engine.connect() as connection:
        assert connection.execute(text("SELECT pending FROM pgembed.status")).all() == [(0,)]
    migrations.upgrade()
    migrations.check()


def test_only_the_registration_changes(migrations: Migrations) -> None:
    before, after = article(encoder=OLD), article(encoder=OLD, fill="worker")
    before.create_all(migrations.engine)

    revision = migrations.generate(after)

    assert revision.upgrade.startswith("op.register_embedding(\n    'ix_article_embedding_pending',\n    {")
    assert "    'fill': 'worker'," in revision.upgrade
    assert revision.downgrade == revision.upgrade.replace("worker", "flush")
    migrations.there_and_back(before)


def test_options_of_the_encoder_are_registered(migrations: Migrations) -> None:
    """A worker without models makes the same encoder of them."""
    stated = {"fingerprint": "0123456789abcdef" * 2, "dimensions": 4}
    encoder = Encoder("minilm", **stated, max_tokens=64, query_prompt="query: ", precision="int8")
    metadata = article(encoder=encoder)

    revision = migrations.generate(metadata)

    options = {"max_tokens": 64, "query_prompt": "query: ", "precision": "int8"}
    assert f"        'fill': 'flush',\n        'options': {options!r},\n    }},\n)" in revision.upgrade
    migrations.upgrade()
    migrations.check()
    with migrations.engine.connect() as connection:
        registered = connection.scalar(text("SELECT CAST(options AS text) FROM pgembed.embedding_columns"))
        (target,) = registered_targets(connection)
    assert json.loads(registered) == options
    assert isinstance(target, Target)
    assert isinstance(target.encoder, Encoder)
    assert target.encoder.options == encoder.options == options

    revision = migrations.generate(article(encoder=Encoder("minilm", **stated)))
    assert revision.upgrade.startswith("op.register_embedding(")
    assert "options" not in revision.upgrade
    migrations.upgrade()
    migrations.check()
    with migrations.engine.connect() as connection:
        assert connection.scalar(text("SELECT options IS NULL FROM pgembed.embedding_columns"))


def test_an_invalid_index_is_built_again(migrations: Migrations) -> None:
    metadata = article(encoder=OLD, index=HNSW(build="immediate"))
    metadata.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE pg_index SET indisvalid = false "
                "WHERE indexrelid = 'ix_article_embedding_hnsw'::regclass"
            )
        )

    revision = migrations.generate(metadata)

    assert revision.upgrade.startswith("op.replace_vector_index(")
    migrations.upgrade()
    migrations.check()


@pytest.mark.parametrize("schema", ["My Docs", 'odd" %s:x'])
def test_schema_and_naming_convention(migrations: Migrations, schema: str) -> None:
    options = {
        "schema": schema,
        "naming_convention": {"ix": "idx_%(table_name)s", "pk": "pk_%(table_name)s"},
    }
    with migrations.engine.begin() as connection:
        connection.execute(CreateSchema(schema))
    before = article(**options)
    before.create_all(migrations.engine)
    migrations.options["include_schemas"] = True

    migrations.generate_series(article(encoder=OLD, index=HNSW(), **options))

    migrations.there_and_back(before, steps=2)
    migrations.options["pgembed_reembed"] = "in_place"
    migrations.generate(article(encoder=NEW, index=HNSW(m=4), **options))
    migrations.there_and_back(article(encoder=OLD, index=HNSW(), **options))


def test_in_autocommit(migrations: Migrations) -> None:
    migrations.engine = migrations.engine.execution_options(isolation_level="AUTOCOMMIT")
    article(encoder=OLD, index=HNSW(build="immediate")).create_all(migrations.engine)

    assert migrations.generate(article(encoder=OLD, index=HNSW())).upgrade == "pass"


def test_the_extension_in_another_schema(empty_migrations: Migrations) -> None:
    name = empty_migrations.engine.url.database
    with empty_migrations.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA ext"))
        connection.execute(text("CREATE EXTENSION vector SCHEMA ext"))
        connection.execute(text(f"ALTER DATABASE {name} SET search_path = public, ext"))
    empty_migrations.engine.dispose()

    revision = empty_migrations.generate(article(encoder=OLD, index=HNSW()))

    assert revision.downgrade.endswith("op.uninstall_pgembed()")
    empty_migrations.there_and_back(MetaData())


def test_filters_of_the_environment_hold(migrations: Migrations) -> None:
    before = article(encoder=OLD, index=HNSW(build="immediate"))
    before.create_all(migrations.engine)
    migrations.options["include_object"] = lambda item, name, kind, *_: kind != "index"

    assert migrations.generate(article(encoder=NEW, index=HNSW(m=8))).upgrade == "pass"


def test_tables_of_others_are_left_alone(migrations: Migrations) -> None:
    metadata = MetaData()
    Table("plain", metadata, Column("id", Integer, primary_key=True), Column("a", Text, index=True))
    with migrations.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA pgembed CASCADE"))

    revision = migrations.generate(metadata)

    assert revision.upgrade == (
        """\
op.create_table('plain',
sa.Column('id', sa.Integer(), nullable=False),
sa.Column('a', sa.Text(), nullable=True),
sa.PrimaryKeyConstraint('id')
)
op.create_index(op.f('ix_plain_a'), 'plain', ['a'], unique=False)"""
    )


def test_an_older_installation_is_brought_up_to_date(migrations: Migrations) -> None:
    metadata = article(encoder=OLD)
    metadata.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        connection.execute(text("UPDATE pgembed.version SET revision = 0, checksum = ''"))

    revision = migrations.generate(metadata)

    assert revision.upgrade == f"op.install_pgembed(revision={REVISION})"
    assert revision.downgrade == (
        "# pgembed's SQL objects stay as they are; they serve older models as well\npass"
    )
    migrations.upgrade()
    migrations.check()
    migrations.downgrade()


def test_migrations_import_neither_models_nor_encoders(migrations: Migrations) -> None:
    migrations.generate(article(encoder=OLD, index=HNSW()))

    (path,) = (migrations.folder / "versions").glob("0001_*.py")
    code = (
        "import runpy, sys; import alembic.op; runpy.run_path(sys.argv[1]); "
        "print([name for name in sys.modules if name.partition('.')[0] == 'pgembed'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def flat(body: str) -> str:
    """A call on one line."""
    return " ".join(body.split()).replace("( ", "(").replace(", )", ")")
