"""The SQL functions give the rows of the Python helpers, with errors that say what to do."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, Session, mapped_column

from pgembed import HNSW, IVFFlat, Vector, embedding_column
from pgembed.columns.types import VectorType
from pgembed.queries import duplicate_groups, knn_classify, near_duplicates, semantic_search
from pgembed.testing import HashEncoder
from tests.integration.queries.conftest import store, with_twins

QUERY = "w5 v17 u120"


def call(session, sql, **parameters):
    return session.execute(text(sql), parameters).all()


def literal(vector):
    return "[" + ",".join(map(str, np.asarray(vector).tolist())) + "]"


@pytest.mark.parametrize("k", [1, 10, 400, 5000])
@pytest.mark.parametrize("exact", [False, True])
def test_search_agrees(corpus, session, k, exact):
    vector = corpus.encoder.encode_queries([QUERY])[0]
    rows = call(
        session,
        "SELECT * FROM pgembed.search('article', 'embedding', CAST(:q AS vector), :k, exact => :exact)",
        q=literal(vector),
        k=k,
        exact=exact,
    )
    statement = semantic_search(corpus.article.embedding, vector, limit=k, mode="exact" if exact else "auto")
    found = session.execute(statement).all()
    if k <= 10 or exact:
        assert [row.key for row in rows] == [{"id": row[0].id} for row in found]
    assert [row.distance for row in rows] == pytest.approx([row.distance for row in found], abs=1e-6)
    assert [row.score for row in rows] == pytest.approx([row.score for row in found], abs=1e-6)


def test_search_uses_the_index_and_leaves_no_setting_behind(corpus, session):
    """A plan inside of a function is not to be seen; what it scanned is counted by the statistics."""
    vector = literal(corpus.encoder.encode_queries([QUERY])[0])
    counts = text("SELECT idx_scan, seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'article'")
    session.execute(text("SELECT '[1]'::vector"))
    setting = text("SELECT current_setting('hnsw.ef_search') || current_setting('jit')")
    session.execute(text("SET LOCAL jit = on"))
    setting_before = session.scalar(setting)
    scans, sequential = session.execute(counts).one()
    call(session, "SELECT * FROM pgembed.search('article', 'embedding', CAST(:q AS vector), 30)", q=vector)
    assert session.scalar(setting) == setting_before
    assert session.execute(counts).one() == (scans + 1, sequential)


def test_search_within_a_distance(corpus, session):
    vector = corpus.encoder.encode_queries([QUERY])[0]
    nearest = corpus.nearest(vector, 10)
    limit = (nearest[4][1] + nearest[5][1]) / 2
    rows = call(
        session,
        "SELECT key FROM pgembed.search('article', 'embedding', CAST(:q AS vector), 10, :limit)",
        q=literal(vector),
        limit=limit,
    )
    assert [row.key["id"] for row in rows] == [key for key, _ in nearest[:5]]


@pytest.mark.parametrize("weights", ["distance", "uniform"])
def test_knn_classify_agrees(corpus, session, weights):
    vector = corpus.encoder.encode_queries([QUERY])[0]
    rows = call(
        session,
        "SELECT * FROM pgembed.knn_classify("
        "'article', 'embedding', 'section', CAST(:q AS vector), 20, weights => :weights)",
        q=literal(vector),
        weights=weights,
    )
    article = corpus.article
    found = session.execute(
        knn_classify(article.embedding, vector, label=article.section, k=20, weights=weights)
    ).all()
    assert [(row.label, row.votes) for row in rows] == [(row.label, row.votes) for row in found]
    assert [row.share for row in rows] == pytest.approx([row.share for row in found], rel=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product", "l1"])
@pytest.mark.parametrize("storage", ["vector", "halfvec"])
def test_every_metric_and_type(engine, metric, storage):
    table = Table(
        "Item",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("kind", String),
        Column("vector", VectorType(8, storage)),
        HNSW("vector", metric=metric, build="immediate"),
    )
    vectors = with_twins(200, 8)
    vectors[7] = 0
    store(engine, table, vectors, lambda n: {"kind": f"k{n % 4}"})
    query = vectors[30] + 0.1
    least = {"cosine": 0.8, "l2": 0.5, "inner_product": 9.0, "l1": 0.2}[metric]
    with Session(engine) as session:
        rows = call(
            session,
            "SELECT * FROM pgembed.search('\"Item\"', 'vector', CAST(:q AS vector))",
            q=literal(query),
        )
        found = session.execute(semantic_search(table.c.vector, query)).all()
        assert [row.key for row in rows] == [{"id": row.id} for row in found]
        assert [row.score for row in rows] == pytest.approx([row.score for row in found], rel=1e-5)
        rows = call(
            session,
            "SELECT * FROM pgembed.knn_classify('\"Item\"', 'vector', 'kind', CAST(:q AS vector))",
            q=literal(query),
        )
        found = session.execute(knn_classify(table.c.vector, query, label=table.c.kind)).all()
        assert [tuple(row) for row in rows] == [
            (row.label, pytest.approx(row.share, rel=1e-5), row.votes) for row in found
        ]
        rows = call(
            session, "SELECT * FROM pgembed.near_duplicates('\"Item\"', 'vector', :least)", least=least
        )
        found = session.execute(near_duplicates(table.c.vector, min_score=least)).all()
        assert [tuple(row) for row in rows] == [
            ({"id": row.left_key}, {"id": row.right_key}, row.score) for row in found
        ]
        assert rows
        rows = call(
            session, "SELECT * FROM pgembed.duplicate_groups('\"Item\"', 'vector', :least)", least=least
        )
        found = session.execute(duplicate_groups(table.c.vector, min_score=least)).all()
        assert [tuple(row) for row in rows] == [(row.group_id, {"id": row.key}) for row in found]


@pytest.mark.parametrize("options", [{"quantize": "half"}, {"quantize": "bit"}, {"dimensions": 4}])
def test_an_index_on_an_expression_alone_is_used_as_by_the_helpers(engine, options, Base):
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        words: Mapped[str]
        vector: Mapped[Vector | None] = embedding_column(
            "words", encoder=HashEncoder(8), index=HNSW(build="immediate", **options)
        )

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Item(words=f"u{n % 47} v{n % 61}") for n in range(300))
        session.commit()
        assert session.scalar(text("SELECT index FROM pgembed.status")) == "hnsw"
        query = HashEncoder(8).encode_queries(["u3 v7"])[0]
        rows = call(
            session,
            "SELECT * FROM pgembed.search('item', 'vector', CAST(:q AS vector), 20)",
            q=literal(query),
        )
        found = session.execute(semantic_search(Item.vector, query, limit=20)).all()
        assert [row.distance for row in rows] == pytest.approx([row.distance for row in found], abs=1e-6)


@pytest.fixture
def large(engine):
    """5,200 rows, enough for an index to be used; 40 are equal, more than the neighbours asked for."""
    table = Table(
        "large",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("vector", VectorType(8)),
        HNSW("vector", build="deferred"),
    )
    vectors = with_twins(5200, 8)
    vectors[500:540] = vectors[500]
    store(engine, table, vectors)
    return vectors


def test_duplicates_through_the_index_lose_no_pair(engine, large):
    vectors = large
    with Session(engine) as session:
        session.execute(text("CREATE INDEX ON large USING hnsw (vector vector_cosine_ops)"))
        scans = text("SELECT idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'large'")
        rows = call(session, "SELECT * FROM pgembed.near_duplicates('large', 'vector', 0.998, k => 20)")
        assert session.scalar(scans) > 5000
        assert session.scalar(text("SELECT current_setting('hnsw.iterative_scan')")) == "off"
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.triu(unit @ unit.T, 1)
    found = {(row.left_key["id"], row.right_key["id"]) for row in rows}
    assert len(found) == len(rows) >= 780
    assert found >= set(zip(*(end.tolist() for end in np.nonzero(scores >= 0.998 + 1e-6)), strict=True))
    assert all(scores[pair] >= 0.998 - 1e-6 for pair in found)


def test_composite_keys_schemas_and_awkward_names(engine):
    table = Table(
        'odd "table"',
        MetaData(schema="other schema"),
        Column("it's", String, primary_key=True),
        Column('the "no"', Integer, primary_key=True),
        Column("the vector; --", VectorType(2)),
        Column("%s label", String),
    )
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "other schema"'))
    table.metadata.create_all(engine)
    rows = [
        ("b", 1, [1, 0], "x"),
        ("a", 2, [1, 0.01], "x"),
        ("a", 10, [0, 1], "y"),
        ("c", 1, [0.01, 1], None),
    ]
    with engine.begin() as connection:
        connection.execute(insert(table).values([dict(zip(table.c, row, strict=True)) for row in rows]))
    relation = '"other schema"."odd ""table"""'
    arguments = {"r": relation, "v": "the vector; --"}
    with Session(engine) as session:
        rows = call(
            session, "SELECT key FROM pgembed.search(CAST(:r AS regclass), :v, '[1,0]', 2)", **arguments
        )
        assert [row.key for row in rows] == [{"it's": "b", 'the "no"': 1}, {"it's": "a", 'the "no"': 2}]
        rows = call(
            session,
            "SELECT * FROM pgembed.knn_classify(CAST(:r AS regclass), :v, :l, '[1,0]', 3)",
            l="%s label",
            **arguments,
        )
        assert [(row.label, row.votes) for row in rows] == [("x", 2), ("y", 1)]
        rows = call(
            session, "SELECT * FROM pgembed.duplicate_groups(CAST(:r AS regclass), :v, 0.9)", **arguments
        )
        assert [(row.group_id, list(row.key.values())) for row in rows] == [
            (1, ["a", 2]),
            (1, ["b", 1]),
            (2, ["a", 10]),
            (2, ["c", 1]),
        ]


