"""All pairs of near rows of a table, exactly or through an index, over dense row numbers.

Pairs are found between row numbers, not keys: a number is compared, hashed and put into arrays alike whatever
the primary key is made of. Keys are joined back at the end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Integer,
    and_,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, FromClause, Select, SelectBase, Subquery

from pgembed.constants import BLOCK, EXACT_UP_TO
from pgembed.indexes import Indexed
from pgembed.indexes.readiness import is_ready
from pgembed.queries.eligibility import choose, is_implied
from pgembed.queries.nearest import Mode, literal_rows
from pgembed.queries.settings import SearchSettings
from pgembed.queries.statement import materialized
from pgembed.queries.subject import Subject

_ZERO: ColumnElement[int] = literal_column("0")


@dataclass(frozen=True)
class Pairs:
    """The pairs of rows within a distance of each other.

    :ivar conditions: what both rows of a pair must fulfil.
    :ivar max_distance: of a pair, inclusive.
    :ivar neighbours: how many neighbours of a row the index is asked for.
    """

    subject: Subject
    conditions: Sequence[ColumnElement[bool]]
    max_distance: float
    neighbours: int
    mode: Mode
    settings: SearchSettings

    @property
    def index(self) -> Indexed | None:
        """The declared index that serves all rows that take part."""
        index = choose(self.subject.indexes, self.conditions)
        unsure = index is not None and index.where is not None and not is_implied(index, self.conditions)
        return None if unsure and self.mode == "auto" else index

    def numbered(self) -> CTE:
        """The rows that take part: ``n`` (1, 2, ... in the order of the key), ``key_1``, ..., ``vector``.

        Vectors of zeros pair with nothing: their cosine distances are NaN, which is within no distance.
        """
        subject = self.subject
        numbered = select(
            cast(func.row_number().over(order_by=subject.keys), Integer).label("n"),
            *(key.label(f"key_{n}") for n, key in enumerate(subject.keys, 1)),
            subject.vector.label("vector"),
        )
        return materialized(numbered.where(subject.vector.is_not(None), *self.conditions), "numbered")

    def of(self, numbered: CTE) -> CTE:
        """The pairs as a CTE with the columns ``a``, ``b`` (row numbers, a < b) and ``distance``."""
        blocks = _blocks(numbered)
        if self.mode == "exact" or (self.mode == "auto" and self.index is None):
            pairs: SelectBase = self._exact(blocks)
        elif self.mode == "approximate":
            pairs = self._through_index(numbered, blocks)
        else:
            choice = materialized(select(self._worth_an_index(numbered).label("index")), "choice")
            use = select(choice.c.index).scalar_subquery()
            pairs = union_all(self._exact(blocks, ~use), self._through_index(numbered, blocks, use))
        return materialized(pairs, "pairs")

    def _worth_an_index(self, numbered: CTE) -> ColumnElement[bool]:
        """Whether there are many rows, and an index that is ready: without one, each row is a full scan."""
        assert self.index is not None
        rows = select(func.count()).select_from(numbered).scalar_subquery()
        return and_(rows > EXACT_UP_TO, is_ready(self.index))

    def _exact(self, blocks: CTE, *gate: ColumnElement[bool]) -> Select[Any]:
        """Every row is compared with every other."""
        other = blocks.alias()
        return self._compared(blocks, other, blocks.c.block <= other.c.block, operator.lt, gate)

    def _compared(
        self,
        left: FromClause,
        right: FromClause,
        meeting: ColumnElement[bool],
        order: Callable[[Any, Any], Any],
        gate: Sequence[ColumnElement[bool]] = (),
    ) -> Select[Any]:
        """The near pairs between the rows of two sets of blocks, of the numbers that are in ``order``."""
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
        a = _unpacked(met, met.c.a_numbers, met.c.a_vectors)
        b = _unpacked(met, met.c.b_numbers, met.c.b_vectors)
        distance = self.subject.metric.between(a.c.vector, b.c.vector)
        near = and_(order(a.c.number, b.c.number), distance <= self.max_distance)
        return select(
            func.least(a.c.number, b.c.number).label("a"),
            func.greatest(a.c.number, b.c.number).label("b"),
            distance.label("distance"),
        ).select_from(met.join(a, true()).join(b, near))

    def _through_index(self, numbered: CTE, blocks: CTE, *gate: ColumnElement[bool]) -> Select[Any]:
        """The nearest neighbours of each row, looked up in the index, and what that may have missed.

        A pair is found from either of its rows. A row is compared with all others where the index has not
        said all: its farthest neighbour is still within the distance, or fewer neighbours came than asked
        for.
        """
        found = self._neighbours(numbered, gate)
        other = numbered.alias()
        same = and_(*(other.c[key] == found.c[key] for key in self._key_names))
        near = (
            select(
                func.least(found.c.n, other.c.n).label("a"),
                func.greatest(found.c.n, other.c.n).label("b"),
                found.c.distance,
            )
            .select_from(found.join(other, same))
            .where(found.c.distance <= self.max_distance)
        )
        unsure = _blocks(self._unsure(numbered, found, gate))
        rest = self._compared(unsure, blocks.alias(), true(), operator.ne)
        both = union_all(near, rest).subquery()
        return select(both.c.a, both.c.b, func.min(both.c.distance).label("distance")).group_by(
            both.c.a, both.c.b
        )

    def _neighbours(self, numbered: CTE, gate: Sequence[ColumnElement[bool]]) -> CTE:
        subject, index = self.subject, self.index
        settings = self.settings.cte(index, self.neighbours)
        distance = subject.distance(numbered.c.vector)
        keys = list(zip(subject.keys, self._key_names, strict=True))
        itself = and_(*(key == numbered.c[name] for key, name in keys))
        found_by = (
            select(
                *(key.label(name) for key, name in keys),
                distance.label("distance"),
            )
            .where(settings.c.applied.is_not(None), ~itself, *self.conditions)
            .correlate(settings, numbered)
        )
        if index is None or index.whole:
            nearest = found_by.order_by(distance).limit(literal_rows(self.neighbours)).lateral()
        else:  # what the index holds gives candidates, the nearest of which are the neighbours
            coarse = index.distance(subject.vector, numbered.c.vector)
            wanted = index.candidates(self.neighbours, self.settings.ef_search)
            candidates = found_by.order_by(coarse).limit(literal_rows(wanted)).lateral()
            nearest = (
                select(*candidates.c)
                .order_by(candidates.c.distance)
                .limit(literal_rows(self.neighbours))
                .correlate(settings, numbered)
                .lateral()
            )
        found = select(numbered.c.n, *nearest.c).select_from(
            settings.join(numbered, true()).join(nearest, true())
        )
        return materialized(found.where(*gate), "neighbours")

    def _unsure(self, numbered: CTE, found: CTE, gate: Sequence[ColumnElement[bool]]) -> CTE:
        total = select(func.count()).select_from(numbered).scalar_subquery()
        said = (
            select(
                found.c.n,
                func.count().label("came"),
                func.count().filter(found.c.distance <= self.max_distance).label("near"),
            )
            .group_by(found.c.n)
            .subquery()
        )
        expected = func.least(self.neighbours, total - 1)
        unsure = or_(func.coalesce(said.c.came, 0) < expected, said.c.near >= self.neighbours)
        return materialized(
            select(numbered.c.n, numbered.c.vector)
            .select_from(numbered.outerjoin(said, said.c.n == numbered.c.n))
            .where(unsure, *gate),
            "unsure",
        )

    @property
    def _key_names(self) -> list[str]:
        return [f"key_{n}" for n in range(1, len(self.subject.keys) + 1)]


def _blocks(numbered: CTE) -> CTE:
    """Rows packed into arrays of numbers and vectors.

    A self-join of rows would read a vector anew for each pair, from TOAST or from a file that the join has
    spilled to; an array is read once for each pair of blocks, and unpacked in memory. 4,000 rows of 384
    dimensions take 1.3 seconds so, against 6.5 for a self-join of a materialised CTE.
    """
    block = (numbered.c.n // BLOCK).label("block")
    numbers, vectors = func.array_agg(numbered.c.n), func.array_agg(numbered.c.vector)
    packed = select(block, numbers.label("numbers"), vectors.label("vectors")).group_by(block)
    return materialized(packed, "blocks")


def _unpacked(met: Subquery, numbers: ColumnElement[Any], vectors: ColumnElement[Any]) -> FromClause:
    """The rows of a block. (As functions of FROM, the arrays would be copied to a table first.)"""
    rows = select(func.unnest(numbers).label("number"), func.unnest(vectors).label("vector"))
    return rows.correlate(met).offset(_ZERO).lateral()
