"""Rows under dense numbers, and which of them are copies of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import ARRAY, REAL, Float, Integer, Text, and_, case, cast, func, literal_column, null, select
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, FromClause, Subquery

from pgembed.queries.core.nearest import NAN
from pgembed.queries.core.statement import materialized
from pgembed.queries.core.subject import Subject, key_of, keys_of

_ZERO: ColumnElement[int] = literal_column("0")


@dataclass(frozen=True)
class Rows:
    """The rows of a table that take part, with their numbers.

    :ivar numbered: ``n`` (1, 2, ... in their order), ``key_1``, ..., ``vector``.
    :ivar copies: ``n``, ``first`` (the first row of an equal vector) and ``own`` (the distance of the vector
        to itself); searches are made for first rows alone.
    """

    subject: Subject
    numbered: CTE
    copies: CTE

    @classmethod
    def of(
        cls,
        subject: Subject,
        conditions: Sequence[ColumnElement[bool]],
        max_distance: float | None,
        order: Sequence[Any] = (),
    ) -> Self:
        """
        :param max_distance: of a pair. Rows whose distance to a copy of themselves is not within it (it is
            NaN for vectors of zeros) are no copies.
        :param order: how the rows are numbered, before the key.
        """
        rows = select(*_numbers(subject, order), subject.vector.label("vector"))
        numbered = materialized(rows.where(*conditions), "numbered")
        own = subject.metric.between(numbered.c.vector, numbered.c.vector)
        near = own < NAN if max_distance is None else own <= max_distance
        content = case((near, _content(subject, numbered.c.vector)))
        hashed = select(numbered.c.n, content.label("content"), own.label("own")).offset(_ZERO).subquery()
        first = func.min(hashed.c.n).over(partition_by=hashed.c.content)
        copies = select(
            hashed.c.n,
            case((hashed.c.content.is_(None), hashed.c.n), else_=first).label("first"),
            hashed.c.own,
        )
        return cls(subject, numbered, materialized(copies, "copies"))

    @classmethod
    def each(
        cls,
        subject: Subject,
        conditions: Sequence[ColumnElement[bool]],
        order: Sequence[Any] = (),
        *,
        vectors: bool = False,
    ) -> Self:
        """The rows where pairs are known already: none is taken for a copy."""
        rows = select(*_numbers(subject, order), *([subject.vector.label("vector")] if vectors else []))
        numbered = materialized(rows.where(*conditions), "numbered")
        own = cast(null(), Float(53)).label("own")
        copies = select(numbered.c.n, numbered.c.n.label("first"), own)
        return cls(subject, numbered, materialized(copies, "copies"))

    def firsts(self) -> Subquery:
        """The rows that have a vector, one of each: ``n``, ``key_1``, ..., ``vector``."""
        numbered, copies = self.numbered, self.copies
        first = and_(copies.c.n == numbered.c.n, copies.c.n == copies.c.first)
        return select(*numbered.c).join(copies, first).where(numbered.c.vector.is_not(None)).subquery()

    def key(self, numbered: FromClause | None = None) -> ColumnElement[Any]:
        """The key of a row as one value: a composite key is a JSON array.

        :param numbered: an alias of the numbered rows.
        """
        return key_of(keys_of(self.subject, self.numbered if numbered is None else numbered))


def _numbers(subject: Subject, order: Sequence[Any]) -> list[ColumnElement[Any]]:
    number = func.row_number().over(order_by=(*order, *subject.keys))
    return [
        cast(number, Integer).label("n"),
        *(key.label(f"key_{n}") for n, key in enumerate(subject.keys, 1)),
    ]


def _content(subject: Subject, vector: ColumnElement[Any]) -> ColumnElement[str]:
    """What equal vectors have in common, to group them by: their type has no hash in Postgres."""
    if subject.storage in ("vector", "halfvec"):
        return func.md5(func.array_send(cast(vector, ARRAY(REAL))))
    return func.md5(cast(vector, Text))
