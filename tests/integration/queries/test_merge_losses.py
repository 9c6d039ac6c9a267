"""merge_duplicates where rows could get lost: what cannot be followed is refused, and nothing is changed."""

from __future__ import annotations

import enum
import json
import random

import pytest
from sqlalchemy import Column, Enum, Integer, LargeBinary, MetaData, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import scoped_session, sessionmaker

from pgembed.columns.types import VectorType
from pgembed.exc import QueryError
from pgembed.measuring import evaluate
from pgembed.queries import keep_list, merge_duplicates, suggest_threshold
from tests.integration.queries.test_merge import SCHEMA, contents, merge
from tests.integration.trust.conftest import role_on
from tests.tables import execute, rows


@pytest.fixture
def articles(engine):
    """Two articles, and a table to be made of the notes that refer to them."""
    execute(engine, "CREATE TABLE article (id integer PRIMARY KEY)", "INSERT INTO article VALUES (1), (2)")
    return engine


def test_columns_with_any_names(articles):
    execute(
        articles,
        "CREATE TABLE note (c integer REFERENCES article, part integer, place text, number integer, k text, "
        "d text, m text, r text, b text, x text, v text, UNIQUE (c, part))",
        "INSERT INTO note VALUES (1, 1), (2, 1), (2, 2)",
    )
    merge(articles, [2], [1])
    assert rows(articles, "SELECT c, part FROM note ORDER BY 2") == [(1, 1), (1, 2)]


def test_columns_of_a_domain_that_is_never_null(articles):
    execute(
        articles,
        "CREATE DOMAIN said AS text NOT NULL",
        "ALTER TABLE article ADD title said DEFAULT 'a'",
        "CREATE TABLE note (article_id integer REFERENCES article, body said, UNIQUE (article_id, body))",
        "INSERT INTO note VALUES (1, 'x'), (2, 'x'), (2, 'y')",
    )
    merge(articles, [2], [1])
    assert rows(articles, "SELECT * FROM note ORDER BY 2") == [(1, "x"), (1, "y")]


@pytest.mark.parametrize("seed", range(3))
def test_each_vote_is_there_when_comments_are_merged_in_chains(engine, seed):
    """Rows are merged into rows that are merged as well, or whose keys change."""
    execute(engine, *(statement for statement in SCHEMA.split(";") if statement.strip()))
    execute(engine, "TRUNCATE article CASCADE")
    chance = random.Random(seed)
    with engine.begin() as connection:
        for key in range(40):
            connection.execute(
                text("INSERT INTO article VALUES (:id, :slug, 't', NULL, 0)"), {"id": key, "slug": f"s{key}"}
            )
            for n in range(chance.randrange(5)):
                connection.execute(
                    text("INSERT INTO comment VALUES (:id, :n, :parent, 'c')"),
                    {"id": key, "n": n, "parent": chance.randrange(n) if n else None},
                )
                connection.execute(
                    text("INSERT INTO vote VALUES (:key, :id, :n, :voter)"),
                    {"key": key * 10 + n, "id": key, "n": n, "voter": f"{key}"},
                )
    into = {key: chance.randrange(12) for key in range(12, 40)}
    before = contents(engine)
    merge(engine, list(into), list(into.values()))
    after = contents(engine)
    assert after["vote"] == {(vote, into.get(key, key), *rest) for vote, key, *rest in before["vote"]}
    assert {row[:2] for row in after["comment"]} == {
        (into.get(row[0], row[0]), row[1]) for row in before["comment"]
    }


def test_references_that_would_need_two_values_of_one_column(engine):
    """An answer to two comments of one article, which go to two others."""
    execute(
        engine,
        "CREATE TABLE comment (article integer, n integer, one integer, other integer, "
        "PRIMARY KEY (article, n), FOREIGN KEY (article, one) REFERENCES comment, "
        "FOREIGN KEY (article, other) REFERENCES comment)",
        "INSERT INTO comment VALUES (1, 1), (1, 2), (2, 1), (3, 2)",
        "INSERT INTO comment VALUES (1, 3, 1, NULL), (1, 4, 2, NULL), (1, 5, 3, 4)",
    )
    before = rows(engine, "SELECT * FROM comment")
    pairs = [({"article": 1, "n": n}, {"article": n + 1, "n": n}) for n in (1, 2)]
    sides = {side: [json.dumps(pair[n]) for pair in pairs] for n, side in enumerate(("dropped", "kept"))}
    merging = text(
        "SELECT pgembed.merge_duplicates('comment', CAST(:dropped AS jsonb[]), CAST(:kept AS jsonb[]))"
    )
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '20s'"))
        with pytest.raises(DBAPIError, match="two values of a column at once"):
            connection.execute(merging, sides)
    assert rows(engine, "SELECT * FROM comment") == before


