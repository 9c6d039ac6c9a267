"""Labels for the questions of Banking77, inside Postgres and by scikit-learn on the same vectors.

Usage::

    pip install scikit-learn cleanlab
    python benchmarks/classification.py FOLDER      # train.csv and test.csv: text, category

The data is not shipped. It prints accuracies, checks that ``knn_classify_many`` gives scikit-learn's labels,
and compares times from rows to labels: one statement, against fetching all vectors for scikit-learn (medians
of five, in turn). Then it flips 5 % of the training labels, and looks for them with ``label_issues`` and, on
the same neighbours, with cleanlab. Last, it times ``evaluate``.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sqlalchemy import Engine, create_engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import (
    HNSW,
    Encoder,
    Vector,
    centroid_classify,
    embedding_column,
    evaluate,
    indexes,
    knn_classify_many,
    label_issues,
    softmax,
    zero_shot,
)
from pgembed.columns import bound
from pgembed.database import embedded, install
from pgembed.encoders import packaged

K = 15
FLIPPED = 0.05
REPEATS = 5


def read(file: Path) -> list[tuple[str, str]]:
    """Texts and categories."""
    with file.open(newline="", encoding="utf-8") as lines:
        return [(row["text"], row["category"]) for row in csv.DictReader(lines)]


def models(encoder: Any) -> tuple[Any, Any, Any]:
    """A base, the labelled rows and the questions."""

    class Base(DeclarativeBase):
        pass

    class Example(Base):
        __tablename__ = "example"
        id: Mapped[int] = mapped_column(primary_key=True)
        words: Mapped[str]
        label: Mapped[str]
        noisy: Mapped[str]
        embedding: Mapped[Vector | None] = embedding_column("words", encoder=encoder, index=HNSW())

    class Question(Base):
        __tablename__ = "question"
        id: Mapped[int] = mapped_column(primary_key=True)
        words: Mapped[str]
        label: Mapped[str]
        embedding: Mapped[Vector | None] = embedding_column("words", encoder=encoder)

    return Base, Example, Question


def flipped(labels: list[str]) -> tuple[list[str], set[int]]:
    """The labels with some replaced by others, and which."""
    rng = np.random.default_rng(0)
    names = sorted(set(labels))
    chosen = set(rng.choice(len(labels), int(FLIPPED * len(labels)), replace=False).tolist())
    noisy = list(labels)
    for place in chosen:
        noisy[place] = str(rng.choice([name for name in names if name != labels[place]]))
    return noisy, chosen


def fill(session: Session, model: Any, rows: list[dict[str, Any]], encoder: Any) -> None:
    """Store rows with their vectors."""
    embedding = bound(model.__table__.c.embedding)
    vectors = encoder.encode_documents([row["words"] for row in rows])
    for row, vector in zip(rows, vectors, strict=True):
        row |= {"embedding": vector, "embedding_digest": embedding.declaration.digest([row["words"]])}
    session.execute(insert(model.__table__), rows)


def labels_of(rows: Any) -> list[str | None]:
    """In the order of the keys."""
    return [row.label for row in rows]


def measure(engine: Engine, folder: Path, encoder: Any) -> None:
    """
    :raises AssertionError: the labels are not those of scikit-learn.
    """
    training, questions = read(folder / "train.csv"), read(folder / "test.csv")
    noisy, chosen = flipped([label for _, label in training])
    base, example, question = models(encoder)
    base.metadata.create_all(engine)
    with Session(engine) as session:
        rows = [
            {"id": n, "words": words, "label": label, "noisy": noisy[n]}
            for n, (words, label) in enumerate(training)
        ]
        fill(session, example, rows, encoder)
        rows = [{"id": n, "words": words, "label": label} for n, (words, label) in enumerate(questions)]
        fill(session, question, rows, encoder)
        indexes.create(session.connection(), example.embedding)
        session.commit()
        session.execute(text("ANALYZE"))
        session.commit()
        print(f"{len(training):,} labelled rows, {len(questions):,} questions, k = {K}")
        _labels(session, example, question, [label for _, label in questions])
        _issues(session, example, noisy, chosen)


def _labels(session: Session, example: Any, question: Any, own: list[str]) -> None:
    def many(mode: Any, **options: Any) -> Callable[[], list[str | None]]:
        statement = knn_classify_many(
            example.embedding, queries=question.embedding, label=example.label, k=K, mode=mode, **options
        )
        return lambda: labels_of(session.execute(statement))

    def fetched() -> tuple[Any, Any, Any]:
        rows = session.execute(select(example.label, example.embedding).order_by(example.id)).all()
        asked = session.scalars(select(question.embedding).order_by(question.id)).all()
        return np.stack([row.embedding for row in rows]), [row.label for row in rows], np.stack(asked)

    def neighbours() -> list[str]:
        vectors, labels, asked = fetched()
        knn = KNeighborsClassifier(K, metric="cosine", weights="distance", algorithm="brute")
        return list(knn.fit(vectors, labels).predict(asked))

    def regression() -> list[str]:
        vectors, labels, asked = fetched()
        return list(LogisticRegression(max_iter=1000, C=10).fit(vectors, labels).predict(asked))

    about = {label: label.replace("_", " ").strip("?") for label in sorted(set(own))}
    means = centroid_classify(example.embedding, queries=question.embedding, label=example.label)
    mixed = centroid_classify(
        example.embedding, queries=question.embedding, label=example.label, texts=about, mix=0.2
    )
    texts = zero_shot(example.embedding, about, queries=question.embedding)
    contestants: dict[str, tuple[int, Callable[[], Any]]] = {
        "knn_classify_many, approximate": (REPEATS, many("auto")),
        "fetching, scikit-learn KNN": (REPEATS, neighbours),
        "knn_classify_many, exact": (1, many("exact")),
        "softmax(0.05), approximate": (1, many("auto", weights=softmax(0.05))),
        "centroid_classify": (REPEATS, lambda: labels_of(session.execute(means))),
        "centroid_classify, texts mixed in": (1, lambda: labels_of(session.execute(mixed))),
        "zero_shot": (1, lambda: labels_of(session.execute(texts))),
        "fetching, logistic regression": (1, regression),
    }
    found: dict[str, list[str | None]] = {}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(REPEATS):
        for name, (repeats, contestant) in contestants.items():
            if turn < repeats:
                started = time.perf_counter()
                found[name] = contestant()
                times[name].append(time.perf_counter() - started)
    for name, labels in found.items():
        accuracy = np.mean([label == real for label, real in zip(labels, own, strict=True)])
        print(f"{name:36} accuracy {100 * accuracy:5.2f} {np.median(times[name]):8.2f} s")
    pairs = zip(found["knn_classify_many, exact"], found["fetching, scikit-learn KNN"], strict=True)
    different = sum(one != other for one, other in pairs)
    print(f"labels that differ from scikit-learn's: {different} of {len(own)}")
    ours, theirs = (np.median(times[name]) for name in list(contestants)[:2])
    print(f"time of the statement / of fetching and scikit-learn: {ours / theirs:.2f}")
    assert not different


def _issues(session: Session, example: Any, noisy: list[str], chosen: set[int]) -> None:
    count = len(chosen)
    started = time.perf_counter()
    rows = session.execute(label_issues(example.embedding, label=example.noisy, k=K)).all()
    seconds = time.perf_counter() - started
    hits = len(chosen & {row.key for row in rows[:count]})
    print(f"{count} labels flipped; label_issues lists {len(rows)} rows in {seconds:.1f} s")
    print(f"precision of the first {count}: {hits / count:.3f}")

    vectors = np.stack(session.scalars(select(example.embedding).order_by(example.id)).all())
    names = sorted(set(noisy))
    codes = np.array([names.index(label) for label in noisy])
    distances = 1 - vectors @ vectors.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :K]
    votes = np.zeros((len(noisy), len(names)))
    weights = 1 / (np.maximum(np.take_along_axis(distances, nearest, axis=1), 0) + 1e-6)
    np.add.at(votes, (np.arange(len(noisy))[:, None], codes[nearest]), weights)
    votes /= votes.sum(axis=1, keepdims=True)
    for method in ("self_confidence", "normalized_margin"):
        order = np.argsort(get_label_quality_scores(codes, votes, method=method), kind="stable")[:count]
        print(f"cleanlab's order by {method}: {len(chosen & set(order.tolist())) / count:.3f}")
    listed = find_label_issues(codes, votes, return_indices_ranked_by="self_confidence")
    hits = len(chosen & set(listed[:count].tolist()))
    print(f"cleanlab's find_label_issues lists {len(listed)}, {hits} flipped of the first {count}")

    started = time.perf_counter()
    result = evaluate(session, example.embedding, label=example.label, k=K)
    seconds = time.perf_counter() - started
    print(f"evaluate, {result.rows:,} rows by all others: accuracy {result.accuracy:.4f}, {seconds:.1f} s")
    print(f"  macro F1 {result.macro_f1:.4f}, calibration error {result.calibration_error:.4f}")
    print(f"  best k {result.best_k}, best temperature {result.best_temperature}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="pgembed-") as folder,
        embedded(Path(folder) / "data") as url,
        Encoder(packaged("all-MiniLM-L6-v2")) as encoder,
    ):
        engine = create_engine(url)
        with engine.begin() as connection:
            install(connection)
        measure(engine, arguments.folder, encoder)
        engine.dispose()


if __name__ == "__main__":
    main()
