"""duplicates_of, hard_negatives and suggest_threshold, as brute force finds them."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    cast,
    exists,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from pgembed import HNSW
from pgembed.columns.types import VectorType
from pgembed.database import install
from pgembed.exc import QueryError
from pgembed.queries import duplicates_of, hard_negatives, suggest_threshold
from pgembed.queries.duplicates.thresholds import minimum_error
from pgembed.testing import HashEncoder
from tests.integration.queries.conftest import store
from tests.integration.queries.test_copies_and_tables import copied, cosines
from tests.integration.queries.test_duplicates import kinds, table_of
from tests.tables import library


class Prompted(HashEncoder):
    """Questions are encoded otherwise than documents."""

    def encode_queries(self, texts):
        return super().encode_queries([f"question {text}" for text in texts])


@pytest.fixture
def articles(engine):
    Base, _, Article = library(Prompted(16), "title", "body")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            [
                Article(id=1, title="reset my password", body="it is lost"),
                Article(id=2, title="reset my password", body="it is lost"),
                Article(id=3, title="printer on fire", section="help"),
            ]
        )
        session.commit()
        yield session, Article


def test_a_text_or_a_new_row_is_compared_as_a_document(articles):
    session, Article = articles
    for query in ("reset my password\nit is lost", Article(title="reset my password", body="it is lost")):
        rows = session.execute(duplicates_of(Article.embedding, query, min_score=0.99)).all()
        assert [row[0].id for row in rows] == [1, 2]
        assert [row.score for row in rows] == pytest.approx([1, 1])
    assert (
        session.execute(duplicates_of(Article.embedding, Article(title="news"), min_score=0.99)).all() == []
    )


def test_a_stored_row_is_no_duplicate_of_itself(articles):
    session, Article = articles
    rows = session.execute(duplicates_of(Article.embedding, session.get(Article, 1), min_score=0.99)).all()
    assert [row[0].id for row in rows] == [2]
    vector = session.scalar(select(Article.embedding).where(Article.id == 3))
    found = duplicates_of(Article.embedding, vector, min_score=0.99, where=Article.section == "help")
    assert [row[0].id for row in session.execute(found)] == [3]


def test_what_has_no_duplicates(articles):
    _, Article = articles
    with pytest.raises(QueryError, match="the text is ''"):
        duplicates_of(Article.embedding, Article(title=None), min_score=0.9)
    with pytest.raises(QueryError, match=r"min_score=2; expected a score"):
        duplicates_of(Article.embedding, "text", min_score=2)
    Author = Article.author.property.mapper.class_
    with pytest.raises(QueryError, match=r"the class Author, and article\.embedding is searched"):
        duplicates_of(Article.embedding, Author(name="Ada"), min_score=0.9)


@pytest.fixture
def questions(engine):
    """80 questions with one right answer each, but for the last ten, among 200 answers."""
    metadata = MetaData()
    answer = Table(
        "answer",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("kind", Integer),
        Column("vector", VectorType(16)),
        HNSW("vector", build="immediate"),
    )
    question = Table(
        "question",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("answer_id", Integer, ForeignKey("answer.id")),
        Column("vector", VectorType(16)),
    )
    rng = np.random.default_rng(5)
    answers = rng.standard_normal((200, 16)).astype(np.float32)
    asked = (answers[:80] + 0.8 * rng.standard_normal((80, 16))).astype(np.float32)
    store(engine, answer, answers, kinds)
    with engine.begin() as connection:
        connection.execute(
            insert(question),
            [
                {"id": key, "answer_id": key if key < 70 else None, "vector": vector}
                for key, vector in enumerate(asked)
            ],
        )
    return question, answer, cosines(asked, answers)


@pytest.mark.parametrize("mode", ["auto", "exact"])
@pytest.mark.parametrize("form", ["column", "exists"])
def test_negatives_are_the_nearest_that_are_not_right(engine, questions, mode, form):
    question, answer, scores = questions
    positive = question.c.answer_id == answer.c.id
    if form == "exists":
        link = question.alias()
        positive = exists().where(link.c.id == question.c.id, link.c.answer_id == answer.c.id)
    statement = hard_negatives(
        question.c.vector,
        answer.c.vector,
        positive=positive,
        k=4,
        margin=0.1,
        max_score=0.7,
        where=question.c.id % 2 == 0,
        answer_where=answer.c.kind != 2,
        mode=mode,
    )
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    expected = []
    for key in range(0, 70, 2):
        right = scores[key, key]
        wrong = [
            other
            for other in np.argsort(-scores[key]).tolist()
            if other != key and other % 3 != 2 and scores[key, other] <= min(right - 0.1, 0.7)
        ]
        expected += [(key, other, rank) for rank, other in enumerate(wrong[:4], 1)]
    assert [(row.question_key, row.answer_key, row.rank) for row in rows] == expected
    assert [row.score for row in rows] == pytest.approx([scores[a, b] for a, b, _ in expected], abs=1e-6)
    assert [row.positive_score for row in rows] == pytest.approx(
        [scores[a, a] for a, *_ in expected], abs=1e-6
    )


@pytest.mark.parametrize("mode", ["auto", "exact"])
def test_no_row_of_one_table_is_an_answer_to_itself(engine, mode):
    """Neither a right one, as in "of the same group", nor the nearest of the wrong ones."""
    metadata = MetaData()
    columns = (Column("id", Integer, primary_key=True), Column("group", Integer), Column("twin", Integer))
    table = Table(
        "item", metadata, *columns, Column("vector", VectorType(8)), HNSW("vector", build="immediate")
    )
    rng = np.random.default_rng(9)
    vectors = np.repeat(rng.standard_normal((20, 8)), 2, axis=0) + 0.3 * rng.standard_normal((40, 8))
    metadata.create_all(engine)
    other, scores = table.alias(), cosines(vectors, vectors)
    with engine.begin() as connection:
        install(connection)
        rows = [
            {"id": n, "group": n // 2, "twin": n ^ 1, "vector": vector} for n, vector in enumerate(vectors)
        ]
        connection.execute(insert(table), rows)
        expected = [
            (n, wrong, pytest.approx(scores[n, n ^ 1], abs=1e-6))
            for n in range(40)
            for wrong in [m for m in np.argsort(-scores[n]).tolist() if m // 2 != n // 2][:3]
        ]
        for positive in (table.c.group == other.c.group, table.c.twin == other.c.id):
            statement = hard_negatives(table.c.vector, other.c.vector, positive=positive, k=3, mode=mode)
            found = connection.execute(statement).all()
            assert [(row.question_key, row.answer_key, row.positive_score) for row in found] == expected
        arguments = "'item', 'vector', 'item', 'vector', '{twin}', k => 3, exact => :exact"
        sql = text(f"SELECT * FROM pgembed.hard_negatives({arguments})")
        twins = connection.execute(sql, {"exact": mode == "exact"}).all()
        assert [(row[0]["id"], row[1]["id"], row.positive_score) for row in twins] == expected


def test_a_question_without_an_answer_in_the_condition_is_refused(questions):
    question, answer, _ = questions
    for positive in (None, [question.c.id > 1, answer.c.id > 1]):
        with pytest.raises(QueryError, match="expected one condition"):
            hard_negatives(question.c.vector, answer.c.vector, positive=positive)
    with pytest.raises(QueryError, match=r"pass that of aliased\(...\) for the one or the other"):
        hard_negatives(answer.c.vector, answer.c.vector, positive=answer.c.id == answer.c.id)


@pytest.fixture
def labels(engine):
    table = table_of(16)
    vectors = copied(200, 16)
    store(engine, table, vectors, kinds)
    scores = cosines(vectors, vectors)
    rng = np.random.default_rng(7)
    near = np.argwhere(np.triu(scores > 0.3, 1))
    chosen = near[rng.choice(len(near), 300, replace=False)].tolist()
    labelled = [(a, b, bool(scores[a, b] + 0.2 * rng.standard_normal() > 0.7)) for a, b in chosen]
    return table, labelled, scores


def quality(least, labelled, scores):
    found = [same for a, b, same in labelled if scores[a, b] >= least]
    right, every = sum(found), sum(same for *_, same in labelled)
    precision, recall = right / max(len(found), 1), right / every
    return precision, recall, 2 * right / (len(found) + every)


def test_the_best_threshold_of_labelled_pairs(engine, labels):
    table, labelled, scores = labels
    with engine.connect() as connection:
        found = suggest_threshold(connection, table.c.vector, labelled)
    assert (found.precision, found.recall, found.f1) == pytest.approx(
        quality(found.min_score, labelled, scores)
    )
    every = [quality(scores[a, b] - 1e-6, labelled, scores)[2] for a, b, _ in labelled]
    assert found.f1 == pytest.approx(max(every))
    assert found.pairs == 300


@pytest.mark.parametrize("wished", [0.7, 0.89])
def test_a_wished_precision(engine, labels, wished):
    table, labelled, scores = labels
    with engine.connect() as connection:
        found = suggest_threshold(connection, table.c.vector, labelled, precision=wished)
    every = [quality(scores[a, b] - 1e-6, labelled, scores) for a, b, _ in labelled]
    assert found.recall == pytest.approx(max(recall for precision, recall, _ in every if precision >= wished))
    assert found.precision >= wished
    assert quality(found.min_score, labelled, scores)[0] == pytest.approx(found.precision)


def test_labels_of_a_table_and_composite_keys(engine):
    table = Table(
        "part",
        MetaData(),
        Column("document", String, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("vector", VectorType(2)),
    )
    table.metadata.create_all(engine)
    rows = [("a", 1, [1, 0]), ("a", 2, [1, 0.2]), ("b", 1, [1, 1]), ("c", 1, None)]
    labelled = [(("a", 1), ("a", 2), True), (("a", 1), ("b", 1), False), (("a", 1), ("c", 1), True)]
    label = Table(
        "label",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("left_key", JSONB),
        Column("right_key", JSONB),
        Column("duplicate", Integer),
    )
    label.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in rows])
        connection.execute(
            insert(label),
            [{"left_key": list(a), "right_key": list(b), "duplicate": int(same)} for a, b, same in labelled],
        )
        said = select(label.c.left_key, label.c.right_key, cast(label.c.duplicate, String).label("duplicate"))
        named = select(label.c.left_key, label.c.right_key, (label.c.duplicate == 1).label("duplicate"))
        for given in (labelled, named, label, said):
            found = suggest_threshold(connection, table.c.vector, given)
            assert found.min_score == pytest.approx((1 / np.sqrt(1.04) + 1 / np.sqrt(2)) / 2)
            assert (found.f1, found.pairs) == (1, 2)


def test_labels_that_say_nothing(engine, labels):
    table, labelled, _ = labels
    with engine.connect() as connection:
        for given, message in (
            ([], "labelled is empty"),
            ([(1, 2)], r"labelled holds \(1, 2\)"),
            ([(1, 2, "yes")], r"labelled holds \(1, 2, 'yes'\)"),
            ([(1, 2, True)], "1 labelled pairs have vectors, 1 of them duplicates"),
            ([(1, 5000, True), (1, 2, False)], "1 labelled pairs have vectors, 0 of them duplicates"),
            (table, "columns left_key, right_key and duplicate"),
        ):
            with pytest.raises(QueryError, match=message):
                suggest_threshold(connection, table.c.vector, given)
        with pytest.raises(QueryError, match="no threshold has a precision of 1"):
            suggest_threshold(connection, table.c.vector, [(0, 1, True), (0, 100, False)], precision=1)
        with pytest.raises(QueryError, match=r"precision=1\.5; expected a number above 0"):
            suggest_threshold(connection, table.c.vector, labelled, precision=1.5)
        with pytest.raises(QueryError, match="needs labelled pairs"):
            suggest_threshold(connection, table.c.vector, precision=0.9)


def test_a_guess_from_the_distances_alone_parts_the_planted_pairs(engine):
    """A tenth of the rows have a twin; random rows of 64 dimensions are far from each other."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((600, 64)).astype(np.float32)
    vectors[1:60:2] = vectors[:60:2] + 0.3 * rng.standard_normal((30, 64))
    vectors[100:140] = vectors[100]  # copies, which say nothing
    table = table_of(64)
    store(engine, table, vectors, kinds)
    with engine.connect() as connection:
        found = suggest_threshold(connection, table.c.vector)
    scores = cosines(vectors, vectors)
    np.fill_diagonal(scores, -1)
    nearest = scores[[*range(100), *range(140, 600)]].max(axis=1)
    assert nearest[60:].max() < found.min_score < nearest[:60].min()
    assert (found.f1, found.pairs) == (None, 560)


def test_a_guess_needs_rows(engine):
    table = table_of(2)
    store(engine, table, np.eye(2), kinds)
    with engine.connect() as connection, pytest.raises(QueryError, match="2 rows have a nearest neighbour"):
        suggest_threshold(connection, table.c.vector)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_two_normal_distributions_are_parted_where_they_meet(share):
    rng = np.random.default_rng(1)
    high = int(2000 * share)
    values = np.sort(np.append(rng.normal(0.5, 0.07, 2000 - high), rng.normal(0.95, 0.03, high)))
    assert 0.68 < values[minimum_error(values)] < 0.92
