"""The SQL functions that label give the rows of the Python helpers."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pgembed.queries import centroid_classify, knn_classify_many, softmax, zero_shot

TEXTS = ["w5 v17 u120", "w1 v2 u3", "w40 v41 u42"]


def call(session, sql, **parameters):
    return session.execute(text(sql), parameters).all()


def literals(vectors):
    return ["[" + ",".join(map(str, np.asarray(vector).tolist())) + "]" for vector in vectors]


def halved(vector):
    return np.float16(vector).astype(np.float32)


def same(rows, expected, width):
    """The columns behind the key."""
    assert [tuple(row)[-width:] for row in rows] == [
        tuple(pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for value in row[-width:])
        for row in map(tuple, expected)
    ]


LIMITS = [
    {"k": 9},
    {"k": 9, "min_share": 0.6},
    {"k": 9, "min_margin": 0.4},
    {"k": 20, "max_distance": 0.4},
    {"k": 20, "max_distance": 0.4, "min_neighbours": 6},
    {"k": 5000},
]


@pytest.mark.parametrize("kind", ["vector", "halfvec", "text"])
@pytest.mark.parametrize("weights", ["distance", "uniform", "softmax"])
def test_knn_classify_many_agrees(corpus, session, weights, kind):
    article = corpus.article
    vectors = [*corpus.encoder.encode_queries(TEXTS), corpus.vectors[7]]
    for options in LIMITS:
        named = ", ".join(f"{name} => :{name}" for name in options)
        rows = call(
            session,
            "SELECT * FROM pgembed.knn_classify_many('article', 'embedding', 'section', "
            f"CAST(:q AS {kind}[]), weights => :weights, exact => true, {named})",
            q=[*literals(vectors), None],
            weights=weights,
            **options,
        )
        statement = knn_classify_many(
            article.embedding,
            queries=[halved(vector) for vector in vectors] if kind == "halfvec" else vectors,
            label=article.section,
            weights=softmax(0.05) if weights == "softmax" else weights,
            mode="exact",
            **options,
        )
        same(rows[:-1], session.execute(statement).all(), 6)
        assert [row.query for row in rows] == [1, 2, 3, 4, 5]
        assert tuple(rows[-1])[1:] == (None, None, 0, None, None, "no vector")


def test_knn_classify_many_joins_rows_and_uses_the_index(corpus, session):
    rows = call(
        session,
        "SELECT a.id, c.label, c.votes FROM article AS a CROSS JOIN LATERAL "
        "pgembed.knn_classify_many('article', 'embedding', 'section', ARRAY[a.embedding], 5) AS c "
        "WHERE a.section IS NULL AND a.id < 100 ORDER BY a.id",
    )
    article = corpus.article
    statement = knn_classify_many(
        article.embedding, queries=article.section.is_(None) & (article.id < 100), label=article.section, k=5
    )
    assert rows == [(row.key, row.label, row.votes) for row in session.execute(statement)]


def test_zero_shot_agrees(corpus, session):
    vectors = corpus.encoder.encode_queries(["w5", "w1 v2", "w3 u4", "w9"])
    labels = ["first", "second", "second", "third"]
    for options in ({}, {"min_share": 0.9}, {"min_margin": 0.9}, {"max_distance": 0.5}):
        named = "".join(f", {name} => :{name}" for name in options)
        rows = call(
            session,
            f"SELECT * FROM pgembed.zero_shot('article', 'embedding', :labels, CAST(:q AS vector[]){named})",
            labels=labels,
            q=literals(vectors),
            **options,
        )
        about = {"first": "w5", "second": ["w1 v2", "w3 u4"], "third": "w9"}
        expected = session.execute(zero_shot(corpus.article.embedding, about, template="{}", **options)).all()
        assert [row.key for row in rows] == [{"id": row.key} for row in expected]
        same(rows, expected, 5)


def test_centroid_classify_agrees(corpus, session):
    vectors = corpus.encoder.encode_queries(TEXTS)
    article = corpus.article
    for options in ({}, {"temperature": 0.3, "min_share": 0.4}, {"metric": "l2", "max_distance": 0.7}):
        named = "".join(f", {name} => :{name}" for name in options)
        rows = call(
            session,
            "SELECT * FROM pgembed.centroid_classify('article', 'embedding', 'section', "
            f"CAST(:q AS vector[]){named})",
            q=literals(vectors),
            **options,
        )
        statement = centroid_classify(
            article.embedding, queries=list(vectors), label=article.section, **options
        )
        same(rows, session.execute(statement).all(), 5)


def test_a_key_without_a_row_has_no_vector(session):
    sql = "knn_classify_many('article', 'embedding', 'section', ARRAY[jsonb '{\"id\": 0}'])"
    assert [tuple(row) for row in call(session, f"SELECT * FROM pgembed.{sql}")] == [
        ({"id": 0}, None, None, 0, None, None, "no vector")
    ]


def test_rows_named_by_their_keys_agree_through_the_index(corpus, session):
    article = corpus.article
    rows = call(
        session,
        "SELECT * FROM pgembed.knn_classify_many('article', 'embedding', 'section', ARRAY(SELECT "
        "jsonb_build_object('id', id) FROM article WHERE id BETWEEN 20 AND 60 ORDER BY id), 5)",
    )
    queries = article.id.between(20, 60)
    expected = knn_classify_many(article.embedding, queries=queries, label=article.section, k=5)
    found = session.execute(expected).all()
    assert [row.key for row in rows] == [{"id": row.key} for row in found]
    same(rows, found, 6)


def test_labels_of_texts_mix_with_centroids(corpus, session):
    """A label without rows is its texts alone."""
    article = corpus.article
    labels = ["help", "help", "other"]
    about = {"help": ["w5", "w1 v2"], "other": "w40 v41"}
    vectors = corpus.encoder.encode_queries(["w5", "w1 v2", "w40 v41"])
    queries = corpus.encoder.encode_queries(TEXTS)
    for mix in (0.5, 0.0, 0.8):
        for metric in ("cosine", "l2"):
            rows = call(
                session,
                "SELECT * FROM pgembed.centroid_classify('article', 'embedding', 'section', "
                "CAST(:q AS vector[]), labels => :labels, vectors => CAST(:v AS vector[]), "
                "mix => :mix, metric => :metric)",
                q=literals(queries),
                labels=labels,
                v=literals(vectors),
                mix=mix,
                metric=metric,
            )
            statement = centroid_classify(
                article.embedding,
                queries=list(queries),
                label=article.section,
                texts=about,
                template="{}",
                mix=mix,
                metric=metric,
            )
            same(rows, session.execute(statement).all(), 5)
    assert "other" in {row.label for row in rows}


def test_zero_shot_of_some_rows(corpus, session):
    vectors = corpus.encoder.encode_queries(["w5", "w9"])
    rows = call(
        session,
        "SELECT * FROM pgembed.zero_shot('article', 'embedding', '{a,b}', CAST(:q AS vector[]), "
        "keys => ARRAY(SELECT jsonb_build_object('id', id) FROM article WHERE id < 30 ORDER BY id))",
        q=literals(vectors),
    )
    article = corpus.article
    statement = zero_shot(article.embedding, {"a": "w5", "b": "w9"}, template="{}", where=article.id < 30)
    expected = session.execute(statement).all()
    assert [row.key for row in rows] == [{"id": row.key} for row in expected]
    same(rows, expected, 5)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            "knn_classify_many('article', 'embedding', 'section', ARRAY['[1]'], weights => 'fast')",
            "weights are",
        ),
        ("knn_classify_many('article', 'embedding', 'section', ARRAY['[1]'], temperature => 0)", "above 0"),
        ("knn_classify_many('article', 'embedding', NULL, ARRAY['[1]'])", "label column is NULL"),
        ("knn_classify_many('article', 'embedding', 'kind', ARRAY['[1]'])", "no column kind"),
        ("knn_classify_many('article', 'embedding', 'section', ARRAY['[1]'], prior => 'even')", "'even'"),
        ("knn_classify_many('article', 'embedding', 'section', ARRAY['[1]'], min_share => 1.1)", "0 to 1"),
        ("knn_classify_many('article', 'embedding', 'section', ARRAY['[1]'], max_distance => 'NaN')", "NaN"),
        (
            "knn_classify_many('article', 'embedding', 'section', ARRAY['[1]'], regression => true)",
            "of the type character varying, they must be numbers",
        ),
        (
            "knn_classify_many('article', 'embedding', 'id', ARRAY['[1]'], regression => true, "
            "min_margin => 0)",
            "no effect",
        ),
        ("knn_classify_many('article', 'embedding', 'section', ARRAY[jsonb '{\"ID\": 1}'])", '\\{"ID": 1\\}'),
        ("knn_classify_many('article', 'embedding', 'section', ARRAY[jsonb '[\"id\"]'])", "a key of table"),
        ("knn_classify_many('article', 'embedding', 'section', ARRAY[NULL::jsonb])", "a query is NULL"),
        ("zero_shot('article', 'embedding', '{}', ARRAY[]::text[])", "0 labels and 0 vectors"),
        ("zero_shot('article', 'embedding', ARRAY['a'], ARRAY['[1]', '[2]'])", "1 labels and 2 vectors"),
        ("zero_shot('article', 'embedding', '{a,b}', ARRAY['[1]', NULL])", "2 vectors, .* no NULL"),
        ("zero_shot('article', 'embedding', ARRAY['a'], ARRAY['[1]'], keys => ARRAY[jsonb '5'])", "is 5"),
        ("centroid_classify('article', 'embedding', 'section', ARRAY['[1]'], mix => 2)", "mix is 2"),
        ("centroid_classify('article', 'embedding', NULL, ARRAY['[1]'])", "label column is NULL"),
        ("centroid_classify('article', 'embedding', 'section', ARRAY['[1]'], temperature => -1)", "above 0"),
    ],
)
def test_mistakes_are_named(session, sql, message):
    with pytest.raises(DBAPIError, match=message):
        session.execute(text(f"SELECT * FROM pgembed.{sql}".replace("ARRAY['[", "ARRAY[text '[")))
