"""The nearest rows of a table as a subquery: exactly, or through an index but never fewer than there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from sqlalchemy import Integer, and_, bindparam, cast, func, literal_column, select, true, union_all
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, FromClause, Select, Subquery
from sqlalchemy.sql.visitors import iterate

from pgembed.constants import ALIKE, BLOCK, BLOCK_ROWS, QUERIES_TOGETHER, ROWS_TOGETHER
from pgembed.exc import QueryError
from pgembed.indexes import Indexed
from pgembed.queries.core.arguments import choice, whole
from pgembed.queries.core.blocks import blocks_of, unpacked
from pgembed.queries.core.eligibility import choose, is_implied
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import materialized
from pgembed.queries.core.subject import Subject, differ, keys_of

Mode: TypeAlias = Literal["auto", "approximate", "exact"]
Stale: TypeAlias = Literal["include", "exclude"]
MODES = ("auto", "approximate", "exact")

#: NaN sorts above every number in Postgres: "less than NaN" holds for numbers, not for NaN and NULL.
NAN: ColumnElement[float] = literal_column("'NaN'::float8")
_ZERO: ColumnElement[int] = literal_column("0")


@dataclass(frozen=True)
class Nearest:
    """A search, checked: which rows, how far, how many, by what means.

    :ivar query: the vector that is searched for, as SQL.
    :ivar conditions: what rows must fulfil; they are inside of the search.
    :ivar rows: how many rows the search itself returns, those that ``offset`` skips included.
    :ivar asked: where there are several queries, the rows that hold them: ``n``, which tells them apart, and
        the columns that ``query`` and ``conditions`` refer to.
    """

    subject: Subject
    query: ColumnElement[Any]
    conditions: Sequence[ColumnElement[bool]]
    limit: int
    offset: int
    max_distance: float | ColumnElement[float] | None
    mode: Mode
    settings: SearchSettings
    asked: CTE | None = None

    def __post_init__(self) -> None:
        choice("mode", self.mode, MODES)
        for name, least in (("limit", 1), ("offset", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        whole("limit + offset", self.rows, 1)
        if self.mode == "exact":
            self.settings.refuse('mode="exact" uses no index')
        elif not self.approximate:
            self.settings.refuse(
                f"{self.subject} has no index declared for {self.subject.metric.name} and these rows, so "
                "that it is searched exactly. Declare one (index=HNSW()), or pass "
                'mode="approximate" if there is one in the database'
            )

    @property
    def rows(self) -> int:
        return self.limit + self.offset

    @property
    def approximate(self) -> bool:
        """Whether an index may be used."""
        return self.mode == "approximate" or (self.mode == "auto" and self.index is not None)

    @property
    def filtered(self) -> bool:
        """Whether conditions decide which rows are found."""
        return bool(self.conditions)

    @property
    def _counted(self) -> FromClause | None:
        """The table behind the search, if its conditions may keep the planner from the index."""
        selectable = self.subject.selectable
        plain = not isinstance(selectable, Subquery | CTE)
        known = self.filtered and plain and self.index is not None and self.asked is None
        return self.subject.column.table if known else None

    @cached_property
    def index(self) -> Indexed | None:
        """The declared index that serves this search."""
        return choose(self.subject.indexes, self.own_conditions)

    @property
    def own_conditions(self) -> list[ColumnElement[bool]]:
        """The conditions over the rows that are searched alone."""
        return [each for each in self.conditions if self.asked is None or not refers(each, self.asked)]

    def subquery(self, *payload: ColumnElement[Any]) -> Subquery:
        """The rows found: columns ``key_1``, ..., ``payload_1``, ..., ``distance``; nearest first.

        The exact form is one sorted scan; ``+ 0`` keeps it from an index that may be there all the same::

            SELECT ... FROM (SELECT id AS key_1, (embedding <=> :query) + 0 AS distance FROM article
                             WHERE embedding IS NOT NULL AND <conditions>
                             ORDER BY distance, id LIMIT <rows>) AS found
            WHERE distance < 'NaN' ORDER BY distance, key_1 LIMIT :limit OFFSET :offset

        The approximate form looks into the index, and where that gives too few rows (a selective condition,
        rows that the index has not, an index that is worn) or many that are alike, of which an index can lose
        some, the exact form takes over, in the same statement::

            WITH settings AS MATERIALIZED (SELECT concat(set_config('hnsw.ef_search', ...), ...) AS applied),
            ann AS MATERIALIZED (
                SELECT nearest.*, count(*) OVER (PARTITION BY distance) AS alike FROM settings JOIN LATERAL (
                    SELECT id AS key_1, embedding <=> :query AS distance FROM article
                    WHERE settings.applied IS NOT NULL AND <conditions>
                    ORDER BY embedding <=> :query FETCH FIRST <rows> ROWS WITH TIES) AS nearest ON true
                WHERE distance < 'NaN')
            SELECT ... FROM (SELECT * FROM ann WHERE <enough>
                             UNION ALL
                             (SELECT <exact form> AND NOT <enough> ...)) AS found
            WHERE distance < 'NaN' ORDER BY distance, key_1 LIMIT :limit OFFSET :offset

        where ``enough`` is ``(SELECT count(*) >= <rows> AND max(alike) <= 80 FROM ann)``. With the ties of
        the last row, equal distances are in the order of the key. (Distances of bits are few, so that rows
        of bits are alike where the bits are.)

        Where the index does not hold whole vectors, it gives candidates, more than the rows asked for, and
        the distance of the whole vectors orders them. As long as there is no such index, ``settings`` has no
        row, so that the exact form takes over::

                    ORDER BY embedding::halfvec(384) <=> :query::halfvec(384)
                    FETCH FIRST <candidates> ROWS WITH TIES) AS nearest ON true

        Under conditions the index is believed if it has given the rows among the first that it has returned;
        if Postgres has not used it, because few rows will do, ``ann`` is exact already
        (:meth:`SearchSettings.suffices`).

        Rows without a vector are never found, nor are vectors of zeros by their cosine distance (it is NaN).
        Inside, nothing but the distance orders: before Postgres 17 a further key would defeat the index.
        A ``max_distance`` stands outside: inside, an index scan would walk on to its end to look for more.

        Of several queries, the rows are found for each of ``asked``, joined LATERAL, with its key
        (``query_1``, ...), ``n`` and their ``rank``; the exact form takes over for those that did not find
        ``enough``. Where 32 queries or more are searched for exactly, they meet the rows in blocks, in which
        arrays hold vectors; the table is not scanned for each of them.
        """
        found: FromClause
        if self.approximate:
            settings = self.settings.cte(self.index, self.rows, filtered=self.filtered, table=self._counted)
            ann = self._ann(payload, settings)
            settled = and_(func.count() >= self.rows, func.max(ann.c.alike) <= ALIKE)
            through_index = select(*(each for each in ann.c if each.key != "alike"))
            if self.asked is None:
                if self.index is not None and self._counted is not None:
                    settled = self.settings.suffices(self.index, self._counted, settings, settled)
                once = materialized(select(settled.label("enough")).select_from(ann), "settled")
                enough = select(once.c.enough).scalar_subquery()
                found = union_all(through_index.where(enough), self._exact(payload, ~enough)).subquery()
            else:
                sure = select(ann.c.n).group_by(ann.c.n).having(settled)
                exact = self._exact(payload, self.asked.c.n.not_in(sure))
                found = union_all(through_index.where(ann.c.n.in_(sure)), exact).subquery()
        else:
            found = self._exact(payload).subquery()
        if self.asked is not None:
            return self._page_of_each(found)
        hits = self._near(select(*found.c).where(found.c.distance < NAN), found)
        hits = hits.order_by(found.c.distance, *keys_of(self.subject, found)).limit(self.limit)
        return (hits.offset(self.offset) if self.offset else hits).subquery()

    def all(self, *payload: ColumnElement[Any]) -> Subquery:
        """Every row that fulfils the conditions, in no order: columns as of :meth:`subquery`."""
        distance = self.subject.distance(self.query)
        rows = select(*self._columns(payload), distance.label("distance"))
        rows = rows.where(self.subject.vector.is_not(None), *self.conditions)
        found = rows.offset(_ZERO).subquery()  # so that a distance is computed once
        return self._near(select(*found.c).where(found.c.distance < NAN), found).subquery()

    @property
    def total(self) -> ColumnElement[int]:
        """SQL, as a payload: how many rows there are, whatever ``limit`` and ``offset``.

        :raises QueryError: an index is used, which does not see them all.
        """
        if self.approximate:
            raise QueryError(
                "total=True needs a search that sees all rows, and this one uses an index: pass "
                'mode="exact", or count the rows within a distance with count_within()'
            )
        distance = self.subject.distance(self.query)
        near = [] if self.max_distance is None else [distance <= self.max_distance]
        return func.count().filter(distance < NAN, *near).over()

    def _near(self, hits: Select[Any], found: FromClause) -> Select[Any]:
        return hits if self.max_distance is None else hits.where(found.c.distance <= self.max_distance)

    def _page_of_each(self, found: FromClause) -> Subquery:
        order = (found.c.distance, *keys_of(self.subject, found))
        rank = func.row_number().over(partition_by=found.c.n, order_by=order)
        ranked = select(*found.c, rank.label("rank")).where(found.c.distance < NAN).subquery()
        asked = self._each[0]
        keys = (key for key in asked.c if key.key.startswith("query_"))
        hits = select(*keys, *ranked.c).select_from(ranked.join(asked, asked.c.n == ranked.c.n))
        return self._near(hits.where(ranked.c.rank.between(self.offset + 1, self.rows)), ranked).subquery()

    def _columns(self, payload: Sequence[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
        return [
            *(key.label(f"key_{n}") for n, key in enumerate(self.subject.keys, 1)),
            *(extra.label(f"payload_{n}") for n, extra in enumerate(payload, 1)),
        ]

    def _ann(self, payload: Sequence[ColumnElement[Any]], settings: CTE) -> CTE:
        index = self.index
        distance = self.subject.distance(self.query)
        # Different bits are at equal distances all the time: only equal bits are alike.
        alike = [self.subject.vector.label("alike")] if self.subject.storage == "bit" else []
        candidates = (
            select(*self._columns(payload), distance.label("distance"), *alike)
            .where(settings.c.applied.is_not(None), *self.conditions)
            .correlate(settings, *self._each)
        )
        if self._counted is not None or (self.asked is not None and self.own_conditions):
            # The planner believes this of a third of the rows, and uses the index under conditions only that
            # enough rows fulfil for the scan not to give up.
            candidates = candidates.where(distance < NAN)
        if index is not None and index.where is not None and is_implied(index, self.own_conditions):
            # Said once more without parameters, of which a generic plan knows nothing.
            predicate = index.predicate(self.subject.selectable)
            candidates = candidates if predicate is None else candidates.where(predicate)
        order, wanted = distance, self.rows
        if index is not None and not index.whole:
            order = index.distance(self.subject.vector, self.query)
            wanted = index.candidates(self.rows, self.settings.ef_search)
        nearest = candidates.order_by(order).fetch(literal_rows(wanted), with_ties=True).lateral()
        of_each = [each.c.n for each in self._each]
        # + 0 for the planner, which takes rows in relaxed order for sorted.
        equal = nearest.c.distance + _ZERO if self.filtered else nearest.c.distance
        same = [*of_each, nearest.c.alike if alike else equal]
        searched: FromClause = settings
        for each in self._each:
            searched = searched.join(each, true())
        found = select(
            *of_each,
            *(each for each in nearest.c if each.key != "alike"),
            func.count().over(partition_by=same).label("alike"),
        ).select_from(searched.join(nearest, true()))
        return materialized(found.where(nearest.c.distance < NAN), "ann")

    def _exact(self, payload: Sequence[ColumnElement[Any]], *gate: ColumnElement[bool]) -> Select[Any]:
        distance = self.subject.distance(self.query) + _ZERO
        exact = (
            select(*self._columns(payload), distance.label("distance"))
            .where(self.subject.vector.is_not(None), *self.conditions)
            .order_by(distance, *self.subject.keys)
            .limit(literal_rows(self.rows))
        )
        if self.asked is None:
            return exact.where(*gate)
        nearest = exact.correlate(self.asked).lateral()
        each = select(self.asked.c.n, *nearest.c).select_from(self.asked.join(nearest, true())).where(*gate)
        asked = materialized(select(*self.asked.c).where(*gate), "rest") if gate else self.asked
        in_blocks = self._in_blocks(payload, asked)
        if in_blocks is None:
            return each
        many = select(func.count() >= QUERIES_TOGETHER).select_from(asked).scalar_subquery()
        found = union_all(each.where(~many), in_blocks.where(many)).subquery()
        return select(*found.c)

    def _in_blocks(self, payload: Sequence[ColumnElement[Any]], asked: CTE) -> Select[Any] | None:
        """The rows of :meth:`_exact` among others: of each block of rows, the nearest to each query.

        A block meets all queries while it is in the processor's cache; a scan for each query reads all rows
        from memory. ``None`` where conditions or payload are over rows and queries, or too many rows come of
        each block. (That a row is not the query itself is such a condition, but costs one row only.)
        """
        assert self.asked is not None
        subject, given = self.subject, self.asked
        names = [f"query_{n}" for n in range(1, len(subject.keys) + 1) if f"query_{n}" in given.c]
        alone = differ(subject.keys[: len(names)], (given.c[name] for name in names))
        known = (given.c.vector.is_not(None), alone)
        met = [condition for condition in self.conditions if refers(condition, given)]
        if (
            self.rows > ROWS_TOGETHER
            or any(refers(extra, given) for extra in payload)
            or not all(any(condition.compare(other) for other in known) for condition in met)
        ):
            return None
        number = cast(func.row_number().over(order_by=subject.keys), Integer).label("n")
        chosen = select(number, *self._columns(payload), subject.vector.label("vector"))
        rows = materialized(chosen.where(subject.vector.is_not(None), *self.own_conditions), "rows")
        block = blocks_of(rows, max(BLOCK_ROWS, BLOCK * self.rows))
        query = select(*asked.c).where(asked.c.vector.is_not(None), block.c.numbers.is_not(None))
        query_of = query.offset(_ZERO).correlate(block).lateral()
        row = unpacked(block, block.c.numbers, block.c.vectors)
        distance = subject.metric.between(row.c.vector, query_of.c.vector).label("distance")
        near = (
            select(row.c.number, distance).order_by(distance, row.c.number).limit(literal_rows(self.rows + 1))
        )
        nearest = near.correlate(block, query_of).lateral()
        found = block.join(query_of, true()).join(nearest, true()).join(rows, rows.c.n == nearest.c.number)
        columns = [each for each in rows.c if each.key not in ("n", "vector")]
        hits = select(query_of.c.n, *columns, nearest.c.distance).select_from(found)
        if any(condition.compare(other) for condition in met for other in known[1:]):
            hits = hits.where(differ(keys_of(subject, rows), (query_of.c[name] for name in names)))
        return hits

    @property
    def _each(self) -> list[CTE]:
        return [] if self.asked is None else [self.asked]


def refers(condition: ColumnElement[bool], asked: FromClause) -> bool:
    """Whether a condition is about the queries too, of which there are several."""
    return any(getattr(part, "table", None) is asked for part in iterate(condition))


def literal_rows(rows: int) -> ColumnElement[int]:
    """A number that is part of the SQL text when it is sent (the statement is cached without it).

    The planner takes an index for the sake of a small LIMIT; of one that is a parameter it knows nothing
    when it makes a generic plan, and assumes a tenth of the table.
    """
    return bindparam("rows", rows, Integer, literal_execute=True, unique=True)
