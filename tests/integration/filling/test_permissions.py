"""The role of docs/filling.md can do a worker's job, and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, Column, Engine, Integer, MetaData, Table, Text, create_engine, text
from sqlalchemy.exc import ProgrammingError
from typer.testing import CliRunner

from pgembed import Words, embedding_column
from pgembed.cli.main import app
from pgembed.cli.options import connect
from pgembed.exc import DatabaseError
from pgembed.filling import Worker, failures, refresh_words
from pgembed.filling.targets import find_targets

from .conftest import FAST, Articles, Picky

GUIDE = Path(__file__).parents[3] / "docs" / "filling.md"


@pytest.fixture
def articles(engine: Engine) -> Articles:
    """With the sources of the README's model."""
    return Articles(engine, Picky(), ("title", "body"))


@pytest.fixture
def granted(articles: Articles, admin: Engine) -> Iterator[Engine]:
    """The database as the worker's role sees it, after the script of the guide."""
    role = f"embedder_{os.getpid()}"
    (script,) = re.findall(r"```sql\n(CREATE ROLE.*?)```", GUIDE.read_text(), re.DOTALL)
    with articles.engine.begin() as connection:
        # Since Postgres 15 it is so by default; older databases may have granted more.
        connection.execute(text("REVOKE ALL ON SCHEMA public FROM PUBLIC"))
        for statement in script.replace("embedder", role).split(";"):
            if statement.strip():
                connection.execute(text(statement))
    engine = create_engine(articles.engine.url, connect_args={"options": f"-c role={role}"})
    yield engine
    engine.dispose()
    with articles.engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
    with admin.connect() as connection:
        connection.execute(text(f"DROP ROLE {role}"))


def test_the_documented_role_can_do_the_job(articles: Articles, granted: Engine) -> None:
    articles.insert("a", "poison", None, "b")
    assert Worker(granted, [articles.embedding], settings=FAST).run(once=True) is False
    assert articles.pending() == {2}
    with articles.engine.begin() as connection:
        connection.execute(text("UPDATE article SET title = 'mended' WHERE id = 2"))
    assert Worker(granted, [articles.embedding], settings=FAST).run(once=True)
    assert articles.pending() == set()
    articles.check()


