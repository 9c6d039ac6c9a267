"""``unique_within=``: what the trigger refuses, for whom, and under whatever concurrency."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import Engine, create_engine, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import HNSW, Vector, embedding_column
from pgembed.exc import DeclarationError, DuplicateMeaningError, NotInstalledError
from pgembed.filling import backfill
from pgembed.testing import HashEncoder

ENCODER = HashEncoder(8)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str | None]
    body: Mapped[str | None]
    embedding: Mapped[Vector | None] = embedding_column(
        "body",
        encoder=ENCODER,
        index=HNSW(build="immediate"),
        unique_within=0.9,
        unique_per=["tenant"],
    )


class Slow(Base):
    """Filled by a worker; its key has two columns, and its vectors are stored out of line."""

    __tablename__ = "Slow Note"
    part: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str | None]
    embedding: Mapped[Vector | None] = embedding_column(
        "body", encoder=HashEncoder(1200), fill="worker", metric="l2", unique_within=0.9, type="halfvec"
    )


@pytest.fixture(autouse=True)
def tables(engine: Engine) -> None:
    Base.metadata.create_all(engine)


def unit(angle: float) -> np.ndarray:
    """A vector whose cosine with that of 0 is the angle's."""
    return np.array([np.cos(angle), np.sin(angle), *[0] * 6], dtype=np.float32)


def test_a_flush_of_a_duplicate_names_the_other(session: Session) -> None:
    session.add(Note(id=7, body="a"))
    session.commit()
    session.add(Note(id=8, body="a"))
    with pytest.raises(DuplicateMeaningError, match="means the same as row 7") as caught:
        session.flush()
    session.rollback()
    assert (caught.value.key, caught.value.score) == (7, pytest.approx(1))
    assert isinstance(caught.value, IntegrityError)
    again = pickle.loads(pickle.dumps(DuplicateMeaningError(7, 1.0, IntegrityError("s", {}, ValueError()))))
    assert (again.key, again.score, again.statement) == (7, 1.0, "s")
    session.add(Note(id=8, body="b"))
    session.commit()
    assert session.scalars(select(Note.id).order_by(Note.id)).all() == [7, 8]


def test_the_score_decides_and_no_index(session: Session) -> None:
    """1,000 rows of another tenant are nearer; a search of the index would find only those."""
    session.execute(
        text(
            "INSERT INTO note (id, tenant, body, embedding) SELECT 1000 + n, n, 'x', CAST(:v AS vector) "
            "FROM generate_series(1, 1000) AS n"
        ),
        {"v": str(unit(0).tolist())},
    )
    add = insert(Note.__table__)
    near, far = float(np.arccos(0.91)), float(np.arccos(0.89))
    session.execute(add, {"id": 1, "tenant": "t", "embedding": unit(near)})
    session.execute(add, {"id": 2, "tenant": "t", "embedding": unit(near + far)})
    session.commit()
    for way in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):  # all that is left is the index
        session.execute(text(f"SET LOCAL {way} = off"))
    with pytest.raises(DuplicateMeaningError) as caught:
        session.execute(add, {"id": 3, "tenant": "t", "embedding": unit(0)})
    assert (caught.value.key, round(caught.value.score, 4)) == (1, 0.91)


def test_rows_of_one_statement_are_compared_with_each_other(session: Session) -> None:
    session.add_all([Note(body="a"), Note(body="b"), Note(body="a")])
    with pytest.raises(DuplicateMeaningError):
        session.flush()


def test_tenants_are_apart_and_those_without_are_one(session: Session) -> None:
    session.add_all(
        [Note(id=1, tenant="t", body="a"), Note(id=2, tenant="u", body="a"), Note(id=3, body="a")]
    )
    session.commit()
    session.add(Note(id=4, body="a"))
    with pytest.raises(DuplicateMeaningError) as caught:
        session.flush()
    assert caught.value.key == 3
    session.rollback()
    with pytest.raises(DuplicateMeaningError) as caught:
        session.execute(update(Note).where(Note.id == 1).values(tenant="u"))
    assert caught.value.key == 2


def test_updates_and_null_vectors(session: Session) -> None:
    session.add_all([Note(id=1, body="a"), Note(id=2, body="b"), Note(id=3), Note(id=4)])
    session.commit()
    first, second = session.get_one(Note, 1), session.get_one(Note, 2)
    first.body = "c"
    session.commit()
    second.body = "a"  # which nobody has any more
    session.commit()
    session.execute(text("UPDATE note SET embedding = embedding WHERE id = 1"))  # itself does not count
    second.body = "c"
    with pytest.raises(DuplicateMeaningError) as caught:
        session.flush()
    assert caught.value.key == 1


