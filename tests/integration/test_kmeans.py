"""kmeans and write_labels: what scikit-learn says of the same vectors, written in whole batches."""

from __future__ import annotations

import sys
import uuid
from typing import ClassVar

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sqlalchemy import (
    BIGINT,
    Column,
    Computed,
    Enum,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    create_engine,
    event,
    insert,
    null,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column
from threadpoolctl import threadpool_limits

from pgembed import HNSW, Vector, embedding_column, kmeans, write_labels
from pgembed.columns.types import VectorType
from pgembed.exc import DimensionMismatchError, MissingExtraError, QueryError
from pgembed.queries import cluster, topics
from pgembed.testing import HashEncoder
from tests.integration.queries.conftest import store
from tests.tables import model

CLUSTERS, EACH = 6, 50


def table_of(*columns, storage="vector", key=Integer, **options):
    vector = Column("vector", VectorType(8, storage))
    return Table("item", MetaData(), Column("id", key, primary_key=True), vector, *columns, **options)


def planted(spread=0.1):
    """Six clusters of 45 to 55 rows, one after the other; of what lengths, cosine does not see."""
    rng = np.random.default_rng(3)
    points = np.linalg.qr(rng.standard_normal((8, 8)))[0][:CLUSTERS]
    own = np.repeat(np.arange(CLUSTERS), [55, 53, 51, 49, 47, 45])
    vectors = points[own] + spread * rng.standard_normal((len(own), 8))
    return own, vectors.astype(np.float32)


def directions(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def written(engine, table):
    with engine.connect() as connection:
        return connection.scalars(select(table.c.topic).order_by(*table.primary_key)).all()


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost seconds where tests share the cores."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def stored(engine):
    """The planted rows, with a topic that is NULL."""
    table = table_of(Column("topic", Integer))
    own, vectors = planted()
    store(engine, table, vectors)
    return table, own, vectors


@pytest.mark.parametrize(
    ("metric", "storage", "kind"), [("cosine", "vector", Integer), ("l2", "halfvec", Text)]
)
def test_labels_are_those_of_scikit_learn(engine, metric, storage, kind):
    table = table_of(Column("topic", kind), storage=storage)
    own, vectors = planted()
    if metric == "cosine":
        vectors *= np.linspace(0.5, 2, len(vectors), dtype=np.float32)[:, None]
    store(engine, table, vectors)
    steps = []
    found = kmeans(
        engine,
        table.c.vector,
        clusters=CLUSTERS,
        metric=metric,
        write=table.c.topic,
        batch_size=40,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    seen = vectors.astype(np.float16).astype(np.float32) if storage == "halfvec" else vectors
    seen = directions(seen) if metric == "cosine" else seen
    theirs = MiniBatchKMeans(CLUSTERS, n_init=1, random_state=0).fit(seen)
    theirs.cluster_centers_ = found.centers
    expected = theirs.predict(seen)
    labels = np.array([int(label) for label in written(engine, table)])
    assert (labels - 1 == expected).all()
    assert all(len(set(own[labels == label])) == 1 for label in range(1, CLUSTERS + 1))
    assert found.centers.dtype == np.float32
    assert found.sizes == tuple(np.bincount(expected)) == (55, 53, 51, 49, 47, 45)
    squares = np.square(seen - found.centers[expected]).sum(axis=1)
    assert found.inertia == pytest.approx(squares.mean(), rel=1e-5)
    assert (found.rows, found.changed, found.skipped) == (300, 300, 0)
    assert steps[-1] == (1500, 1500)
    assert steps == sorted(steps)
    again = kmeans(
        engine, table.c.vector, clusters=CLUSTERS, metric=metric, write=table.c.topic, batch_size=40
    )
    assert np.array_equal(again.centers, found.centers)
    assert again.changed == 0
    other = kmeans(engine, table.c.vector, clusters=CLUSTERS, metric=metric, batch_size=40, seed=1)
    assert not np.array_equal(other.centers, found.centers)


def test_rows_in_no_cluster_have_no_label(engine, stored):
    table, _, _ = stored
    empty = [{"id": 1000, "topic": 7, "vector": None}, {"id": 1001, "topic": 7, "vector": np.zeros(8)}]
    with engine.begin() as connection:
        connection.execute(insert(table), [*empty, {"id": 1002, "topic": 7, "vector": np.eye(8)[7]}])
    given = {"clusters": CLUSTERS, "write": table.c.topic, "where": table.c.id != 1002}
    tried = kmeans(engine, table.c.vector, **given, dry_run=True)
    assert set(written(engine, table)) == {None, 7}
    found = kmeans(engine, table.c.vector, **given)
    assert (tried.changed, tried.sizes) == (found.changed, found.sizes)
    assert (found.rows, found.changed, found.skipped) == (300, 302, 0)
    assert written(engine, table)[-3:] == [None, None, 7]
    zeros = kmeans(engine, table.c.vector, clusters=CLUSTERS, metric="l2")
    assert zeros.rows == 302


def test_copies_leave_clusters_empty(engine):
    table = table_of(Column("topic", Integer))
    store(engine, table, np.ones((10, 8)))
    with pytest.warns(UserWarning, match="distinct clusters"):
        found = kmeans(engine, table.c.vector, clusters=3, write=table.c.topic)
    assert (found.sizes, found.inertia) == ((10, 0, 0), pytest.approx(0, abs=1e-9))
    assert set(written(engine, table)) == {1}


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
async def test_other_drivers_in_the_callers_transaction(engine, stored, driver):
    table, _, _ = stored
    expected = kmeans(engine, table.c.vector, clusters=CLUSTERS)

    def work(session):
        found = kmeans(session, table.c.vector, clusters=CLUSTERS, write=table.c.topic, batch_size=100)
        assert (found.sizes, found.changed) == (expected.sizes, 300)
        assert None not in session.scalars(select(table.c.topic)).all()
        session.rollback()

    url = engine.url.set(drivername=f"postgresql+{driver}")
    if driver == "asyncpg":
        other = create_async_engine(url)
        async with AsyncSession(other) as session:
            with pytest.raises(QueryError, match=r"await session\.run_sync"):
                kmeans(session, table.c.vector)
            await session.run_sync(work)
        await other.dispose()
    else:
        other = create_engine(url)
        with Session(other) as session:
            work(session)
        assert kmeans(other, table.c.vector, clusters=6, write=table.c.topic, batch_size=70).changed == 300
        other.dispose()
    assert set(written(engine, table)) == ({None} if driver == "asyncpg" else set(range(1, 7)))


def before_writing(engine, act):
    """Call ``act`` with the number of a batch before it is written."""
    count = 0

    @event.listens_for(engine, "before_cursor_execute")
    def listen(connection, _cursor, statement, *_):
        nonlocal count
        if "UPDATE item SET" in statement:
            count += 1
            act(count, connection)


def test_rows_that_change_meanwhile_are_skipped(engine, stored):
    table, _, vectors = stored
    other = create_engine(engine.url)
    holder = other.connect()

    def act(number, _):
        if number == 2:  # the rows 100 to 199
            with other.begin() as connection:
                connection.execute(update(table).where(table.c.id == 110).values(vector=vectors[0]))
                connection.execute(table.delete().where(table.c.id == 120))
                connection.execute(update(table).where(table.c.id == 140).values(vector=vectors[140]))
            holder.execute(select(table.c.id).where(table.c.id == 130).with_for_update())

    before_writing(engine, act)
    found = kmeans(engine, table.c.vector, clusters=CLUSTERS, write=table.c.topic, batch_size=100)
    holder.close()
    other.dispose()
    assert (found.changed, found.skipped) == (297, 3)
    with engine.connect() as connection:
        rows = connection.scalars(select(table.c.id).where(table.c.topic.is_(None)).order_by(table.c.id))
        assert rows.all() == [110, 130]


def test_a_lost_connection_leaves_whole_batches(engine, stored):
    table, _, _ = stored

    def act(number, connection):
        if number == 3:
            pid = connection.connection.driver_connection.info.backend_pid
            other = create_engine(engine.url)
            with other.begin() as killing:
                killing.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
            other.dispose()

    before_writing(engine, act)
    with pytest.raises(DBAPIError):
        kmeans(engine, table.c.vector, clusters=CLUSTERS, write=table.c.topic, batch_size=60)
    assert [label is not None for label in written(engine, table)] == [True] * 120 + [False] * 180


def test_strange_names_and_keys_of_several_columns(engine):
    name, topic = 'my "item" %s', "the :topic%"
    mood = Enum("glad", "sad", name="mood")
    table = Table(
        name,
        MetaData(schema="odd schema"),
        Column("a key", Uuid, primary_key=True),
        Column("text;", Text, primary_key=True),
        Column("mood", mood, primary_key=True),
        Column("number", BIGINT, primary_key=True),
        Column('a "vector"', VectorType(8)),
        Column(topic, Text),
    )
    own, vectors = planted()
    rows = [
        {
            "a key": uuid.UUID(int=place // 3),
            "text;": f"it's {{{place % 3}}},\\ \"",
            "mood": ("glad", "sad")[place % 2],
            "number": 2**40 + place,
            'a "vector"': vector,
        }
        for place, vector in enumerate(vectors)
    ]
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "odd schema"'))
        table.create(connection)
        connection.execute(insert(table), rows)
    found = kmeans(engine, table.c['a "vector"'], clusters=CLUSTERS, write=table.c[topic], batch_size=31)
    assert (found.changed, found.skipped) == (300, 0)
    with engine.connect() as connection:
        labels = connection.execute(select(table.c.number, table.c[topic]).order_by(table.c.number)).all()
    assert all(len({label for label, of in zip(labels, own, strict=True) if of == each}) for each in own)
    by_topic = {(label, of) for (_, label), of in zip(labels, own, strict=True)}
    assert len(by_topic) == CLUSTERS
    some = cluster(table.c['a "vector"'], min_score=0.5, min_size=48)
    with engine.connect() as connection:
        expected = connection.execute(some).all()
    result = write_labels(engine, table.c['a "vector"'], some, write=table.c[topic], batch_size=70)
    assert (result.clusters, result.rows, result.skipped) == (4, len(expected), 0)
    with engine.connect() as connection:
        numbers = dict(connection.execute(select(table.c.number, table.c[topic])).all())
    assert {row.key[-1]: str(row.cluster) for row in expected} == {
        number: label for number, label in numbers.items() if label is not None
    }


def test_clusters_of_a_statement_are_written(engine, stored):
    table, _, _ = stored
    statement = cluster(table.c.vector, min_score=0.5, min_size=48)
    steps = []
    with engine.begin() as connection:
        connection.execute(update(table).values(topic=9))
        expected = {row.key: row.cluster for row in connection.execute(statement)}
    tried = write_labels(engine, table.c.vector, statement, write=table.c.topic, dry_run=True)
    assert set(written(engine, table)) == {9}
    found = write_labels(
        engine,
        table.c.vector,
        statement,
        write=table.c.topic,
        where=table.c.id >= 10,
        batch_size=200,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert (tried.clusters, tried.rows, tried.changed, tried.skipped) == (4, len(expected), 300, 0)
    rows = len(expected.keys() - set(range(10)))
    assert found.as_dict() == {"clusters": 4, "rows": rows, "changed": 290, "skipped": 0}
    assert steps == [(200, 290), (290, 290)]
    assert written(engine, table) == [9] * 10 + [expected.get(key) for key in range(10, 300)]
    again = write_labels(
        engine, table.c.vector, statement, write=table.c.topic, where=table.c.id >= 10, dry_run=True
    )
    assert again.changed == 0


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
def test_the_isolation_level_of_an_engine_does_not_matter(engine, stored, level):
    table, _, vectors = stored
    other = create_engine(engine.url)

    def act(number, _):
        if number == 1:
            with other.begin() as connection:
                connection.execute(update(table).where(table.c.id == 5).values(vector=vectors[-1]))

    before_writing(engine, act)
    isolated = engine.execution_options(isolation_level=level)
    found = kmeans(isolated, table.c.vector, clusters=CLUSTERS, write=table.c.topic)
    other.dispose()
    assert (found.changed, found.skipped) == (299, 1)


def test_clusters_found_through_an_index_are_written(engine):
    table = table_of(Column("topic", Integer), HNSW("vector", build="immediate"))
    _, vectors = planted(0.3)
    store(engine, table, vectors)
    statement = cluster(table.c.vector, min_score=0.7, min_size=5, mode="approximate")
    with engine.begin() as connection:
        expected = {row.key: row.cluster for row in connection.execute(statement)}
    found = write_labels(engine, table.c.vector, statement, write=table.c.topic)
    assert 0 < found.rows == len(expected) < 300
    assert written(engine, table) == [expected.get(key) for key in range(300)]


def test_labels_of_a_statement_skip_changed_rows(engine, stored):
    table, _, vectors = stored
    labels = select(table.c.id.label("key"), (table.c.id % 3).label("cluster"))
    other = create_engine(engine.url)

    def act(number, _):
        if number == 1:
            with other.begin() as connection:
                connection.execute(update(table).where(table.c.id == 250).values(vector=vectors[0]))

    before_writing(engine, act)
    found = write_labels(engine, table.c.vector, labels, write=table.c.topic, batch_size=200)
    other.dispose()
    assert (found.clusters, found.changed, found.skipped) == (3, 299, 1)
    assert written(engine, table) == [key % 3 if key != 250 else None for key in range(300)]


def test_a_class_with_a_base_table(engine, Base):
    class Doc(Base):
        __tablename__ = "doc"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        topic: Mapped[int | None]
        title: Mapped[str]
        embedding: Mapped[Vector | None] = embedding_column("title", encoder=HashEncoder(8))
        __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "doc"}

    class News(Doc):
        __tablename__ = "news"
        id: Mapped[int] = mapped_column(ForeignKey("doc.id"), primary_key=True)
        day: Mapped[int]
        __mapper_args__: ClassVar = {"polymorphic_identity": "news"}

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Doc(title=f"doc {n}") for n in range(5))
        session.add_all(News(title=f"news {n}", day=n) for n in range(5))
        session.commit()
        late = aliased(News)
        found = kmeans(session, late.embedding, clusters=2, write=News.topic, where=late.day > 1)
        assert (found.rows, found.changed) == (3, 3)
        rows = session.execute(select(Doc.kind, Doc.topic).order_by(Doc.id)).all()
        assert [topic is not None for _, topic in rows] == [False] * 7 + [True] * 3
        labels = select(News.id.label("key"), News.day.label("cluster"))
        assert write_labels(session, News.embedding, labels, write=Doc.topic).changed == 5
        assert session.scalars(select(News.topic).order_by(News.day)).all() == [0, 1, 2, 3, 4]


def test_entities_of_a_session(engine):
    encoder = HashEncoder(8)
    Article = model(encoder, index=HNSW())
    Article.topic = Column("topic", Integer)
    Article.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Article(title=title) for title in ["cats", "dogs"] * 10)
        session.flush()
        first = session.get(Article, 1)
        assert first.topic is None
        with pytest.warns(UserWarning, match="distinct clusters"):
            found = kmeans(session, Article.embedding, clusters=3, write=Article.topic, stale="exclude")
        assert found.sizes == (10, 10, 0)
        assert first.topic in (1, 2)
        labels = select(Article.topic.label("cluster"), Article.id.label("key"))
        rows = session.execute(topics(Article.embedding, labels, text=Article.title, words=1)).all()
        assert sorted((row.size, *row.words) for row in rows) == [(10, "cat"), (10, "dog")]
        session.rollback()
        assert session.scalars(select(Article.topic)).all() == []


def test_what_cannot_be_clustered(engine, stored):
    table, _, _ = stored
    vector = table.c.vector
    for build, message in (
        (lambda: kmeans(engine, vector, clusters=301), "has 300 rows .* at least clusters=301"),
        (lambda: kmeans(engine, vector, clusters=0), "clusters=0"),
        (lambda: kmeans(engine, vector, clusters=20, batch_size=19), "clusters=20; .* from 1 to 19"),
        (lambda: kmeans(engine, vector, passes=0), "passes=0"),
        (lambda: kmeans(engine, vector, seed=-1), "seed=-1"),
        (lambda: kmeans(engine, vector, metric="inner_product"), 'Pass metric="cosine"'),
        (lambda: kmeans(engine, vector, metric="l1"), "measured by l1"),
        (lambda: kmeans(engine, vector, stale="exclude"), "stale"),
        (lambda: kmeans("postgresql://", vector), "expected an Engine, a Session or a Connection"),
        (lambda: write_labels(None, vector, table, write=table.c.id), "expected an Engine"),
        (lambda: write_labels(engine, vector, table, write=table.c.topic), "columns cluster and key"),
    ):
        with pytest.raises(QueryError, match=message):
            build()
    bits = Table("bits", MetaData(), Column("id", Integer, primary_key=True), Column("v", BIT(8)))
    with pytest.raises(QueryError, match="is a bit column, whose values have no mean"):
        kmeans(engine, bits.c.v)
    once = select(table.c.id.label("key"), table.c.id.label("cluster"))
    twice = union_all(once, once.where(table.c.id == 5))
    with pytest.raises(QueryError, match="a row of the table twice"):
        write_labels(engine, vector, twice, write=table.c.topic)
    texts = select(table.c.id.label("key"), null().cast(Text).label("cluster"))
    with pytest.raises(QueryError, match=r"item\.topic holds whole numbers"):
        write_labels(engine, vector, texts, write=table.c.topic)


def test_columns_that_labels_are_not_written_to(engine):
    other = Table("other", MetaData(), Column("topic", Integer))
    table = table_of(
        Column("number", Float),
        Column("mood", Enum("glad", "sad", name="mood")),
        Column("needed", Integer, nullable=False),
        Column("doubled", Integer, Computed("id * 2")),
        Column("parent", Integer, ForeignKey("item.id")),
    )
    Article = model(HashEncoder(8))
    for subject, write, message in (
        (table.c.vector, table.c.number, "is of the type Float"),
        (table.c.vector, table.c.mood, "is of the type Enum"),
        (table.c.vector, table.c.needed, "is NOT NULL"),
        (table.c.vector, table.c.doubled, "is computed"),
        (table.c.vector, table.c.parent, "is part of a key"),
        (table.c.vector, table.c.id, "is part of a key"),
        (table.c.vector, other.c.topic, "expected a column of item"),
        (table.c.vector, "topic", "expected a column of item"),
        (Article.embedding, Article.title, "is a source of article.embedding"),
    ):
        with pytest.raises(QueryError, match=message):
            kmeans(engine, subject, write=write)


def test_vectors_of_different_dimensions(engine):
    table = Table("item", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType()))
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(table), [{"id": n, "v": [1.0] * (3 + n // 9)} for n in range(10)])
    with pytest.raises(DimensionMismatchError, match=r"has \d dimensions, another one of item\.v has \d"):
        kmeans(engine, table.c.v, clusters=2)


def test_scikit_learn_is_an_extra(monkeypatch, engine, stored):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingExtraError, match=r"pgembed\[cluster\]"):
        kmeans(engine, stored[0].c.vector)
