"""Nobody gains rights by what they write into their own objects, whoever reads or fills them."""

from __future__ import annotations

import json
import logging
import shlex
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typer.testing import CliRunner

from pgembed import Vector, embedding_column, indexes
from pgembed.cli.main import app as command
from pgembed.columns import embeddings_of
from pgembed.database import install
from pgembed.exc import MissingPrivilegeError, NotTrustedError
from pgembed.filling import Worker, backfill
from pgembed.filling.cycle import Settings
from pgembed.filling.targets import Refused, Target, model_targets, registered_targets
from pgembed.migrations.reflection import indexes_of
from pgembed.testing import HashEncoder

from .conftest import Mallory, problems

FAST = Settings(poll=0.02, patience=5)


def model(schema: str, table: str = "trap") -> Any:
    """The model of a table such as Mallory's."""

    class Base(DeclarativeBase):
        pass

    class Trap(Base):
        __tablename__ = table
        __table_args__ = {"schema": schema}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        embedding: Mapped[Vector | None] = embedding_column("title", encoder=HashEncoder(3))

    return Trap.__table__


def not_trusted(role: Mallory) -> str:
    return f'owner "{role.name}" is not trusted: pgembed init --trust {role.name}'


def test_status_runs_nothing_of_hers(mallory: Mallory) -> None:
    mallory.lay_trap()
    with mallory.owner.begin() as connection:
        row = connection.execute(text("SELECT * FROM pgembed.status")).mappings().one()
        assert connection.scalar(text("SELECT count(*) FROM pgembed.embedding_columns")) == 0
    assert (row["relation"], row["column_name"]) == (f"{mallory.schema}.trap", "embedding")
    assert row["problem"] == not_trusted(mallory)
    figures = ("total", "fresh", "pending", "failed", "encoder", "fingerprint", "index", "estimated")
    assert [row[name] for name in figures] == [None] * 8
    assert not mallory.is_superuser()


def test_status_on_the_command_line_runs_nothing_of_hers(mallory: Mallory) -> None:
    mallory.lay_trap()
    url = mallory.owner.url.render_as_string(hide_password=False)
    (shown,) = json.loads(CliRunner().invoke(command, ["status", "--url", url, "--json"]).stdout)
    assert (shown["problem"], shown["cut_problem"]) == (not_trusted(mallory),) * 2
    assert not_trusted(mallory) in CliRunner().invoke(command, ["status", "--url", url]).stdout
    for arguments in (
        ["backfill"],
        ["worker", "--once"],
        ["search", f"{mallory.schema}.trap", "embedding", "x"],
    ):
        refused = CliRunner().invoke(command, [*arguments, "--url", url])
        assert refused.exit_code == 1, arguments
    for arguments in ("recall", "create", "reindex", "tune"):
        where = [f"{mallory.schema}.trap", "embedding", "--url", url]
        refused = CliRunner().invoke(command, ["index", arguments, *where])
        assert isinstance(refused.exception, NotTrustedError), arguments
    assert not mallory.is_superuser()


def test_names_of_hers_do_nothing_to_terminals(mallory: Mallory) -> None:
    mallory.lay_trap()
    odd = "\x1b]0;[bold]\x07"
    mallory.execute(f'ALTER TABLE {mallory.schema}.trap RENAME TO "{odd}"')
    url = mallory.owner.url.render_as_string(hide_password=False)
    shown = CliRunner().invoke(command, ["status", "--url", url]).stdout
    assert r'"\u001b]0;[bold]\u0007".embedding' in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ['we"ird', "it's", "a b", "*"])
def test_the_way_out_can_be_typed(engine: Engine, name: str) -> None:
    """The command in the message names the role as a shell takes it."""
    quoted = '"' + name.replace('"', '""') + '"'
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {quoted}")
        connection.exec_driver_sql("CREATE TABLE of_odd ()")
        connection.exec_driver_sql(f"ALTER TABLE of_odd OWNER TO {quoted}")
        problem = connection.scalar(text("SELECT pgembed.distrust('of_odd'::regclass)"))
        said = shlex.split(str(problem).partition("trusted: ")[2])
        assert said == ["pgembed", "init", "--trust", name]
        assert install(connection, trust=said[3:])
        assert connection.scalar(text("SELECT pgembed.distrust('of_odd'::regclass)")) is None
        connection.rollback()


