"""Alembic's own layout for several databases, ``alembic init --template multidb``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, create_engine, text

from pgembed.columns import embeddings_of
from pgembed.filling import backfill
from pgembed.migrations import MigrationError
from tests.migrations.models import BEFORE, CHANGED, SWITCHED, article


@pytest.fixture
def config(tmp_path: Path, url: URL, empty_url: URL) -> Config:
    """The layout, with one line for pgembed, and transactions that are Alembic's."""
    config = Config(tmp_path / "alembic.ini")
    command.init(config, str(tmp_path / "migrations"), template="multidb")
    env = tmp_path / "migrations" / "env.py"
    offline, start, online = env.read_text().partition("def run_migrations_online")
    offline = _replaced(
        offline,
        ("target_metadata = {}", 'target_metadata = config.attributes["metadata"]'),
        ("fileConfig(config.config_file_name)", "import pgembed.migrations; pgembed.migrations.setup()"),
    )
    online = _replaced(
        online,
        ('rec["transaction"] = conn.begin()', "pass"),
        ('rec["transaction"].commit()', "pass"),
        ('rec["transaction"].rollback()', "pass"),
        ("target_metadata.get(name),", "target_metadata.get(name), transaction_per_migration=True,"),
        (
            "            context.run_migrations(engine_name=name)",
            "            with context.begin_transaction(): context.run_migrations(engine_name=name)",
        ),
    )
    env.write_text(offline + start + online)
    config = Config(tmp_path / "alembic.ini")
    for name, database in (("engine1", url), ("engine2", empty_url)):
        value = database.render_as_string(hide_password=False).replace("%", "%%")
        config.set_section_option(name, "sqlalchemy.url", value)
    return config


def _replaced(code: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in code, old
        code = code.replace(old, new)
    return code


def functions(config: Config, slug: str) -> dict[str, str]:
    """The bodies of a revision's functions."""
    folder = Path(str(config.get_main_option("script_location"))) / "versions"
    (path,) = folder.glob(f"*_{slug}.py")
    parts = path.read_text().split("\ndef ")[1:]
    return {part.partition("(")[0]: part for part in parts}


def test_each_database_has_its_part_of_a_series(config: Config, url: URL, empty_url: URL) -> None:
    first = {"engine1": article(**BEFORE), "engine2": article(**BEFORE)}
    config.attributes["metadata"] = first
    command.revision(config, message="first", autogenerate=True)
    command.upgrade(config, "head")
    command.check(config)
    for database in (url, empty_url):
        engine = create_engine(database)
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO article (title) VALUES ('one')"))
        engine.dispose()

    config.attributes["metadata"] = {"engine1": first["engine1"], "engine2": article(**CHANGED)}
    scripts: Any = command.revision(config, message="one", autogenerate=True)
    assert len(scripts) == 2
    added, index = functions(config, "one"), functions(config, "one_index")
    assert "op.add_column(" in added["upgrade_engine2"]
    assert "op." not in added["upgrade_engine1"] + index["upgrade_engine1"]
    assert "op.assert_backfilled(" in index["upgrade_engine2"]
    assert "op.drop_column(" in added["downgrade_engine2"]

    with pytest.raises(MigrationError, match="1 rows are pending"):
        command.upgrade(config, "head")
    engine = create_engine(empty_url)
    backfill(engine, embeddings_of(article(**SWITCHED).tables["article"])[0])
    engine.dispose()
    command.upgrade(config, "head")
    config.attributes["metadata"]["engine2"] = article(**SWITCHED)
    command.check(config)


def test_both_databases_at_once(config: Config) -> None:
    config.attributes["metadata"] = {"engine1": article(**BEFORE), "engine2": article(**BEFORE)}
    command.revision(config, message="first", autogenerate=True)
    command.upgrade(config, "head")
    config.attributes["metadata"] = {"engine1": article(**SWITCHED), "engine2": article(**CHANGED)}

    scripts: Any = command.revision(config, message="both", autogenerate=True)

    assert len(scripts) == 2
    added, index = functions(config, "both"), functions(config, "both_index")
    for name in ("engine1", "engine2"):
        assert added[f"upgrade_{name}"].count("op.add_column(") == 2
        assert index[f"upgrade_{name}"].count("op.create_vector_index(") == 1
        assert "op.create_vector_index(" not in added[f"upgrade_{name}"]
    command.upgrade(config, "head")
    command.check(config)
    command.downgrade(config, "-2")
    command.upgrade(config, "head")
    command.check(config)
