"""The nearest rows of a table as a subquery: exactly, or through an index but never fewer than there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Integer, bindparam, func, literal_column, select, true, union_all
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, FromClause, Select, Subquery

from pgembed.exc import QueryError
from pgembed.indexes import Indexed
from pgembed.queries.choosing import choose, is_implied
from pgembed.queries.ctes import materialized
from pgembed.queries.settings import SearchSettings
from pgembed.queries.target import Target

Mode: TypeAlias = Literal["auto", "approximate", "exact"]
Stale: TypeAlias = Literal["include", "exclude"]

#: NaN sorts above every number in Postgres: "less than NaN" holds for numbers, not for NaN and NULL.
NAN: ColumnElement[float] = literal_column("'NaN'::float8")
_ZERO: ColumnElement[int] = literal_column("0")


@dataclass(frozen=True)
class Nearest:
    """A search, checked: which rows, how far, how many, by what means.

    :ivar query: the vector that is searched for, as SQL.
    :ivar conditions: what rows must fulfil; they are inside of the search.
    :ivar rows: how many rows the search itself returns, those that ``offset`` skips included.
    """

    target: Target
    query: ColumnElement[Any]
    conditions: Sequence[ColumnElement[bool]]
    limit: int
    offset: int
    max_distance: float | None
    mode: Mode
    settings: SearchSettings

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_count("limit", self.limit, 1)
        check_count("offset", self.offset, 0)
        distance = self.max_distance
        if distance is not None and (not isinstance(distance, int | float) or math.isnan(distance)):
            raise QueryError(f"max_distance={distance!r}; needed is a number")
        if self.mode == "exact":
            self.settings.refuse('mode="exact" uses no index')
        elif not self.approximate:
            self.settings.refuse(
                f"{self.target} has no index declared for {self.target.metric.name} and these rows, so that "
                'it is searched exactly. Declare one (index=HNSW()), or say mode="approximate" if there is '
                "one in the database"
            )

    @property
    def rows(self) -> int:
        return self.limit + self.offset

    @property
    def approximate(self) -> bool:
        """Whether an index may be used."""
        return self.mode == "approximate" or (self.mode == "auto" and self.index is not None)

    @property
    def index(self) -> Indexed | None:
        """The declared index that serves this search."""
        return choose(self.target.indexes, self.conditions)

    def subquery(self, *payload: ColumnElement[Any]) -> Subquery:
        """The rows found: columns ``key_1``, ..., ``payload_1``, ..., ``distance``; nearest first.

        The exact form is one sorted scan; ``+ 0`` keeps it from an index that may be there all the same::

            SELECT ... FROM (SELECT id AS key_1, (embedding <=> :query) + 0 AS distance FROM article
                             WHERE embedding IS NOT NULL AND <conditions>
                             ORDER BY distance, id LIMIT <rows>) AS found
            WHERE distance < 'NaN' ORDER BY distance, key_1 LIMIT :limit OFFSET :offset

        The approximate form looks into the index, and where that gives too few rows (a selective condition,
        rows that the index has not, an index that is worn) the exact form takes over, in the same statement::

            WITH settings AS MATERIALIZED (SELECT concat(set_config('hnsw.ef_search', ...), ...) AS applied),
            ann AS MATERIALIZED (
                SELECT nearest.* FROM settings JOIN LATERAL (
                    SELECT id AS key_1, embedding <=> :query AS distance FROM article
                    WHERE settings.applied IS NOT NULL AND <conditions>
                    ORDER BY embedding <=> :query LIMIT <rows>) AS nearest ON true)
            SELECT ... FROM (SELECT * FROM ann WHERE (SELECT count(*) FROM ann) >= <rows>
                             UNION ALL
                             (SELECT <exact form> AND (SELECT count(*) FROM ann) < <rows> ...)) AS found
            WHERE distance < 'NaN' ORDER BY distance, key_1 LIMIT :limit OFFSET :offset

        Where the index does not hold whole vectors, it gives candidates, more than the rows asked for. The
        nearest of them by the distance of the whole vectors are ``ann``. As long as there is no such index,
        ``settings`` has no row, so that the exact form takes over::

            ann AS MATERIALIZED (
                SELECT nearest.* FROM settings JOIN LATERAL (
                    SELECT id AS key_1, embedding <=> :query AS distance FROM article WHERE ...
                    ORDER BY embedding::halfvec(384) <=> :query::halfvec(384)
                    LIMIT <candidates>) AS nearest ON true
                WHERE distance < 'NaN' ORDER BY distance, key_1 LIMIT <rows>)

        Rows without a vector are never found, nor are vectors of zeros by their cosine distance (it is NaN).
        Inside, nothing but the distance orders: before Postgres 17 a further key would defeat the index.
        A ``max_distance`` stands outside: inside, an index scan would walk on to its end to look for more.
        """
        found: FromClause
        if self.approximate:
            ann = self._ann(payload)
            enough = select(func.count()).select_from(ann).scalar_subquery()
            through_index = select(*ann.c).where(enough >= self.rows)
            found = union_all(through_index, self._exact(payload, enough < self.rows)).subquery()
        else:
            found = self._exact(payload).subquery()
        hits = select(*found.c).where(found.c.distance < NAN)
        if self.max_distance is not None:
            hits = hits.where(found.c.distance <= self.max_distance)
        hits = hits.order_by(found.c.distance, *keys_of(self.target, found)).limit(self.limit)
        return (hits.offset(self.offset) if self.offset else hits).subquery()

    def _columns(self, payload: Sequence[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
        return [
            *(key.label(f"key_{n}") for n, key in enumerate(self.target.keys, 1)),
            *(extra.label(f"payload_{n}") for n, extra in enumerate(payload, 1)),
        ]

    def _ann(self, payload: Sequence[ColumnElement[Any]]) -> CTE:
        index = self.index
        settings = self.settings.cte(index, self.rows)
        distance = self.target.distance(self.query)
        candidates = (
            select(*self._columns(payload), distance.label("distance"))
            .where(settings.c.applied.is_not(None), *self.conditions)
            .correlate(settings)
        )
        if index is not None and index.where is not None and is_implied(index, self.conditions):
            # Said once more without parameters, of which a generic plan knows nothing.
            predicate = index.predicate(self.target.selectable)
            candidates = candidates if predicate is None else candidates.where(predicate)
        if index is None or index.whole:
            nearest = candidates.order_by(distance).limit(literal_rows(self.rows)).lateral()
            return materialized(select(*nearest.c).select_from(settings.join(nearest, true())), "ann")
        wanted = index.candidates(self.rows, self.settings.ef_search)
        coarse = index.distance(self.target.vector, self.query)
        nearest = candidates.order_by(coarse).limit(literal_rows(wanted)).lateral()
        ranked = (
            select(*nearest.c)
            .select_from(settings.join(nearest, true()))
            .where(nearest.c.distance < NAN)
            .order_by(nearest.c.distance, *keys_of(self.target, nearest))
            .limit(literal_rows(self.rows))
        )
        return materialized(ranked, "ann")

    def _exact(self, payload: Sequence[ColumnElement[Any]], *gate: ColumnElement[bool]) -> Select[Any]:
        distance = self.target.distance(self.query) + _ZERO
        return (
            select(*self._columns(payload), distance.label("distance"))
            .where(self.target.vector.is_not(None), *self.conditions, *gate)
            .order_by(distance, *self.target.keys)
            .limit(literal_rows(self.rows))
        )


def keys_of(target: Target, found: FromClause) -> list[ColumnElement[Any]]:
    """The columns of a result that hold the key of the entity."""
    return [found.c[f"key_{n}"] for n in range(1, len(target.keys) + 1)]


def check_mode(mode: str) -> None:
    """:raises QueryError: no such mode."""
    if mode not in ("auto", "approximate", "exact"):
        raise QueryError(f'mode={mode!r}; needed "auto", "approximate" or "exact"')


def check_count(name: str, value: Any, least: int) -> None:
    """
    :raises QueryError: the value of the argument is no whole number, or a smaller one.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise QueryError(f"{name}={value!r}; needed is a whole number of at least {least}")


def literal_rows(rows: int) -> ColumnElement[int]:
    """A number that is part of the SQL text when it is sent (the statement is cached without it).

    The planner takes an index for the sake of a small LIMIT; of one that is a parameter it knows nothing
    when it makes a generic plan, and assumes a tenth of the table.
    """
    return bindparam("rows", rows, Integer, literal_execute=True, unique=True)
