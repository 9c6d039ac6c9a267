"""``diversify``: the nearest rows that differ from each other, by maximal marginal relevance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVarTuple

from sqlalchemy import ARRAY, Float, Integer, case, func, literal, literal_column, select, true
from sqlalchemy.dialects.postgresql import aggregate_order_by, array
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, Subquery

from pgembed.constants import CANDIDATES_FLOOR
from pgembed.exc import QueryError
from pgembed.metrics import metric, metrics_of
from pgembed.queries.core.arguments import candidates_for, real
from pgembed.queries.core.nearest import NAN, Nearest
from pgembed.queries.core.statement import SearchSelect, materialized, selecting
from pgembed.queries.core.subject import Subject, keys_of

_Ts = TypeVarTuple("_Ts")
_FLOAT = Float(53)
_INFINITY: ColumnElement[float] = literal_column("'Infinity'::float8", _FLOAT)


class Diversified(SearchSelect[*_Ts]):
    """The statement of ``diversify``."""

    inherit_cache = True
    helper = "diversify"


def diversify(
    statement: SearchSelect[*_Ts], *, lambda_: float = 0.5, candidates: int = CANDIDATES_FLOOR
) -> Diversified[*tuple[Any, ...]]:
    """The rows of a search that are near the query and differ from each other, with their ``rank``.

    ::

        session.execute(diversify(semantic_search(Article.embedding, "elections", limit=5))).all()

    This is maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998), computed in the database. The
    first row is the candidate that is most similar to the query. Each further one is the candidate with the
    greatest ::

        lambda_ * similarity to the query - (1 - lambda_) * greatest similarity to a row chosen before

    and of equal ones the nearest. Similarity is that of cosine, whatever the metric of the search; of bits,
    it is the score. Rows come in the order in which they were chosen, ``(Entity, distance, score, rank)``;
    the choice is that of LangChain's ``maximal_marginal_relevance`` among the same candidates.

    The SQL is the search for the candidates and a recursive query over them, one step for each row.

    :param statement: of :func:`~pgembed.queries.semantic_search`, or of :func:`~pgembed.queries.recommend`
        with ``strategy="average"``; its ``limit`` and ``offset`` count the rows that are chosen.
    :param lambda_: from 0, variety alone, to 1, the order of the search.
    :param candidates: how many of the nearest rows to choose among.
    :raises QueryError: another statement, ``lambda_`` outside of 0 to 1, or too few candidates.
    """
    page, base = getattr(statement, "_page", None) or (None, None)
    if not isinstance(page, Nearest):
        raise QueryError(
            "diversify() takes a statement of semantic_search() without per=, boost= and total= (of parts "
            'with parts="all"), or of recommend() with strategy="average", as that helper returns it; found '
            f"{_described(statement)}"
        )
    weight = real("lambda_", lambda_, "a number from 0 to 1")
    if not 0 <= weight <= 1:
        raise QueryError(f"lambda_={lambda_!r}; expected a number from 0 to 1")
    near = replace(page, limit=candidates_for(page.rows, candidates), offset=0)
    picked = _picked(near, _candidates(near), weight, page.rows, page.offset)
    found = selecting(page.subject, base, picked, helper="diversify")
    chosen: Diversified[*tuple[Any, ...]] = Diversified.sealing(
        found.order_by(picked.c.rank),
        page.subject.entity,
        legs=[near],
        distance=picked.c.distance,
        score=page.subject.metric.score(picked.c.distance),
        rank=picked.c.rank,
    )
    return chosen.options(*statement._with_options).execution_options(**statement.get_execution_options())


def _candidates(near: Nearest) -> CTE:
    """``(i, key_1, ..., payload_1, distance, relevance)``, numbered from 1, nearest first."""
    rows = near.subquery(near.subject.vector)
    keys = keys_of(near.subject, rows)
    number = func.row_number().over(order_by=(rows.c.distance, *keys))
    relevance = _similarity(near.subject, rows.c.payload_1, near.query)
    return materialized(
        select(number.cast(Integer).label("i"), *rows.c, relevance.label("relevance")), "candidates"
    )


def _picked(near: Nearest, candidates: CTE, weight: float, rows: int, offset: int) -> Subquery:
    """``(key_1, ..., distance, rank)``.

    ``redundant`` holds each candidate's greatest similarity to a chosen one, infinite for those themselves.
    """
    count = select(func.count().cast(Integer)).select_from(candidates).scalar_subquery()
    first = (
        select(
            literal(1).label("rank"),
            candidates.c.i,
            func.array_fill(-_INFINITY, array([count]), type_=ARRAY(_FLOAT)).label("redundant"),
        )
        .order_by(candidates.c.relevance.desc(), candidates.c.i)
        .limit(1)
    )
    picks = select(first.subquery()).cte(recursive=True)
    other, last = candidates.alias(), candidates.alias()
    similar = _similarity(near.subject, other.c.payload_1, last.c.payload_1)
    redundant = case(
        (other.c.i == picks.c.i, _INFINITY), else_=func.greatest(picks.c.redundant[other.c.i], similar)
    )
    # The aggregates stand in a subquery: Postgres allows none over the recursive reference itself.
    left = (
        select(other.c.i, other.c.relevance, redundant.label("redundant"))
        .select_from(other.join(last, last.c.i == picks.c.i))
        .correlate(picks)
        .subquery()
    )
    margin = literal(weight, _FLOAT) * left.c.relevance - literal(1 - weight, _FLOAT) * left.c.redundant
    best = func.array_agg(aggregate_order_by(left.c.i, margin.desc(), left.c.i), type_=ARRAY(Integer))
    following = (
        select(
            best.filter(left.c.redundant < _INFINITY)[1].label("i"),
            func.array_agg(aggregate_order_by(left.c.redundant, left.c.i), type_=ARRAY(_FLOAT)).label(
                "redundant"
            ),
        )
        .correlate(picks)
        .lateral()
    )
    steps = picks.union_all(
        select(picks.c.rank + 1, following.c.i, following.c.redundant)
        .select_from(picks.join(following, true()))
        .where(picks.c.rank < rows, following.c.i.is_not(None))
    )
    return (
        select(*keys_of(near.subject, candidates), candidates.c.distance, steps.c.rank)
        .select_from(steps.join(candidates, candidates.c.i == steps.c.i))
        .where(steps.c.rank > offset)
        .subquery()
    )


def _similarity(
    subject: Subject, left: ColumnElement[Any], right: ColumnElement[Any]
) -> ColumnElement[float]:
    """SQL; 0 for vectors of zeros, which have no direction."""
    cosine = metric("cosine") if "cosine" in metrics_of(subject.storage) else subject.metric
    found = func.nullif(cosine.score(cosine.between(left, right)), NAN)
    return func.coalesce(found, literal_column("0"), type_=_FLOAT)


def _described(statement: Any) -> str:
    return f"one of {statement.helper}()" if isinstance(statement, SearchSelect) else repr(statement)
