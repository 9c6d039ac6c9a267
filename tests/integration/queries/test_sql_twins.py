"""SQL functions of whole tables, under names that need quoting, composite keys and a hostile search_path.

Each gives the rows of its Python helper for random vectors, with copies, zeros and rows without a vector.
"""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import (
    ARRAY,
    Column,
    Float,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    and_,
    cast,
    create_engine,
    exists,
    func,
    insert,
    literal,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from pgembed.columns.types import VectorType
from pgembed.database import install
from pgembed.measuring import evaluate
from pgembed.queries import (
    centroid_classify,
    duplicate_groups,
    hard_negatives,
    keep_list,
    knn_classify_many,
    label_issues,
    near_duplicates,
    outliers,
    representatives,
    softmax,
    topics,
)

ROWS = 70
TABLE = Table(
    'odd "table"',
    MetaData(schema="other schema"),
    Column("it's", String, primary_key=True),
    Column("No %", Integer, primary_key=True),
    Column("the vector; --", VectorType(4)),
    Column("%s label", String(collation="C")),
    Column("number", Integer),
    Column("mean", Float),
    Column("exact mean", Numeric),
    Column("tags", ARRAY(String)),
    Column("numbers", ARRAY(Integer)),
    Column("group", Integer),
    Column("the text", String),
)
NAME = '"other schema"."odd ""table"""'
KEY = """pg_catalog.jsonb_build_object('it''s', "it's", 'No %', "No %")"""
VECTOR = TABLE.c["the vector; --"]
QUESTION = Table(
    'que"stion',
    TABLE.metadata,
    Column("Id", Integer, primary_key=True),
    Column("vector", VectorType(4)),
    Column("answer %", String),
    Column("answer no", Integer),
    Column("cluster", Integer),
    Column("key", JSONB),
)
ASKING = '"other schema"."que""stion"'
LINK = Table(
    "link's", TABLE.metadata, Column("Question", Integer), Column("to", String), Column("%s", Integer)
)
LINKING = '"other schema"."link\'s"'
WORDS = ["printer", "printers", "fire", "the", "password", "reset", "resetting", "news"]
# What Postgres would prefer to its own, were it looked for there.
HOSTILE = """
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.fail(text, text) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'hers'; END $$;
CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.fail);
CREATE FUNCTION hostile.fail(float8, float8) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'hers'; END $$;
CREATE OPERATOR hostile.<= (LEFTARG = float8, RIGHTARG = float8, FUNCTION = hostile.fail);
CREATE OPERATOR hostile.< (LEFTARG = float8, RIGHTARG = float8, FUNCTION = hostile.fail);
CREATE FUNCTION hostile.unnest(jsonb[]) RETURNS SETOF jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE 'hers'; END $$;
CREATE FUNCTION hostile.exp(float8) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'hers'; END $$;
CREATE FUNCTION hostile.jsonb_build_object(text, text) RETURNS jsonb LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'hers'; END $$;
"""


def rows_of_table():
    rng = np.random.default_rng(11)
    vectors = rng.standard_normal((ROWS, 4)).astype(np.float32)
    vectors[40:55] = vectors[:15]
    vectors[60:64] = vectors[0]
    vectors[5] = vectors[6] = 0
    for n, vector in enumerate(vectors):
        yield {
            "it's": f"k{n % 7}",
            "No %": n,
            "the vector; --": None if n % 17 == 9 else vector,
            "%s label": None if n % 5 == 0 else str(rng.choice(["b", "B", "a", "ä"])),
            "number": None if n % 6 == 0 else int(rng.choice([9, 10, 100])),
            "mean": None if n % 6 == 0 else float(rng.standard_normal()),
            "exact mean": None if n % 6 == 0 else n % 4,
            "tags": None if n % 6 == 0 else sorted({str(rng.choice(["x", "Y", "z, {"])) for _ in range(3)}),
            "numbers": [] if n % 6 == 0 else [9, 10, 10][: n % 4],
            "group": None if n % 8 == 0 else n % 11,
            "the text": None if n % 9 == 0 else " ".join(rng.choice(WORDS, 6)),
        }


def questions():
    rng = np.random.default_rng(12)
    answers = list(rows_of_table())
    for n in range(40):
        near = answers[n]["the vector; --"]
        vector = near if n % 10 == 3 else (near if near is not None else 1) + 0.3 * rng.standard_normal(4)
        key = answers[n if n % 4 else 69 - n]
        yield {
            "Id": n,
            "vector": None if n == 20 else np.zeros(4) if n == 21 else vector,
            "answer %": None if n % 9 == 8 else "gone" if n % 9 == 7 else key["it's"],
            "answer no": key["No %"],
        }


def links():
    answers = list(rows_of_table())
    for n in range(80):
        key = answers[n * 7 % ROWS]
        yield {"Question": n % 30, "to": None if n == 5 else key["it's"], "%s": key["No %"]}


@pytest.fixture(scope="module")
def database(module_url):
    """Two connections: one for the helpers, and one with a hostile search_path for the functions."""
    engine = create_engine(module_url)
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "other schema"'))
        connection.exec_driver_sql(HOSTILE)
        TABLE.metadata.create_all(connection)
        # A record of a table, made of a key, cannot have it.
        connection.exec_driver_sql("CREATE DOMAIN needed AS integer NOT NULL")
        for name in (NAME, ASKING):
            connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN needed needed DEFAULT 1")
        for table, rows in ((TABLE, rows_of_table), (QUESTION, questions), (LINK, links)):
            connection.execute(insert(table), list(rows()))
    with engine.connect() as helpers, engine.connect() as functions:
        yield helpers, functions
    engine.dispose()


@pytest.fixture
def doors(database):
    yield database
    database[1].rollback()


def called(doors, sql, columns="*", **parameters):
    """The rows of a function under the hostile search_path."""
    doors[1].execute(text("SET LOCAL search_path = hostile, pg_catalog, public"))
    rows = doors[1].execute(text(f"SELECT {columns} FROM pgembed.{sql}"), parameters)
    return [tuple(row) for row in rows]


def near(row):
    return tuple(pytest.approx(value, abs=2e-6) if isinstance(value, float) else value for value in row)


def keys_of(*values):
    return dict(zip(TABLE.primary_key.columns.keys(), values, strict=True))


ANSWERS = [
    {},
    {"k": 3, "weights": "uniform", "metric": "l2"},
    {"k": 7, "weights": "softmax", "min_margin": 0.3},
    {"k": 60, "prior": "balanced", "min_share": 0.3, "metric": "inner_product"},
    {"k": 10, "max_distance": 0.4, "prior": "balanced"},
    {"k": 10, "max_distance": 0.8, "min_neighbours": 4, "metric": "l1"},
    {"k": 9, "regression": False},
    {"k": 9, "regression": True, "max_distance": 0.3},
]


def is_refused(label, options):
    """Whether options do not go with a column's labels."""
    averaged = options.get("regression", label in ("mean", "exact mean"))
    if averaged:
        limits = {"prior", "min_share", "min_margin"} & {*options}
        return bool(limits) or label in ("%s label", "tags", "numbers")
    return "prior" in options and label in ("tags", "numbers")


TYPES = {
    "%s label": "text",
    "number": "integer",
    "mean": "float8",
    "exact mean": "float8",
    "tags": "text[]",
    "numbers": "integer[]",
}


@pytest.mark.parametrize("label", TYPES)
def test_labels_of_rows_agree(doors, label):
    """A row does not vote for itself, and ties are decided by the type of the label."""
    for options in ANSWERS:
        sql = (
            f"knn_classify_many(:name, 'the vector; --', :label, ARRAY(SELECT {KEY} FROM {NAME} "
            f'ORDER BY "it\'s", "No %"), exact => true{named(options)})'
        )
        parameters = {"name": NAME, "label": label, **options}
        if is_refused(label, options):
            with pytest.raises(DBAPIError) as caught:
                called(doors, sql, **parameters)
            assert caught.value.orig.sqlstate == "22023"
            doors[1].rollback()
            continue
        kind = "float8" if options.get("regression") else TYPES[label]
        columns = f"key, label::{kind}, share, votes, margin, nearest_distance, reason"
        rows = called(doors, sql, columns, **parameters)
        statement = knn_classify_many(
            VECTOR,
            queries=true(),
            label=TABLE.c[label],
            mode="exact",
            **of_python(options),
        )
        expected = [(keys_of(*row[:2]), *row[2:]) for row in doors[0].execute(statement)]
        assert rows == [near(row) for row in expected]
        assert len(rows) == ROWS


@pytest.mark.parametrize("label", ["%s label", "number", "mean"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.3, "min_share": 0.4}, {"metric": "l2", "max_distance": 1.2}]
)
def test_centroids_agree(doors, label, options):
    keys = f'ARRAY(SELECT {KEY} FROM {NAME} ORDER BY "it\'s", "No %")'
    sql = f"centroid_classify(:name, 'the vector; --', :label, {keys}{named(options)})"
    columns = f"key, label::{TYPES[label]}, share, margin, nearest_distance, reason"
    rows = called(doors, sql, columns, name=NAME, label=label, **options)
    statement = centroid_classify(VECTOR, queries=true(), label=TABLE.c[label], **options)
    found = doors[0].execute(statement).all()
    assert rows == [near((keys_of(*row[:2]), *row[2:])) for row in found]
    assert len(rows) == ROWS