def test_the_metric_comes_from_the_registry_then_from_the_index(engine, corpus):
    metric = "SELECT (pgembed.vector_column(:t, 'vector')).metric"
    table = Table(
        "plain", MetaData(), Column("id", Integer, primary_key=True), Column("vector", VectorType(3))
    )
    table.metadata.create_all(engine)
    with Session(engine) as session:
        assert session.scalar(text(metric), {"t": "plain"}) == "cosine"
        session.execute(text("CREATE INDEX ON plain USING ivfflat (vector vector_ip_ops) WITH (lists = 9)"))
        assert session.scalar(text(metric), {"t": "plain"}) == "inner_product"
        found = session.execute(text("SELECT * FROM pgembed.vector_column('plain', 'vector', 'ip')")).one()
        assert (found.method, found.lists, found.dimensions, found.keys) == ("ivfflat", 9, 3, ["id"])
        other = session.execute(text("SELECT * FROM pgembed.vector_column('plain', 'vector', 'l2')")).one()
        assert (other.metric, other.method) == ("l2", None)
    with Session(corpus.engine) as session:
        found = session.execute(text("SELECT * FROM pgembed.vector_column('article', 'embedding')")).one()
        assert (found.metric, found.method, found.dimensions) == ("cosine", "hnsw", 32)