def test_its_commands_can_be_run(
    articles: Articles, granted: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without models: what they ask the database for, the registry tells them."""
    articles.insert("a", "b")
    url = granted.url.update_query_dict({"options": f"-c role=embedder_{os.getpid()}"})
    monkeypatch.setenv("PGEMBED_URL", url.render_as_string(hide_password=False))
    run = CliRunner().invoke
    shown = json.loads(run(app, ["status", "--json"]).stdout)
    assert [(one["total"], one["pending"], one["failed"], one["problem"]) for one in shown] == [
        (2, 2, 0, None)
    ]
    assert run(app, ["failures", "list"]).stdout == "no failures\n"
    assert run(app, ["failures", "retry"]).exit_code == 0
    for command in (["backfill", "--dry-run"], ["backfill"]):
        refused = run(app, command)
        # The registry's encoder has no weights here; what is read before they are opened was not denied.
        assert "no encoder 'hash'" in refused.output + str(refused.exception), command


def test_of_words_it_refreshes_the_statistics(articles: Articles, granted: Engine) -> None:
    """After the second script of the guide, and not before."""
    note = Table(
        "note",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("title", Text),
        embedding_column("title", encoder=Picky(), name="embedding", words=Words("title")).column,
    )
    note.metadata.create_all(articles.engine)
    with articles.engine.begin() as connection:
        connection.execute(text("INSERT INTO note (id, title) VALUES (1, 'a cat')"))
    with granted.begin() as connection, pytest.raises(ProgrammingError, match="permission denied"):
        refresh_words(connection, note.c.embedding)
    (script,) = re.findall(r"```sql\n(GRANT SELECT \(embedding_words\).*?)```", GUIDE.read_text(), re.DOTALL)
    with articles.engine.begin() as connection:
        for statement in script.split(";"):
            if statement.strip():
                ours = statement.replace("article", "note").replace("embedder", f"embedder_{os.getpid()}")
                connection.execute(text(ours))
    with granted.begin() as connection:
        assert refresh_words(connection, note.c.embedding).rows == 1


def read_and_write(url: URL) -> None:
    """What a command does."""
    with connect(url.render_as_string(hide_password=False)) as connection:
        find_targets(connection)
        connection.execute(text("UPDATE article SET embedding = NULL"))


@pytest.mark.parametrize(
    ("revoked", "missing"),
    [
        ("USAGE ON SCHEMA pgembed", "{} lacks the privilege USAGE on schema 'pgembed'"),
        (
            "SELECT ON pgembed.embedding_columns",
            "{} may not do this, permission denied for view embedding_columns",
        ),
        ("UPDATE (embedding) ON article", "{} may not do this, permission denied for table article"),
    ],
)
def test_what_is_denied_names_the_role_and_where_it_is_granted(
    articles: Articles, granted: Engine, revoked: str, missing: str
) -> None:
    role = f"embedder_{os.getpid()}"
    url = granted.url.update_query_dict({"options": f"-c role={role}"})
    with articles.engine.begin() as connection:
        connection.execute(text(f"REVOKE {revoked} FROM {role}"))
    with pytest.raises(DatabaseError) as denied:
        read_and_write(url)
    assert missing.format(f"role {role!r}") in str(denied.value)
    assert "docs/filling.md" in str(denied.value)


def test_and_nothing_else(granted: Engine) -> None:
    for statement in (
        "UPDATE article SET title = 'x'",
        "DELETE FROM article",
        "INSERT INTO article (title) VALUES ('x')",
        "SELECT touched FROM article",
        "CREATE TABLE public.mine ()",
        "CREATE TABLE pgembed.mine ()",
        "UPDATE pgembed.version SET revision = 0",
    ):
        with pytest.raises(ProgrammingError, match="permission denied"), granted.begin() as connection:
            connection.execute(text(statement))


def test_row_level_security_is_respected(articles: Articles, granted: Engine) -> None:
    articles.insert("a", "b", "c")
    with articles.engine.begin() as connection:
        connection.execute(text("ALTER TABLE article ENABLE ROW LEVEL SECURITY"))
        connection.execute(text("CREATE POLICY most ON article USING (id <> 2)"))
    assert Worker(granted, [articles.embedding], settings=FAST).run(once=True)
    assert articles.pending() == {2}
    assert "b" not in sum(articles.encoder.calls, ())


def test_a_row_that_a_policy_refuses_fails_alone(articles: Articles, granted: Engine) -> None:
    articles.insert("a", "b", "c")
    with articles.engine.begin() as connection:
        connection.execute(text("ALTER TABLE article ENABLE ROW LEVEL SECURITY"))
        connection.execute(text("CREATE POLICY most ON article USING (true) WITH CHECK (id <> 2)"))
    assert Worker(granted, [articles.embedding], settings=FAST).run(once=True) is False
    assert articles.pending() == {2}
    with articles.engine.connect() as connection:
        (failure,) = failures.listed(connection)
    assert (failure.key, "row-level security" in failure.error) == ("[2]", True)


def test_a_lack_of_privileges_is_no_rows_fault(articles: Articles, granted: Engine) -> None:
    articles.insert("a", "b")
    with articles.engine.begin() as connection:
        connection.execute(text(f"REVOKE UPDATE (embedding) ON article FROM embedder_{os.getpid()}"))
    assert not Worker(granted, [articles.embedding], settings=FAST).run(once=True)
    with articles.engine.connect() as connection:
        assert not failures.listed(connection)


def test_no_function_runs_with_the_rights_of_its_owner(articles: Articles) -> None:
    with articles.engine.connect() as connection:
        definers = "SELECT proname FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace AND prosecdef"
        assert connection.scalars(text(definers)).all() == []
