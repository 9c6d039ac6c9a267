"""Whatever a comment says, every reader goes on: what is malformed is a problem of that column alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, Connection, Engine, create_engine, text
from typer.testing import CliRunner

from pgembed.cli.main import app as command
from pgembed.columns import embeddings_of
from pgembed.columns.digest import recipe
from pgembed.columns.registration import read_registration
from pgembed.filling import Worker
from pgembed.filling.cycle import Settings
from pgembed.filling.targets import Refused, Target, model_targets, registered_targets
from pgembed.indexes import check
from pgembed.migrations.reflection import indexes_of
from pgembed.reembedding.change import changes
from tests.tables import execute, rows

from .conftest import facts
from .test_attacks import model

_STATUS = text("SELECT * FROM pgembed.status")
FAST = Settings(poll=0.02, patience=5)
INDEX = "ix_article_embedding_pending"
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def reader(module_url: URL) -> Iterator[Engine]:
    """A database with two columns; each example writes the comments of one of them."""
    engine = create_engine(module_url)
    for name in ("article", "good"):
        model("public", name).metadata.create_all(engine)
    yield engine
    engine.dispose()


WHOLE = facts(fill="flush")
WORDS = {"column": "embedding_words", "statistics": "no table", "config": "english", "k1": 1.2, "b": 0.75}
PARTS = {"table": "good", "how": '[1, [["text", 1]], null, 0, ""]'}
KEYS = [*WHOLE, "fields", "options", "replaces", "words", "parts", "duplicate_of", "of a newer version"]
COMMENTS = (
    st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda changes: json.dumps(WHOLE | changes))
    | st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda facts: json.dumps({"pgembed": 1, **facts}))
    | JSON.map(lambda value: f'{{"pgembed": {json.dumps(value)}}}')
    | TEXT.map(lambda rest: f'{{"pgembed":{rest}')
    | TEXT
)


def changed(**changes: Any) -> str:
    return json.dumps(WHOLE | changes)


def comment(connection: Connection, written: str) -> None:
    literal = "'" + written.replace("'", "''") + "'"
    connection.exec_driver_sql(
        f"COMMENT ON INDEX {INDEX} IS {literal}", execution_options={"no_parameters": True}
    )


def read_all(connection: Connection) -> tuple[dict[str, Any], list[Target | Refused]]:
    """By every reader that there is."""
    shown = {row["relation"]: dict(row) for row in connection.execute(_STATUS).mappings()}
    found = registered_targets(connection)
    model_targets(connection, embeddings_of(model("public", "article")))
    changes(connection)
    check(connection)
    indexes_of(connection, model("public", "article"), {INDEX})
    indexes_of(connection, model("public", "article"), set())
    return shown, found


@settings(deadline=None, max_examples=60)
@given(written=COMMENTS)
@example(written=changed(sources=[None, "title"]))
@example(written=changed(sources=[["a"], {"b": 1}]))
@example(written=changed(fields=[1]))
@example(written=changed(fields=["a", "b"]))
@example(written=changed(fields=["embedding"]))
@example(written=changed(fields=["id"]))
@example(written=changed(template="{"))
@example(written=changed(template="{title.__class__}"))
@example(written=changed(template="{title!r:>{title}}"))
@example(written=changed(dimensions=1.5))
@example(written=changed(dimensions=True))
@example(written=changed(dimensions=10**30))
@example(written=changed(column="\0"))
@example(written=changed(column="x" * 64))
@example(written=changed(metric="jaccard"))
@example(written=changed(options={"max_tokens": 10**40, "precision": "\ud800"}))
@example(written=changed(encoder="\ud800"))
@example(written=changed(pgembed=True))
@example(written=changed(sources=["title", "title"]))
@example(written=changed(digest="embedding"))
@example(written='{"pgembed": 1, "x": ' + "[" * 100_000)
@example(written='{"pgembed": 1, "x": ' + "[" * 5000 + "]" * 5000 + "}")
@example(written=changed(words=[]))
@example(written=changed(words=WORDS | {"column": ""}))
@example(written=changed(words=WORDS | {"statistics": "ä" * 32}))
@example(written=changed(words=WORDS | {"config": None}))
@example(written=changed(words=WORDS | {"k1": "1"}))
@example(written=changed(words=WORDS | {"k1": 1000.5}))
@example(written=changed(words=WORDS | {"b": True}))
@example(written=changed(duplicate_of="id"))
@example(written=changed(duplicate_of=[]))
@example(written=changed(duplicate_of=[1]))
@example(written=changed(duplicate_of=["id"]))
@example(written=changed(duplicate_of=["title"]))
@example(written=changed(duplicate_of=["embedding_digest"]))
@example(written=changed(duplicate_of=["no column"]))
@example(written=changed(duplicate_of=["a", "ä" * 32]))
@example(written=changed(parts=[]))
@example(written=changed(parts=PARTS))
@example(written=changed(parts=PARTS | {"table": "no table"}))
@example(written=changed(parts=PARTS | {"table": "ä" * 32}))
@example(written=changed(parts=PARTS | {"how": None}))
@example(written=changed(parts=PARTS | {"how": "x" * 8193}))
@example(written='{"pgembed": 1e999999}')
@example(written='{"pgembed": NaN}')
def test_no_reader_raises(reader: Engine, written: str) -> None:
    with reader.connect() as connection:
        comment(connection, written)
        shown, found = read_all(connection)
        connection.rollback()
    assert shown["good"]["problem"] is None
    assert "public.good.embedding" in {one.name for one in found if isinstance(one, Target)}
    facts, problem = read_registration(written)
    if facts is None and problem is None:
        assert "article" not in shown
    elif problem is not None:
        assert "cannot be read: " in shown["article"]["problem"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_tokens", "64", "the option max_tokens of the encoder is not a number"),
        ("max_tokens", True, "the option max_tokens of the encoder is not a number"),
        ("query_prompt", None, "the option query_prompt of the encoder is not a text"),
        ("precision", [], "the option precision of the encoder is not a text"),
    ],
)
def test_options_of_the_encoder_are_of_their_types(reader: Engine, name: str, value: Any, said: str) -> None:
    written = changed(options={name: value})
    with reader.connect() as connection:
        comment(connection, written)
        shown, _ = read_all(connection)
        connection.rollback()
    assert shown["article"]["problem"].endswith(f"cannot be read: {said}")
    assert read_registration(written) == (None, said)


def test_one_comment_stops_no_worker(engine: Engine) -> None:
    good = model("public", "good")
    for table in (good, model("public", "article")):
        table.metadata.create_all(engine)
    with engine.begin() as connection:
        comment(connection, changed(sources=[None, "title"]))
        connection.exec_driver_sql("INSERT INTO good VALUES (1, 'a')")
        (refused,) = model_targets(connection, embeddings_of(model("public", "article")))
    assert isinstance(refused, Refused)
    assert "sources is not a list of names" in str(refused.error)
    assert Worker(engine, embeddings_of(good), settings=FAST).run(once=True)
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT embedding IS NOT NULL FROM good"))
        (problem,) = connection.scalars(text("SELECT problem FROM pgembed.status WHERE problem IS NOT NULL"))
    assert (
        problem == f"the registration on index public.{INDEX} cannot be read: sources is not a list of names"
    )
    url = engine.url.render_as_string(hide_password=False)
    shown = CliRunner().invoke(command, ["status", "--url", url])
    assert "sources is not a list of names" in shown.stdout


@settings(deadline=None, max_examples=100)
@given(fingerprint=TEXT, template=st.none() | TEXT)
@example(fingerprint="x", template='é\U0001f600"\\\n\t\x7f\x01\u2028')
def test_recipes_are_the_same_in_sql(reader: Engine, fingerprint: str, template: str | None) -> None:
    with reader.connect() as connection:
        asked = text("SELECT pgembed.recipe(:fingerprint, :template)")
        made = connection.scalar(asked, {"fingerprint": fingerprint, "template": template})
    assert made == recipe(fingerprint, template)


@pytest.mark.parametrize("kind", ["text", "varchar(50)", "varchar", "words"])
def test_the_predicate_of_a_registration_is_that_of_its_index(engine: Engine, kind: str) -> None:
    """As Postgres writes it down, whatever kind of text the sources are and whatever they are called."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE DOMAIN words AS varchar(99)")
        connection.exec_driver_sql(
            f'CREATE TABLE article (id int PRIMARY KEY, title {kind}, "a::b (C) %s" {kind}, '
            "embedding vector(3), embedding_digest uuid)",
            execution_options={"no_parameters": True},
        )
        odd = "a::b (C) %s"
        for sources, template in ((["title"], "{title} é"), (["title", odd], None), ([odd], "{words}")):
            facts = WHOLE | {"sources": sources, "template": template}
            predicate = connection.scalar(
                text("SELECT pgembed.pending_predicate(CAST(:facts AS jsonb))"), {"facts": json.dumps(facts)}
            )
            connection.exec_driver_sql(f"DROP INDEX IF EXISTS {INDEX}")
            create = f"CREATE INDEX {INDEX} ON article (id) WHERE {predicate}"
            connection.exec_driver_sql(create, execution_options={"no_parameters": True})
            comment(connection, json.dumps(facts))
            row = connection.execute(text("SELECT * FROM pgembed.status")).mappings().one()
            assert (row["problem"], row["pending"]) == (None, 0), sources
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            explained = connection.exec_driver_sql(
                f"EXPLAIN SELECT FROM article WHERE {predicate}", execution_options={"no_parameters": True}
            )
            assert INDEX in str(explained.all()), sources