def test_ivfflat_probes_as_many_lists_as_it_takes(engine):
    table = Table(
        "clustered",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("vector", VectorType(8)),
        IVFFlat("vector", lists=30, metric="l2"),
    )
    vectors = with_twins(1000, 8)
    store(engine, table, vectors)
    with Session(engine) as session:
        session.execute(
            text("CREATE INDEX ON clustered USING ivfflat (vector vector_l2_ops) WITH (lists = 30)")
        )
        rows = call(
            session,
            "SELECT * FROM pgembed.search('clustered', 'vector', CAST(:q AS vector), 900)",
            q=literal(vectors[0]),
        )
        assert len({row.key["id"] for row in rows}) == 900
        assert len(session.execute(semantic_search(table.c.vector, vectors[0], limit=900)).all()) == 900


@pytest.mark.parametrize(
    ("sql", "message", "hint"),
    [
        ("SELECT * FROM pgembed.search('article', 'summary', '[1]')", "no column summary", "embedding"),
        ("SELECT * FROM pgembed.search('article', 'title', '[1]')", "of the type varchar", "vectors"),
        ("SELECT * FROM pgembed.search('article', 'embedding', '[1,2]')", "2 dimensions", "encoder"),
        ("SELECT * FROM pgembed.search('article', 'embedding', NULL)", "query vector is NULL", "filled"),
        ("SELECT * FROM pgembed.search('article', 'embedding', :zeros)", "zeros", ""),
        ("SELECT * FROM pgembed.search('article', 'embedding', :ones, 0)", "number of rows is 0", ""),
        (
            "SELECT * FROM pgembed.search('article', 'embedding', :ones, metric => 'l7')",
            "no metric 'l7'",
            "l2",
        ),
        ("SELECT * FROM pgembed.search('keyless', 'v', '[1,2]')", "no primary key", "ADD PRIMARY KEY"),
        ("SELECT * FROM pgembed.search(NULL, 'v', '[1,2]')", "must not be NULL", ""),
        ("SELECT * FROM pgembed.knn_classify('article', 'embedding', 'kind', :ones)", "no column kind", ""),
        (
            "SELECT * FROM pgembed.knn_classify('article', 'embedding', 'section', :ones, weights => 'x')",
            "weights",
            "",
        ),
        ("SELECT * FROM pgembed.near_duplicates('article', 'embedding', 1.5)", "min_score is 1.5", "-1 to 1"),
        (
            "SELECT * FROM pgembed.duplicate_groups('article', 'embedding', 'NaN')",
            "min_score is NaN",
            "-1 to 1",
        ),
        ("SELECT * FROM pgembed.duplicate_groups('article', 'embedding', 0.9, k => 0)", "k is 0", ""),
    ],
)
def test_errors_say_what_to_do(corpus, sql, message, hint):
    parameters = {"zeros": literal(np.zeros(32)), "ones": literal(np.ones(32))}
    for name, value in parameters.items():
        sql = sql.replace(f":{name}", f"'{value}'")
    with Session(corpus.engine) as session:
        session.execute(text("CREATE TEMPORARY TABLE keyless (v vector(2))"))
        with pytest.raises(DBAPIError) as caught:
            session.execute(text(sql))
    diagnostic = caught.value.orig.diag
    assert message in diagnostic.message_primary
    assert hint in (diagnostic.message_hint or "")


