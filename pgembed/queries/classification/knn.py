"""``knn_classify``, ``knn_classify_many``: what the nearest labelled rows say about one query or many."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from sqlalchemy import Float, SQLColumnExpression, func, select, type_coerce
from sqlalchemy.orm import Mapped
from sqlalchemy.sql.selectable import CTE

from pgembed.exc import QueryError
from pgembed.queries.classification.votes import Classified, Election, Limits, Weights, kind_of, weight_of
from pgembed.queries.core.arguments import comparable, real, whole
from pgembed.queries.core.asked import Queries, asked_by
from pgembed.queries.core.nearest import Mode, Nearest, Stale, refers
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import Entity, Votes, materialized
from pgembed.queries.core.subject import Subject, VectorColumn, resolve
from pgembed.queries.core.vectors import Query, query_sql

_T = TypeVar("_T")


def knn_classify(
    column: VectorColumn,
    query: Query,
    *,
    label: SQLColumnExpression[_T] | Mapped[_T],
    k: int = 15,
    weights: Weights = "distance",
    where: Any = None,
    max_distance: float | None = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Votes[_T, float, int]:
    """The labels of the ``k`` nearest rows with their shares of the vote: rows ``(label, share, votes)``.

    ::

        session.execute(knn_classify(Article.embedding, "printer on fire", label=Article.section)).first()

    The likeliest label comes first; of equal shares, the one with the nearest row, then the smaller label.
    ``share`` is the label's part of all weights, so that the shares of a result add up to 1; ``votes`` counts
    its rows. Rows whose label is NULL take no part in the search; an entity as the query does not vote for
    itself. No row at all comes back when there is no labelled neighbour. ``.limit(1)`` gives the best label.

    The SQL is a search (see :meth:`pgembed.queries.core.nearest.Nearest.subquery`) with, around it::

        SELECT label, sum(weight) / sum(sum(weight)) OVER () AS share, count(*) AS votes ... GROUP BY label

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param label: the attribute to predict, or any expression over the entity.
    :param k: how many neighbours vote.
    :param weights: ``"distance"`` weighs a vote by 1 / distance (by exp(inner product) for that metric);
        ``"uniform"`` counts heads; :func:`~pgembed.queries.softmax` weighs by exp(-distance / temperature).
    :param max_distance: neighbours that are farther away do not vote.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: the vector is of other dimensions than the column.
    """
    k = whole("k", k, 1)
    subject = resolve(column, metric)
    voted = _voted(subject, label)
    vector, conditions = query_sql(subject, query)
    nearest = Nearest(
        subject,
        vector,
        [voted.is_not(None), *subject.conditions(where, stale), *conditions],
        k,
        0,
        None if max_distance is None else real("max_distance", max_distance),
        mode,
        SearchSettings(ef_search, probes),
    ).subquery(voted)
    distance = nearest.c.distance
    weight = weight_of(subject.metric, weights, distance)
    voters = select(
        nearest.c.payload_1.label("label"), distance, type_coerce(weight, Float(53)).label("weight")
    ).subquery()
    total = func.sum(voters.c.weight)
    votes = (
        select(
            voters.c.label,
            (total / func.sum(total).over()).label("share"),
            func.count().label("votes"),
            func.min(voters.c.distance).label("nearest"),
        )
        .group_by(voters.c.label)
        .subquery()
    )
    statement = select(votes.c.label, votes.c.share, votes.c.votes).order_by(
        votes.c.share.desc(), votes.c.nearest, votes.c.label
    )
    return Votes.sealing(statement)


def knn_classify_many(
    column: VectorColumn,
    *,
    queries: Queries,
    label: SQLColumnExpression[_T] | Mapped[_T],
    k: int = 15,
    weights: Weights = "distance",
    prior: Literal["balanced"] | None = None,
    regression: bool | None = None,
    where: Any = None,
    min_share: float | None = None,
    min_margin: float | None = None,
    max_distance: float | None = None,
    min_neighbours: int | None = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Classified[Entity, _T | None, float | None, int, float | None, float | None, str | None]:
    """A label for each of many rows: rows ``(key, label, share, votes, margin, nearest_distance, reason)``.

    ::

        unlabelled = knn_classify_many(Article.embedding, queries=Article.section.is_(None),
                                       label=Article.section, min_share=0.6)
        found = unlabelled.subquery()
        session.execute(update(Article).where(Article.id == found.c.key).values(section=found.c.label))

    The ``k`` nearest rows of ``column`` that have a label vote, as in :func:`knn_classify`; a row does not
    vote for itself. There is one row for each query, in the order of the keys (of a list, of the list).
    ``label`` is the winner: the label with the greatest part of all weights; of equal ones that with the
    nearest row, then the smaller label. ``share`` is that part, ``votes`` counts its rows, ``margin`` is
    its share less that of the second label, and ``nearest_distance`` is that of the nearest labelled row.

    Where the answer does not fulfil what is asked of it, ``label`` is NULL and ``reason`` says why:
    ``"no vector"``, ``"too far"``, ``"too few neighbours"``, ``"low share"``, ``"low margin"``. The other
    columns stay as they were found.

    Of labels that are arrays, each element is a label by itself, and ``label`` is the sorted array of those
    whose share of all votes is above a half, or at least ``min_share``. ``share`` and ``votes`` are then the
    lowest among those given, and ``margin`` is that share less the highest of those not given. Of numbers,
    ``label`` is the weighted mean as a float, ``votes`` counts all neighbours, and ``share`` and ``margin``
    are NULL.

    The SQL is that of :func:`~pgembed.queries.search_many`, with the votes counted around it.

    :param column: the vectors of the training rows, as in :func:`~pgembed.queries.semantic_search`, as are
        the other arguments not listed here.
    :param queries: what gets labels: a condition on rows of the same entity, a vector column of another table
        (for all its rows), a select of keys and vectors, a list of texts and vectors, or
        ``bindparam("queries")`` with such a list. Keys of several columns are ``key_1``, ``key_2``, ...
    :param label: the attribute to predict, or any expression over the training rows.
    :param weights: ``"distance"``, ``"uniform"``, or :func:`softmax`.
    :param prior: ``"balanced"`` divides each vote by the number of training rows with its label, so that
        frequent labels have no advantage.
    :param regression: whether to average labels. Left out, numbers with a fraction (Float, Numeric) are
        averaged, and whole numbers are classes.
    :param where: which rows are training rows. May refer to the columns of the queries' select too.
    :param max_distance: neighbours that are farther away do not vote.
    :param min_neighbours: how many must vote; left out, ``k``, or 1 where ``max_distance`` is given.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: vectors of other dimensions than the column.
    """
    k = whole("k", k, 1)
    subject = resolve(column, metric)
    limits = Limits.of(min_share, min_margin, max_distance, min_neighbours, k)
    voted = _voted(subject, label)
    asked, conditions = asked_by(subject, queries, every=True)
    own = subject.conditions(where, stale, asked)
    near = Nearest(
        subject,
        asked.c.vector,
        [voted.is_not(None), *own, *conditions],
        k,
        0,
        None,
        mode,
        SearchSettings(ef_search, probes),
        asked,
    )
    found = near.subquery(voted)
    votes = Election(subject.metric, weights, limits, kind_of(found.c.payload_1, regression))
    sizes = None
    if prior is not None:
        if prior != "balanced":
            raise QueryError(f'prior={prior!r}; expected "balanced" or None')
        if any(refers(each, asked) for each in own):
            raise QueryError(
                'prior="balanced" counts the labels of all training rows, and where= refers to the queries: '
                "each would have training rows of its own"
            )
        sizes = _sizes(near, voted, votes.kind)
    return Classified.of(votes.answers(asked, found, found.c.payload_1, sizes), "knn_classify_many")


def _voted(subject: Subject, label: Any) -> Any:
    """The label as an expression over the rows that vote."""
    return subject.over(comparable("label", label, "Article.section"), "label=")


def _sizes(near: Nearest, label: Any, kind: str) -> CTE:
    """How many training rows have each label.

    :raises QueryError: they are not the same rows for all queries, or not labels that can be counted.
    """
    if kind != "class":
        raise QueryError(f'prior="balanced" is for labels that are classes; {label} is of the kind {kind}')
    rows = (
        select(label.label("label")).where(near.subject.vector.is_not(None), *near.own_conditions).subquery()
    )
    return materialized(select(rows.c.label, func.count().label("size")).group_by(rows.c.label), "sizes")