def test_an_index_of_other_rows_is_not_counted(engine: Engine) -> None:
    table = model("public", "article")
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_article_embedding_pending")
        connection.exec_driver_sql("CREATE INDEX ix_article_embedding_pending ON article (id) WHERE id > 5")
        comment(connection, changed())
        row = connection.execute(text("SELECT * FROM pgembed.status")).mappings().one()
        (refused,) = registered_targets(connection)
        (with_models,) = model_targets(connection, embeddings_of(table))
    assert "does not hold the rows that its registration describes" in row["problem"]
    assert (row["total"], row["pending"]) == (None, None)
    for one in (refused, with_models):
        assert isinstance(one, Refused)
        assert "does not hold the rows" in str(one.error)


def test_two_registrations_of_a_column_are_a_problem_of_both(engine: Engine) -> None:
    table = model("public", "article")
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX other ON article (id) WHERE id > 5")
        connection.exec_driver_sql(f"COMMENT ON INDEX other IS $${changed()}$$")
        problems = connection.scalars(text("SELECT problem FROM pgembed.status")).all()
    assert len(problems) == 2
    assert all("is not the only one" in str(problem) for problem in problems)


@pytest.mark.parametrize(
    "how",
    [
        "not JSON",
        "[" * 8000,
        '[1, [["text", 2]], null, 0, ""]',
        '[1, [["text", 1], ["of mine", 1]], null, 0, ""]',
        '[1, [[["text"], 1]], null, 0, ""]',
        '[1, [["text", 1]], {}, [], ""]',
        '[1, [["text", 1]], null, 0, {"a": 1}]',
        '[1, [["text", 1]], null, 0, "{title"]',
        '[2, [["text", 1]], null, 0, ""]',
    ],
)
def test_parts_that_are_made_in_unknown_ways_are_refused(engine: Engine, how: str) -> None:
    columns = 'number int, start int, "end" int, text text, digest uuid, embedding vector(3)'
    execute(
        engine,
        "CREATE TABLE article (id int PRIMARY KEY, title text, parts_digest uuid)",
        f"CREATE TABLE article_parts (id bigint PRIMARY KEY, article_id int, {columns})",
    )
    facts = WHOLE | {
        "column": "parts",
        "digest": "parts_digest",
        "parts": PARTS | {"table": "article_parts", "how": how},
    }
    with engine.begin() as connection:
        predicate = connection.scalar(
            text("SELECT pgembed.pending_predicate(CAST(:facts AS jsonb))"), {"facts": json.dumps(facts)}
        )
        connection.exec_driver_sql(f"CREATE INDEX {INDEX} ON article (id) WHERE {predicate}")
        comment(connection, json.dumps(facts))
        (refused,) = registered_targets(connection)
    assert isinstance(refused, Refused)
    assert "a worker with --models knows more" in str(refused.error)
    assert rows(engine, "SELECT problem, pending, parts FROM pgembed.status") == [(None, 0, 0)]
