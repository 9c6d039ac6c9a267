"""The pairs of rows that groups and keep lists are made of: searched for, or stored before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import FromClause, SelectBase, case, func, inspect, select
from sqlalchemy.sql.selectable import CTE, Subquery

from pgembed.constants import INNER_UP_TO
from pgembed.exc import QueryError
from pgembed.metrics import Metric
from pgembed.queries.core.arguments import real
from pgembed.queries.core.nearest import Mode
from pgembed.queries.core.numbering import Rows
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import DuplicatePairs, Entity, materialized
from pgembed.queries.core.subject import Subject
from pgembed.queries.duplicates.pairs import Pairs

#: What stored pairs are called, as ``near_duplicates`` calls them.
_STORED = ("left_key", "right_key", "score")


class RethresholdedPairs(DuplicatePairs[Entity, Entity, float]):
    """The statement of ``rethreshold``."""

    inherit_cache = True
    helper = "rethreshold"


@dataclass(frozen=True)
class Edges:
    """Pairs of rows that are near each other.

    :ivar pairs: ``a``, ``b`` (numbers of first rows, a < b) and ``distance``.
    """

    subject: Subject
    rows: Rows
    pairs: CTE

    def farthest(self, member: FromClause) -> Subquery:
        """The greatest distance between two rows of each component: ``root``, ``distance``.

        :param member: ``n``, ``root``.
        """
        copies, numbered = self.rows.copies, self.rows.numbered
        copied = func.max(case((copies.c.n != copies.c.first, copies.c.own))).label("own")
        first = (
            select(member.c.root, copies.c.first, copied)
            .join(copies, copies.c.n == member.c.n)
            .group_by(member.c.root, copies.c.first)
            .subquery()
        )
        size = func.count().over(partition_by=first.c.root).label("size")
        vectors = materialized(
            select(*first.c, size, numbered.c.vector).join(numbered, numbered.c.n == first.c.first), "members"
        )
        one, other = vectors.alias(), vectors.alias()
        distance = self.subject.metric.between(one.c.vector, other.c.vector)
        between = (
            select(one.c.root, func.max(distance).label("distance"))
            .join(other, (one.c.root == other.c.root) & (one.c.first < other.c.first))
            .where(one.c.size <= INNER_UP_TO)
            .group_by(one.c.root)
            .subquery()
        )
        known = func.max(vectors.c.size) <= INNER_UP_TO
        most = func.greatest(func.max(between.c.distance), func.max(vectors.c.own))
        return (
            select(vectors.c.root, case((known, most)).label("distance"))
            .outerjoin(between, between.c.root == vectors.c.root)
            .group_by(vectors.c.root)
            .subquery()
        )


def edges_of(
    subject: Subject,
    min_score: Any,
    where: Any,
    stale: str,
    *,
    k: int,
    mode: Mode,
    settings: SearchSettings,
    stored: Any = None,
    order: Sequence[Any] | None = None,
    vectors: bool = False,
) -> Edges:
    """The pairs with at least this score.

    :param stored: what to take them from instead of searching.
    :param order: how rows are numbered; given, those without a vector are among them.
    :param vectors: whether the rows' vectors are needed beside stored pairs.
    :raises QueryError: an argument cannot be used.
    """
    least = score(subject.metric, min_score)
    most = subject.metric.distance(least)
    pairs = Pairs(subject, subject.conditions(where, stale), most, k, mode, settings)
    if stored is None:
        rows = pairs.rows(order or (), empty=order is not None)
        return Edges(subject, rows, pairs.of(rows))
    rows = Rows.each(subject, pairs.conditions, order or (), vectors=vectors)
    known = selectable_of(stored, "pairs", _STORED)
    left, right = rows.numbered.alias(), rows.numbered.alias()
    found = (
        select(
            func.least(left.c.n, right.c.n).label("a"),
            func.greatest(left.c.n, right.c.n).label("b"),
            subject.metric.distance(known.c.score).label("distance"),
        )
        .select_from(known)
        .join(left, rows.key(left) == known.c.left_key)
        .join(right, rows.key(right) == known.c.right_key)
        .where(known.c.score >= least, left.c.n != right.c.n)
    )
    return Edges(subject, rows, materialized(found, "pairs"))


def rethreshold(stored: Any, *, min_score: float, searched_with: float) -> RethresholdedPairs:
    """Stored pairs under a higher threshold, without searching again: rows ``(left_key, right_key, score)``.

    ::

        session.execute(insert(Pair).from_select(
            ["left_key", "right_key", "score"], near_duplicates(Article.embedding, min_score=0.8)))
        session.execute(rethreshold(Pair, min_score=0.9, searched_with=0.8)).all()

    The most alike come first. :func:`duplicate_groups` and :func:`keep_list` take stored pairs, and this
    statement, as ``pairs=``.

    :param stored: a table, mapped class or select with the columns ``left_key``, ``right_key`` and ``score``.
    :param searched_with: the ``min_score`` that the pairs were found with.
    :raises QueryError: ``min_score`` is lower: pairs between the two were never searched for.
    """
    least = real("min_score", min_score, finite=True)
    known = real("searched_with", searched_with, finite=True)
    if least < known:
        raise QueryError(
            f"min_score={least} is below searched_with={known}: pairs between the two were not searched for. "
            f"Call near_duplicates(..., min_score={least}) and store its rows"
        )
    found = selectable_of(stored, "stored", _STORED)
    return RethresholdedPairs.sealing(
        select(*(found.c[name] for name in _STORED))
        .where(found.c.score >= least)
        .order_by(found.c.score.desc(), found.c.left_key, found.c.right_key)
    )


def score(metric: Metric, given: Any, name: str = "min_score") -> float:
    """:raises QueryError: no score of the metric is like that."""
    expected = f"a score of the metric {metric.name}: {metric.scores}"
    found = real(name, given, expected, finite=True)
    if not metric.is_score(found):
        raise QueryError(f"{name}={given!r}; expected {expected}")
    return found


def selectable_of(given: Any, name: str, columns: Sequence[str]) -> FromClause:
    """:raises QueryError: it is not a table or a select, or lacks one of the columns."""
    found = given
    if isinstance(given, SelectBase):
        found = given.subquery()
    elif not isinstance(given, FromClause):
        found = getattr(inspect(given, raiseerr=False), "selectable", None)
    if not isinstance(found, FromClause) or any(each not in found.c for each in columns):
        *rest, last = columns
        raise QueryError(
            f"{name}={given!r}; expected a table or a select with the columns {', '.join(rest)} and {last}"
        )
    return found