def test_a_worker_leaves_her_tables_alone_and_fills_the_others(
    mallory: Mallory, caplog: pytest.LogCaptureFixture
) -> None:
    mallory.lay_trap()
    good = model("public", "good")
    good.metadata.create_all(mallory.owner)
    with mallory.owner.begin() as connection:
        connection.exec_driver_sql("INSERT INTO good VALUES (1, 'a')")
    embeddings = [*embeddings_of(good), *embeddings_of(model(mallory.schema))]
    with caplog.at_level(logging.ERROR, logger="pgembed"):
        assert not Worker(mallory.owner, embeddings, settings=FAST).run(once=True)
    assert not_trusted(mallory) in caplog.text
    assert not Worker(mallory.owner, settings=FAST).run(once=True)
    with mallory.owner.begin() as connection:
        assert connection.scalar(text("SELECT embedding IS NOT NULL FROM good"))
        found = {one.name: one for one in registered_targets(connection)}
    with mallory.engine.begin() as connection:
        assert connection.scalar(text(f"SELECT count(embedding) FROM {mallory.schema}.trap")) == 0
    refused = found[f"{mallory.schema}.trap.embedding"]
    assert isinstance(refused, Refused)
    assert not_trusted(mallory) in str(refused.error)
    assert not mallory.is_superuser()


def test_backfill_migrations_and_checks_leave_her_tables_alone(mallory: Mallory) -> None:
    mallory.lay_trap()
    table = model(mallory.schema)
    with pytest.raises(NotTrustedError, match=mallory.name):
        backfill(mallory.owner, table.c.embedding)
    mallory.execute(
        f"CREATE INDEX near ON {mallory.schema}.trap USING ivfflat (embedding public.vector_l2_ops)",
        f"ANALYZE {mallory.schema}.trap",
    )
    with mallory.owner.begin() as connection:
        with pytest.raises(NotTrustedError, match=mallory.name):
            indexes_of(connection, table, set())
        indexes.check(connection)
    assert not mallory.is_superuser()


def test_the_traps_do_work_on_those_who_step_into_them(mallory: Mallory) -> None:
    """What the other tests rest on: to read or to write her table as a superuser makes her one."""
    mallory.lay_trap()
    with mallory.owner.begin() as connection:
        connection.exec_driver_sql(f"SELECT FROM {mallory.schema}.trap WHERE title = 'a'")
    assert mallory.is_superuser()
    mallory.execute(f"ALTER ROLE {mallory.name} NOSUPERUSER")
    with mallory.owner.begin() as connection:
        connection.exec_driver_sql(f"DROP INDEX {mallory.schema}.trap_pending")
        connection.exec_driver_sql(f"UPDATE {mallory.schema}.trap SET title = 'b'")
    assert mallory.is_superuser()


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "..",
        ".",
        "a/../../b",
        "C:\\x",
        "C:x",
        "file:///etc/passwd",
        "~/x",
        "\\\\h\\x",
    ],
)
def test_a_registered_encoder_is_a_name_and_never_a_path(
    engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = model("public", "article")
    table.metadata.create_all(engine)
    opened: list[str] = []
    monkeypatch.setattr("pathlib.Path.is_file", lambda self: opened.append(str(self)))
    monkeypatch.setattr("pathlib.Path.read_text", lambda self, **_: opened.append(str(self)))
    with engine.begin() as connection:
        comment = "SELECT obj_description('ix_article_embedding_pending'::regclass)"
        facts = json.loads(connection.exec_driver_sql(comment).scalar_one())
        changed = json.dumps(facts | {"encoder": name})
        connection.exec_driver_sql(f"COMMENT ON INDEX ix_article_embedding_pending IS $${changed}$$")
        (refused,) = registered_targets(connection)
        (with_models,) = model_targets(connection, embeddings_of(table))
        assert problems(connection) == {"article": None}
    assert isinstance(refused, Refused)
    assert "is not a name to look up" in str(refused.error)
    assert isinstance(with_models, Target)
    assert opened == []


def test_a_child_of_hers_makes_the_table_hers(mallory: Mallory, engine: Engine) -> None:
    table = model("public", "article")
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE child () INHERITS (article)")
        assert problems(connection) == {"article": None}
        connection.exec_driver_sql(f"ALTER TABLE child OWNER TO {mallory.name}")
        assert problems(connection) == {
            "article": f'owner "{mallory.name}" of public.child is not trusted: '
            f"pgembed init --trust {mallory.name}"
        }


def test_a_trigger_of_hers_makes_the_table_hers(mallory: Mallory, engine: Engine) -> None:
    """TRIGGER, which is a part of GRANT ALL, is enough to make one on a table of others."""
    mallory.lay_trap()
    table = model("public", "article")
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"GRANT TRIGGER ON article TO {mallory.name}")
        connection.exec_driver_sql("INSERT INTO article VALUES (1, 'a')")
    mallory.execute(
        "CREATE TRIGGER grasp BEFORE UPDATE ON public.article FOR EACH ROW "
        f"EXECUTE FUNCTION {mallory.schema}.trap_trigger()"
    )
    with pytest.raises(NotTrustedError, match="of trigger grasp is not trusted"):
        backfill(engine, table.c.embedding)
    assert not mallory.is_superuser()


