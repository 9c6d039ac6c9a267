"""``near_duplicates`` and ``duplicate_groups``: rows of a table that say nearly the same."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from pgembed.constants import NEIGHBOURS
from pgembed.exc import QueryError
from pgembed.metrics import Metric
from pgembed.queries.arguments import choice, real, whole
from pgembed.queries.components import components
from pgembed.queries.nearest import MODES, Mode, Stale
from pgembed.queries.pairs import Pairs
from pgembed.queries.settings import SearchSettings
from pgembed.queries.statement import DuplicateGroups, DuplicatePairs, Entity
from pgembed.queries.subject import Subject, VectorColumn, resolve


def near_duplicates(
    column: VectorColumn,
    *,
    min_score: float,
    where: Any = None,
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

    Every pair comes once, with ``left_key < right_key``, the most alike first. Keys are the values of the
    primary key; a composite key is a JSON array of them. The statement is over all pairs:
    ``.limit(100)`` gives the best hundred.

    Without a declared index, and up to 5,000 rows, all pairs are compared, so none is missed (4,000 rows of
    384 dimensions: 1 to 2 seconds; time grows with the square of the rows). Above, an index that is declared
    and built gives the ``k`` nearest neighbours of each row; rows that have more duplicates than that are
    compared with all others. An approximate index can still overlook a pair: ``mode="exact"`` never does.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments not listed here.
    :param min_score: the least score of a pair, in the metric's range: -1 to 1 for cosine, above 0 and up to
        1 for l2, any number for inner products.
    :param where: a condition, or several, that both rows of a pair fulfil.
    :param k: how many neighbours of a row to ask an index for.
    :param mode: ``"auto"`` as described; ``"exact"`` compares all pairs; ``"approximate"`` looks into an
        index whatever the number of rows (when there is none, that is a scan of the table for each row).
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    pairs = _pairs(subject, min_score, where, k, mode, SearchSettings(ef_search, probes), stale)
    numbered = pairs.numbered()
    found = pairs.of(numbered)
    left, right = numbered.alias(), numbered.alias()
    return DuplicatePairs.sealing(
        select(
            _key(subject, left).label("left_key"),
            _key(subject, right).label("right_key"),
            subject.metric.score(found.c.distance).label("score"),
        )
        .select_from(found)
        .join(left, left.c.n == found.c.a)
        .join(right, right.c.n == found.c.b)
        .order_by(found.c.distance, found.c.a, found.c.b)
    )


def duplicate_groups(
    column: VectorColumn,
    *,
    min_score: float,
    where: Any = None,
    k: int = 10,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> DuplicateGroups[int, Entity]:
    """The rows that have near-duplicates, in groups: rows ``(group_id, key)``.

    ::

        session.execute(duplicate_groups(Article.embedding, min_score=0.92)).all()

    Groups are the connected components of the pairs of :func:`near_duplicates`: two rows are in one group
    when a chain of pairs leads from one to the other, so that they need not be alike themselves. Groups are
    numbered from 1, the largest first, groups of one size by their smallest key; rows come by group and key.
    A row without a duplicate is in no group.

    The arguments are those of :func:`near_duplicates`, and so is the work; the grouping is one recursive
    query (see :func:`pgembed.queries.components.components`).

    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    pairs = _pairs(subject, min_score, where, k, mode, SearchSettings(ef_search, probes), stale)
    numbered = pairs.numbered()
    member = components(pairs.of(numbered))
    sized = select(
        member.c.n, member.c.root, func.count().over(partition_by=member.c.root).label("size")
    ).subquery()
    group_id = func.dense_rank().over(order_by=(sized.c.size.desc(), sized.c.root)).label("group_id")
    return DuplicateGroups.sealing(
        select(group_id, _key(subject, numbered).label("key"))
        .select_from(sized)
        .join(numbered, numbered.c.n == sized.c.n)
        .order_by(group_id, sized.c.n)
    )


def _pairs(
    subject: Subject,
    min_score: float,
    where: Any,
    k: int,
    mode: Mode,
    settings: SearchSettings,
    stale: str,
) -> Pairs:
    choice("mode", mode, MODES)
    k = whole("k", k, *NEIGHBOURS)
    distance = subject.metric.distance(_score(subject.metric, min_score))
    pairs = Pairs(subject, subject.conditions(where, stale), distance, k, mode, settings)
    if mode == "exact":
        settings.refuse('mode="exact" uses no index')
    elif mode == "auto" and pairs.index is None:
        settings.refuse(
            f"{subject} has no index declared for {subject.metric.name} and these rows: "
            "all pairs are compared"
        )
    return pairs


def _score(metric: Metric, given: Any) -> float:
    """:raises QueryError: no score of the metric is like that."""
    expected = f"a score of the metric {metric.name}: {metric.scores}"
    score = real("min_score", given, expected, finite=True)
    if not metric.is_score(score):
        raise QueryError(f"min_score={given!r}; expected {expected}")
    return score


def _key(subject: Subject, numbered: FromClause) -> ColumnElement[Any]:
    keys = [numbered.c[f"key_{n}"] for n in range(1, len(subject.keys) + 1)]
    return keys[0] if len(keys) == 1 else func.jsonb_build_array(*keys, type_=JSONB)
