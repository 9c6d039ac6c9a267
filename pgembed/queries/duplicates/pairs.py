"""All pairs of near rows of a table, exactly or through an index, over dense row numbers.

Pairs are found between row numbers, not keys: a number is compared, hashed and put into arrays alike whatever
the primary key is made of. Keys are joined back at the end. Of rows with equal vectors, as equal texts have,
one is compared with others, so that a thousand copies cost one search.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    and_,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.sql.elements import ColumnElement, Label
from sqlalchemy.sql.selectable import CTE, FromClause, Select, SelectBase, Subquery

from pgembed.constants import EXACT_UP_TO, NEIGHBOURS
from pgembed.exc import DimensionMismatchError, QueryError
from pgembed.indexes import Indexed
from pgembed.indexes.readiness import is_ready
from pgembed.queries.core.arguments import choice, whole
from pgembed.queries.core.blocks import blocks_of, unpacked
from pgembed.queries.core.eligibility import choose, is_implied
from pgembed.queries.core.nearest import MODES, NAN, Mode, literal_rows
from pgembed.queries.core.numbering import Rows
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import materialized
from pgembed.queries.core.subject import Subject, differ

_ZERO: ColumnElement[int] = literal_column("0")
_INFINITY: ColumnElement[float] = literal_column("'Infinity'::float8")


@dataclass(frozen=True)
class Pairs:
    """The pairs of rows within a distance of each other, of one table or of two.

    :ivar conditions: what the rows must fulfil that an index is searched for.
    :ivar max_distance: of a pair, inclusive; ``None`` for the nearest ``limit`` pairs.
    :ivar neighbours: how many neighbours of a row the index is asked for.
    """

    subject: Subject
    conditions: Sequence[ColumnElement[bool]]
    max_distance: float | None
    neighbours: int
    mode: Mode
    settings: SearchSettings
    limit: int | None = None

    def __post_init__(self) -> None:
        choice("mode", self.mode, MODES)
        object.__setattr__(self, "neighbours", whole("k", self.neighbours, *NEIGHBOURS))
        if self.mode == "exact":
            self.settings.refuse('mode="exact" uses no index')
        elif self.mode == "auto" and self.index is None:
            self.settings.refuse(
                f"{self.subject} has no index declared for {self.subject.metric.name} and these rows: "
                "all pairs are compared"
            )

    @property
    def index(self) -> Indexed | None:
        """The declared index that serves all rows that take part."""
        index = choose(self.subject.indexes, self.conditions)
        unsure = index is not None and index.where is not None and not is_implied(index, self.conditions)
        return None if unsure and self.mode == "auto" else index

    def rows(self, order: Sequence[Any] = (), *, empty: bool = False) -> Rows:
        """The rows that take part.

        :param order: how they are numbered, before the key.
        :param empty: with the rows that have no vector, which pair with none.
        """
        present = [] if empty else [self.subject.vector.is_not(None)]
        return Rows.of(self.subject, [*self.conditions, *present], self.max_distance, order)

    def of(self, rows: Rows, others: Rows | None = None) -> CTE:
        """The pairs as a CTE with the columns ``a``, ``b`` (numbers of first rows) and ``distance``.

        :param rows: those of the subject.
        :param others: those of another table. Without them, pairs are of the same table and a < b; with them,
            ``a`` is a row of the subject and ``b`` one of the others.
        """
        blocks = blocks_of(rows.firsts())
        asked = rows if others is None else others
        asking = blocks if others is None else blocks_of(others.firsts())
        across = others is not None
        if self.mode == "exact" or (self.mode == "auto" and self.index is None):
            pairs: SelectBase = self._exact(blocks, asking, across)
        elif self.mode == "approximate":
            pairs = self._through_index(rows, blocks, asked, across)
        else:
            choice = materialized(select(self._worth_an_index(rows, asked).label("index")), "choice")
            use = select(choice.c.index).scalar_subquery()
            pairs = union_all(
                self._exact(blocks, asking, across, ~use),
                self._through_index(rows, blocks, asked, across, use),
            )
        return materialized(self._best(pairs), "pairs")

    def all(self, rows: Rows, others: Rows | None = None) -> Subquery:
        """The pairs of :meth:`of`, with copies: ``a``, ``b`` (numbers of rows), ``distance``."""
        found = self.of(rows, others)
        left, right = rows.copies.alias(), (rows if others is None else others).copies.alias()
        near = found.join(left, left.c.first == found.c.a).join(right, right.c.first == found.c.b)
        if others is not None:
            across = select(left.c.n.label("a"), right.c.n.label("b"), found.c.distance)
            return across.select_from(near).subquery()
        one, other = rows.copies.alias(), rows.copies.alias()
        copied = and_(one.c.first == other.c.first, one.c.n < other.c.n)
        return union_all(
            select(
                func.least(left.c.n, right.c.n).label("a"),
                func.greatest(left.c.n, right.c.n).label("b"),
                found.c.distance,
            ).select_from(near),
            select(one.c.n, other.c.n, one.c.own).select_from(one.join(other, copied)),
        ).subquery()

    def _best(self, pairs: SelectBase) -> SelectBase:
        if self.limit is None:
            return pairs
        found = pairs.subquery()
        near = select(*found.c).where(found.c.distance < NAN)
        return near.order_by(found.c.distance, found.c.a, found.c.b).limit(literal_rows(self.limit))

    def _within(self, distance: ColumnElement[float], most: Any = None) -> ColumnElement[bool]:
        bound = self.max_distance if most is None else most
        return distance < NAN if bound is None else distance <= bound

    def _worth_an_index(self, rows: Rows, asked: Rows) -> ColumnElement[bool]:
        """Whether there are many rows, and an index that is ready: without one, each row is a full scan."""
        assert self.index is not None
        counted = [
            select(cast(func.count(), BigInteger)).select_from(each.numbered).scalar_subquery()
            for each in (rows, asked)
        ]
        return and_(counted[0] * counted[1] > EXACT_UP_TO**2, is_ready(self.index))

    def _exact(self, blocks: CTE, asking: CTE, across: bool, *gate: ColumnElement[bool]) -> Select[Any]:
        """Every row is compared with every other."""
        if across:
            return self._compared(blocks, asking, true(), None, gate)
        other = blocks.alias()
        return self._compared(blocks, other, blocks.c.block <= other.c.block, operator.lt, gate)

    def _compared(
        self,
        left: FromClause,
        right: FromClause,
        meeting: ColumnElement[bool],
        order: Callable[[Any, Any], Any] | None,
        gate: Sequence[ColumnElement[bool]] = (),
        most: ColumnElement[float] | None = None,
    ) -> Select[Any]:
        """The near pairs between the rows of two sets of blocks, of the numbers that are in ``order``.

        :param order: ``None`` for blocks of two tables, whose numbers have nothing to do with each other.
        """
        met = (
            select(
                left.c.numbers.label("a_numbers"),
                left.c.vectors.label("a_vectors"),
                right.c.numbers.label("b_numbers"),
                right.c.vectors.label("b_vectors"),
            )
            .select_from(left.join(right, meeting))
            .where(*gate)
            .offset(_ZERO)  # keeps the order of the joins: blocks meet first, then they are unpacked
            .subquery()
        )
        a = unpacked(met, met.c.a_numbers, met.c.a_vectors)
        b = unpacked(met, met.c.b_numbers, met.c.b_vectors)
        distance = self.subject.metric.between(a.c.vector, b.c.vector)
        near = self._within(distance, most)
        met_rows = met.join(a, true())
        if order is None:
            pair = (a.c.number.label("a"), b.c.number.label("b"))
        else:
            near = and_(order(a.c.number, b.c.number), near)
            pair = _pair(a.c.number, b.c.number)
        return select(*pair, distance.label("distance")).select_from(met_rows.join(b, near))

    def _through_index(
        self, rows: Rows, blocks: CTE, asked: Rows, across: bool, *gate: ColumnElement[bool]
    ) -> Select[Any]:
        """The nearest neighbours of each row, looked up in the index, and what that may have missed.

        A pair is found from either of its rows. A row is compared with all others where the index has not
        said all: its farthest neighbour is still within the distance, or fewer neighbours came than asked
        for. Of the nearest ``limit`` pairs, the distance is that of the last of those that the index finds.
        """
        found = self._neighbours(asked.firsts(), across, gate)
        other, copies = rows.numbered.alias(), rows.copies.alias()
        same = and_(*(other.c[key] == found.c[key] for key in self._key_names))
        met = found.join(other, same).join(copies, copies.c.n == other.c.n)
        first = copies.c.first
        ends = _pair(found.c.n, first) if not across else (first.label("a"), found.c.n.label("b"))
        near = select(*ends, found.c.distance).select_from(met).where(self._within(found.c.distance))
        if not across:
            near = near.where(found.c.n != first)
        most = None
        if self.limit is not None:
            each = _nearest_of_each(near)
            last = select(each.c.distance).order_by(each.c.distance).offset(self.limit - 1).limit(1)
            bound = func.coalesce(last.scalar_subquery(), _INFINITY).label("most")
            cutoff = materialized(select(bound), "cutoff")
            most = select(cutoff.c.most).scalar_subquery()
        unsure = blocks_of(self._unsure(rows, asked.firsts(), found, across, gate, most))
        # (In blocks that the gate has left empty, nothing meets.)
        if across:
            rest = self._compared(blocks.alias(), unsure, true(), None, most=most)
        else:
            rest = self._compared(unsure, blocks.alias(), true(), operator.ne, most=most)
        return select(*_nearest_of_each(union_all(near, rest)).c)

    def _neighbours(self, asked: Subquery, across: bool, gate: Sequence[ColumnElement[bool]]) -> CTE:
        subject, index = self.subject, self.index
        settings = self.settings.cte(index, self.neighbours)
        distance = subject.distance(asked.c.vector)
        keys = list(zip(subject.keys, self._key_names, strict=True))
        alone = [] if across else [differ(subject.keys, (asked.c[name] for name in self._key_names))]
        found_by = (
            select(
                *(key.label(name) for key, name in keys),
                distance.label("distance"),
            )
            .where(settings.c.applied.is_not(None), *alone, *self.conditions)
            .correlate(settings, asked)
        )
        if index is None or index.whole:
            nearest = found_by.order_by(distance).limit(literal_rows(self.neighbours)).lateral()
        else:  # what the index holds gives candidates, the nearest of which are the neighbours
            coarse = index.distance(subject.vector, asked.c.vector)
            wanted = index.candidates(self.neighbours, self.settings.ef_search)
            candidates = found_by.order_by(coarse).limit(literal_rows(wanted)).lateral()
            nearest = (
                select(*candidates.c)
                .order_by(candidates.c.distance)
                .limit(literal_rows(self.neighbours))
                .correlate(settings, asked)
                .lateral()
            )
        found = select(asked.c.n, *nearest.c).select_from(settings.join(asked, true()).join(nearest, true()))
        return materialized(found.where(*gate), "neighbours")

    def _unsure(
        self,
        rows: Rows,
        asked: Subquery,
        found: CTE,
        across: bool,
        gate: Sequence[ColumnElement[bool]],
        most: ColumnElement[float] | None,
    ) -> CTE:
        total = select(func.count()).select_from(rows.numbered).scalar_subquery()
        said = (
            select(
                found.c.n,
                func.count().label("came"),
                func.count().filter(self._within(found.c.distance, most)).label("near"),
            )
            .group_by(found.c.n)
            .subquery()
        )
        expected = func.least(self.neighbours, total if across else total - 1)
        unsure = or_(func.coalesce(said.c.came, 0) < expected, said.c.near >= self.neighbours)
        return materialized(
            select(asked.c.n, asked.c.vector)
            .select_from(asked.outerjoin(said, said.c.n == asked.c.n))
            .where(unsure, *gate),
            "unsure",
        )

    @property
    def _key_names(self) -> list[str]:
        return [f"key_{n}" for n in range(1, len(self.subject.keys) + 1)]


def _pair(one: ColumnElement[Any], other: ColumnElement[Any]) -> tuple[Label[Any], Label[Any]]:
    return func.least(one, other).label("a"), func.greatest(one, other).label("b")


def _nearest_of_each(pairs: SelectBase) -> Subquery:
    """Each pair once, however often it was found."""
    found = pairs.subquery()
    once = select(found.c.a, found.c.b, func.min(found.c.distance).label("distance"))
    return once.group_by(found.c.a, found.c.b).subquery()


def alike(subject: Subject, other: Subject) -> Subject:
    """The other column, whose vectors can be compared with those of the first.

    :raises QueryError: it is of another type.
    :raises DimensionMismatchError: it has other dimensions.
    """
    if other.storage != subject.storage:
        raise QueryError(f"{subject} is a {subject.storage} column and {other} a {other.storage} column")
    if other.dimensions and subject.dimensions and other.dimensions != subject.dimensions:
        raise DimensionMismatchError(other.dimensions, subject.dimensions, where=str(subject))
    return other
