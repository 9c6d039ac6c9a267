"""``unique_within=`` with ``on_duplicate="return"``: rows that mean the same as another are linked to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import Vector, embedding_column
from pgembed.columns import embeddings_of
from pgembed.exc import DeclarationError
from pgembed.filling import backfill
from pgembed.filling.targets import Target, find_targets
from pgembed.testing import HashEncoder

ENCODER = HashEncoder(8)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str | None]
    slug: Mapped[str | None] = mapped_column(unique=True)
    body: Mapped[str | None]
    duplicate_of_id: Mapped[int | None] = mapped_column(ForeignKey("note.id", ondelete="SET NULL"))
    embedding: Mapped[Vector | None] = embedding_column(
        "body",
        encoder=ENCODER,
        unique_within=0.9,
        unique_per=["tenant"],
        on_duplicate="return",
        duplicate_of="duplicate_of_id",
    )


class Slow(Base):
    """Filled by a worker; its key has two columns, one of them text."""

    __tablename__ = "Slow Note"
    part: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str | None]
    of_part: Mapped[str | None]
    of_number: Mapped[int | None]
    embedding: Mapped[Vector | None] = embedding_column(
        "body",
        encoder=HashEncoder(1200),
        fill="worker",
        metric="l2",
        type="halfvec",
        unique_within=0.9,
        on_duplicate="return",
        duplicate_of=["of_part", "of_number"],
    )
    __table_args__ = (
        ForeignKeyConstraint(
            ["of_part", "of_number"], ["Slow Note.part", "Slow Note.number"], ondelete="SET NULL"
        ),
    )


@pytest.fixture(autouse=True)
def tables(engine: Engine) -> None:
    Base.metadata.create_all(engine)


def links(session: Session) -> dict[int, int | None]:
    """The link of each row that has no vector, and ``0`` of those that have one."""
    rows = session.execute(
        text("SELECT id, CASE WHEN embedding IS NULL THEN duplicate_of_id ELSE 0 END FROM note ORDER BY id")
    )
    return {row[0]: row[1] for row in rows}


def pending(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT sum(pending) FROM pgembed.status")) or 0)


def test_a_flush_of_a_duplicate_links_it(engine: Engine, session: Session) -> None:
    first, second = Note(id=7, body="a"), Note(id=8, body="a")
    session.add(first)
    session.commit()
    session.add(second)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    session.flush()
    assert second.duplicate_of_id == 7
    assert len(statements) == 1
    assert second.embedding is None
    assert len(statements) == 1
    given = Note(id=9, body="b", duplicate_of_id=7)
    session.add(given)
    session.flush()
    assert (given.duplicate_of_id, given.embedding is None) == (None, False)
    session.delete(given)
    session.commit()
    assert (first.duplicate_of_id, links(session)) == (None, {7: 0, 8: 7})
    assert pending(engine) == 0


def test_an_update_brings_the_link_back_with_eager_defaults(engine: Engine, session: Session) -> None:
    class Eager(DeclarativeBase):
        pass

    class Entry(Eager):
        __table__ = Note.__table__.to_metadata(Eager.metadata)
        __mapper_args__: ClassVar = {"eager_defaults": True}

    session.add_all([Entry(id=1, body="a"), Entry(id=2, body="b")])
    session.flush()
    second = session.get_one(Entry, 2)
    second.body = "a"
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    session.flush()
    assert (second.duplicate_of_id, second.embedding) == (1, None)
    assert len(statements) == 1


def test_a_changed_text_clears_the_link_or_sets_it(engine: Engine, session: Session) -> None:
    session.add_all([Note(id=1, body="a"), Note(id=2, body="a"), Note(id=3, body="b")])
    session.commit()
    assert links(session) == {1: 0, 2: 1, 3: 0}
    second, third = session.get_one(Note, 2), session.get_one(Note, 3)
    second.body, third.body = "c", "a"
    session.flush()
    assert (second.duplicate_of_id, third.duplicate_of_id, third.embedding) == (None, 1, None)
    assert second.embedding is not None
    session.commit()
    third.body = None
    session.commit()
    assert links(session) == {1: 0, 2: 0, 3: None}
    assert pending(engine) == 0


def test_of_rows_of_one_statement_the_first_stands(session: Session) -> None:
    add = insert(Note).returning(Note.id, Note.duplicate_of_id, sort_by_parameter_order=True)
    rows = [{"id": n, "body": "ab"[n % 2]} for n in range(1, 5)]
    assert session.execute(add, rows).all() == [(1, None), (2, None), (3, 1), (4, 2)]
    statement = text(
        "INSERT INTO note (id, body, embedding) SELECT 10 + n, 'x', '[1,0,0,0,0,0,0,0]' "
        "FROM generate_series(0, 3) AS n RETURNING id, duplicate_of_id"
    )
    assert session.execute(statement).all() == [(10, None), (11, 10), (12, 10), (13, 10)]


def test_copy(engine: Engine, session: Session) -> None:
    raw = engine.raw_connection()
    try:
        with raw.cursor().copy("COPY note (id, body, embedding) FROM STDIN") as copy:
            for n in (1, 2):
                copy.write_row((n, "x", "[1,0,0,0,0,0,0,0]"))
        raw.commit()
    finally:
        raw.close()
    assert links(session) == {1: 0, 2: 1}


def test_tenants_are_apart(engine: Engine, session: Session) -> None:
    session.add_all([Note(id=1, tenant="t", body="a"), Note(id=2, body="a"), Note(id=3, body="a")])
    session.commit()
    assert links(session) == {1: 0, 2: 0, 3: 2}
    session.execute(text("UPDATE note SET tenant = 't' WHERE id IN (2, 3)"))
    assert links(session) == {1: 0, 2: 1, 3: None}  # the link named a row of another tenant
    session.commit()
    assert pending(engine) == 1
    backfill(engine, Note.embedding)
    assert links(session) == {1: 0, 2: 1, 3: 1}


def test_links_point_to_rows_with_vectors(session: Session) -> None:
    session.add_all([Note(id=n, body="a") for n in (1, 2, 3)])
    session.commit()
    assert links(session) == {1: 0, 2: 1, 3: 1}
    session.get_one(Note, 1).body = "b"
    session.flush()
    session.add(Note(id=4, body="a"))
    session.flush()
    session.add(Note(id=5, body="a"))
    session.commit()
    assert links(session) == {1: 0, 2: 1, 3: 1, 4: 0, 5: 4}  # 2 and 3 keep theirs until they are written


def test_when_the_standing_row_goes_the_others_are_pending(engine: Engine, session: Session) -> None:
    session.add_all([Note(id=n, body="a") for n in (1, 2, 3)])
    session.commit()
    session.execute(text("DELETE FROM note WHERE id = 1"))
    session.commit()
    assert pending(engine) == 2
    counts = backfill(engine, Note.embedding)
    assert (counts.written, counts.failed) == (2, 0)
    assert sorted(map(str, links(session).values())) in (["0", "2"], ["0", "3"])
    assert pending(engine) == 0


def test_what_is_written_into_the_link(engine: Engine, session: Session) -> None:
    session.add_all([Note(id=1, body="a"), Note(id=2, body="b"), Note(id=3, body="a")])
    session.add(Note(id=4, body="c", duplicate_of_id=1))
    session.commit()
    assert session.scalars(select(Note.duplicate_of_id).order_by(Note.id)).all() == [None, None, 1, None]
    session.execute(text("UPDATE note SET duplicate_of_id = 1 WHERE id = 2"))
    session.execute(text("UPDATE note SET duplicate_of_id = NULL WHERE id = 3"))
    session.commit()
    assert session.scalars(select(Note.duplicate_of_id).order_by(Note.id)).all() == [None, None, None, None]
    assert pending(engine) == 1
    session.execute(text("UPDATE note SET embedding = NULL, duplicate_of_id = 1 WHERE id = 2"))
    session.execute(text("UPDATE note SET duplicate_of_id = 3 WHERE id = 3"))  # to itself
    session.commit()
    assert links(session) == {1: 0, 2: 1, 3: None, 4: 0}
    session.execute(text("UPDATE note SET embedding_digest = gen_random_uuid() WHERE id = 2"))
    assert links(session) == {1: 0, 2: None, 3: None, 4: 0}  # nobody has compared that text


def test_dumped_rows_come_back_as_they_were(engine: Engine, session: Session) -> None:
    session.add_all([Note(id=1, body="a"), Note(id=2, body="a")])
    session.commit()
    session.execute(text("CREATE TEMP TABLE dumped AS SELECT * FROM note"))
    session.execute(text("DELETE FROM note"))
    session.execute(text("INSERT INTO note SELECT * FROM dumped ORDER BY id"))
    session.commit()
    assert links(session) == {1: 0, 2: 1}
    assert pending(engine) == 0


def test_upserts(engine: Engine, session: Session) -> None:
    session.add_all([Note(id=1, slug="a", body="a"), Note(id=2, slug="b", body="b"), Note(id=3, body="a")])
    session.commit()

    def put(key: str, **row: Any) -> None:
        statement = upsert(Note)
        excluded = {"body": statement.excluded.body}
        session.execute(statement.on_conflict_do_update(index_elements=[key], set_=excluded), row)
        session.commit()

    put("id", id=2, body="a")
    put("id", id=3, body="c")
    assert links(session) == {1: 0, 2: 1, 3: 0}
    assert pending(engine) == 0
    put("slug", id=9, slug="a", body="a")  # the row that it finds is the one that it becomes
    assert links(session) == {1: None, 2: 1, 3: 0}
    assert pending(engine) == 1
    backfill(engine, Note.embedding)
    assert links(session) == {1: 0, 2: 1, 3: 0}


def test_a_worker_links(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add_all(Slow(part="p", number=n, body=f"text {n % 3}") for n in range(6))
    counts = backfill(engine, Slow.embedding)
    assert (counts.written, counts.failed) == (6, 0)
    assert pending(engine) == 0
    found = select(Slow.number, Slow.of_part, Slow.of_number).where(Slow.embedding.is_(None))
    with Session(engine) as session, session.begin():
        linked = session.execute(found).all()
        assert len(linked) == 3
        assert all((n % 3, "p") == (of % 3, part) and n != of for n, part, of in linked)
        number = linked[0].number
        session.execute(text("UPDATE \"Slow Note\" SET body = 'new' WHERE number = :n"), {"n": number})
        session.execute(text('DELETE FROM "Slow Note" WHERE number = :n'), {"n": linked[1].of_number})
    assert pending(engine) == 2
    with engine.connect() as connection:
        (target,) = (each for each in find_targets(connection) if "Slow" in each.name)
    assert isinstance(target, Target)
    object.__setattr__(target.embedding.declaration, "encoder", HashEncoder(1200))
    backfill(engine, target)
    assert pending(engine) == 0
    with Session(engine) as session:
        assert len(session.execute(found).all()) == 1
        session.execute(text('UPDATE "Slow Note" SET body = NULL WHERE embedding IS NULL'))
        session.commit()
    backfill(engine, Slow.embedding)
    with Session(engine) as session:
        assert session.execute(found).all()[0][1:] == (None, None)


def test_another_encoder_links_anew(engine: Engine, session: Session) -> None:
    """In place: everything is pending, and rows that the new encoder tells apart get vectors."""

    class Few(HashEncoder):
        def encode_documents(self, texts: Any) -> Any:
            return super().encode_documents(["same" for _ in texts])

    def table(encoder: Any) -> Table:
        column = embedding_column(
            "body", name="v", encoder=encoder, unique_within=0.9, on_duplicate="return", duplicate_of="of"
        ).column
        key = Column("id", Integer, primary_key=True)
        return Table("few", MetaData(), key, Column("body", Text), Column("of", Integer), column)

    before, after = table(Few(4, "few")), table(HashEncoder(4, "many"))
    before.create(engine)
    session.execute(insert(before), [{"id": n, "body": f"text {n}"} for n in range(3)])
    session.commit()
    backfill(engine, before.c.v)
    assert session.scalar(text("SELECT count(*) FROM few WHERE of IS NOT NULL AND v IS NULL")) == 2
    session.execute(text("DROP INDEX ix_few_v_pending"))
    session.commit()
    (index,) = [each for each in after.indexes if each.name == "ix_few_v_pending"]
    index.create(engine)
    assert pending(engine) == 3
    backfill(engine, after.c.v)
    assert pending(engine) == 0
    assert session.scalar(text("SELECT count(*) FROM few WHERE of IS NULL AND v IS NOT NULL")) == 3


def test_partitions_and_policies(engine: Engine, session: Session) -> None:
    session.execute(
        text(
            "CREATE TABLE p (id int PRIMARY KEY, v vector(2), of int, v_digest uuid) PARTITION BY RANGE (id);"
            "CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (10);"
            "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (10) TO (20);"
            "CREATE TRIGGER g BEFORE INSERT OR UPDATE OF v, of, v_digest ON p FOR EACH ROW "
            "EXECUTE FUNCTION pgembed.guard_meaning('0.9', 'cosine', '1');"
            "ALTER TABLE p RENAME of TO same_as;"
            "INSERT INTO p VALUES (1, '[1,0]'), (11, '[1,0]'), (2, '[0,1]');"
            "UPDATE p SET id = 12, v = '[0,1]' WHERE id = 2"
        )
    )
    found = "SELECT id, v IS NULL, same_as FROM p ORDER BY id"
    assert session.execute(text(found)).all() == [(1, False, None), (11, True, 1), (12, False, None)]


def test_a_key_that_a_later_trigger_gives(session: Session) -> None:
    session.execute(
        text(
            "CREATE TABLE k (id int PRIMARY KEY, v vector(2), of int, v_digest uuid);"
            "CREATE FUNCTION numbered() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN NEW.id := (SELECT count(*) + 1 FROM k); RETURN NEW; END';"
            "CREATE TRIGGER guard BEFORE INSERT OR UPDATE OF v, of, v_digest ON k FOR EACH ROW "
            "EXECUTE FUNCTION pgembed.guard_meaning('0.9', 'cosine', '1');"
            "CREATE TRIGGER later BEFORE INSERT ON k FOR EACH ROW EXECUTE FUNCTION numbered();"
            "INSERT INTO k (v) VALUES ('[1,0]'), ('[0,1]'), ('[1,0]')"
        )
    )
    found = session.execute(text("SELECT id, v IS NULL, of FROM k ORDER BY id")).all()
    assert found == [(1, False, None), (2, False, None), (3, True, 1)]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_other_levels_of_isolation_are_refused(engine: Engine, level: str) -> None:
    strict = engine.execution_options(isolation_level=level)
    with Session(strict) as session, session.begin():
        session.add(Note(body=None))
    with Session(strict) as session:
        session.add(Note(body="a"))
        with pytest.raises(Exception, match=f"READ COMMITTED only, found {level}"):
            session.flush()


def test_twenty_writers(engine: Engine) -> None:
    crowd = create_engine(engine.url, pool_size=20)

    def write(writer: int) -> None:
        with Session(crowd) as session:
            for number in range(6):
                session.add(Note(body=f"text {(number * 7 + writer) % 15}"))
                session.commit()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(write, range(20)))
    crowd.dispose()
    near = "SELECT count(*) FROM note a JOIN note b ON a.id < b.id AND a.embedding <=> b.embedding <= 0.1"
    apart = (
        "SELECT count(*) FROM note AS d LEFT JOIN note AS s ON s.id = d.duplicate_of_id "
        "AND s.embedding IS NOT NULL WHERE d.embedding IS NULL AND (s.id IS NULL OR s.body <> d.body)"
    )
    with Session(engine) as session:
        rows, texts = session.execute(text("SELECT count(*), count(embedding) FROM note")).one()
        assert (rows, session.scalar(text(near)), session.scalar(text(apart))) == (120, 0, 0)
        assert texts == len({f"text {n}" for n in range(15)})


OF: dict[str, Any] = {"on_duplicate": "return", "duplicate_of": "of"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**OF}, "on_duplicate= is for unique_within="),
        ({"unique_within": 0.9, "on_duplicate": "return"}, "the column of the other row's key"),
        ({"unique_within": 0.9, "duplicate_of": "of"}, "the column of the other row's key"),
        ({"unique_within": 0.9, "on_duplicate": "keep"}, 'expected "raise" or "return"'),
        ({"unique_within": 0.9, "unique_per": ["of"], **OF}, "names a column of unique_per"),
        ({"unique_within": 0.9, "on_duplicate": "return", "duplicate_of": ["a", "a"]}, "different names"),
    ],
)
def test_declarations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        embedding_column("body", encoder=ENCODER, **options)


def test_a_link_of_two_columns() -> None:
    first, second = (
        embedding_column(
            "body", name=name, encoder=ENCODER, unique_within=0.9, on_duplicate="return", duplicate_of="of"
        ).column
        for name in ("first", "second")
    )
    key, of = Column("id", Integer, primary_key=True), Column("of", Integer)
    with pytest.raises(DeclarationError, match=r"is that of t\.first too"):
        Table("t", MetaData(), key, Column("body", Text), of, first, second)


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ([], "of", "'of', which is not a column"),
        ([Column("of", Integer, nullable=False)], "of", "can be NULL"),
        ([Column("of", Text)], "of", "has the type of 'id'"),
        ([Column("of", Integer), Column("other", Integer)], ["of", "other"], "one column for each"),
        ([], "body", "a column of its own"),
        ([], "id", "a column of its own"),
    ],
)
def test_columns_of_links(columns: list[Any], names: Any, message: str) -> None:
    column = embedding_column(
        "body", name="v", encoder=ENCODER, unique_within=0.9, on_duplicate="return", duplicate_of=names
    ).column
    items = (Column("id", Integer, primary_key=True), Column("body", Text), *columns, column)
    with pytest.raises(DeclarationError, match=message):
        embeddings_of(Table("t", MetaData(), *items))
