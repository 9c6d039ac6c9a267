"""alembic-utils and alembic-postgresql-enum in one ``env.py`` with pgembed, each of them first and last.

Whoever imports them registers them for the whole process, so Alembic runs in processes of its own here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, text

from pgembed.database.scripts import REVISION
from tests.migrations.conftest import MAKO, Revision
from tests.migrations.models import CREATE_OLD_PENDING, without_hashes

REGISTRATIONS = {
    "pgembed": "import pgembed.migrations; pgembed.migrations.setup()",
    "utils": "import alembic_utils.replaceable_entity",
    "enum": "import alembic_postgresql_enum",
}
NAMES = tuple(REGISTRATIONS)
ENV = """
{registrations}
from alembic import context
from alembic_utils.replaceable_entity import register_entities
from sqlalchemy import NullPool, create_engine
from models import ENTITIES, Base

register_entities(ENTITIES)
with create_engine({url!r}, poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_schemas=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
"""
MODELS = """
import enum
from alembic_utils.pg_extension import PGExtension
from alembic_utils.pg_function import PGFunction
from alembic_utils.pg_view import PGView
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from pgembed import HNSW, Vector, embedding_column
from pgembed.testing import HashEncoder

class Base(DeclarativeBase):
    pass

Section = enum.Enum("Section", ["help", "news"])

class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    section: Mapped[Section]
    embedding: Mapped[Vector | None] = embedding_column(
        "title", encoder=HashEncoder(4, "old"), index=HNSW(where="section = 'help'"), fill="flush"
    )

SLUG = PGFunction("public", "slug(title text)", "RETURNS text LANGUAGE sql AS 'SELECT lower(title)'")
VIEW = PGView("public", "article_slug", "SELECT id, slug(title) AS slug FROM article")
EXTENSION = PGExtension("public", "vector")
ENTITIES = [SLUG]
"""
#: Another value of the enum, which its library rewrites the column for; another fact of the registration; and
#: a view, which alembic-utils can only compare when its table is there.
CHANGES = (
    ('["help", "news"]', '["faq", "help"]'),
    ('fill="flush"', 'fill="worker"'),
    ("ENTITIES = [SLUG]", "ENTITIES = [SLUG, VIEW]"),
)
RUN = """
import sys
from alembic.config import main

for line in sys.argv[2:]:
    main(["-c", sys.argv[1], *line.split()])
"""
SLUG = """\
public_slug = PGFunction(
    schema="public",
    signature="slug(title text)",
    definition="RETURNS text LANGUAGE sql AS 'SELECT lower(title)'"
)
"""
FIRST_UPGRADE = (
    f"""\
sa.Enum('help', 'news', name='section').create(op.get_bind())
op.install_pgembed(revision={REVISION})
{SLUG}op.create_entity(public_slug)

"""
    """\
op.create_table('article',
sa.Column('id', sa.Integer(), nullable=False),
sa.Column('title', sa.String(), nullable=True),
sa.Column('section', postgresql.ENUM('help', 'news', name='section', create_type=False), nullable=False),
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
    where="section = 'help'",
)
""" + CREATE_OLD_PENDING
)
FIRST_DOWNGRADE = f"""\
op.drop_pending_index('ix_article_embedding_pending', 'article')
op.drop_vector_index('ix_article_embedding_hnsw', 'article')
op.drop_table('article')
{SLUG}op.drop_entity(public_slug)

op.uninstall_pgembed(extension=True)
sa.Enum('help', 'news', name='section').drop(op.get_bind())"""
VIEW = """\
public_article_slug = PGView(
    schema="public",
    signature="article_slug",
    definition='SELECT id, slug(title) AS slug FROM article'
)
"""
UNDECLARED = """\
public_vector = PGFunction(
    schema="public",
    signature="vector()",
    definition='returns integer\\n LANGUAGE sql\\nAS $function$SELECT 1$function$'
)
"""
REGISTER = (
    "op.register_embedding(\n    'ix_article_embedding_pending',\n    {"
    + CREATE_OLD_PENDING.partition("registration={")[2].replace("flush", "worker")
)
SYNC = """\
op.sync_enum_values(
    enum_schema='public',
    enum_name='section',
    new_values=['faq', 'help'],
    affected_columns=[TableReference(table_schema='public', table_name='article', column_name='section')],
    enum_values_to_rename=[],
    indexes_to_recreate=[
        TableIndex(
            name='public.ix_article_embedding_hnsw',
            definition="CREATE INDEX ix_article_embedding_hnsw ON public.article USING hnsw \
(embedding vector_cosine_ops) WITH (m='16', ef_construction='64') WHERE (section = 'help'::section)",
        ),
    ],
)"""
SECOND_UPGRADE = f"""\
{VIEW}op.create_entity(public_article_slug)

{UNDECLARED}op.drop_entity(public_vector)

{REGISTER}
{SYNC}"""
SECOND_DOWNGRADE = f"""\
{SYNC.replace("['faq', 'help']", "['help', 'news']")}
{REGISTER.replace("worker", "flush")}
{UNDECLARED}op.create_entity(public_vector)

{VIEW}op.drop_entity(public_article_slug)
"""

#: What is in pgembed's schema.
OBJECTS = """
SELECT pg_describe_object(classid, objid, 0) FROM pg_depend
 WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'pgembed'::regnamespace ORDER BY 1
"""
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'article' ORDER BY 1"
LEFT = """
SELECT nspname FROM pg_namespace WHERE nspname = 'pgembed'
 UNION SELECT extname FROM pg_extension WHERE extname = 'vector'
 UNION SELECT relname FROM pg_class WHERE relname LIKE '%article%'
 UNION SELECT typname FROM pg_type WHERE typname = 'section'
 UNION SELECT proname FROM pg_proc WHERE proname = 'slug'
"""


@dataclass
class Environment:
    """A folder of migrations whose ``env.py`` has all three."""

    folder: Path
    engine: Engine

    def alembic(self, *lines: str) -> None:
        """Run commands in one process; warnings are errors in it."""
        command = [sys.executable, "-W", "error", "-c", RUN, str(self.folder / "alembic.ini"), *lines]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def generate(self, number: int, *lines: str) -> Revision:
        """``alembic revision --autogenerate``, and these commands after it."""
        self.alembic(f"revision --autogenerate --rev-id {number} -m step", *lines)
        return Revision.read(self.folder / "versions" / f"{number}_step.py")

    def change(self, *changes: tuple[str, str]) -> None:
        """Other models and entities."""
        path = self.folder / "models.py"
        models = path.read_text()
        for old, new in changes:
            assert old in models
            models = models.replace(old, new)
        path.write_text(models)

    def execute(self, statement: str) -> list[Any]:
        """The rows of a statement that is committed."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []


@pytest.fixture
def environment(tmp_path: Path, empty_url: URL) -> Iterator[Environment]:
    """With registrations in the order of :data:`REGISTRATIONS`, on an empty database."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "script.py.mako").write_text(MAKO)
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "alembic.ini").write_text(
        "[alembic]\nscript_location = %(here)s\nprepend_sys_path = %(here)s\npath_separator = os\n"
    )
    engine = create_engine(empty_url)
    environment = Environment(tmp_path, engine)
    write_env(environment, NAMES)
    yield environment
    engine.dispose()


def write_env(environment: Environment, order: tuple[str, ...]) -> None:
    """An ``env.py`` that registers in this order."""
    (environment.folder / "env.py").write_text(
        ENV.format(
            registrations="\n".join(REGISTRATIONS[name] for name in order),
            url=environment.engine.url.render_as_string(hide_password=False),
        )
    )


@pytest.mark.parametrize("order", [(*NAMES[i:], *NAMES[:i]) for i in range(len(NAMES))], ids="-".join)
def test_in_several_orders(environment: Environment, engine: Engine, order: tuple[str, ...]) -> None:
    write_env(environment, order)

    first = environment.generate(1, "upgrade head", "check")

    assert without_hashes(first.upgrade) == FIRST_UPGRADE
    assert first.downgrade == FIRST_DOWNGRADE
    with engine.connect() as connection:
        objects = [tuple(row) for row in connection.execute(text(OBJECTS))]
    assert environment.execute(OBJECTS) == objects
    indexes = environment.execute(INDEXES)
    environment.execute("CREATE FUNCTION vector() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    environment.execute("INSERT INTO article (title, section) VALUES ('one', 'help'), (NULL, 'help')")
    environment.change(*CHANGES)

    second = environment.generate(2, "upgrade head", "check", "downgrade -1")

    assert without_hashes(second.upgrade) == SECOND_UPGRADE
    assert without_hashes(second.downgrade) == SECOND_DOWNGRADE
    assert environment.execute(OBJECTS) == objects
    assert environment.execute(INDEXES) == indexes
    assert environment.execute("SELECT fill FROM pgembed.embedding_columns") == [("flush",)]
    assert environment.execute("SELECT fresh, pending, index FROM pgembed.status") == [(1, 1, "hnsw")]
    environment.alembic("upgrade head", "check", "downgrade base")
    assert environment.execute(LEFT) == []


def test_the_extension_is_an_entity(environment: Environment) -> None:
    """It is created before pgembed's SQL objects, which need it, and dropped after them."""
    environment.change(("ENTITIES = [SLUG]", "ENTITIES = [SLUG, EXTENSION]"))

    revision = environment.generate(1, "upgrade head", "check", "downgrade base")

    extension = 'public_vector = PGExtension(\n    schema="public",\n    signature="vector"\n)\n'
    assert without_hashes(revision.upgrade) == FIRST_UPGRADE.replace(
        "op.install_pgembed", f"{extension}op.create_entity(public_vector)\n\nop.install_pgembed"
    )
    assert revision.downgrade == FIRST_DOWNGRADE.replace(
        "op.uninstall_pgembed(extension=True)\n",
        f"op.uninstall_pgembed()\n{extension}op.drop_entity(public_vector)\n\n",
    )
    assert environment.execute(LEFT) == []
