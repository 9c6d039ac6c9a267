"""``knn_classify``: what the nearest labelled rows say about a text, a vector or a row."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from sqlalchemy import Float, SQLColumnExpression, func, literal_column, select, type_coerce
from sqlalchemy.orm import Mapped

from pgembed.queries.arguments import choice, comparable, real, whole
from pgembed.queries.nearest import Mode, Nearest, Stale
from pgembed.queries.settings import SearchSettings
from pgembed.queries.statement import Votes
from pgembed.queries.subject import VectorColumn, resolve
from pgembed.queries.vectors import Query, query_sql

_T = TypeVar("_T")


def knn_classify(
    column: VectorColumn,
    query: Query,
    *,
    label: SQLColumnExpression[_T] | Mapped[_T],
    k: int = 15,
    weights: Literal["distance", "uniform"] = "distance",
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

    The SQL is a search (see :meth:`pgembed.queries.nearest.Nearest.subquery`) with, around it::

        SELECT label, sum(weight) / sum(sum(weight)) OVER () AS share, count(*) AS votes ... GROUP BY label

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param label: the attribute to predict, or any expression over the entity.
    :param k: how many neighbours vote.
    :param weights: ``"distance"`` weighs a vote by 1 / distance (by exp(inner product) for that metric);
        ``"uniform"`` counts heads.
    :param max_distance: neighbours that are farther away do not vote.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: the vector is of other dimensions than the column.
    """
    choice("weights", weights, ("distance", "uniform"))
    k = whole("k", k, 1)
    subject = resolve(column, metric)
    labelled = comparable("label", label, "Article.section").is_not(None)
    subject.check_own(labelled, "label=")
    vector, conditions = query_sql(subject, query)
    nearest = Nearest(
        subject,
        vector,
        [labelled, *subject.conditions(where, stale), *conditions],
        k,
        0,
        None if max_distance is None else real("max_distance", max_distance),
        mode,
        SearchSettings(ef_search, probes),
    ).subquery(label)  # type: ignore[arg-type]
    distance = nearest.c.distance
    weight = subject.metric.weight(distance) if weights == "distance" else literal_column("1.0::float8")
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
