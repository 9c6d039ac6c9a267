"""An Alembic environment of its own for each test, on a database of its own."""

from __future__ import annotations

import io
import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Engine, MetaData, create_engine

ENV = """
from alembic import context
import pgembed.migrations

pgembed.migrations.setup()
attributes = context.config.attributes
options = dict(target_metadata=attributes["metadata"], transaction_per_migration=True)
options.update(attributes["options"])
if context.is_offline_mode():
    context.configure(
        url=attributes["engine"].url, literal_binds=True, dialect_opts={"paramstyle": "named"}, **options
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    with attributes["engine"].connect() as connection:
        if attributes["statement"]:
            connection.exec_driver_sql(attributes["statement"])
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
"""
MAKO = '''"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
'''


@dataclass(frozen=True)
class Revision:
    """A generated migration: the bodies of its functions, and its imports."""

    upgrade: str
    downgrade: str
    imports: list[str]

    @classmethod
    def read(cls, path: Path) -> Revision:
        """What is written in the file."""
        text = path.read_text()
        return cls(
            upgrade=_body(text, "upgrade"),
            downgrade=_body(text, "downgrade"),
            imports=[line for line in text.splitlines() if line.startswith(("from ", "import "))],
        )


@dataclass
class Migrations:
    """``alembic`` as commands on one database; ``metadata`` is what models declare at the time."""

    folder: Path
    engine: Engine
    metadata: MetaData = field(default_factory=MetaData)
    options: dict[str, Any] = field(default_factory=dict)
    statement: str = ""
    arguments: Namespace | None = None
    number: int = 0

    def __post_init__(self) -> None:
        (self.folder / "versions").mkdir(parents=True)
        (self.folder / "env.py").write_text(ENV)
        (self.folder / "script.py.mako").write_text(MAKO)

    @property
    def config(self) -> Config:
        config = Config(stdout=io.StringIO(), output_buffer=io.StringIO(), cmd_opts=self.arguments)
        config.set_main_option("script_location", str(self.folder))
        config.set_main_option("path_separator", "os")
        config.attributes.update(
            metadata=self.metadata, engine=self.engine, options=self.options, statement=self.statement
        )
        return config

    def generate(self, metadata: MetaData | None = None) -> Revision:
        """``alembic revision --autogenerate``"""
        if metadata is not None:
            self.metadata = metadata
        self.number += 1
        (revision,) = self._generate()
        return revision

    def generate_series(self, metadata: MetaData | None = None) -> list[Revision]:
        """The same for changes that take several revisions."""
        if metadata is not None:
            self.metadata = metadata
        self.number += 1
        revisions = self._generate()
        self.number += len(revisions) - 1
        return revisions

    def _generate(self) -> list[Revision]:
        scripts: Any = command.revision(
            self.config, message="step", autogenerate=True, rev_id=f"{self.number:04}"
        )
        listed = scripts if isinstance(scripts, list) else [scripts]
        return [Revision.read(Path(script.path)) for script in listed]

    def write(self, upgrade: str, downgrade: str = "pass") -> None:
        """A migration by hand."""
        self.number += 1
        script: Any = command.revision(self.config, message="step", rev_id=f"{self.number:04}")
        path = Path(script.path)
        text = path.read_text()
        text = text.replace("def upgrade() -> None:\n    pass", f"def upgrade() -> None:\n    {upgrade}")
        path.write_text(
            text.replace("def downgrade() -> None:\n    pass", f"def downgrade() -> None:\n    {downgrade}")
        )

    def upgrade(self, to: str = "head") -> None:
        """``alembic upgrade``"""
        command.upgrade(self.config, to)

    def downgrade(self, to: str = "-1") -> None:
        """``alembic downgrade``"""
        command.downgrade(self.config, to)

    def offline(self, range_: str = "head") -> str:
        """``alembic upgrade --sql``"""
        config = self.config
        command.upgrade(config, range_, sql=True)
        assert isinstance(config.output_buffer, io.StringIO)
        return config.output_buffer.getvalue()

    def check(self) -> None:
        """``alembic check``; raises on differences."""
        command.check(self.config)

    def there_and_back(self, before: MetaData, *, steps: int = 1) -> None:
        """Upgrade, nothing left to do; downgrade, nothing left to do; upgrade."""
        after = self.metadata
        self.upgrade()
        self.check()
        self.downgrade(f"-{steps}")
        self.metadata = before
        self.check_downgraded()
        self.metadata = after
        self.upgrade()
        self.check()

    def check_downgraded(self) -> None:
        """An empty diff against the models of the revision before.

        ``alembic check`` refuses databases that are not at head, so it compares without it.
        """
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        with self.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=dict(self.options))
            assert compare_metadata(context, self.metadata) == []


def _body(text: str, function: str) -> str:
    found = re.search(rf"def {function}\(\) -> None:\n(.*?)(?=\n\n\ndef |\Z)", text, re.S)
    assert found is not None
    lines = [line[4:] for line in found[1].rstrip().splitlines() if "Alembic" not in line]
    return "\n".join(lines)


@pytest.fixture
def migrations(tmp_path: Path, engine: Engine) -> Migrations:
    """A migration environment on a database with pgembed installed, by its first revision."""
    migrations = Migrations(tmp_path / "migrations", engine, number=-1)
    migrations.write("op.install_pgembed()")
    migrations.upgrade()
    return migrations


@pytest.fixture
def empty_migrations(tmp_path: Path, empty_url: URL) -> Iterator[Migrations]:
    """A migration environment on a database with nothing in it."""
    engine = create_engine(empty_url)
    yield Migrations(tmp_path / "migrations", engine)
    engine.dispose()