def pair_of(left, right, *others):
    """The keys of a pair as SQL gives them."""
    return keys_of(*left), keys_of(*right), *others


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_pairs_agree(doors, metric):
    for most in (None, 0.9):
        options = {"min_score": 0.5, "max_score": most, "metric": metric}
        sql = f"near_duplicates(:name, 'the vector; --'{named(options)}"
        rows = called(doors, f"{sql})", name=NAME, **options)
        found = doors[0].execute(near_duplicates(VECTOR, **options)).all()
        assert_same_pairs(rows, [pair_of(*row) for row in found])
        assert bool(most) == all(row[2] < 0.99 for row in rows)
        sql += ", other => :other, other_column => 'vector')"
        rows = called(doors, sql, name=NAME, other=ASKING, **options)
        found = doors[0].execute(near_duplicates(VECTOR, QUESTION.c.vector, **options)).all()
        assert_same_pairs(rows, [(keys_of(*left), {"Id": right}, score) for left, right, score in found])


def assert_same_pairs(rows, expected):
    """Equal scores may come in the order of other last digits."""
    by_key = [
        sorted(each, key=lambda row: str([sorted(key.items()) for key in row[:2]]))
        for each in (rows, expected)
    ]
    assert by_key[0] == [near(row) for row in by_key[1]]
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    assert len(rows) > 15


