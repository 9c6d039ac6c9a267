"""The SQL of parts, beside that of :mod:`~pgembed.filling.statements`, over the rows of one or more texts.

For a table ``article (id, body)``, with *v* the bound values, a row each::

    SELECT v.k, p.id, ... FROM article_parts p JOIN v ON p.article_id = <v.k> ORDER BY p.number, p.id
    INSERT INTO article_parts (...) SELECT ... FROM v RETURNING id
    UPDATE article_parts SET number = v.n, ... FROM v WHERE id = v.i
    DELETE FROM article_parts WHERE id = ANY (:ids)

What a part is is known by its digest. Its key stays, and with it its vector: an update of number and offsets
touches no index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, OID

from pgembed.filling import sql
from pgembed.filling.statements import Statements
from pgembed.filling.targets import Target
from pgembed.parts import Cut, PartsTable

#: The rows of parts refer to theirs; checked when the transaction ends, a reference locks no row before that.
DEFERRED = text("SET CONSTRAINTS ALL DEFERRED")


class PartsStatements(Statements):
    """The statements of the cycle for the parts of one table."""

    def __init__(self, target: Target, bound: PartsTable) -> None:
        super().__init__(target)
        self._bound = bound
        self._parts = bound.parts

    def stored(self) -> Select[Any]:
        """``(key, *Stored)`` of the parts of the bound ``keys``, in their order."""
        p = self._parts
        given = self._unnest(k=sql.bound_lines("keys"))
        owner = zip(self._bound.owner, self._parsed(given.c.k), self._target.builtin_keys, strict=True)
        columns = [p.c[name] for name in ("id", "digest", "number", "start", "end")]
        return (
            select(given.c.k, *columns, p.c.text.is_not(None))
            .select_from(p.join(given, and_(*(sql.equal(*each) for each in owner))))
            .order_by(given.c.k, p.c.number, p.c.id)
        )

    def insert(self) -> Executable:
        """Insert parts, a line of ``keys`` each; returns their ``id``."""
        given = self._unnest(
            k=sql.bound_lines("keys"), **self._places(), d=sql.digests(), t=_texts(), e=self._vectors()
        )
        names = [*(column.name for column in self._bound.owner), *_PLACES, "digest", "text", "embedding"]
        values = [*self._parsed(given.c.k), *(given.c[name] for name in _PLACES), *given.c["d", "t", "e"]]
        return (
            insert(self._parts)
            .from_select(names, select(*values), include_defaults=False)
            .returning(self._parts.c.id)
        )

    def move(self) -> Executable:
        """Give the parts of the bound ``ids`` other places; a text only to those that should have one."""
        p = self._parts
        given = self._unnest(i=_ids(), **self._places(), t=_texts())
        as_it_is = p.c.text.is_not(None) == self._bound.declaration.keeps_text
        values = {name: given.c[name] for name in _PLACES}
        return (
            update(p)
            .values({**values, "text": case((as_it_is, p.c.text), else_=given.c.t)})
            .where(p.c.id == given.c.i)
        )

    def delete(self) -> Executable:
        """Delete the parts of the bound ``ids``."""
        return delete(self._parts).where(self._parts.c.id == func.any(_ids()))

    def may_write(self) -> Select[Any]:
        rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
        may = (
            func.pg_catalog.has_table_privilege(cast(literal(self._target.parts, BigInteger), OID), each)
            for each in rights
        )
        return select(and_(super().may_write().scalar_subquery(), *may))

    @property
    def keeps_text(self) -> bool:
        """Whether the texts of parts are stored."""
        return self._bound.declaration.keeps_text

    def _places(self) -> dict[str, ColumnElement[Any]]:
        return {name: cast(sql.bound_lines(name), ARRAY(Integer)) for name in _PLACES}


_PLACES = ("number", "start", "end")


def _texts() -> ColumnElement[Any]:
    return cast(bindparam("texts", type_=ARRAY(Text)), ARRAY(Text))


def _ids() -> ColumnElement[Any]:
    return cast(sql.bound_lines("ids"), ARRAY(BigInteger))


def placed(cuts: Iterable[Cut]) -> dict[str, Any]:
    """The bound values of places."""
    listed = list(cuts)
    return {name: sql.lines(str(getattr(cut, name)) for cut in listed) for name in _PLACES}