def test_the_owner_of_the_schema_counts_too(mallory: Mallory, engine: Engine) -> None:
    """She can drop what is in it, and put a table of hers in its place."""
    table = model(mallory.schema, "article")
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        assert problems(connection) == {
            f"{mallory.schema}.article": f'owner "{mallory.name}" of schema {mallory.schema} is not trusted: '
            f"pgembed init --trust {mallory.name}"
        }


@pytest.mark.parametrize("change", ["owner", "swap", "revoke"])
def test_what_changes_between_the_look_and_the_write_is_seen(
    mallory: Mallory, app: Mallory, engine: Engine, change: str
) -> None:
    table = model(app.schema, "article")
    table.metadata.create_all(app.engine, checkfirst=False)
    with engine.begin() as connection:
        install(connection, trust=[app.name])
        connection.exec_driver_sql(f"INSERT INTO {app.schema}.article VALUES (1, 'a')")
    mallory.lay_trap()

    class Slow(HashEncoder):
        def encode_documents(self, texts: Any) -> Any:
            with engine.begin() as connection:
                if change == "revoke":
                    connection.exec_driver_sql("DELETE FROM pgembed.trusted_owner")
                elif change == "owner":
                    connection.exec_driver_sql(f"ALTER TABLE {app.schema}.article OWNER TO {mallory.name}")
                else:
                    connection.exec_driver_sql(f"ALTER TABLE {app.schema}.article RENAME TO former")
                    connection.exec_driver_sql(f"ALTER TABLE {mallory.schema}.trap SET SCHEMA {app.schema}")
                    connection.exec_driver_sql(f"ALTER TABLE {app.schema}.trap RENAME TO article")
            return super().encode_documents(texts)

    (embedding,) = embeddings_of(table)
    object.__setattr__(embedding.declaration, "encoder", Slow(3))
    expected = NotTrustedError if change != "swap" else Exception
    with pytest.raises(expected, match="renamed, moved or dropped" if change == "swap" else "not trusted"):
        backfill(engine, embedding)
    assert not mallory.is_superuser()
    with engine.begin() as connection:
        name = "former" if change == "swap" else "article"
        assert connection.scalar(text(f"SELECT count(embedding) FROM {app.schema}.{name}")) == 0


def test_a_schema_that_she_has_made_before_is_refused(mallory: Mallory, empty_url: URL) -> None:
    engine = create_engine(empty_url)
    for statement in ("CREATE VIEW pgembed.version AS SELECT 1 AS revision, 'x' AS checksum", None):
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA IF EXISTS pgembed CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA pgembed")
            owned = "SCHEMA pgembed" if statement is None else "VIEW pgembed.version"
            if statement is not None:
                connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"ALTER {owned} OWNER TO {mallory.name}")
        with engine.begin() as connection, pytest.raises(MissingPrivilegeError, match="DROP SCHEMA pgembed"):
            install(connection)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA pgembed CASCADE")
        # A function that is found before Postgres's own, where the path says so.
        connection.exec_driver_sql("CREATE SCHEMA early")
        connection.exec_driver_sql("CREATE FUNCTION early.md5(text) RETURNS text LANGUAGE sql RETURN 'x'")
        connection.exec_driver_sql("SET LOCAL search_path = early, pg_catalog, public")
        assert install(connection)
        assert connection.scalar(text("SHOW search_path")) == "early, pg_catalog, public"
    engine.dispose()


def test_objects_of_ours_run_with_the_rights_of_the_caller_and_a_path_of_their_own(engine: Engine) -> None:
    with engine.begin() as connection:
        rows = connection.execute(
            text(
                "SELECT proname, prosecdef, proconfig, prosqlbody IS NOT NULL AS resolved FROM pg_proc "
                "WHERE pronamespace = 'pgembed'::regnamespace"
            )
        ).all()
    assert len(rows) > 15
    for row in rows:
        assert not row.prosecdef, row.proname
        assert row.resolved or "search_path=pg_catalog, pg_temp" in row.proconfig, row.proname


def test_a_materialized_view_is_no_table_to_fill(engine: Engine) -> None:
    table = model("public", "article")
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE MATERIALIZED VIEW copied AS SELECT * FROM article")
        connection.exec_driver_sql("CREATE INDEX copied_pending ON copied (id) WHERE id > 0")
        comment = "SELECT obj_description('ix_article_embedding_pending'::regclass)"
        facts = connection.exec_driver_sql(comment).scalar_one()
        connection.exec_driver_sql(f"COMMENT ON INDEX copied_pending IS $${facts}$$")
        assert problems(connection) == {
            "article": None,
            "copied": "it is not a table, so its rows cannot be filled",
        }