def test_stored_pairs_agree(doors):
    """Of a threshold that is higher; nothing is searched, so that the rows need no vectors."""
    helpers, functions = doors
    functions.execute(
        text(
            'CREATE TEMP TABLE "stored ""pairs" AS SELECT * FROM '
            "pgembed.near_duplicates(:name, 'the vector; --', 0.3, exact => true)"
        ),
        {"name": NAME},
    )
    options = {"name": NAME, "least": 0.8, "stored": 'pg_temp."stored ""pairs"'}
    groups = "duplicate_groups(:name, 'the vector; --', :least, stored => :stored)"
    rows = called(doors, groups, **options)
    pairs = near_duplicates(VECTOR, min_score=0.3)
    found = helpers.execute(duplicate_groups(VECTOR, min_score=0.8, pairs=pairs)).all()
    assert rows == [(group, keys_of(*key)) for group, key in found]
    keep = "keep_list(:name, 'the vector; --', :least, 'number', true, stored => :stored)"
    rows = called(doors, keep, **options)
    kept = keep_list(VECTOR, min_score=0.8, keep=TABLE.c.number.desc(), pairs=pairs)
    found = [
        (keys_of(*key), is_kept, other and keys_of(*other), score)
        for key, is_kept, other, score in helpers.execute(kept)
    ]
    assert rows == [near(row) for row in found]
    assert {row[1] for row in rows} == {True, False}


