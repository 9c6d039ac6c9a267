"""merge_duplicates beside other writers, and cut off: nothing is lost, nothing is half-written."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pgembed.exc import sqlstate
from tests.tables import execute, rows

DEADLOCK, LOCK_TIMEOUT, NO_ROW = "40P01", "55P03", "P0002"


@pytest.fixture
def notes(engine):
    """Articles, the notes that refer to them and would go with them."""
    execute(
        engine,
        "CREATE TABLE article (id integer PRIMARY KEY, title text)",
        "CREATE TABLE note (id integer PRIMARY KEY, article_id integer REFERENCES article ON DELETE CASCADE)",
        "INSERT INTO article SELECT n, 'a' FROM generate_series(1, 4) AS n",
        "INSERT INTO note SELECT n, n FROM generate_series(1, 4) AS n",
    )
    return engine


@pytest.fixture
def aside():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def merge(connection, into, *, dry_run=False):
    return connection.execute(
        text(
            "SELECT * FROM pgembed.merge_duplicates('article', CAST(:dropped AS jsonb[]), "
            "CAST(:kept AS jsonb[]), :dry_run)"
        ),
        {
            "dropped": [json.dumps({"id": key}) for key in into],
            "kept": [json.dumps({"id": key}) for key in into.values()],
            "dry_run": dry_run,
        },
    ).all()


def merge_alone(engine, into, isolation="READ COMMITTED", *before):
    with engine.connect().execution_options(isolation_level=isolation) as connection, connection.begin():
        for statement in before:
            connection.execute(text(statement))
        return merge(connection, into)


def write(connection, statement):
    connection.execute(text(statement))


def write_alone(engine, statement):
    with engine.begin() as connection:
        write(connection, statement)


def pid_of(connection):
    return connection.scalar(text("SELECT pg_backend_pid()"))


def until_one_waits(engine, number=1):
    """Until that many sessions wait for a lock of another."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    end = time.monotonic() + 60
    while rows(engine, waiting) != [(number,)]:
        assert time.monotonic() < end, "nobody waits"
        time.sleep(0.01)


def contents(engine):
    return {table: rows(engine, f"SELECT * FROM {table} ORDER BY id") for table in ("article", "note")}


def code(future):
    with pytest.raises(DBAPIError) as caught:
        future.result()
    return sqlstate(caught.value)


def test_a_reference_that_is_written_before_a_merge_follows(notes, aside):
    with notes.connect() as writer:
        write(writer, "INSERT INTO note VALUES (5, 2)")
        merging = aside.submit(merge_alone, notes, {2: 1})
        until_one_waits(notes)
        writer.commit()
    assert ("public.note", "note_article_id_fkey", "moved", 2) in merging.result()
    assert contents(notes)["note"] == [(1, 1), (2, 1), (3, 3), (4, 4), (5, 1)]


def test_a_reference_that_is_written_after_a_merge_is_refused(notes, aside):
    with notes.connect() as merging:
        merge(merging, {2: 1})
        writing = aside.submit(write_alone, notes, "INSERT INTO note VALUES (5, 2)")
        edit = aside.submit(write_alone, notes, "UPDATE article SET title = 'b' WHERE id = 1")
        until_one_waits(notes, 2)
        merging.commit()
    assert code(writing) == "23503"
    edit.result()
    assert contents(notes)["article"] == [(1, "b"), (3, "a"), (4, "a")]
    assert contents(notes)["note"] == [(1, 1), (2, 1), (3, 3), (4, 4)]


def test_a_reference_that_the_snapshot_does_not_show_is_not_deleted_with_its_row(notes):
    with notes.connect().execution_options(isolation_level="REPEATABLE READ") as merging:
        merging.execute(text("SELECT 1"))
        write_alone(notes, "INSERT INTO note VALUES (5, 2)")
        before = contents(notes)
        with pytest.raises(DBAPIError) as caught:
            merge(merging, {2: 1})
        assert sqlstate(caught.value) == "40001"
    assert contents(notes) == before


def test_a_dropped_row_that_was_edited_since_the_search(notes):
    """A transaction that has searched at REPEATABLE READ does not drop what it has not seen."""
    with notes.connect().execution_options(isolation_level="REPEATABLE READ") as merging:
        merging.execute(text("SELECT 1"))
        write_alone(notes, "UPDATE article SET title = 'new' WHERE id = 2")
        before = contents(notes)
        with pytest.raises(DBAPIError) as caught:
            merge(merging, {2: 1})
        assert sqlstate(caught.value) == "40001"
    assert contents(notes) == before


