"""merge_duplicates: no reference is lost, unique keys hold, a dry run says what the real run does."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import Vector, embedding_column
from pgembed.columns.types import VectorType
from pgembed.exc import QueryError
from pgembed.queries import Merged, duplicate_groups, keep_list, merge_duplicates
from pgembed.testing import HashEncoder
from tests.tables import execute, rows

SCHEMA = """
CREATE TABLE article (id integer PRIMARY KEY, slug text UNIQUE, title text,
                      parent_id integer REFERENCES article, rank integer);
CREATE TABLE comment (article_id integer REFERENCES article ON DELETE CASCADE,
                      n integer, parent_n integer, body text, PRIMARY KEY (article_id, n),
                      FOREIGN KEY (article_id, parent_n) REFERENCES comment (article_id, n));
CREATE TABLE vote (id integer PRIMARY KEY, article_id integer, n integer, voter text,
                   UNIQUE (article_id, n, voter),
                   FOREIGN KEY (article_id, n) REFERENCES comment ON DELETE CASCADE);
CREATE TABLE link (one integer NOT NULL REFERENCES article ON DELETE CASCADE,
                   other integer NOT NULL REFERENCES article ON DELETE CASCADE,
                   note text, UNIQUE (one, other));
CREATE TABLE "By Slug" (id integer PRIMARY KEY, slug text REFERENCES article (slug)
                        DEFERRABLE INITIALLY DEFERRED, at text);
CREATE UNIQUE INDEX by_slug ON "By Slug" (lower(at), slug) WHERE at IS NOT NULL;
CREATE TABLE setting (article_id integer PRIMARY KEY REFERENCES article ON DELETE SET NULL, value text);
INSERT INTO article VALUES (1, 'a', 'one', NULL, 0), (2, 'b', 'one', 1, 0), (3, 'c', 'two', 2, 0),
                           (4, 'd', 'one', 3, 0), (5, 'e', 'two', 4, 0);
INSERT INTO comment VALUES (1, 1, NULL, 'a1'), (1, 2, 1, 'a2'), (2, 1, NULL, 'b1'), (2, 7, 1, 'b7'),
                           (2, 8, 7, 'b8'), (4, 9, NULL, 'd9'), (5, 7, NULL, 'e7');
INSERT INTO vote VALUES (1, 1, 1, 'ada'), (2, 2, 1, 'ada'), (3, 2, 1, 'bob'), (4, 2, 7, 'ada'),
                        (5, 2, 8, 'bob'), (6, 4, 9, 'eve'), (7, NULL, 1, 'nobody');
INSERT INTO link VALUES (1, 3, 'x'), (2, 3, 'y'), (3, 2, 'z'), (3, 4, 'w'), (2, 4, 'self'), (5, 2, 'v');
INSERT INTO "By Slug" VALUES (1, 'a', 'Noon'), (2, 'b', 'noon'), (3, 'd', 'night'), (4, 'b', NULL),
                             (5, 'd', NULL);