@pytest.mark.parametrize(
    "options", [{}, {"k": 2, "max_score": 0.8}, {"k": 70, "margin": 0.1}, {"max_score": 0.9, "margin": -0.2}]
)
def test_hard_negatives_agree(doors, options):
    start = "hard_negatives(:question, 'vector', :answer, 'the vector; --', "
    names = {"question": ASKING, "answer": NAME}
    rows = called(
        doors, f"{start}ARRAY['answer %', 'answer no']::name[]{named(options)})", **names, **options
    )
    own = and_(QUESTION.c["answer %"] == TABLE.c["it's"], QUESTION.c["answer no"] == TABLE.c["No %"])
    assert rows == [near(row) for row in negatives(doors, own, options)]
    assert len(rows) > 30
    assert all(row[3] <= 1 for row in rows)  # that of answers of zeros is no number
    sql = f"{start}ARRAY['to', '%s']::name[], :link, '{{Question}}'{named(options)})"
    rows = called(doors, sql, **names, **options, link=LINKING)
    linked = exists().where(
        LINK.c.Question == QUESTION.c.Id, LINK.c.to == TABLE.c["it's"], LINK.c["%s"] == TABLE.c["No %"]
    )
    assert rows == [near(row) for row in negatives(doors, linked, options)]
    assert len(rows) > 30


def negatives(doors, positive, options):
    statement = hard_negatives(QUESTION.c.vector, VECTOR, positive=positive, **options)
    return [({"Id": row[0]}, keys_of(*row[1]), *row[2:]) for row in doors[0].execute(statement)]


@pytest.mark.parametrize("label", ["%s label", "number", "tags"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 5, "weights": "uniform", "metric": "l2"},
        {"k": 5, "weights": "softmax", "apart": 0.9},
        {"k": 4, "apart_column": "group"},
    ],
)
def test_wrong_labels_agree(doors, label, options):
    sql = f"label_issues(:name, 'the vector; --', :label{named(options)}, exact => true)"
    rows = called(doors, sql, name=NAME, label=label, **options)
    statement = label_issues(VECTOR, label=TABLE.c[label], mode="exact", **of_python(options))
    found = doors[0].execute(statement).all()
    expected = [
        (keys_of(*row[:2]), as_text(doors, row[2]), as_text(doors, row[3]), *row[4:]) for row in found
    ]
    assert sorted(rows, key=order_of) == [near(row) for row in sorted(expected, key=order_of)]
    leads = [row[4] - row[3] for row in rows]
    assert leads == sorted(leads, reverse=True)
    assert len(rows) > 10


@pytest.mark.parametrize("label", ["%s label", "number"])
@pytest.mark.parametrize("options", [{}, {"k": 4, "weights": "softmax", "apart": 0.9, "metric": "l2"}])
def test_evaluations_agree(doors, label, options):
    sql = f"evaluate(:name, 'the vector; --', :label{named(options)}, exact => true)"
    (row,) = called(doors, sql, name=NAME, label=label, **options)
    given = {"label": TABLE.c[label], "mode": "exact", **of_python(options)}
    found = evaluate(doors[0], VECTOR, **given)
    assert row == near((found.rows, found.accuracy, found.macro_f1, found.calibration_error))
    assert 0 < found.accuracy < 1


@pytest.mark.parametrize("options", [{}, {"k": 3}, {"k": 3, "metric": "inner_product"}])
@pytest.mark.parametrize("helper", [outliers, representatives])
def test_dense_and_thin_places_agree(doors, helper, options):
    sql = f"{helper.__name__}(:name, 'the vector; --'{named(options)}, exact => true)"
    rows = called(doors, sql, name=NAME, **options)
    found = doors[0].execute(helper(VECTOR, mode="exact", **options)).all()
    expected = [near((keys_of(*row[:2]), row[2])) for row in found]
    assert sorted(rows, key=order_of) == sorted(expected, key=order_of)
    distances = [row[1] for row in rows]
    assert distances == sorted(distances, reverse=helper is outliers)
    assert len(rows) > 2


@pytest.mark.parametrize("label", ["%s label", "number"])
@pytest.mark.parametrize("options", [{}, {"words": 2, "rows": 5, "config": "simple", "metric": "l2"}])
def test_topics_agree(doors, label, options):
    helpers, functions = doors
    functions.exec_driver_sql(
        f'CREATE TEMP TABLE "the clusters" AS SELECT "{label}" AS cluster, {KEY} AS key FROM {NAME}'.replace(
            "%", "%%"
        )
    )
    sql = f"topics(:name, 'the vector; --', 'the text', 'pg_temp.\"the clusters\"'{named(options)})"
    rows = called(doors, sql, name=NAME, **options)
    clusters = select(
        TABLE.c[label].label("cluster"), func.jsonb_build_array(*TABLE.primary_key).label("key")
    )
    found = helpers.execute(topics(VECTOR, clusters, text=TABLE.c["the text"], **options)).all()
    assert rows == [
        (str(row.cluster), row.size, row.words, [keys_of(*key) for key in row.keys]) for row in found
    ]
    assert len(rows) in (3, 4)


