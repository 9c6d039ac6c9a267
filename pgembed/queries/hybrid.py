"""``hybrid_search``: nearest by vector and best by words, fused by their ranks."""

from __future__ import annotations

from typing import Any, TypeVarTuple, overload

import numpy as np
from sqlalchemy import BindParameter, Float, Select, and_, func, literal, select
from sqlalchemy.orm import Mapped
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Subquery

from pgembed.exc import QueryError
from pgembed.queries.arguments import MOST, real, whole, words
from pgembed.queries.fulltext import TextColumns, matching
from pgembed.queries.nearest import Mode, Nearest, Stale
from pgembed.queries.settings import SearchSettings
from pgembed.queries.statement import Entity, Hybrid, selecting
from pgembed.queries.subject import Subject, VectorColumn, keys_of, resolve
from pgembed.queries.vectors import Query, query_sql

_Ts = TypeVarTuple("_Ts")


@overload
def hybrid_search(
    column: Mapped[Any],
    query: Query,
    *,
    text: TextColumns,
    terms: str | ColumnElement[Any] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: None = ...,
    config: str = ...,
    candidates: int | None = ...,
    k: float = ...,
    weights: tuple[float, float] = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Hybrid[Entity, float, int | None, int | None]: ...


@overload
def hybrid_search(
    column: ColumnElement[Any],
    query: Query,
    *,
    text: TextColumns,
    terms: str | ColumnElement[Any] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: None = ...,
    config: str = ...,
    candidates: int | None = ...,
    k: float = ...,
    weights: tuple[float, float] = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Hybrid[*tuple[Any, ...]]: ...


@overload
def hybrid_search(
    column: VectorColumn,
    query: Query,
    *,
    text: TextColumns,
    terms: str | ColumnElement[Any] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: Select[*_Ts],
    config: str = ...,
    candidates: int | None = ...,
    k: float = ...,
    weights: tuple[float, float] = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Hybrid[*_Ts, float, int | None, int | None]: ...


def hybrid_search(
    column: VectorColumn,
    query: Query,
    *,
    text: TextColumns,
    terms: str | ColumnElement[Any] | None = None,
    limit: int = 10,
    offset: int = 0,
    where: Any = None,
    base: Any = None,
    config: str = "english",
    candidates: int | None = None,
    k: float = 60,
    weights: tuple[float, float] = (1.0, 1.0),
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Hybrid[*tuple[Any, ...]]:
    """Search by meaning and by words at once: rows ``(Entity, score, vector_rank, text_rank)``.

    ::

        session.execute(hybrid_search(Article.embedding, "error E1234 after reset",
                                      text=[Article.title, Article.body])).all()

    The nearest rows and the rows that share words with the query are ranked each by themselves, and the ranks
    are fused (reciprocal rank fusion; Cormack, Clarke and Buettcher, SIGIR 2009)::

        score = weights[0] / (k + vector_rank) + weights[1] / (k + text_rank)

    The best come first, equal scores in the order of the primary key. A rank is NULL for a row that only the
    other search has found; a row without a vector can be found by its words. A row matches when it has any
    word of the query, and ranks by ``ts_rank_cd``.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param query: a text, searched for by both; or anything else that ``semantic_search`` takes, with
        ``terms``.
    :param text: a column of the type ``tsvector``, a text column, or several. What is searched is
        ``to_tsvector('<config>', title)``, or of several
        ``to_tsvector('<config>', coalesce(title, '') || ' ' || coalesce(body, ''))``: an index on just that
        expression, or on the ``tsvector`` column, makes it fast. Of a text of more than 250,000 bytes that no
        such index holds, the first 130,000 characters are searched.
    :param terms: the words to look for, where they are not the text of ``query``; ``bindparam("terms")`` too.
        The first 2,000 characters count.
    :param config: the text search configuration; Postgres says at execution if there is none of that name.
    :param candidates: how many rows each search contributes; left out, four times the rows asked for and at
        least 50. Pages (``offset=``) are parts of one result when they have the same number.
    :param k: how much the first ranks are levelled.
    :param weights: of the vector's rank and of the text's.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: the vector is of other dimensions than the column.
    """
    subject = resolve(column, metric)
    looked_for = _terms(query, terms)
    vector, also = query_sql(subject, query)
    conditions = [*subject.conditions(where, stale), *also]
    wanted = Nearest(
        subject, vector, conditions, limit, offset, None, mode, SearchSettings(ef_search, probes)
    )
    if candidates is None:
        candidates = min(max(4 * wanted.rows, 50), MOST)
    candidates = whole("candidates", candidates, 1)
    if candidates < wanted.rows:
        raise QueryError(f"candidates={candidates}; expected at least limit + offset = {wanted.rows}")
    nearest = Nearest(subject, vector, conditions, candidates, 0, None, mode, wanted.settings).subquery()
    matches = matching(subject, text, looked_for, config, conditions, candidates)
    found = _fused(subject, nearest, matches, *_fusion(k, weights), wanted.limit, wanted.offset)
    statement = selecting(subject, base, found, helper="hybrid_search")
    return Hybrid.sealing(
        statement.order_by(found.c.score.desc(), *subject.keys),
        subject.entity,
        score=found.c.score,
        vector_rank=found.c.vector_rank,
        text_rank=found.c.text_rank,
    )


def _fused(
    subject: Subject,
    nearest: Subquery,
    matches: Subquery,
    k: float,
    weights: tuple[float, float],
    limit: int,
    offset: int,
) -> Subquery:
    near_keys = keys_of(subject, nearest)
    ranked = select(
        *near_keys,
        func.row_number().over(order_by=(nearest.c.distance, *near_keys)).label("vector_rank"),
    ).subquery()
    pairs = list(zip(keys_of(subject, ranked), keys_of(subject, matches), strict=True))
    keys = [func.coalesce(left, right).label(left.key) for left, right in pairs]
    shares = (
        func.coalesce(literal(weight, Float(53)) / (literal(k, Float(53)) + rank), 0.0)
        for weight, rank in zip(weights, (ranked.c.vector_rank, matches.c.text_rank), strict=True)
    )
    score = next(shares) + next(shares)
    fused = (
        select(*keys, score.label("score"), ranked.c.vector_rank, matches.c.text_rank)
        .select_from(ranked.join(matches, and_(*(left == right for left, right in pairs)), full=True))
        .order_by(score.desc(), *keys)
        .limit(limit)
    )
    return (fused.offset(offset) if offset else fused).subquery()


def _terms(query: Query, terms: Any) -> Any:
    found = query if terms is None else terms
    if isinstance(found, str):
        return words("query" if terms is None else "terms", found)
    if terms is not None:
        if not isinstance(terms, ColumnElement):
            raise QueryError(f"terms={terms!r}; expected a str, or bindparam(...)")
        return terms
    if isinstance(query, BindParameter):
        raise QueryError(
            "a bound query cannot be a text and a vector at once: pass the words as terms=bindparam(...) "
            f"beside bindparam({query.key!r})"
        )
    raise QueryError("the query is not a text: pass the words to look for as terms=")


def _fusion(k: Any, weights: Any) -> tuple[float, tuple[float, float]]:
    expected = "a number that is not negative"
    given = tuple(weights) if isinstance(weights, list | tuple | np.ndarray) else ()
    if len(given) != 2:
        raise QueryError(f"weights={weights!r}; expected two numbers: of the vector's rank and of the text's")
    levelled, near, match = (
        real(name, value, expected, finite=True)
        for name, value in (("k", k), ("weights", given[0]), ("weights", given[1]))
    )
    for name, value in (("k", levelled), ("weights", near), ("weights", match)):
        if value < 0:
            raise QueryError(f"{name}={value}; expected {expected}")
    return levelled, (near, match)
