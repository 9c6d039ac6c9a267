"""``hard_negatives``: near rows that are not the answer, to train an encoder with."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, func, select
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.visitors import iterate

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import conditions, real, whole
from pgembed.queries.core.asked import asked_by
from pgembed.queries.core.nearest import NAN, Mode, Nearest, Stale
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import DuplicatePairs, Entity
from pgembed.queries.core.subject import Subject, VectorColumn, correlated, differ, key_of, resolve
from pgembed.queries.duplicates.edges import score


class HardNegatives(DuplicatePairs[Entity, Entity, float, float, int]):
    """The statement of ``hard_negatives``."""

    inherit_cache = True
    helper = "hard_negatives"


def hard_negatives(
    question: VectorColumn,
    answer: VectorColumn,
    *,
    positive: Any,
    k: int = 5,
    max_score: float | None = None,
    margin: float | None = None,
    where: Any = None,
    answer_where: Any = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
) -> HardNegatives:
    """The answers nearest to each question that are not right: rows
    ``(question_key, answer_key, score, positive_score, rank)``.

    ::

        session.execute(hard_negatives(Question.embedding, Answer.embedding,
                                       positive=Question.answer_id == Answer.id, margin=0.05)).all()

    Rows come by question, the nearest first; ``rank`` counts from 1, and ``positive_score`` is that of the
    nearest right answer. Questions without a right answer that has a vector are left out. Answers that are
    nearer than the right one are often right too, and not labelled: ``max_score`` and ``margin`` leave them
    out. Where both are rows of one table, by :func:`sqlalchemy.orm.aliased`, no row is an answer to itself.

    :param positive: a condition over both entities that holds for right answers.
    :param k: how many for each question at most.
    :param max_score: leaves out answers with a higher score.
    :param margin: leaves out answers whose score is not lower than ``positive_score`` by at least this.
    :param where: a condition, or several, over the questions; ``answer_where`` one over the answers.
    :param mode: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    asking, subject = resolve(question), resolve(answer)
    if asking.selectable is subject.selectable:
        raise QueryError(
            f"{subject} is the column of the questions and of the answers; pass that of aliased(...) for the "
            "one or the other"
        )
    right = conditions(positive)
    if len(right) != 1:
        raise QueryError(
            f"positive={positive!r}; expected one condition, such as Question.answer_id == Answer.id"
        )
    is_right = correlated(right[0], [asking.selectable, subject.selectable])
    is_one_table = asking.column is subject.column
    others_alone = [differ(subject.keys, asking.keys)] if is_one_table else []
    nearest_right = (
        select(func.min(subject.distance(asking.vector)))
        .select_from(subject.selectable)
        .where(is_right, subject.vector.is_not(None), *others_alone)
        .correlate(asking.selectable)
        .scalar_subquery()
        .label("positive")
    )
    listed = (
        select(*asking.keys, asking.vector, nearest_right, *_columns(asking, is_right))
        .where(asking.vector.is_not(None), *asking.conditions(where, stale))
        .subquery()
    )
    vector, positive_distance = list(listed.c)[len(asking.keys)], listed.c.positive
    found = subject.metric.score(subject.distance(vector))
    wanted: list[ColumnElement[bool]] = [is_right.is_not(True), positive_distance < NAN]
    if is_one_table:
        wanted.append(differ(subject.keys, list(listed.c)[: len(subject.keys)]))
    if max_score is not None:
        wanted.append(found <= score(subject.metric, max_score, "max_score"))
    if margin is not None:
        wanted.append(found <= subject.metric.score(positive_distance) - real("margin", margin, finite=True))
    asked, others = asked_by(subject, listed)
    hits = Nearest(
        subject,
        asked.c.vector,
        [*subject.conditions([*conditions(answer_where), *wanted], stale, asked), *others],
        whole("k", k, 1),
        0,
        None,
        mode,
        SearchSettings(ef_search, probes),
        asked,
    ).subquery()
    return HardNegatives.sealing(
        select(
            key_of([hits.c[f"query_{n}"] for n, _ in enumerate(asking.keys, 1)]).label("question_key"),
            key_of([hits.c[f"key_{n}"] for n, _ in enumerate(subject.keys, 1)]).label("answer_key"),
            subject.metric.score(hits.c.distance).label("score"),
            subject.metric.score(asked.c.also_1).label("positive_score"),
            hits.c.rank.label("rank"),
        )
        .select_from(hits)
        .join(asked, asked.c.n == hits.c.n)
        .order_by(hits.c.n, hits.c.rank)
    )


def _columns(asking: Subject, condition: ColumnElement[bool]) -> list[ColumnElement[Any]]:
    """The columns of a question that the condition refers to, beside its key."""
    keys = {key.key for key in asking.selectable.primary_key}
    named = (
        part.key
        for part in iterate(condition)
        if isinstance(part, Column) and part.table is asking.selectable and part.key not in keys
    )
    return [asking.selectable.c[name] for name in dict.fromkeys(named)]
