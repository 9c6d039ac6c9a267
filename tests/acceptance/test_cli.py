"""The command line as a user meets it: its output and its exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import Encoder, Part, embedding_parts
from pgembed.cli.options import open_engine
from pgembed.database import embedded
from pgembed.indexes.ddl import CommentOnIndex
from tests.commands import ROOT, call, run
from tests.tables import model


@pytest.fixture
def environment(minilm_folder: Path) -> dict[str, str]:
    return {"PGEMBED_ENCODERS": str(minilm_folder.parent)}


@pytest.fixture
def helpdesk(engine: Engine, minilm: Encoder) -> str:
    """A database with a few rows; its URL."""
    Article = model(minilm)
    Article.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Article(title=title) for title in ("I forgot my password", "The printer [smokes]"))
        session.commit()
        session.execute(text("INSERT INTO article (title) VALUES ('by hand')"))
        session.commit()
    return engine.url.render_as_string(hide_password=False)


def test_init_installs_once(empty_url: URL) -> None:
    url = empty_url.render_as_string(hide_password=False)
    assert "installed" in call("init", "--url", url).stdout
    assert "nothing to do" in call("init", PGEMBED_URL=url).stdout
    engine = create_engine(empty_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM pgembed.status")).all() == []
    engine.dispose()
    assert "no embedding columns" in call("status", "--url", url).stdout


@pytest.mark.parametrize(("given", "threshold"), [("none", None), ("0", 0), ("7", 7)])
def test_prepared_statements_are_left_out_on_demand(url: URL, given: str, threshold: int | None) -> None:
    """For poolers of transactions that know none."""
    asked = url.update_query_dict({"prepare_threshold": given})
    with open_engine(asked.render_as_string(hide_password=False)) as engine, engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.prepare_threshold == threshold


def test_status_counts(helpdesk: str) -> None:
    shown = call("status", "--url", helpdesk)
    assert shown.returncode == 0
    assert re.search(r"article\.embedding +all-MiniLM-L6-v2 +\w{12} +3 +2 +1 +0 +none", shown.stdout)
    (row,) = json.loads(call("status", "--url", helpdesk, "--json").stdout)
    assert (row["total"], row["fresh"], row["pending"]) == (3, 2, 1)


def test_a_row_is_split_as_its_parts_are_and_status_counts_them(
    engine: Engine, minilm: Encoder, environment: dict[str, str]
) -> None:
    class Base(DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "page"
        lang: Mapped[str] = mapped_column(primary_key=True)
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        body: Mapped[str | None]
        parts: Mapped[list[Part]] = embedding_parts("body", context="title", encoder=minilm, max_tokens=32)
        heads: Mapped[list[Part]] = embedding_parts("title", encoder=minilm)

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Page(lang="de", id=7, title="A [title]", body="One sentence of several. " * 30))
        session.add(Page(lang="de", id=8, title="Another", body=None))
        session.commit()
        page = session.get_one(Page, ("de", 7))
        stored = [(part.number, part.start, part.end, part.text) for part in page.parts]
    assert len(stored) > 4
    url = engine.url.render_as_string(hide_password=False)
    asked = ("split", "--url", url, "--table", "page", "--row")
    found = json.loads(call(*asked, '["de", 7]', "--json", **environment).stdout)
    assert [(row["number"], row["start"], row["end"], row["text"]) for row in found] == stored
    assert all(row["context"] == "A [title]\n" and row["tokens"] <= 32 for row in found)
    shown = call(*asked, '["de", 7]', "--column", "heads", **environment)
    assert shown.stdout.splitlines()[-1].startswith("pieces: 1, of 9 characters")
    assert "pieces: 0, of" in call(*asked, '["de", 8]', **environment).stdout
    for key, error in {
        '["de", 9]': 'page has no row ["de", 9]',
        "7": "found 1 values, expected 2",
        "[7": "found no JSON",
    }.items():
        assert error in call(*asked, key, **environment).stderr
    assert "is not an embedding column" in call(*asked, "7", "--column", "none", **environment).stderr
    assert "a row needs --table and --url" in call("split", "--row", "7").stderr
    assert "expected an encoder, or a row" in call("split", stdin="text").stderr
    status = call("status", "--url", url, "--sample", "0").stdout
    heads, parts = (line.split()[-1] for line in status.splitlines() if "page." in line)
    assert (int(heads), int(parts)) == (2, len(stored))


def test_status_says_how_many_texts_are_cut_or_why_it_cannot(
    helpdesk: str, environment: dict[str, str]
) -> None:
    engine = create_engine(helpdesk)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES (repeat('word ', 300))"))
    engine.dispose()
    shown = call("status", "--url", helpdesk, **environment)
    assert re.search(r"index +cut texts *\n.* none +25\.0% of 4 *\n", shown.stdout)
    assert shown.stdout.endswith("embedding_parts(...) finds all: docs/long_texts.md\n")
    (row,) = json.loads(call("status", "--url", helpdesk, "--json", **environment).stdout)
    assert (row["sampled"], row["cut"], row["cut_problem"]) == (4, 1, None)

    nowhere = {"PGEMBED_ENCODERS": "/nowhere", "XDG_DATA_HOME": "/nowhere"}
    shown = call("status", "--url", helpdesk, **nowhere)
    assert re.search(r" none +\? *\n", shown.stdout)
    assert "article.embedding: cut texts unknown: no encoder 'all-MiniLM-L6-v2'" in shown.stdout
    (row,) = json.loads(call("status", "--url", helpdesk, "--json", **nowhere).stdout)
    assert (row["pending"], row["sampled"], row["cut"]) == (2, None, None)

    shown = call("status", "--url", helpdesk, "--sample", "0", "--json", **environment)
    assert "cut" not in json.loads(shown.stdout)[0]


def test_search_prints_the_best_rows_first(helpdesk: str, environment: dict[str, str]) -> None:
    shown = call("search", "article", "embedding", "reset my password", "--url", helpdesk, **environment)
    assert shown.returncode == 0, shown.stderr
    first, second = shown.stdout.splitlines()
    assert "I forgot my password" in first
    assert "The printer [smokes]" in second
    found = json.loads(
        call("search", "article", "embedding", "x", "--url", helpdesk, "--json", **environment).stdout
    )
    assert found[0].keys() == {"id", "title", "distance", "score"}


def test_search_explains_itself(helpdesk: str, engine: Engine, environment: dict[str, str]) -> None:
    arguments = ("search", "article", "embedding", "reset my password", "--explain")
    shown = call(*arguments, "--url", helpdesk, **environment)
    assert shown.returncode == 0, shown.stderr
    assert re.fullmatch(
        r"semantic_search: 2 rows in [\d.]+ ms\n"
        r"public.article.embedding: exact, 2 rows compared\n"
        r"  no index: none is declared that serves cosine\n"
        r"  1 row pending\n",
        shown.stdout,
    )
    # So small a table is rather read than looked up in an index.
    url = make_url(helpdesk).update_query_dict({"options": "-c enable_seqscan=off -c enable_sort=off"})
    there = ("--url", url.render_as_string(hide_password=False))
    assert call("index", "create", "article", "embedding", *there).returncode == 0
    assert (
        call("index", "recall", "article", "embedding", "--queries", "2", "--k", "1", *there).returncode == 0
    )
    shown = call(*arguments, "--limit", "1", *there, **environment)
    assert "public.article.embedding: through ix_article_embedding_hnsw (hnsw), 2 candidates" in shown.stdout
    assert re.search(r"\n  recall@1 1.0000 \(0.\d+ to 1.0000\), ef_search 40, 2 queries, 20", shown.stdout)
    found = json.loads(call(*arguments, "--json", *there, **environment).stdout)
    assert found["settings"]["hnsw.ef_search"] == "40"
    (leg,) = found["legs"]
    assert (leg["index"], leg["pending"], leg["measured"]["k"]) == ("ix_article_embedding_hnsw", 1, 1)
    # Where the pending index does not hold the pending rows, their number is not known.
    with engine.begin() as connection:
        pending = "ix_article_embedding_pending"
        comment = connection.scalar(text(f"SELECT obj_description('{pending}'::regclass)"))
        connection.execute(text(f"DROP INDEX {pending}"))
        connection.execute(text(f"CREATE INDEX {pending} ON article (id) WHERE id < 0"))
        connection.execute(CommentOnIndex("public", pending, comment))
    shown = call(*arguments, "--url", helpdesk, **environment)
    assert "exact, 3 rows compared\n  no index: ix_article_embedding_hnsw: it could be used" in shown.stdout
    assert "\n  the exact form read the table again, 2 rows compared\n" in shown.stdout
    assert "pending" not in shown.stdout


def test_columns_of_unknown_types_are_ignored(
    helpdesk: str, engine: Engine, environment: dict[str, str]
) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TYPE place AS (street text, number integer)"))
        connection.execute(text("ALTER TABLE article ADD at place DEFAULT ('Lane', 3), ADD tx xid"))
    for command in (
        ["search", "article", "embedding", "password"],
        ["index", "create", "article", "embedding"],
    ):
        shown = call(*command, "--url", helpdesk, **environment)
        assert (shown.returncode, shown.stderr) == (0, "")


def test_a_hit_is_a_line_unless_whole_texts_are_asked_for(
    helpdesk: str, engine: Engine, environment: dict[str, str]
) -> None:
    title = "a rather long title " * 1000 + "with an [end]"
    with engine.begin() as connection:
        connection.execute(text("UPDATE article SET title = :title WHERE id = 1"), {"title": title})
        connection.execute(text("ALTER TABLE article ADD score text DEFAULT 'high', ADD distance int"))
    search = ("search", "article", "embedding", "x", "--url", helpdesk)
    shown = call(*search, **environment).stdout.splitlines()
    assert len(shown) == 2
    (line,) = [line for line in shown if "a rather long title" in line]
    assert re.match(r"-?\d\.\d{3}  1  a rather", line)
    assert line.endswith(" ...")
    assert len(line) < 400
    full = call(*search, "--full", **environment).stdout
    assert any(line.endswith(title) for line in full.splitlines())
    found = json.loads(call(*search, "--json", **environment).stdout)
    assert {row["title"] for row in found} == {title, "The printer [smokes]"}
    assert found[0].keys() == {"id", "title", "score", "distance", "score_1", "distance_1"}
    assert {row["score"] for row in found} == {"high"}


def test_search_in_a_schema_that_needs_quotes(
    helpdesk: str, engine: Engine, environment: dict[str, str]
) -> None:
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "Help Desk"'))
        connection.execute(text('ALTER TABLE article SET SCHEMA "Help Desk"'))
    shown = call("search", '"Help Desk".article', "embedding", "password", "--url", helpdesk, **environment)
    assert "I forgot my password" in shown.stdout.splitlines()[0], shown.stderr


def test_encode_writes_one_vector_per_line(minilm_folder: Path, minilm: Encoder) -> None:
    texts = ["one", "", "naïve - ünïcode"]
    shown = run("encode", "--encoder", str(minilm_folder), stdin="\n".join(texts) + "\n")
    vectors = np.array([json.loads(line) for line in shown.stdout.splitlines()], dtype=np.float32)
    np.testing.assert_allclose(vectors, minilm.encode_documents(texts), atol=1e-6)
    assert np.array_equal(np.argsort(vectors[0]), np.argsort(minilm.encode_documents(texts)[0]))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "article"], 2, "Missing argument"),
        (["nonsense"], 2, "No such command"),
        (["status"], 2, "--url"),
        (["status", "--url", "mysql://x/y"], 2, "mysql is not Postgres"),
        (["status", "--url", "postgresql://a@localhost:port/x"], 2, "the port is not a number"),
        (["status", "--url", "localhost"], 2, "--url: expected postgresql://"),
        (["status", "--url", "embedded:"], 2, "holds no database"),
        (["status", "--url", "embedded:/nowhere/at/all"], 2, "holds no database"),
        (["search", "article", "embedding", " ", "--url", "postgresql:///x"], 2, "the text is empty"),
        (["status", "--url", "postgresql:///x?host=/nowhere"], 1, "the database says"),
        (["encode", "--encoder", "no-such-encoder"], 1, "no encoder 'no-such-encoder'"),
        (["export", "/nowhere", "/tmp/out"], 1, "/nowhere"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    done = call(*arguments, stdin="x\n")
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.startswith("pgembed: ")
        assert done.stdout == ""


def test_the_version_is_that_of_the_package() -> None:
    shown = run("--version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (shown.returncode, shown.stdout) == (0, f"pgembed {project['version']}\n")


def test_a_database_that_is_not_ready_says_what_to_do(
    empty_url: URL, helpdesk: str, environment: dict[str, str]
) -> None:
    url = empty_url.render_as_string(hide_password=False)
    assert "run `pgembed init`" in call("status", "--url", url).stderr
    done = call("search", "article", "title", "x", "--url", helpdesk, **environment)
    assert (done.returncode, "there are: public.article.embedding" in done.stderr) == (1, True)


@pytest.mark.parametrize("command", ["search T vec x", "backfill T", "failures list T", "index plan T vec"])
def test_a_table_that_is_not_there_is_the_same_exit_code(helpdesk: str, command: str) -> None:
    done = call(*command.replace("T", "nowhere").split(), "--url", helpdesk)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(r"pgembed: .*nowhere", done.stderr)


def test_the_demo_embeds_once(server_folder: Path, environment: dict[str, str]) -> None:
    arguments = ("demo", "--path", str(server_folder), "--limit", "100")
    outside = {
        **environment,
        "PATH": os.defpath,
    }  # as make demo is called
    first = run(*arguments, **outside)
    assert first.returncode == 0, first.stderr
    announced, measured = (
        first.stdout.index(part)
        for part in ("Embedding 100 docstrings takes about", "100 docstrings embedded")
    )
    assert announced < measured
    assert re.search(r"^ *in all +\d+\.\d *$", first.stdout, re.M)
    assert "how do I compress a file?" in first.stdout
    assert re.search(r"guess right for \d+% of \d+ held-back entries", first.stdout)
    assert re.search(r"Near-duplicates.*\d+ groups", first.stdout)
    (search,) = re.findall("^  (.* search .*)", first.stdout, re.M)  # as it is printed, in a shell
    typed = subprocess.run(["sh", "-c", search], stdout=subprocess.PIPE, text=True, env=os.environ | outside)
    assert typed.returncode == 0
    assert len(re.findall(r"^0\.\d+  \w", typed.stdout, re.M)) == 10, typed.stdout
    with embedded(server_folder):  # no command starts and stops it for itself
        again = run(*arguments, **environment)
        shown = call("status", "--url", f"embedded:{server_folder}")
    assert "nothing to embed again" in again.stdout
    assert "takes about" not in again.stdout
    assert re.search(r"entry\.embedding .* 100 +100 +0 +0 +hnsw", shown.stdout), shown.stdout