@pytest.mark.parametrize(
    ("second", "expected", "left"),
    [({2: 3}, None, {1: 1, 2: 1, 3: 3, 4: 4}), ({4: 2}, NO_ROW, {1: 1, 2: 1, 3: 3, 4: 4})],
)
def test_two_merges_of_groups_that_overlap(notes, aside, second, expected, left):
    with notes.connect() as first:
        merge(first, {2: 1})
        other = aside.submit(merge_alone, notes, second)
        until_one_waits(notes)
        first.commit()
    if expected is None:
        assert other.result() == [("public.article", None, "deleted", 0)]
    else:
        assert code(other) == expected
    assert dict(map(tuple, contents(notes)["note"])) == left


def test_a_deadlock_ends_one_of_the_two(notes, aside):
    """The writer has the notes and wants the articles, the merge has the articles and wants the notes."""
    before = contents(notes)
    with notes.connect() as writer:
        write(writer, "INSERT INTO note VALUES (5, 2)")
        merging = aside.submit(merge_alone, notes, {2: 1})
        until_one_waits(notes)
        refused = None
        try:
            write(writer, "UPDATE article SET title = 'b' WHERE id = 1")
            writer.commit()
        except DBAPIError as error:
            refused = sqlstate(error)
            writer.rollback()
    if refused is None:
        assert code(merging) == DEADLOCK
        assert contents(notes)["note"] == [*before["note"], (5, 2)]
        assert contents(notes)["article"][0] == (1, "b")
    else:
        assert refused == DEADLOCK
        merging.result()
        assert contents(notes)["note"] == [(1, 1), (2, 1), (3, 3), (4, 4)]


def test_a_merge_waits_no_longer_than_lock_timeout(notes):
    before = contents(notes)
    with notes.connect() as writer:
        write(writer, "UPDATE note SET article_id = 3 WHERE id = 4")
        with pytest.raises(DBAPIError) as caught:
            merge_alone(notes, {2: 1}, "READ COMMITTED", "SET LOCAL lock_timeout = '20ms'")
        assert sqlstate(caught.value) == LOCK_TIMEOUT
        writer.rollback()
    assert contents(notes) == before


def test_a_dry_run_lets_go_of_its_locks(notes):
    with notes.connect() as connection:
        merge(connection, {2: 1}, dry_run=True)
        held = text(
            "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'ShareRowExclusiveLock' "
            "AND relation IN (CAST('article' AS regclass), CAST('note' AS regclass))"
        )
        assert connection.scalar(held) == 0
        merge(connection, {2: 1})
        assert connection.scalar(held) == 2


def test_a_connection_that_is_killed_half_way(notes, aside):
    """The notes have moved, and the article is about to be deleted."""
    execute(
        notes,
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN OLD; END'",
        "CREATE TRIGGER wait BEFORE DELETE ON article FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    before = contents(notes)
    with notes.connect() as blocking, notes.connect() as killed:
        write(blocking, "SELECT pg_advisory_xact_lock(1)")
        pid = pid_of(killed)
        merging = aside.submit(merge, killed, {2: 1})
        until_one_waits(notes)
        assert rows(notes, f"SELECT pg_terminate_backend({pid}, 60000)") == [(True,)]
        with pytest.raises(DBAPIError):
            merging.result()
        killed.invalidate()
        assert contents(notes) == before
        # It holds no lock any more.
        write_alone(notes, "UPDATE note SET article_id = 3 WHERE id = 2")


def test_a_foreign_key_that_is_made_while_the_merge_waits(notes, aside):
    with notes.connect() as maker, notes.connect() as connection:
        write(maker, "CREATE TABLE tag (article_id integer REFERENCES article ON DELETE CASCADE)")
        write(maker, "INSERT INTO tag VALUES (2)")
        merging = aside.submit(merge, connection, {2: 1})
        until_one_waits(notes)
        maker.commit()
        assert ("public.tag", "tag_article_id_fkey", "moved", 1) in merging.result()
        writing = aside.submit(write_alone, notes, "INSERT INTO tag VALUES (2)")
        until_one_waits(notes)
        locked = rows(notes, "SELECT CAST(relation AS regclass) FROM pg_locks WHERE NOT granted")
        connection.commit()
    assert locked == [("tag",)]
    assert code(writing) == "23503"
    assert rows(notes, "SELECT * FROM tag") == [(1,)]
