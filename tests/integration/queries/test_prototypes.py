"""zero_shot and centroid_classify, compared with the means and distances of numpy."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from sqlalchemy import ARRAY, Column, Integer, MetaData, String, Table, create_engine, func, select, update
from sqlalchemy.orm import Session

from pgembed.columns.types import VectorType
from pgembed.exc import QueryError
from pgembed.queries import centroid_classify, zero_shot
from tests.integration.queries.conftest import store

ABOUT = {"first": "w5 v17", "second": ["w1 v2", "w3 u4", "w1 v2"], "third": "u42 w40"}
TEMPLATE = "This text is about {}."


def unit(vectors):
    vectors = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def of_texts(corpus, template=TEMPLATE):
    encode = corpus.encoder.encode_queries
    return {
        label: unit(encode([template.format(text) for text in np.atleast_1d(texts)])).mean(axis=0)
        for label, texts in ABOUT.items()
    }


def nearest(prototypes, vector, temperature=0.05):
    """``(label, share, margin, nearest_distance)``"""
    labels = sorted(prototypes)
    distances = 1 - unit([prototypes[label] for label in labels]) @ unit(vector)
    weights = np.exp(-(distances - distances.min()) / temperature)
    weights /= weights.sum()
    best, second = np.argsort(distances, kind="stable")[:2]
    return labels[best], weights[best], weights[best] - weights[second], distances[best]


def same(row, expected):
    label, *figures = expected
    assert (row.label, row.reason) == (label, None)
    assert (row.share, row.margin, row.nearest_distance) == pytest.approx(tuple(figures), rel=1e-3, abs=1e-5)


def test_rows_get_the_label_whose_texts_are_nearest(corpus, session):
    article = corpus.article
    statement = zero_shot(article.embedding, ABOUT, where=article.id < 40)
    corpus.encoder.calls.clear()
    rows = session.execute(statement).all()
    assert [len(texts) for texts in corpus.encoder.calls] == [5]
    assert rows[0]._fields == ("key", "label", "share", "margin", "nearest_distance", "reason")
    assert [row.key for row in rows] == list(range(1, 40))
    prototypes = of_texts(corpus)
    for row in rows:
        if row.key in (11, 12):
            assert tuple(row)[1:] == (None, None, None, None, "too few neighbours")
        else:
            same(row, nearest(prototypes, corpus.vectors[row.key]))
    assert {row.label for row in rows} >= set(ABOUT)


def test_texts_get_labels_with_another_template_and_temperature(corpus, session):
    texts = ["w5 v17 u120", "w40 v41 u42"]
    statement = zero_shot(corpus.article.embedding, ABOUT, template="{}", temperature=0.2, queries=texts)
    rows = session.execute(statement).all()
    prototypes = of_texts(corpus, "{}")
    for row, vector in zip(rows, corpus.encoder.encode_queries(texts), strict=True):
        same(row, nearest(prototypes, vector, 0.2))
    unsure = zero_shot(corpus.article.embedding, ABOUT, template="{}", queries=["w1"], min_share=0.999999)
    assert session.execute(unsure).one().reason == "low share"
    far = zero_shot(corpus.article.embedding, ABOUT, queries=["w1"], max_distance=0.001)
    row = session.execute(far).one()
    assert (row.label, row.reason, row.share > 0) == (None, "too far", True)


def test_whole_numbers_are_labels_and_equal_distances_go_to_the_smaller(corpus, session):
    statement = zero_shot(corpus.article.embedding, {9: "w1", 7: "w1"}, queries=["w2"])
    row = session.execute(statement).one()
    assert (row.label, row.share, row.margin) == (7, 0.5, 0)


def sections(corpus, keep=lambda row: True):
    found = defaultdict(list)
    for row in corpus.rows:
        if row["section"] and row["id"] in corpus.vectors and keep(row):
            found[row["section"]].append(corpus.vectors[row["id"]])
    return {label: unit(vectors).mean(axis=0) for label, vectors in found.items()}


def test_rows_get_the_label_whose_mean_is_nearest(corpus, session):
    article = corpus.article
    statement = centroid_classify(
        article.embedding,
        queries=article.section.is_(None) & (article.id < 200),
        label=article.section,
        where=~article.hidden,
    )
    rows = session.execute(statement).all()
    means = sections(corpus, lambda row: not row["hidden"])
    assert len(rows) == 39
    for row in rows:
        same(row, nearest(means, corpus.vectors[row.key]))


def test_texts_are_mixed_into_the_means(corpus, session):
    article = corpus.article
    label = func.replace(article.section, "help", "first")
    statement = centroid_classify(
        article.embedding, queries=article.id < 10, label=label, texts=ABOUT, mix=0.25
    )
    rows = session.execute(statement).all()
    texts, means = of_texts(corpus), sections(corpus)
    means["first"] = 0.75 * unit(means.pop("help")) + 0.25 * unit(texts["first"])
    prototypes = texts | means
    assert len(prototypes) == 5
    for row in rows:
        same(row, nearest(prototypes, corpus.vectors[row.key]))


def test_psycopg2_and_update(corpus):
    article = corpus.article
    engine = create_engine(corpus.url.set(drivername="postgresql+psycopg2"))
    found = zero_shot(article.embedding, ABOUT, where=article.id < 40).subquery()
    with Session(engine) as session:
        assert session.scalar(select(func.count(found.c.label))) == 37
        changed = session.execute(
            update(article).where(article.id == found.c.key).values(section=found.c.label),
            execution_options={"synchronize_session": False},
        )
        assert changed.rowcount == 39
        session.rollback()
    engine.dispose()


@pytest.mark.parametrize("storage", ["vector", "halfvec"])
def test_other_metrics_average_vectors_as_they_are(engine, storage):
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("label", String),
        Column("vector", VectorType(2, storage)),
    )
    labels = ["a", "a", "b", None]
    store(engine, table, [[1, 0], [9, 0], [0, 4], [4, 1]], lambda n: {"label": labels[n]})
    statement = centroid_classify(
        table.c.vector, queries=table.c.id == 3, label=table.c.label, metric="l2", temperature=1
    )
    with Session(engine) as session:
        row = session.execute(statement).one()
    assert (row.key, row.label) == (3, "a")
    distances = np.array([np.sqrt(2), 5])
    assert row.nearest_distance == pytest.approx(distances[0])
    assert row.share == pytest.approx(1 / (1 + np.exp(distances[0] - distances[1])), rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ({}, {}, "expected a dictionary of labels"),
        (["a"], {}, "expected a dictionary of labels"),
        ({"a": "x", 1: "y"}, {}, "the labels are of int, str"),
        ({1.5: "x"}, {}, "the labels are of float"),
        ({"a": []}, {}, "'a' has no text"),
        ({"a": " "}, {}, "'a' has a blank text"),
        ({"a": "x"}, {"template": "about"}, "expected a text with one {}"),
        ({"a": "x"}, {"temperature": 0}, "expected a number above 0"),
        ({"a": "x"}, {"queries": ["x"], "where": True}, "queries= says what gets labels"),
    ],
)
def test_labels_that_say_nothing_are_refused(corpus, labels, options, message):
    with pytest.raises(QueryError, match=message):
        zero_shot(corpus.article.embedding, labels, **options)


def test_means_that_are_none_are_refused(corpus):
    article = corpus.article
    with pytest.raises(QueryError, match="mix=2; expected a number from 0 to 1"):
        centroid_classify(article.embedding, queries=["x"], label=article.section, texts=ABOUT, mix=2)
    tags = func.string_to_array(article.section, "", type_=ARRAY(String))
    with pytest.raises(QueryError, match=r"label= is an array"):
        centroid_classify(article.embedding, queries=["x"], label=tags)