def test_a_statement_of_sql(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(Note(id=1, body="a"))
    raw = engine.raw_connection()
    try:
        with pytest.raises(engine.dialect.loaded_dbapi.IntegrityError) as caught:
            raw.cursor().execute("INSERT INTO note (id, embedding) SELECT 2, embedding FROM note")
        assert caught.value.sqlstate == "23PGE"
        assert caught.value.diag.constraint_name == "pgembed_guard_embedding"
    finally:
        raw.close()


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_other_drivers(engine: Engine, driver: str) -> None:
    with Session(engine) as session, session.begin():
        session.add(Note(id=1, body="a"))
    url = engine.url.set(drivername=f"postgresql+{driver}")
    copy = text("INSERT INTO note (id, embedding) SELECT 2, embedding FROM note")

    async def run_async() -> None:
        other = create_async_engine(url)
        try:
            async with other.begin() as connection:
                await connection.execute(copy)
        finally:
            await other.dispose()

    def run() -> None:
        other = create_engine(url)
        try:
            with other.begin() as connection:
                connection.execute(copy)
        finally:
            other.dispose()

    with pytest.raises(DuplicateMeaningError) as caught:
        asyncio.run(run_async()) if driver == "asyncpg" else run()
    assert caught.value.key == 1


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_other_levels_of_isolation_are_refused(engine: Engine, level: str) -> None:
    strict = engine.execution_options(isolation_level=level)
    with Session(strict) as session, session.begin():
        session.add(Note(body=None))  # without a vector there is nothing to compare
    with Session(strict) as session:
        session.add(Note(body="a"))
        with pytest.raises(DBAPIError, match=f"READ COMMITTED only, found {level}"):
            session.flush()


def test_two_sessions_race_and_one_waits_for_the_other(engine: Engine) -> None:
    raised: list[Exception] = []

    def other() -> None:
        with Session(engine) as session:
            session.add(Note(id=2, body="a"))
            try:
                session.commit()
            except DuplicateMeaningError as error:
                raised.append(error)

    with Session(engine) as session:
        session.add(Note(id=1, body="a"))
        session.flush()
        thread = threading.Thread(target=other)
        thread.start()
        with engine.connect() as connection:
            waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            while thread.is_alive() and not connection.scalar(waits):
                connection.commit()
        session.add(Note(id=3, tenant="t", body="a"))  # another tenant's lock is free
        session.commit()
        thread.join()
    assert [error.key for error in raised] == [1]  # type: ignore[attr-defined]


def test_eight_writers(engine: Engine) -> None:
    refused = []

    def write(writer: int) -> None:
        for number in range(15):
            with Session(engine) as session:
                session.add(Note(body=f"text {(number * 7 + writer) % 15}"))
                try:
                    session.commit()
                except DuplicateMeaningError as error:
                    refused.append(error.key)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    pairs = text(
        "SELECT count(*) FROM note AS a JOIN note AS b ON a.id < b.id AND a.embedding <=> b.embedding <= 0.1"
    )
    with Session(engine) as session:
        kept = session.scalars(select(Note.id)).all()
        assert session.scalar(pairs) == 0
    assert len(kept) + len(refused) == 120
    assert set(refused) <= set(kept)
    vectors = ENCODER.encode_documents([f"text {n}" for n in range(15)])
    alike = (vectors @ vectors.T >= 0.9).sum()
    assert len(kept) == 15 if alike == 15 else len(kept) < 15


def test_a_duplicate_that_a_worker_fills_is_a_failure_of_its_row(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add_all(Slow(part=1, number=n, body=f"text {n % 5}") for n in range(6))
    counts = backfill(engine, Slow.embedding)
    assert (counts.written, counts.failed) == (5, 1)
    with engine.connect() as connection:
        error = connection.scalar(text("SELECT error FROM pgembed.failure"))
        left = connection.scalars(text('SELECT number FROM "Slow Note" WHERE embedding IS NULL')).all()
    other = next(n for n in (0, 5) if n not in left)
    assert f"means the same as row [1, {other}]" in str(error)
    with Session(engine) as session:
        vector = session.scalar(select(Slow.embedding).where(Slow.number == 3))
        with pytest.raises(DuplicateMeaningError) as caught:
            session.execute(insert(Slow.__table__), {"part": 2, "number": 1, "embedding": vector})
    assert caught.value.key == (1, 3)


def test_partitions_are_one_table(session: Session) -> None:
    session.execute(
        text("CREATE TABLE p (id int, v vector(2), PRIMARY KEY (id)) PARTITION BY RANGE (id)"),
    )
    for low in (0, 10):
        session.execute(text(f"CREATE TABLE p{low} PARTITION OF p FOR VALUES FROM ({low}) TO ({low + 10})"))
    session.execute(
        text(
            "CREATE TRIGGER g AFTER INSERT OR UPDATE OF v ON p FOR EACH ROW WHEN (NEW.v IS NOT NULL) "
            "EXECUTE FUNCTION pgembed.guard_meaning('0.9', 'cosine')"
        )
    )
    session.execute(text("ALTER TABLE p RENAME v TO w"))
    session.execute(text("INSERT INTO p VALUES (1, '[1,0]')"))
    with pytest.raises(DuplicateMeaningError) as caught:
        session.execute(text("INSERT INTO p VALUES (11, '[1,0]')"))
    assert caught.value.key == 1


def test_create_all_without_the_objects_of_pgembed(empty_url: str) -> None:
    engine = create_engine(empty_url)
    try:
        with pytest.raises(NotInstalledError, match="install"):
            Base.metadata.create_all(engine)
    finally:
        engine.dispose()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unique_within": 1.5}, "unique_within=1.5; expected a score of the metric cosine"),
        ({"unique_within": "0.9"}, "unique_within='0.9'"),
        ({"unique_within": 0.0, "metric": "l2"}, "above 0 and up to 1"),
        ({"unique_within": -1}, "unique_within=-1 is the lowest score of the metric cosine"),
        ({"unique_within": float("inf"), "metric": "inner_product"}, "inner_product: finite numbers"),
        ({"unique_per": ["tenant"]}, "add a score"),
        ({"unique_within": 0.9, "unique_per": "tenant"}, "expected different names"),
    ],
)
def test_declarations(options: dict[str, object], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        embedding_column("body", encoder=ENCODER, **options)  # type: ignore[arg-type]


def test_a_tenant_that_is_no_column(engine: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    class Thing(Other):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        embedding: Mapped[Vector | None] = embedding_column(
            "body", encoder=ENCODER, unique_within=0.9, unique_per=["tenant"]
        )

    with pytest.raises(DeclarationError, match="unique_per names 'tenant'"):
        Other.metadata.create_all(engine)
