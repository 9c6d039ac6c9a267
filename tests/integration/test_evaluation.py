"""evaluate: figures of labels by neighbours, compared with those of knn_classify_many and of numpy."""

from __future__ import annotations

import enum
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest
from sqlalchemy import Column, Enum, Float, Integer, MetaData, Numeric, String, Table, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

import pgembed
from pgembed.columns.types import VectorType
from pgembed.exc import DeclarationError, QueryError
from pgembed.indexes.errors import NoNeighboursError
from pgembed.measuring import evaluate
from pgembed.queries import duplicate_groups, knn_classify_many, softmax
from tests.integration.queries.conftest import store

POINTS = Table(
    "point",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("label", String),
    Column("copy", Integer),
    Column("vector", VectorType(3)),
)
OPTIONS = {"label": POINTS.c.label, "metric": "l2"}


@pytest.fixture
def blobs(engine):
    """Overlapping groups of points."""
    rng = np.random.default_rng(5)
    vectors = (np.repeat(np.eye(3), 50, axis=0) * 2 + rng.standard_normal((150, 3))).astype(np.float32)
    store(
        engine,
        POINTS,
        vectors,
        lambda n: {"label": "abc"[n // 50] if n % 13 else None, "copy": n // 2 if n % 2 else None},
    )
    with Session(engine) as session:
        yield session


@pytest.mark.parametrize("weights", ["distance", "uniform", softmax(0.3)])
@pytest.mark.parametrize("held_out", [None, POINTS.c.id % 3 == 0])
def test_the_figures_are_those_of_the_labels_that_users_get(blobs, weights, held_out):
    found = evaluate(blobs, POINTS.c.vector, k=4, weights=weights, held_out=held_out, **OPTIONS)
    labelled = POINTS.c.label.is_not(None)
    queries, where = (labelled, None) if held_out is None else (labelled & held_out, ~held_out)
    rows = blobs.execute(
        knn_classify_many(POINTS.c.vector, queries=queries, where=where, k=4, weights=weights, **OPTIONS)
    ).all()
    own = np.array(["abc"[row.key // 50] for row in rows])
    predicted = np.array([row.label for row in rows])
    share = np.array([row.share for row in rows])
    right = own == predicted
    assert (found.rows, found.k, found.accuracy) == (len(rows), 4, pytest.approx(right.mean()))
    assert 0.5 < found.accuracy < 0.95
    pairs = Counter(zip(own.tolist(), predicted.tolist(), strict=True))
    assert {(each.label, each.predicted): each.rows for each in found.confusion} == pairs
    f1 = [2 * pairs[each, each] / (np.sum(own == each) + np.sum(predicted == each)) for each in "abc"]
    assert found.macro_f1 == pytest.approx(np.mean(f1))
    bins = np.minimum((share * 15).astype(int), 14)
    error = sum(
        np.mean(bins == each) * abs(right[bins == each].mean() - share[bins == each].mean())
        for each in set(bins.tolist())
    )
    assert found.calibration_error == pytest.approx(error, abs=1e-6)
    for each in found.coverage[:10]:
        kept = share >= each.min_share
        if np.min(np.abs(share - each.min_share)) > 1e-6:
            assert (each.coverage, each.accuracy) == pytest.approx((kept.mean(), right[kept].mean()))


def test_the_best_k_and_temperature_are_those_of_the_tried(blobs):
    ks = (1, 3, 8, 20)
    found = evaluate(blobs, POINTS.c.vector, k=3, ks=ks, **OPTIONS)
    accuracies = {k: evaluate(blobs, POINTS.c.vector, k=k, ks=(1,), **OPTIONS).accuracy for k in ks}
    assert found.accuracies == accuracies
    assert accuracies[found.best_k] == max(accuracies.values()) > min(accuracies.values())
    # Overlapping groups: neither the nearest alone nor all alike.
    assert found.best_temperature > 0.01
    sure = evaluate(blobs, POINTS.c.vector, k=20, weights=softmax(0.01), **OPTIONS)
    best = evaluate(blobs, POINTS.c.vector, k=20, weights=softmax(found.best_temperature), **OPTIONS)
    assert best.calibration_error < sure.calibration_error
    assert found.as_dict()["best_k"] == found.best_k


def test_held_out_rows_fulfil_all_conditions_of_a_list(blobs):
    """Rows of which a condition is unknown are not held out."""
    both = [POINTS.c.id % 2 == 1, POINTS.c.copy > 60]
    found = evaluate(blobs, POINTS.c.vector, held_out=both, **OPTIONS)
    assert found.rows == len([n for n in range(1, 150, 2) if n // 2 > 60 and n % 13])


def test_copies_kept_apart_do_not_make_it_look_easy(engine):
    """Every point stands there twice, with a label by chance: its copy knows, others do not."""
    rng = np.random.default_rng(1)
    vectors = np.repeat(rng.standard_normal((60, 3)), 2, axis=0)
    labels = rng.integers(0, 2, 60)
    store(engine, POINTS, vectors, lambda n: {"label": "xy"[labels[n // 2]], "copy": n // 2})
    with Session(engine) as session:
        assert evaluate(session, POINTS.c.vector, k=1, **OPTIONS).accuracy == 1
        for apart in (0.999, POINTS.c.copy):
            found = evaluate(session, POINTS.c.vector, k=1, apart=apart, **OPTIONS)
            assert 0.25 < found.accuracy < 0.75


def test_rows_of_a_group_are_kept_apart_though_others_are_between_them(engine):
    """Chains of five points, each near the next alone; each chain has a label of its own."""
    angles = np.array([chain * 1.2 + step * 0.1 for chain in range(4) for step in range(5)])
    vectors = np.stack([np.cos(angles), np.sin(angles), np.zeros(20)], axis=1)
    store(engine, POINTS, vectors, lambda n: {"label": "abcd"[n // 5], "copy": None})
    options = {"label": POINTS.c.label, "k": 1}
    least = float(np.cos(0.15))
    groups = duplicate_groups(POINTS.c.vector, min_score=least)
    with Session(engine) as session:
        assert evaluate(session, POINTS.c.vector, apart=least, **options).accuracy == 1
        found = evaluate(session, POINTS.c.vector, apart=groups, **options)
        assert (found.rows, found.accuracy) == (20, 0)
        some = (
            select(POINTS.c.label.label("group_id"), POINTS.c.id.label("key"))
            .where(POINTS.c.id < 10)
            .subquery()
        )
        found = evaluate(session, POINTS.c.vector, apart=some, held_out=POINTS.c.id % 2 == 0, **options)
        assert (found.rows, found.accuracy) == (10, 0.5)
        lost = select(some.c.group_id, func.nullif(some.c.key, 9).label("key"))
        found = evaluate(session, POINTS.c.vector, apart=lost, held_out=POINTS.c.id % 2 == 0, **options)
        assert (found.rows, found.accuracy) == (10, 0.7)


def test_a_share_of_the_rows_is_held_out(blobs):
    found = [
        evaluate(blobs, POINTS.c.vector, held_out=0.3, seed=seed, **OPTIONS).rows for seed in (0, 1, 2, 0)
    ]
    assert found[0] == found[3]
    assert all(20 < rows < 63 for rows in found)
    assert len(set(found)) > 1
    assert evaluate(blobs, POINTS.c.vector, held_out=0.999, **OPTIONS).rows > 120


class Kind(enum.Enum):
    zebra = 1
    ant = 2


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Enum(Kind), [Kind.zebra, Kind.ant]),
        (Numeric(), [Decimal("1.5"), Decimal("NaN")]),
        (Float(), [1.5, float("nan")]),
        (JSONB(), [[1, 2], {"a": 1}]),
    ],
)
def test_labels_of_any_type_in_the_order_of_the_database(engine, tmp_path, kind, values):
    points = Table(
        "point",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("label", kind),
        Column("vector", VectorType(2)),
    )
    # One of each label at the same distance from all others.
    store(engine, points, [[1, 0]] * 2 + [[0, 1]] * 2, lambda n: {"label": values[n % 2]})
    options = {"label": points.c.label, "k": 3, "weights": "uniform"}
    with Session(engine) as session:
        found = evaluate(session, points.c.vector, held_out=points.c.id > 1, **options)
        queries = knn_classify_many(
            points.c.vector,
            queries=points.c.id > 1,
            where=points.c.id < 2,
            min_neighbours=1,
            regression=False,
            **options,
        )
        assert [repr(row.label) for row in session.execute(queries)] == [repr(values[0])] * 2
        assert [(repr(each.label), repr(each.predicted)) for each in found.confusion] == [
            (repr(value), repr(values[0])) for value in values
        ]
        assert found.accuracy == 0.5
        found.plot(tmp_path / "confusion.svg")


def test_rows_without_neighbours_are_wrong(engine):
    store(engine, POINTS, [[1, 0, 0], [2, 0, 0]], lambda n: {"label": "a", "copy": 1})
    with Session(engine) as session:
        found = pgembed.evaluate(session, POINTS.c.vector, apart=POINTS.c.copy, **OPTIONS)
        assert (found.rows, found.accuracy, found.macro_f1) == (2, 0, 0)
        assert [(each.label, each.predicted, each.rows) for each in found.confusion] == [("a", None, 2)]
        with pytest.raises(
            NoNeighboursError, match="no row that has a label and a vector is to be evaluated"
        ):
            evaluate(session, POINTS.c.vector, where=POINTS.c.id < 0, **OPTIONS)


def test_the_confusion_matrix_is_drawn(blobs, tmp_path):
    found = evaluate(blobs, POINTS.c.vector, **OPTIONS)
    found.plot(tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DeclarationError, match="the name of a drawing ends with"):
        found.plot(tmp_path / "confusion.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": ()}, "ks is empty"),
        ({"ks": (0,)}, "ks=0"),
        ({"ks": 5}, "ks=5; expected the numbers"),
        ({"k": 0}, "k=0"),
        ({"weights": "fast"}, "weights='fast'"),
        ({"held_out": 3}, "expected a condition"),
        ({"held_out": 1.0}, "held_out=1.0; expected a share"),
        ({"held_out": float("nan")}, "held_out=nan"),
        ({"held_out": 0.5, "seed": -1}, "seed=-1"),
        ({"apart": POINTS}, "columns group_id and key"),
    ],
)
def test_what_measures_nothing_is_refused(blobs, options, message):
    with pytest.raises(QueryError, match=message):
        evaluate(blobs, POINTS.c.vector, **OPTIONS | options)
