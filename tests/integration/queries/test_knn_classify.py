"""knn_classify: votes of the nearest labelled rows, compared with a count in Python."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from sqlalchemy import Integer, String, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed.columns.types import VectorType
from pgembed.queries import knn_classify


def vote(corpus, vector, k, weight, keep=lambda row: True):
    neighbours = corpus.nearest(vector, k, lambda row: row["section"] is not None and keep(row))
    weights, votes = defaultdict(float), defaultdict(int)
    for key, distance in neighbours:
        label = corpus.rows[key - 1]["section"]
        weights[label] += weight(distance)
        votes[label] += 1
    total = sum(weights.values())
    return sorted(
        ((label, weights[label] / total, votes[label]) for label in weights), key=lambda row: -row[1]
    )


@pytest.mark.parametrize(
    ("weights", "weight"),
    [("distance", lambda distance: 1 / (max(distance, 0) + 1e-6)), ("uniform", lambda distance: 1)],
)
def test_shares_are_those_of_the_nearest_labelled_rows(corpus, session, weights, weight):
    article = corpus.article
    for query in ("w5 v17 u120", "w1", "nothing like it"):
        vector = corpus.encoder.encode_queries([query])[0]
        rows = session.execute(
            knn_classify(article.embedding, query, label=article.section, k=25, weights=weights)
        ).all()
        expected = vote(corpus, vector, 25, weight)
        assert {row.label: row.votes for row in rows} == {label: votes for label, _, votes in expected}
        assert [row.share for row in rows] == pytest.approx([share for _, share, _ in expected], rel=1e-3)
        assert sum(row.share for row in rows) == pytest.approx(1)
        assert rows[0]._fields == ("label", "share", "votes")


def test_it_uses_the_index(corpus, session, explain):
    article = corpus.article
    plan = explain(session.connection(), knn_classify(article.embedding, "w5", label=article.section))
    assert "Index Scan using ix_article_embedding_hnsw" in plan
    assert "never executed" in plan


def test_a_row_does_not_vote_for_itself_and_filters_apply(corpus, session):
    article = corpus.article
    row = session.get(article, 101)
    assert row.section is not None
    rows = session.execute(
        knn_classify(article.embedding, row, label=article.section, k=1, where=~article.hidden)
    ).all()
    nearest = corpus.nearest(
        corpus.vectors[101], 1, lambda found: found["section"] and not found["hidden"] and found["id"] != 101
    )
    assert rows == [(corpus.rows[nearest[0][0] - 1]["section"], 1.0, 1)]


def test_labels_may_be_expressions_and_votes_be_cut(corpus, session):
    article = corpus.article
    label = func.upper(article.section)
    statement = knn_classify(article.embedding, "w5 v17", label=label)
    rows = session.execute(statement).all()
    assert {row.label for row in rows} <= {"HELP", "NEWS", "CODE"}
    assert session.execute(statement.limit(1)).all() == rows[:1]


def test_no_labelled_neighbour_gives_no_row(corpus, session):
    article = corpus.article
    statement = knn_classify(article.embedding, "w5", label=article.section, where=article.id < 0)
    assert session.execute(statement).all() == []


class Base(DeclarativeBase):
    pass


class Sample(Base):
    __tablename__ = "sample"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    label: Mapped[str | None] = mapped_column(String)
    vector: Mapped[object] = mapped_column(VectorType(2))


@pytest.fixture
def samples(engine):
    Base.metadata.create_all(engine)

    def fill(*rows):
        with engine.begin() as connection:
            connection.execute(
                insert(Sample.__table__),
                [{"id": n, "label": label, "vector": vector} for n, (label, vector) in enumerate(rows)],
            )
        return Session(engine)

    return fill


def test_ties_go_to_the_nearest_row_then_to_the_smaller_label(samples):
    rows = [("b", [1, 2]), ("a", [1, 3]), ("c", [1, 3]), ("b", [1, 4]), ("a", [1, 4]), ("c", [1, 4])]
    with samples(*rows) as session:
        statement = knn_classify(
            Sample.vector, [1, 0], label=Sample.label, k=6, weights="uniform", metric="l2"
        )
        assert [row.label for row in session.execute(statement)] == ["b", "a", "c"]


def test_labels_with_equal_weights_are_ties(samples):
    """Whatever the order of the rows: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 to a computer."""
    ring = [[0.1, 0], [0.2, 0], [0.3, 0], [0.7, 0]]
    rows = [("z", vector) for vector in ring] + [("y", vector) for vector in reversed(ring)]
    with samples(*rows) as session:
        statement = knn_classify(Sample.vector, [0, 0], label=Sample.label, k=8, metric="l2")
        result = session.execute(statement).all()
    assert [row.label for row in result] == ["y", "z"]
    assert [row.share for row in result] == pytest.approx([0.5, 0.5])


def test_inner_products_weigh_by_their_exponential(samples):
    with samples(("a", [900, 0]), ("b", [899, 0]), ("b", [0, 5])) as session:
        statement = knn_classify(Sample.vector, [1, 0], label=Sample.label, metric="inner_product")
        rows = session.execute(statement).all()
    expected = 1 / (1 + np.exp(-1))
    assert [(row.label, row.votes) for row in rows] == [("a", 1), ("b", 2)]
    assert rows[0].share == pytest.approx(expected)


def test_a_label_of_another_table_by_a_subquery(corpus, session):
    article, author = corpus.article, corpus.author
    name = select(author.name).where(author.id == article.author_id).scalar_subquery()
    for mode in ("auto", "exact"):
        rows = session.execute(knn_classify(article.embedding, "w5 v17", label=name, mode=mode)).all()
        by_key = session.execute(
            knn_classify(article.embedding, "w5 v17", label=article.author_id, mode=mode)
        ).all()
        assert [tuple(row) for row in rows] == [
            ({1: "Ada", 2: "Bob"}[row.label], row.share, row.votes) for row in by_key
        ]