INSERT INTO setting VALUES (2, 'on'), (4, 'off'), (3, 'kept');
"""
TABLES = ("article", "comment", "vote", "link", '"By Slug"', "setting")
#: 2 and 4 into 1, 5 into 3.
DROPPED, KEPT = [2, 4, 5], [1, 1, 3]


def contents(engine):
    return {table: {tuple(row) for row in rows(engine, f"SELECT * FROM {table}")} for table in TABLES}


def merge(engine, dropped=DROPPED, kept=KEPT, *, dry_run=False, table="article"):
    with engine.begin() as connection:
        return [
            tuple(row)
            for row in connection.execute(
                text(
                    "SELECT * FROM pgembed.merge_duplicates(CAST(:table AS regclass), "
                    "CAST(:dropped AS jsonb[]), CAST(:kept AS jsonb[]), :dry_run)"
                ),
                {
                    "table": table,
                    "dropped": [json.dumps({"id": key}) for key in dropped],
                    "kept": [json.dumps({"id": key}) for key in kept],
                    "dry_run": dry_run,
                },
            )
        ]


@pytest.fixture
def library(engine):
    execute(engine, *(statement for statement in SCHEMA.split(";") if statement.strip()))
    return engine


def test_every_reference_follows(library):
    merge(library)
    found = contents(library)
    assert {row[0] for row in found["article"]} == {1, 3}
    # 3 referred to 2, which is 1 now; 1 refers to none.
    assert {row[0]: row[3] for row in found["article"]} == {1: None, 3: 1}
    # The first comments of 1 and 2 have one key: that of 2 goes into that of 1, with its answers and votes.
    assert found["comment"] == {
        (1, 1, None, "a1"),
        (1, 2, 1, "a2"),
        (1, 7, 1, "b7"),
        (1, 8, 7, "b8"),
        (1, 9, None, "d9"),
        (3, 7, None, "e7"),
    }
    assert found["vote"] == {
        (1, 1, 1, "ada"),
        (3, 1, 1, "bob"),
        (4, 1, 7, "ada"),
        (5, 1, 8, "bob"),
        (6, 1, 9, "eve"),
        (7, None, 1, "nobody"),
    }
    assert {row[:2] for row in found["link"]} == {(1, 3), (3, 1), (1, 1)}
    assert {row[:2] for row in found['"By Slug"']} == {(1, "a"), (3, "a"), (4, "a"), (5, "a")}
    assert found["setting"] == {(1, "on"), (3, "kept")}


def test_a_dry_run_changes_nothing_and_says_what_the_real_run_does(library):
    before = contents(library)
    dry = merge(library, dry_run=True)
    assert contents(library) == before
    assert merge(library) == dry
    after = contents(library)
    said = dict.fromkeys(TABLES, 0)
    for name, _, action, count in dry:
        table = name.removeprefix("public.")
        assert action in ("moved", "cleared", "merged", "deleted")
        said[table] += count if action in ("merged", "deleted") else 0
    lost = {table: len(before[table]) - len(after[table]) for table in TABLES}
    assert said == lost
    assert ("public.article", None, "deleted", 3) in dry
    assert ("public.comment", "public.comment_pkey", "merged", 1) in dry


def test_nothing_refers_to_a_dropped_row_whatever_the_graph(library):
    """Rows at random: what is left fulfils all constraints, and each row of before is there or was merged."""
    import random

    chance = random.Random(5)
    execute(library, "TRUNCATE article CASCADE")
    with library.begin() as connection:
        for key in range(60):
            connection.execute(
                text("INSERT INTO article VALUES (:id, :slug, 't', :parent, 0)"),
                {"id": key, "slug": f"s{key}", "parent": chance.randrange(key) if key else None},
            )
            for n in range(chance.randrange(5)):
                connection.execute(
                    text("INSERT INTO comment VALUES (:id, :n, :parent, 'c')"),
                    {"id": key, "n": n, "parent": chance.randrange(n) if n else None},
                )
                for voter in range(chance.randrange(3)):
                    connection.execute(
                        text("INSERT INTO vote VALUES (:key, :id, :n, :voter)"),
                        {"key": key * 100 + n * 10 + voter, "id": key, "n": n, "voter": f"v{voter}"},
                    )
        for _ in range(200):
            connection.execute(
                text("INSERT INTO link VALUES (:one, :other, 'l') ON CONFLICT DO NOTHING"),
                {"one": chance.randrange(60), "other": chance.randrange(60)},
            )
    into = {key: chance.randrange(20) for key in range(20, 60)}
    before = contents(library)
    dry = merge(library, list(into), list(into.values()), dry_run=True)
    assert contents(library) == before
    assert merge(library, list(into), list(into.values())) == dry
    after = contents(library)

    def to(key):
        return into.get(key, key)

    assert {row[0] for row in after["article"]} == set(range(20))
    assert {row[:2] for row in after["comment"]} == {(to(row[0]), row[1]) for row in before["comment"]}
    assert {row[1:] for row in after["vote"]} == {(to(row[1]), *row[2:]) for row in before["vote"]}
    assert {row[:2] for row in after["link"]} == {(to(row[0]), to(row[1])) for row in before["link"]}
    assert len(after["vote"]) == len({row[1:] for row in after["vote"]})


def test_a_failure_half_way_changes_nothing(library):
    execute(
        library,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END$$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON setting FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    before = contents(library)
    for dry_run in (True, False):
        with pytest.raises(DBAPIError, match="no"):
            merge(library, dry_run=dry_run)
        assert contents(library) == before


def test_a_deferred_constraint_is_checked_at_once_and_deferred_again(library):
    execute(
        library,
        "CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN UPDATE \"By Slug\" SET slug = 'd' WHERE id = 1; RETURN NULL; END$$",
        "CREATE TRIGGER away AFTER DELETE ON article FOR EACH STATEMENT EXECUTE FUNCTION away()",
    )
    before = contents(library)
    with pytest.raises(DBAPIError, match="By Slug"):
        merge(library, dry_run=True)
    assert contents(library) == before
    execute(library, "DROP TRIGGER away ON article")
    with library.begin() as connection:
        connection.execute(
            text(
                "SELECT * FROM pgembed.merge_duplicates('article', ARRAY['{\"id\"\\: 2}'\\:\\:jsonb], "
                "ARRAY['{\"id\"\\: 1}'\\:\\:jsonb], false)"
            )
        )
        connection.execute(text("""UPDATE "By Slug" SET slug = 'later' WHERE id = 1"""))
        connection.execute(text("""UPDATE "By Slug" SET slug = 'a' WHERE id = 1"""))


def test_partitions_and_names_that_need_quotes(engine):
    execute(
        engine,
        'CREATE TABLE "My Article" (id integer PRIMARY KEY)',
        'CREATE TABLE "Its Part" ("the Article" integer REFERENCES "My Article", "on" integer, '
        'UNIQUE ("the Article", "on")) PARTITION BY RANGE ("on")',
        'CREATE TABLE low PARTITION OF "Its Part" FOR VALUES FROM (0) TO (10)',
        'CREATE TABLE high PARTITION OF "Its Part" FOR VALUES FROM (10) TO (20)',
        'INSERT INTO "My Article" VALUES (1), (2)',
        'INSERT INTO "Its Part" VALUES (1, 1), (2, 1), (2, 2), (2, 12)',
    )
    merge(engine, [2], [1], table='"My Article"')
    assert set(map(tuple, rows(engine, 'SELECT * FROM "Its Part"'))) == {(1, 1), (1, 2), (1, 12)}
    assert rows(engine, 'SELECT * FROM "My Article"') == [(1,)]


@pytest.mark.parametrize(
    ("dropped", "kept", "message"),
    [
        ([2, 1], [1, 3], r'row \{"id": 1\} is to be dropped twice, or dropped and kept'),
        ([2, 2], [1, 3], "dropped twice"),
        ([2], [2], "dropped and kept"),
        ([2], ["2"], "dropped and kept"),
        ([2], [77], r'has no row \{"id": 77\}, which is to be kept'),
        ([2, 4], [1], "found 2 keys of dropped rows and 1 of kept ones"),
    ],
)
def test_what_cannot_be_merged(library, dropped, kept, message):
    before = contents(library)
    with pytest.raises(DBAPIError, match=message):
        merge(library, dropped, kept)
    assert contents(library) == before


def test_rows_that_are_gone_already(library):
    assert merge(library, [99], [1]) == [("public.article", None, "deleted", 0)]
    assert merge(library, [], []) == [("public.article", None, "deleted", 0)]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    title: Mapped[str]
    embedding: Mapped[Vector | None] = embedding_column("title", encoder=HashEncoder(8))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}  # noqa: RUF012


class Book(Item):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
    pages: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012


class Review(Base):
    __tablename__ = "review"
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))


@pytest.fixture
def shop(engine):
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield filled(session)


def filled(session):
    session.add_all(Book(id=n, title="abca"[n - 1], pages=n) for n in (1, 2, 3, 4))
    session.flush()
    session.add_all(Review(id=n, book_id=n) for n in (1, 2, 3, 4))
    session.commit()
    return session


MERGED = [
    Merged("public.review", "review_book_id_fkey", "moved", 1),
    Merged("public.book", "public.book_pkey", "merged", 1),
    Merged("public.item", None, "deleted", 1),
]


@pytest.mark.parametrize("form", ["keep list", "groups", "keys"])
def test_statements_and_keys_are_merged_and_hierarchies_whole(shop, form):
    options = {}
    kept, gone = 1, 4
    if form == "keep list":
        kept, gone = 4, 1
        groups = keep_list(Book.embedding, min_score=0.99, keep=Book.pages.desc())
    elif form == "groups":
        groups = duplicate_groups(Item.embedding, min_score=0.99)
    else:
        groups, options = [[1, 4], [2]], {"of": Item}
    book = shop.get(Book, kept)
    review = shop.get(Review, gone)
    assert merge_duplicates(shop, groups, **options) == MERGED
    assert shop.scalars(select(Item.id).order_by(Item.id)).all() == [1, 2, 3, 4]
    assert merge_duplicates(shop, groups, dry_run=False, **options) == MERGED
    assert review.book_id == kept
    assert book.pages == kept
    left = sorted({1, 2, 3, 4} - {gone})
    assert shop.scalars(select(Book.id).order_by(Book.id)).all() == left


def test_composite_keys_and_what_are_no_groups(engine):
    part = Table(
        "part",
        MetaData(),
        Column("document", String, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("vector", VectorType(2)),
    )
    part.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(
            part.insert(),
            [
                {"document": "a", "number": n, "vector": vector}
                for n, vector in enumerate([[1, 0], [0, 1], [1, 0]])
            ],
        )
        found = merge_duplicates(connection, keep_list(part.c.vector, min_score=0.9), dry_run=False)
        assert found == [Merged("public.part", None, "deleted", 1)]
        found = merge_duplicates(connection, [[("a", 1), ["a", 0]]], of=part)
        assert found == [Merged("public.part", None, "deleted", 1)]
        for groups, options, message in (
            ([["a", "b"]], {"of": part}, "found the key 'b'; expected values of document, number"),
            ([[1, 2]], {}, "expected keep_list"),
            ("ab", {"of": part}, "expected keep_list"),
            ([[1, 2]], {"of": "part"}, "of='part'; expected a mapped class or a table"),
            (keep_list(part.c.vector, min_score=0.9), {"of": part}, "the statement knows its table"),
            ([], {"of": part, "dry_run": None}, "dry_run=None"),
        ):
            with pytest.raises(QueryError, match=message):
                merge_duplicates(connection, groups, **options)
