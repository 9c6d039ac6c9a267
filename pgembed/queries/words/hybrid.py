"""``hybrid_search``: nearest by vector and best by words, fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, TypeVarTuple, overload

from sqlalchemy import BindParameter, Select, func, select
from sqlalchemy.orm import Mapped
from sqlalchemy.sql.elements import ColumnElement

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import candidates_for, choice
from pgembed.queries.core.nearest import Mode, Nearest, Stale
from pgembed.queries.core.owners import is_relationship
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import Entity, SearchSelect, selecting
from pgembed.queries.core.subject import VectorColumn, keys_of, resolve
from pgembed.queries.core.templates import templated
from pgembed.queries.core.vectors import Query, query_sql
from pgembed.queries.search.groups import best_parts, grouped, owners_of
from pgembed.queries.words.fulltext import TextColumns, asked, matching, question
from pgembed.queries.words.fusion import EQUAL, Fusion, fused, weighed

_Ts = TypeVarTuple("_Ts")
_Part = TypeVar("_Part")


class Hybrid(SearchSelect[*_Ts]):
    """The statement of ``hybrid_search``."""

    inherit_cache = True
    helper = "hybrid_search"


@overload
def hybrid_search(
    column: Mapped[list[_Part]],
    query: Query,
    *,
    text: TextColumns | None = ...,
    terms: str | ColumnElement[Any] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: None = ...,
    config: str | None = ...,
    candidates: int | None = ...,
    fusion: Fusion = ...,
    k: float = ...,
    weights: Sequence[float] = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Hybrid[Entity, _Part, float, int | None, int | None, float | None, float | None]: ...


@overload
def hybrid_search(
    column: Mapped[Any],
    query: Query,
    *,
    text: TextColumns | None = ...,
    terms: str | ColumnElement[Any] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: None = ...,
    config: str | None = ...,
    candidates: int | None = ...,
    fusion: Fusion = ...,
    k: float = ...,
    weights: Sequence[float] = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Hybrid[Entity, float, int | None, int | None, float | None, float | None]: ...


@overload
def hybrid_search(
    column: ColumnElement[Any] | Sequence[VectorColumn],
    query: Query,
    *,
    text: TextColumns | None = ...,
    terms: str | ColumnElement[Any] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: None = ...,
    config: str | None = ...,
    candidates: int | None = ...,
    fusion: Fusion = ...,
    k: float = ...,
    weights: Sequence[float] = ...,
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
    text: TextColumns | None = ...,
    terms: str | ColumnElement[Any] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: Select[*_Ts],
    config: str | None = ...,
    candidates: int | None = ...,
    fusion: Fusion = ...,
    k: float = ...,
    weights: Sequence[float] = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Hybrid[*_Ts, float, int | None, int | None, float | None, float | None]: ...


@overload
def hybrid_search(
    column: Sequence[VectorColumn],
    query: Query,
    *,
    text: TextColumns | None = ...,
    terms: str | ColumnElement[Any] | None = ...,
    limit: int = ...,
    offset: int = ...,
    where: Any = ...,
    base: Select[*tuple[Any, ...]],
    config: str | None = ...,
    candidates: int | None = ...,
    fusion: Fusion = ...,
    k: float = ...,
    weights: Sequence[float] = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> Hybrid[*tuple[Any, ...]]: ...


def hybrid_search(
    column: VectorColumn | Sequence[VectorColumn],
    query: Query,
    *,
    text: TextColumns | None = None,
    terms: str | ColumnElement[Any] | None = None,
    limit: int = 10,
    offset: int = 0,
    where: Any = None,
    base: Any = None,
    config: str | None = None,
    candidates: int | None = None,
    fusion: Fusion = "rrf",
    k: float = 60,
    weights: Sequence[float] = EQUAL,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Hybrid[*tuple[Any, ...]]:
    """Search by meaning and by words at once, as a statement.

    ::

        session.execute(hybrid_search(Article.embedding, "error E1234 after reset")).all()

    Rows are ``(Entity, score, vector_rank, text_rank, vector_score, text_score)``. The nearest rows and the
    rows that share words with the query are ranked each by themselves, and fused. By their ranks (reciprocal
    rank fusion; Cormack, Clarke and Buettcher, SIGIR 2009), or by their scores, each search's scaled so that
    its candidates have 0 to 1::

        score = weights[0] / (k + vector_rank) + weights[1] / (k + text_rank)
        score = weights[0] * scaled(vector_score) + weights[1] * scaled(text_score)

    The best come first, equal scores in the order of the primary key. Rank and score are NULL for a row that
    only the other search has found; a row without a vector can be found by its words.

    Where the column is declared with ``words=``, those rank by BM25, as in
    :func:`~pgembed.queries.keyword_search`. Without, they rank by ``ts_rank(<text>, <query>, 1)``, which
    finds less: docs/measurements.md has by how much.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
        Several columns of one entity are searched and fused as well: a weight for each, that of the words
        last; their ranks and scores are called after them, as in ``title_embedding_rank``.
        Of a relationship to parts, rows are ``(Article, Part, score, ...)``: each article once, by the ranks
        of its best part for each search, with the part that counts most.
    :param query: a text, searched for by all; or anything else that ``semantic_search`` takes, with
        ``terms``.
    :param text: what to search instead of the words declared, or of the sources: a column of the type
        ``tsvector``, a text column, or several. What is searched is ``to_tsvector('<config>', title)``, or of
        several ``to_tsvector('<config>', coalesce(title, '') || ' ' || coalesce(body, ''))``: an index on
        just that expression, or on the ``tsvector`` column, makes it fast. Of a text of more than 250,000
        bytes that no such index holds, the first 130,000 characters are searched.
    :param terms: the words to look for, where they are not the text of ``query``; ``bindparam("terms")`` too.
        The first 2,000 characters count.
    :param config: the text search configuration of the texts, ``"english"`` if left out; Postgres says at
        execution if there is none of that name.
    :param candidates: how many rows each search contributes; left out, four times the rows asked for and at
        least 50. Pages (``offset=``) are parts of one result when they have the same number.
    :param fusion: ``"rrf"``, by ranks, or ``"weighted"``, by scores.
    :param k: how much the first ranks are levelled.
    :param weights: of the vectors, and of the words.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: the vector is of other dimensions than the column.
    """
    columns: list[Any] = list(column) if isinstance(column, list | tuple) else [column]
    where = [] if where is None else list(where) if isinstance(where, list | tuple) else [where]
    texts = [] if text is None else list(text) if isinstance(text, list | tuple) else [text]
    looked_for = _terms(query, terms)
    choice("fusion", fusion, ("rrf", "weighted"))
    levelled, shares = weighed(k, weights, len(columns) + 1)

    def build(query: Query) -> Hybrid[*tuple[Any, ...]]:
        subjects = [resolve(each, metric) for each in columns]
        if not subjects or any(each.entity is not subjects[0].entity for each in subjects):
            raise QueryError(f"column={column!r}; expected a column, or several columns of one entity")
        legs: list[tuple[str, Select[Any]]] = []
        searches: list[Any] = []
        rows = 0
        for subject in subjects:
            vector, also = query_sql(subject, query)
            conditions = [*subject.conditions(where, stale), *also]
            settings = SearchSettings(ef_search, probes)
            wanted = Nearest(subject, vector, conditions, limit, offset, None, mode, settings)
            rows = candidates_for(wanted.rows, candidates)
            nearest = Nearest(subject, vector, conditions, rows, 0, None, mode, settings)
            name = "vector" if len(subjects) == 1 else subject.column.key
            legs.append((name, _near(nearest)))
            searches.append(nearest)
        by_words = next((each for each in subjects if each.embedding and each.embedding.words), subjects[0])
        conditions = [*by_words.conditions(where, stale), *also]
        matches = matching(by_words, text, looked_for, config, conditions, rows)
        ranked = select(
            *keys_of(by_words, matches),
            *owners_of(matches),
            matches.c.text_rank.label("rank"),
            matches.c.text_score.label("found"),
        )
        legs.append(("text", ranked))
        found = fused(subjects[0], legs, fusion, levelled, shares, wanted.limit, wanted.offset)
        statement = selecting(subjects[0], base, found, helper="hybrid_search")
        owner = subjects[0].owner
        order = subjects[0].keys if owner is None else owner.keys
        return Hybrid.sealing(
            statement.order_by(found.c.score.desc(), *order),
            subjects[0].entity,
            legs=[*searches, by_words],
            score=found.c.score,
            **{f"{name}_rank": found.c[f"rank_{n}"] for n, (name, _) in enumerate(legs)},
            **{f"{name}_score": found.c[f"score_{n}"] for n, (name, _) in enumerate(legs)},
        )

    if len(columns) != 1 or is_relationship(columns[0]):
        return build(query)
    options = (limit, offset, config, candidates, fusion, mode, ef_search, probes, stale, levelled, *shares)
    expressions = [looked_for, *texts, *where]
    return templated(build, columns[0], query, options, metric=metric, base=base, expressions=expressions)


def _near(nearest: Nearest) -> Select[Any]:
    subject = nearest.subject
    if subject.owner is None:
        found = nearest.subquery()
    else:
        grouped_by = grouped(nearest, subject.owner.keys, 1)
        found = best_parts(subject, grouped_by, (grouped_by.c.distance,))
    keys = keys_of(subject, found)
    rank = func.row_number().over(order_by=(found.c.distance, *keys))
    score = subject.metric.score(found.c.distance)
    return select(*keys, *owners_of(found), rank.label("rank"), score.label("found"))


def _terms(query: Query, terms: Any) -> Any:
    found = query if terms is None else terms
    if isinstance(found, str):
        return question(asked("query" if terms is None else "terms", found))
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