def named(options):
    return "".join(f", {name} => :{name}" for name in options)


def of_python(options):
    """The arguments of the helper."""
    given = {**options}
    if given.get("weights") == "softmax":
        given["weights"] = softmax(0.05)
    if "apart_column" in given:
        given["apart"] = TABLE.c[given.pop("apart_column")]
    return given


def as_text(doors, label):
    return label if isinstance(label, str) else doors[0].scalar(select(cast(literal(label), String)))


def order_of(row):
    return row[0]["No %"]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("centroid_classify(:t, 'the vector; --', 'tags', ARRAY[text '[1,0,0,0]'])", "labels are arrays"),
        ("centroid_classify(:t, 'the vector; --', 'number', ARRAY[jsonb '{}'])", "a query is {}"),
        ("label_issues(:t, 'the vector; --', 'kind')", "no column kind"),
        ("label_issues(:t, 'the vector; --', NULL)", "label column is NULL"),
        ("label_issues(:t, 'the vector; --', 'number', apart => 2)", "apart is 2"),
        ("label_issues(:t, 'the vector; --', 'number', apart_column => 'kind')", "no column kind"),
        ("label_issues(:t, 'the vector; --', 'number', weights => 'fast')", "weights are 'fast'"),
        ("evaluate(:t, 'the vector; --', 'number', temperature => 0)", "temperature is 0"),
        ("evaluate(:t, 'the vector; --', 'tags')", "of the kind array"),
        ("outliers(:t, 'the vector; --', 0)", "k is 0"),
        ("representatives(:t, 'the vector; --', NULL)", "k is NULL"),
        ("topics(:t, 'the vector; --', 'the text', :t)", "not have the columns cluster"),
        ("topics(:t, 'the vector; --', 'the text', NULL)", "must not be NULL"),
        ("topics(:t, 'the vector; --', 'the text', :q, words => 0)", "words is 0"),
        ("near_duplicates(:t, 'the vector; --', 0.9, max_score => 0.8)", "below min_score"),
        ("near_duplicates(:t, 'the vector; --', 0.9, max_score => 1.1)", "max_score is 1.1"),
        ("near_duplicates(:t, 'the vector; --', 0.9, other => :q)", "its column NULL"),
        ("near_duplicates(:t, 'the vector; --', 0.9, other_column => 'vector')", "other table is NULL"),
        ("near_duplicates(:t, 'the vector; --', 0.9, other => :q, other_column => 'Id')", "of the type int"),
        ("duplicate_groups(:t, 'the vector; --', 0.9, stored => :q)", "not have the columns left_key jsonb"),
        ("keep_list(:t, 'the vector; --', 0.9, stored => :q)", "not have the columns left_key jsonb"),
        ("keep_list(:t, 'the vector; --', 0.9, 'kind')", "no column kind"),
        ("hard_negatives(:q, 'vector', :t, 'the vector; --', '{Id}')", "positive is {Id}"),
        ("hard_negatives(:q, 'vector', :t, 'the vector; --', NULL)", "positive is NULL"),
        ("hard_negatives(:q, 'vector', :t, 'the vector; --', '{Id,no}')", "no column no"),
        ("hard_negatives(:q, 'vector', :t, 'the vector; --', '{Id,Id}', :q)", "link_question is NULL"),
        ("hard_negatives(:q, 'vector', :t, 'the vector; --', '{Id,Id}', NULL, '{Id}')", "is {Id}, of"),
        ("hard_negatives(:q, 'vector', :t, 'the vector; --', '{Id,Id}', k => 0)", "k is 0"),
        ("hard_negatives(:q, 'vector', :t, 'the vector; --', '{Id,Id}', margin => 'NaN')", "margin is NaN"),
        ("hard_negatives(:q, 'vector', :t, 'the vector; --', '{Id,Id}', max_score => 2)", "max_score is 2"),
    ],
)
def test_mistakes_are_named(doors, sql, message):
    names = {name: value for name, value in {"t": NAME, "q": ASKING}.items() if f":{name}" in sql}
    with pytest.raises(DBAPIError) as caught:
        called(doors, sql, **names)
    assert message in caught.value.orig.diag.message_primary


