"""label_issues, outliers and representatives, compared with the neighbours that numpy finds."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import embedding_parts
from pgembed.columns.types import VectorType
from pgembed.exc import QueryError
from pgembed.measuring import evaluate
from pgembed.queries import (
    centroid_classify,
    cluster,
    knn_classify_many,
    label_issues,
    outliers,
    representatives,
    topics,
)
from pgembed.testing import HashEncoder
from tests.integration.queries.conftest import store

POINTS = Table(
    "point",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("label", String),
    Column("source", String),
    Column("vector", VectorType(3)),
)


def neighbours_of(vectors, keep, k, at_least=0.0):
    """``{key: [(key, distance)]}`` by Euclidean distance, of the rows to keep."""
    found = {}
    for key in keep:
        distances = np.linalg.norm(vectors[keep] - vectors[key], axis=1)
        others = [
            (other, float(distance))
            for distance, other in sorted(zip(distances, keep, strict=True))
            if other != key and distance > at_least
        ]
        found[key] = others[:k]
    return found


@pytest.fixture
def blobs(engine):
    """Three groups of points with labels of their own, of which every tenth has been flipped."""
    rng = np.random.default_rng(3)
    vectors = (np.repeat(np.eye(3), 40, axis=0) * 5 + rng.standard_normal((120, 3))).astype(np.float32)
    labels = ["abc"[(n // 40 + (n % 10 == 7)) % 3] if n % 11 else None for n in range(120)]
    store(engine, POINTS, vectors, lambda n: {"label": labels[n], "source": f"s{n % 30}" if n % 4 else None})
    with Session(engine) as session:
        yield session, vectors.astype(np.float64), labels


def expected_issues(labels, neighbours):
    found = []
    for key, others in neighbours.items():
        weights = defaultdict(float)
        for other, distance in others:
            weights[labels[other]] += 1 / (distance + 1e-6)
        total = sum(weights.values())
        suggested = max(weights, key=lambda each: weights[each])
        share, best = weights[labels[key]] / total, weights[suggested] / total
        if suggested != labels[key]:
            found.append((key, labels[key], suggested, share, best))
    return sorted(found, key=lambda row: row[3] - row[4])


@pytest.mark.parametrize("mode", ["exact", "approximate"])
def test_rows_whose_neighbours_contradict_them_come_surest_first(blobs, mode):
    session, vectors, labels = blobs
    rows = session.execute(
        label_issues(
            POINTS.c.vector, label=POINTS.c.label, k=7, metric="l2", mode=mode, where=POINTS.c.id > 5
        )
    ).all()
    labelled = [key for key in range(6, 120) if labels[key]]
    expected = expected_issues(labels, neighbours_of(vectors, labelled, 7))
    assert [tuple(row)[:3] for row in rows] == [row[:3] for row in expected]
    assert [(row.share, row.suggested_share) for row in rows] == [
        pytest.approx(row[3:], abs=1e-4) for row in expected
    ]
    assert rows[0]._fields == ("key", "label", "suggested", "share", "suggested_share")
    flipped = {key for key in labelled if key % 10 == 7}
    assert len(flipped & {row.key for row in rows}) >= 0.8 * len(flipped)


def test_rows_kept_apart_do_not_vote_for_each_other(blobs):
    session, vectors, labels = blobs
    labelled = [key for key in range(120) if labels[key]]
    options = {"label": POINTS.c.label, "k": 5, "metric": "l2"}
    near = session.execute(label_issues(POINTS.c.vector, apart=1 / (1 + 0.8), **options)).all()
    expected = expected_issues(labels, neighbours_of(vectors, labelled, 5, at_least=0.8))
    assert [tuple(row)[:3] for row in near] == [row[:3] for row in expected]
    together = session.execute(label_issues(POINTS.c.vector, **options)).all()
    assert [row.key for row in near] != [row.key for row in together]

    apart = session.execute(label_issues(POINTS.c.vector, apart=POINTS.c.source, **options)).all()
    every = neighbours_of(vectors, labelled, 120)
    kept = {
        key: [each for each in others if key % 4 == 0 or each[0] % 4 == 0 or key % 30 != each[0] % 30][:5]
        for key, others in every.items()
    }
    assert [tuple(row)[:3] for row in apart] == [row[:3] for row in expected_issues(labels, kept)]


def test_outliers_are_far_from_their_neighbours(blobs):
    session, vectors, _ = blobs
    rows = session.execute(outliers(POINTS.c.vector, k=4, metric="l2").limit(30)).all()
    means = {
        key: np.mean([each[1] for each in others])
        for key, others in neighbours_of(vectors, list(range(120)), 4).items()
    }
    expected = sorted(means.items(), key=lambda each: -each[1])[:30]
    assert [row.key for row in rows] == [key for key, _ in expected]
    assert [row.distance for row in rows] == pytest.approx([mean for _, mean in expected], abs=1e-5)


@pytest.mark.parametrize("k", [4, 25])
def test_representatives_are_the_densest_of_their_neighbours(blobs, k):
    session, vectors, _ = blobs
    rows = session.execute(representatives(POINTS.c.vector, k=k, metric="l2", where=POINTS.c.id < 110)).all()
    neighbours = neighbours_of(vectors, list(range(110)), k)
    means = {key: np.mean([each[1] for each in others]) for key, others in neighbours.items()}
    expected = [key for key, near in neighbours.items() if all(means[key] < means[each] for each, _ in near)]
    assert [row.key for row in rows] == sorted(expected, key=lambda key: means[key])
    if k == 25:
        assert Counter(row.key // 40 for row in rows) == {0: 1, 1: 1, 2: 1}


def test_copies_have_one_representative_and_no_distance(engine):
    store(engine, POINTS, [[1, 0, 0]] * 5 + [[9, 0, 0]] * 5)
    with Session(engine) as session:
        rows = session.execute(representatives(POINTS.c.vector, k=4, metric="l2")).all()
        assert [tuple(row) for row in rows] == [(0, 0), (5, 0)]


def test_composite_keys(engine):
    table = Table(
        "t",
        MetaData(),
        Column("a", Integer, primary_key=True),
        Column("b", String, primary_key=True),
        Column("label", String),
        Column("vector", VectorType(2)),
    )
    table.metadata.create_all(engine)
    rows = [
        {"a": n // 2, "b": "xy"[n % 2], "label": label, "vector": [place, 0]}
        for n, (place, label) in enumerate([(0, "u"), (1, "u"), (2, "v"), (50, "v"), (51, "v"), (53, "v")])
    ]
    with Session(engine) as session:
        session.execute(insert(table), rows)
        options = {"k": 2, "metric": "l2"}
        issues = session.execute(label_issues(table.c.vector, label=table.c.label, **options)).all()
        assert [tuple(row) for row in issues] == [(1, "x", "v", "u", 0, 1)]
        far = session.execute(outliers(table.c.vector, **options).limit(1)).one()
        assert (far.key_1, far.key_2, far.distance) == (2, "y", 2.5)
        dense = session.execute(representatives(table.c.vector, **options)).all()
        assert [tuple(row) for row in dense] == [(0, "y", 1), (2, "x", 1.5)]


@pytest.mark.parametrize("apart", ["near", 7, True])
def test_what_keeps_nothing_apart_is_refused(apart):
    with pytest.raises(QueryError, match=f"apart={apart!r}; expected a score"):
        label_issues(POINTS.c.vector, label=POINTS.c.label, apart=apart)


def test_parts_have_the_labels_of_what_they_belong_to(session):
    """Four guides of four parts each; a wrong label is contradicted by the guide that says the same."""

    class Base(DeclarativeBase):
        pass

    class Guide(Base):
        __tablename__ = "guide"
        id: Mapped[int] = mapped_column(primary_key=True)
        section: Mapped[str | None]
        body: Mapped[str]
        parts = embedding_parts("body", encoder=HashEncoder(16))

    Base.metadata.create_all(session.connection())
    texts = [" ".join([word] * 600) for word in ("printer", "printer", "news", "news", "printer")]
    sections = ["help", "help", "news", "news", None]
    session.add_all(
        Guide(id=n, section=section, body=body)
        for n, (section, body) in enumerate(zip(sections, texts, strict=True))
    )
    session.commit()
    parts, options = Guide.parts, {"label": Guide.section, "k": 3}
    assert session.execute(label_issues(parts, apart=Guide.id, **options)).all() == []
    found = evaluate(session, parts, apart=Guide.id, held_out=Guide.section == "news", **options)
    assert {(each.label, each.predicted) for each in found.confusion} == {("news", "help")}
    assert evaluate(session, parts, apart=Guide.id, **options).accuracy == 1
    for classify in (
        knn_classify_many(parts, queries=Guide.section.is_(None), **options),
        centroid_classify(parts, queries=Guide.section.is_(None), label=Guide.section),
    ):
        rows = session.execute(classify).all()
        assert len(rows) > 1
        assert {row.label for row in rows} == {"help"}
    clusters = cluster(parts, min_score=0.99, min_size=2)
    words = [row.words for row in session.execute(topics(parts, clusters, text=Guide.section))]
    assert sorted(words) == [["help"], ["news"]]
