"""Rows that say nearly the same: pairs of them, groups, and those that a text would be one of."""

from __future__ import annotations

from typing import Any, Literal, TypeVarTuple, overload

from sqlalchemy import Select, func, inspect, select, union_all
from sqlalchemy.orm.state import InstanceState

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import whole
from pgembed.queries.core.nearest import Mode, Stale
from pgembed.queries.core.numbering import Rows
from pgembed.queries.core.parameters import DocumentText
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import DuplicatePairs, Entity, SearchSelect
from pgembed.queries.core.subject import Subject, VectorColumn, resolve
from pgembed.queries.core.vectors import Query
from pgembed.queries.duplicates.components import components
from pgembed.queries.duplicates.edges import edges_of, score
from pgembed.queries.duplicates.pairs import Pairs, alike
from pgembed.queries.search.semantic import semantic_search

_Ts = TypeVarTuple("_Ts")


class DuplicateGroups(DuplicatePairs[*_Ts]):
    """The statement of ``duplicate_groups``."""

    inherit_cache = True
    helper = "duplicate_groups"


class MinedPairs(DuplicatePairs[Entity, Entity, float]):
    """The statement of ``mine_pairs``."""

    inherit_cache = True
    helper = "mine_pairs"


def near_duplicates(
    column: VectorColumn,
    other: VectorColumn | None = None,
    *,
    min_score: float,
    max_score: float | None = None,
    where: Any = None,
    other_where: Any = None,
    k: int = 10,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> DuplicatePairs[Entity, Entity, float]:
    """The pairs of rows that are at least ``min_score`` alike: rows ``(left_key, right_key, score)``.

    ::

        session.execute(near_duplicates(Article.embedding, min_score=0.92)).all()
        session.execute(near_duplicates(Training.embedding, Test.embedding, min_score=0.95)).all()

    Every pair comes once, with ``left_key < right_key``, the most alike first. Keys are the values of the
    primary key; a composite key is a JSON array of them. The statement is over all pairs:
    ``.limit(100)`` gives the best hundred.

    Without a declared index, and up to 5,000 rows, all pairs are compared, so none is missed (4,000 rows of
    384 dimensions: 1 to 2 seconds; time grows with the square of the rows). Above, an index that is declared
    and built gives the ``k`` nearest neighbours of each row; rows that have more duplicates than that are
    compared with all others. An approximate index can still overlook a pair: ``mode="exact"`` never does.
    Of rows with equal vectors one is compared, so that a thousand copies cost one search.

    With ``other``, pairs are of two tables, or of two aliases of one: ``left_key`` is a row of ``column``'s
    table, ``right_key`` one of ``other``'s, for each of which the index on ``column`` is asked.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param other: a vector column of another table, filled by the same encoder.
    :param min_score: the least score of a pair, in the metric's range: -1 to 1 for cosine, above 0 and up to
        1 for l2, any number for inner products.
    :param max_score: pairs with a higher score are left out, so that those about a threshold are seen.
    :param where: a condition, or several, that both rows of a pair fulfil; with ``other``, the left one.
    :param other_where: what the row of ``other`` fulfils.
    :param k: how many neighbours of a row to ask an index for.
    :param mode: ``"auto"`` as described; ``"exact"`` compares all pairs; ``"approximate"`` looks into an
        index whatever the number of rows (when there is none, that is a scan of the table for each row).
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: ``other`` has other dimensions.
    """
    subject = resolve(column, metric)
    most = subject.metric.distance(score(subject.metric, min_score))
    least = None
    if max_score is not None:
        least = subject.metric.distance(score(subject.metric, max_score, "max_score"))
        if max_score < min_score:
            raise QueryError(f"max_score={max_score} is below min_score={min_score}; no pair has both")
    pairs = Pairs(subject, subject.conditions(where, stale), most, k, mode, SearchSettings(ef_search, probes))
    return DuplicatePairs.sealing(_pairs(pairs, _others(subject, other, other_where, stale, most), least))


def duplicates_of(
    column: VectorColumn,
    query: Query,
    *,
    min_score: float,
    limit: int = 10,
    where: Any = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> SearchSelect[Entity, float, float]:
    """The rows that say nearly the same as a text, a vector or a row: rows ``(Entity, distance, score)``.

    ::

        session.execute(duplicates_of(Article.embedding, Article(title="Reset it"), min_score=0.95)).all()

    To be asked before an insert. It is :func:`~pgembed.queries.semantic_search` within a distance, but for
    texts: they are encoded as those of the column are, not as questions.

    :param query: a text, as the column's template makes it of its sources; a vector; an entity: one that is
        stored does not find itself, and of one that is not, the text is made of its attributes.
    :param min_score: as of :func:`near_duplicates`.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: the vector is of other dimensions than the column.
    """
    subject = resolve(column, metric)
    state = inspect(query, raiseerr=False)
    if isinstance(query, str):
        query = DocumentText(query)
    elif isinstance(state, InstanceState) and state.identity is None and subject.embedding is not None:
        query = DocumentText(_text_of(subject, state))
    found: Any = semantic_search(
        column,
        query,
        limit=limit,
        where=where,
        max_distance=subject.metric.distance(score(subject.metric, min_score)),
        mode=mode,
        ef_search=ef_search,
        probes=probes,
        stale=stale,
        metric=metric,
    )
    return found  # type: ignore[no-any-return]


def mine_pairs(
    column: VectorColumn,
    other: VectorColumn | None = None,
    *,
    limit: int = 10_000,
    where: Any = None,
    other_where: Any = None,
    k: int = 10,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> MinedPairs:
    """The ``limit`` pairs of rows that are most alike: rows ``(left_key, right_key, score)``, best first.

    ::

        session.execute(mine_pairs(Article.embedding, limit=1000)).all()

    It needs no threshold, and is otherwise as :func:`near_duplicates`: without an index all pairs are
    compared; an index gives the ``k`` nearest neighbours of each row, and rows whose neighbours are all among
    the best pairs are compared with all others.

    :param limit: how many pairs at most.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: ``other`` has other dimensions.
    """
    subject = resolve(column, metric)
    limit = whole("limit", limit, 1)
    conditions = subject.conditions(where, stale)
    pairs = Pairs(subject, conditions, None, k, mode, SearchSettings(ef_search, probes), limit)
    statement = _pairs(pairs, _others(subject, other, other_where, stale, None), None)
    return MinedPairs.sealing(statement.limit(limit))


@overload
def duplicate_groups(
    column: VectorColumn,
    *,
    min_score: float,
    where: Any = ...,
    pairs: Any = ...,
    inner: Literal[False] = ...,
    k: int = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> DuplicateGroups[int, Entity]: ...


@overload
def duplicate_groups(
    column: VectorColumn,
    *,
    min_score: float,
    where: Any = ...,
    pairs: Any = ...,
    inner: Literal[True],
    k: int = ...,
    mode: Mode = ...,
    ef_search: int | None = ...,
    probes: int | None = ...,
    stale: Stale = ...,
    metric: str | None = ...,
) -> DuplicateGroups[int, Entity, int, float | None]: ...


def duplicate_groups(
    column: VectorColumn,
    *,
    min_score: float,
    where: Any = None,
    pairs: Any = None,
    inner: bool = False,
    k: int = 10,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> DuplicateGroups[*tuple[Any, ...]]:
    """The rows that have near-duplicates, in groups: rows ``(group_id, key)``.

    ::

        session.execute(duplicate_groups(Article.embedding, min_score=0.92)).all()

    Groups are the connected components of the pairs of :func:`near_duplicates`: two rows are in one group
    when a chain of pairs leads from one to the other, so that they need not be alike themselves. Groups are
    numbered from 1, the largest first, groups of one size by their smallest key; rows come by group and key.
    A row without a duplicate is in no group.

    The arguments are those of :func:`near_duplicates`, and so is the work; the grouping is one recursive
    query (see :func:`pgembed.queries.duplicates.components.components`).

    :param pairs: pairs that were stored, a table or select of ``left_key``, ``right_key`` and ``score``:
        nothing is searched, those of ``min_score`` and above are taken.
    :param inner: add the columns ``size`` and ``least_score``, the score of the two rows of the group that
        are least alike; groups of more than 1,000 different vectors have NULL there.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    edges = edges_of(
        resolve(column, metric),
        min_score,
        where,
        stale,
        k=k,
        mode=mode,
        settings=SearchSettings(ef_search, probes),
        stored=pairs,
        vectors=inner,
    )
    numbered, copies = edges.rows.numbered, edges.rows.copies
    copied = select(copies.c.first, copies.c.n).where(copies.c.first != copies.c.n)
    member = components(union_all(select(edges.pairs.c.a, edges.pairs.c.b), copied).cte())
    by_size = (member.c.size.desc(), member.c.root)
    group_id = func.dense_rank().over(order_by=by_size).label("group_id")
    statement = (
        select(group_id, edges.rows.key().label("key"))
        .select_from(member)
        .join(numbered, numbered.c.n == member.c.n)
        .order_by(*by_size, member.c.n)
    )
    if inner:
        farthest = edges.farthest(member)
        least = edges.subject.metric.score(farthest.c.distance).label("least_score")
        statement = statement.join(farthest, farthest.c.root == member.c.root).add_columns(
            member.c.size, least
        )
    return DuplicateGroups.sealing(statement, edges.subject.entity)


def _text_of(subject: Subject, state: InstanceState[Any]) -> str:
    """The text of an entity that is not stored.

    :raises QueryError: it is of another class.
    """
    assert subject.embedding is not None
    if subject.column.table not in state.mapper.tables:
        raise QueryError(f"the query is of the class {state.class_.__name__}, and {subject} is searched")
    keys = (state.mapper.get_property_by_column(source).key for source in subject.embedding.sources)
    return subject.embedding.declaration.compose([getattr(state.obj(), key) for key in keys])


def _others(
    subject: Subject, other: VectorColumn | None, where: Any, stale: str, max_distance: float | None
) -> Rows | None:
    """:raises QueryError: a condition on other rows, and no column of theirs."""
    if other is None:
        if where is not None:
            raise QueryError("other_where= is for pairs of two tables: pass the other vector column too")
        return None
    found = alike(subject, resolve(other, subject.metric.name))
    conditions = [*found.conditions(where, stale), found.vector.is_not(None)]
    return Rows.of(found, conditions, max_distance)


def _pairs(pairs: Pairs, others: Rows | None, least: float | None) -> Select[Any]:
    """Keys and scores, the most alike first.

    :param least: the least distance.
    """
    rows = pairs.rows()
    found = pairs.all(rows, others)
    there = rows if others is None else others
    left, right = rows.numbered.alias(), there.numbered.alias()
    statement = (
        select(
            rows.key(left).label("left_key"),
            there.key(right).label("right_key"),
            pairs.subject.metric.score(found.c.distance).label("score"),
        )
        .select_from(found)
        .join(left, left.c.n == found.c.a)
        .join(right, right.c.n == found.c.b)
        .order_by(found.c.distance, found.c.a, found.c.b)
    )
    return statement if least is None else statement.where(found.c.distance >= least)