def test_recommendations_of_a_table_with_needed_values(doors):
    keys = f'ARRAY(SELECT {KEY} FROM {NAME} WHERE "No %" = 1)'
    rows = called(doors, f"recommend(:name, 'the vector; --', {keys}, k => 3, exact => true)", name=NAME)
    assert [row[0]["No %"] for row in rows][:1] == [41]  # its copy


def test_an_extension_in_a_schema_with_an_awkward_name(empty_url):
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "The %%s ""ext"""')
        connection.exec_driver_sql('CREATE EXTENSION vector SCHEMA "The %%s ""ext"""')
        install(connection)
        connection.exec_driver_sql('SET LOCAL search_path = public, "The %%s ""ext"""')
        connection.exec_driver_sql("CREATE TABLE item (id int PRIMARY KEY, label text, v vector(2), n int)")
        connection.exec_driver_sql(
            "INSERT INTO item VALUES (1, 'a', '[1,0]', 2), (2, 'a', '[1,0.1]', 1), (3, 'b', '[0,1]', 3)"
        )
        connection.exec_driver_sql(
            "CREATE VIEW found AS SELECT label AS cluster, jsonb_build_object('id', id) AS key FROM item"
        )
        for sql, rows in (
            ("knn_classify_many('item', 'v', 'label', ARRAY['[1,0]'::text], 2, prior => 'balanced')", 1),
            ("knn_classify_many('item', 'v', 'label', ARRAY['{\"id\": 1}'::jsonb], 2)", 1),
            (
                "centroid_classify('item', 'v', 'label', ARRAY['[1,0]'::text], labels => '{b}', "
                "vectors => ARRAY['[0,1]'::vector])",
                1,
            ),
            ("zero_shot('item', 'v', ARRAY['a'], ARRAY['[1,0]'::vector])", 3),
            ("label_issues('item', 'v', 'label', 1, apart => 0.9999)", 1),
            ("outliers('item', 'v', 1)", 3),
            ("near_duplicates('item', 'v', 0.9, other => 'item', other_column => 'v')", 5),
            ("keep_list('item', 'v', 0.9)", 3),
            ("hard_negatives('item', 'v', 'item', 'v', '{n}', margin => 0.1)", 2),
            ("topics('item', 'v', 'label', 'found')", 2),
            ("cluster('item', 'v', 0.9, 2)", 2),
            ("match('item', 'v', 'item', 'v')", 3),
        ):
            found = connection.execute(text(f"SELECT * FROM pgembed.{sql}".replace("::", "\\:\\:"))).all()
            assert len(found) == rows, sql
    engine.dispose()


@pytest.mark.parametrize(
    "sql",
    [
        "near_duplicates(:t, 'the vector; --', 0.9, other => :q, other_column => 'vector')",
        "keep_list(:t, 'the vector; --', 0.9)",
        "hard_negatives(:q, 'vector', :t, 'the vector; --', '{answer %,answer no}')",
        "knn_classify_many(:t, 'the vector; --', 'number', ARRAY[text '[1,0,0,0]'])",
        "label_issues(:t, 'the vector; --', 'number')",
        "outliers(:t, 'the vector; --')",
        "topics(:t, 'the vector; --', 'the text', :q)",
    ],
)
def test_they_run_with_the_rights_of_the_caller(doors, sql):
    connection = doors[1]
    connection.execute(text("CREATE ROLE pgembed_twin"))
    for granted in ("USAGE ON SCHEMA pgembed", 'USAGE ON SCHEMA "other schema"', f"SELECT ON {ASKING}"):
        connection.exec_driver_sql(f"GRANT {granted} TO pgembed_twin")
    connection.execute(text("GRANT SELECT ON pgembed.embedding_columns TO pgembed_twin"))
    connection.execute(text("SET LOCAL ROLE pgembed_twin"))
    names = {name: value for name, value in {"t": NAME, "q": ASKING}.items() if f":{name}" in sql}
    with pytest.raises(DBAPIError, match='permission denied for table odd "table"'):
        called(doors, sql, **names)