@pytest.mark.parametrize(
    ("event", "unique", "message"),
    [
        ("UPDATE", "", "rows of table public.note still refer to rows that are to be dropped"),
        (
            "DELETE",
            ", UNIQUE (article_id, body)",
            "would break the unique index public.note_article_id_body_key",
        ),
    ],
)
def test_a_trigger_that_keeps_rows_as_they_are(articles, event, unique, message):
    execute(
        articles,
        f"CREATE TABLE note (article_id integer REFERENCES article ON DELETE CASCADE, body text{unique})",
        "INSERT INTO note VALUES (1, 'x'), (2, 'x')",
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        f"CREATE TRIGGER keep BEFORE {event} ON note FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    for dry_run in (True, False):
        with pytest.raises(DBAPIError, match=message):
            merge(articles, [2], [1], dry_run=dry_run)
    assert rows(articles, "SELECT article_id FROM note ORDER BY 1") == [(1,), (2,)]


def test_rows_that_a_policy_hides(articles, admin):
    execute(
        articles,
        "CREATE TABLE note (id integer, article_id integer REFERENCES article ON DELETE CASCADE)",
        "INSERT INTO note VALUES (1, 2), (2, 2)",
        "ALTER TABLE note ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON note USING (id = 1)",
    )
    for name, own in role_on(articles, admin, "tenant"):
        execute(
            articles,
            f"GRANT USAGE ON SCHEMA pgembed TO {name}",
            f"GRANT ALL ON article, note TO {name}",
        )
        with pytest.raises(DBAPIError, match=f"policies may hide rows of table public.note from role {name}"):
            merge(own, [2], [1])
        assert rows(articles, "SELECT id, article_id FROM note ORDER BY 1") == [(1, 2), (2, 2)]
        execute(
            articles,
            "ALTER TABLE note DROP CONSTRAINT note_article_id_fkey",
            "ALTER TABLE note ADD FOREIGN KEY (article_id) REFERENCES article",
        )
        with pytest.raises(DBAPIError, match="violates foreign key constraint"):
            merge(own, [2], [1])
        execute(articles, "DELETE FROM note WHERE id = 2")
        merge(own, [2], [1])
        assert rows(articles, "SELECT id, article_id FROM note") == [(1, 1)]


ITEM = Table("item", MetaData(), Column("id", Integer, primary_key=True), Column("vector", VectorType(2)))


class Kind(enum.Enum):
    first = 1
    second = 2


@pytest.mark.parametrize(
    ("kind", "values"), [(LargeBinary(), [b"\x00'", b"\xff"]), (Enum(Kind), [Kind.first, Kind.second])]
)
def test_keys_that_json_has_no_form_for(engine, kind, values):
    item = Table("item", MetaData(), Column("id", kind, primary_key=True), Column("vector", VectorType(2)))
    item.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(item.insert(), [{"id": value, "vector": [1, 0]} for value in values])
        for groups, options in (
            (keep_list(item.c.vector, min_score=0.9), {}),
            ([values], {"of": item}),
        ):
            found = merge_duplicates(connection, groups, **options)
            assert [(each.action, each.rows) for each in found] == [("deleted", 1)]


@pytest.mark.parametrize("groups", [["ab", "cd"], [1, 2], [[1, 2], []], [{1, 2}]])
def test_what_are_no_lists_of_keys(articles, groups):
    table = Table("article", MetaData(), Column("id", Integer, primary_key=True))
    with articles.connect() as connection, pytest.raises(QueryError, match="expected lists of keys"):
        merge_duplicates(connection, groups, of=table)


def test_what_is_no_session(articles):
    groups = keep_list(ITEM.c.vector, min_score=0.9)
    asynchronous = AsyncSession()
    for call in (
        lambda session: merge_duplicates(session, groups),
        lambda session: suggest_threshold(session, ITEM.c.vector),
        lambda session: evaluate(session, ITEM.c.vector, label=ITEM.c.id),
    ):
        with pytest.raises(QueryError, match="expected a Session or a Connection, got Engine"):
            call(articles)
        with pytest.raises(QueryError, match=r"await session.run_sync\(lambda session: "):
            call(asynchronous)


def test_a_scoped_session(articles):
    table = Table("article", MetaData(), Column("id", Integer, primary_key=True))
    session = scoped_session(sessionmaker(articles))
    merge_duplicates(session, [[1, 2]], of=table, dry_run=False)
    assert session.execute(text("SELECT id FROM article")).all() == [(1,)]
    session.remove()


def test_a_schema_that_is_translated(articles):
    execute(
        articles,
        'CREATE SCHEMA "A Tenant"',
        'CREATE TABLE "A Tenant".article (id integer PRIMARY KEY)',
        'INSERT INTO "A Tenant".article VALUES (1), (2)',
    )
    table = Table("article", MetaData(), Column("id", Integer, primary_key=True))
    with articles.begin() as connection:
        connection.execution_options(schema_translate_map={None: "A Tenant"})
        merge_duplicates(connection, [[1, 2]], of=table, dry_run=False)
    assert rows(articles, "SELECT id FROM article ORDER BY 1") == [(1,), (2,)]
    assert rows(articles, 'SELECT id FROM "A Tenant".article') == [(1,)]


def test_a_key_of_another_form_is_an_error(articles):
    for key in ({"id": "x"}, {"id": [1]}):
        with articles.connect() as connection, pytest.raises(DBAPIError, match="invalid input syntax"):
            connection.execute(
                text(
                    "SELECT * FROM pgembed.merge_duplicates('article', ARRAY[CAST(:key AS jsonb)], "
                    "ARRAY[CAST(:key AS jsonb)])"
                ),
                {"key": json.dumps(key)},
            )