def test_functions_run_with_the_rights_of_the_caller_under_any_search_path(engine):
    table = Table(
        "secret", MetaData(), Column("id", Integer, primary_key=True), Column("vector", VectorType(2))
    )
    store(engine, table, [[1, 0], [0, 1]])
    search = text("SELECT count(*) FROM pgembed.search('public.secret', 'vector', '[1,0]'::public.vector)")
    with engine.connect() as connection:
        connection.execute(text("CREATE ROLE pgembed_reader"))
        connection.execute(text("GRANT USAGE ON SCHEMA pgembed TO pgembed_reader"))
        connection.execute(text("GRANT SELECT ON pgembed.embedding_columns TO pgembed_reader"))
        connection.execute(text("SET LOCAL search_path = ''"))
        assert connection.scalar(search) == 2
        connection.execute(text("SET LOCAL ROLE pgembed_reader"))
        with pytest.raises(DBAPIError, match="permission denied for table secret"):
            connection.execute(search)
        connection.rollback()


@pytest.mark.parametrize("storage", ["vector", "halfvec"])
def test_queries_of_every_type_that_has_a_vector(engine, storage):
    """Typed or not, the query is taken for the vector that it is; so is one of another table, by LATERAL."""
    table = Table(
        "item",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("kind", String),
        Column("vector", VectorType(2, storage)),
    )
    store(engine, table, [[1, 0], [0, 1], [0.5, 0.5]], lambda n: {"kind": f"k{n}"})
    with Session(engine) as session:
        for query in (
            "'[0,2]'",
            "'[0,2]'::vector",
            "'[0,2]'::halfvec",
            "'[0,2]'::halfvec(2)",
            "'[0,2]'::text",
        ):
            (row,) = call(session, f"SELECT * FROM pgembed.search('item', 'vector', {query}, 1)")
            assert (row.key, row.distance) == ({"id": 1}, 0)
            (row,) = call(
                session, f"SELECT * FROM pgembed.knn_classify('item', 'vector', 'kind', {query}, k => 1)"
            )
            assert tuple(row) == ("k1", 1, 1)
        (row,) = call(
            session, "SELECT * FROM pgembed.search('item', 'vector', query => :q, k => 1)", q="[0,2]"
        )
        assert row.key == {"id": 1}
        rows = call(
            session,
            "SELECT i.kind, c.label FROM item AS i CROSS JOIN LATERAL "
            "pgembed.knn_classify('item', 'vector', 'kind', i.vector, 1) AS c ORDER BY i.id",
        )
        assert [row.kind for row in rows] == [row.label for row in rows]
        comments = text(
            "SELECT obj_description(oid) FROM pg_proc WHERE proname IN ('search', 'knn_classify')"
        )
        assert session.scalars(comments).all().count(None) == 0
        with pytest.raises(DBAPIError, match="invalid input syntax for type vector"):
            call(session, "SELECT * FROM pgembed.search('item', 'vector', 'a text')")


def test_a_materialized_view_needs_a_unique_index(engine):
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE kept (id integer PRIMARY KEY, part integer, label text, v vector(2))")
        )
        connection.execute(
            text("INSERT INTO kept SELECT n, n % 2, 'l' || n % 2, ARRAY[n, 1] FROM generate_series(1, 8) n")
        )
        connection.execute(text("CREATE MATERIALIZED VIEW copied AS SELECT * FROM kept"))
        connection.execute(text("CREATE UNIQUE INDEX ON copied ((-id))"))
        connection.execute(text("CREATE UNIQUE INDEX ON copied (id) WHERE part = 1"))
    calls = [
        "pgembed.search('{}', 'v', '[3,1]', 3)",
        "pgembed.knn_classify('{}', 'v', 'label', '[3,1]', 3)",
        "pgembed.near_duplicates('{}', 'v', 0.999)",
        "pgembed.duplicate_groups('{}', 'v', 0.999)",
    ]
    for call in calls:
        with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
            connection.execute(text(f"SELECT * FROM {call.format('copied')}"))
        assert caught.value.orig.diag.message_primary == "materialized view public.copied has no unique index"
        assert "CREATE UNIQUE INDEX" in caught.value.orig.diag.message_hint
    with engine.begin() as connection:
        connection.execute(text("CREATE UNIQUE INDEX ON copied (id) INCLUDE (part)"))
        for call in calls:
            of_view, of_table = (
                connection.execute(text(f"SELECT * FROM {call.format(name)}")).all()
                for name in ("copied", "kept")
            )
            assert of_view == of_table
            assert of_view
