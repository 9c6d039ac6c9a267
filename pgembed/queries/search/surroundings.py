"""The text around a part of a long text, for a prompt."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Text, and_, case, func, literal_column, select, true
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Subquery

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import whole
from pgembed.queries.core.subject import Subject

_NOTHING: ColumnElement[str] = literal_column("''", Text)
_NEW_LINE: ColumnElement[str] = literal_column(r"E'\n'", Text)


def text_around(subject: Subject, neighbours: Any) -> ColumnElement[str | None]:
    """SQL, over a part: its text with that of the parts before and after it.

    The texts that are stored are those that were encoded. What they repeat of each other is there once, and
    blanks that a splitter has left out between them become a new line. Where texts are not stored, it is cut
    out of the source, as long as that is the text that was split; else it is NULL.

    :raises QueryError: they are not parts of a text, or ``neighbours`` is not a whole number.
    """
    parts = subject.parts
    if parts is None:
        raise QueryError(
            f"neighbours={neighbours!r} needs parts declared with embedding_parts(); the rows of "
            f"{subject.column.table} have none beside them"
        )
    around = _around(subject, whole("neighbours", neighbours, 0))
    if parts.declaration.keeps_text:
        fresh = case(
            (around.c.start > around.c.before, _NEW_LINE.op("||")(around.c.text)),
            else_=func.substr(
                around.c.text, func.greatest(func.coalesce(around.c.before, 0) - around.c.start, 0) + 1
            ),
        )
        return select(func.string_agg(fresh, aggregate_order_by(_NOTHING, around.c.number))).scalar_subquery()
    text = parts.table.alias()
    span = select(func.min(around.c.start).label("start"), func.max(around.c.end).label("end")).subquery()
    source = text.c[parts.sources[0].key]
    cut = select(func.substr(source, span.c.start + 1, span.c.end - span.c.start))
    cut = cut.select_from(text.join(span, true())).where(subject.of_text(text), ~parts.pending(text.c))
    return cut.correlate(subject.selectable).scalar_subquery()


def _around(subject: Subject, neighbours: int) -> Subquery:
    assert subject.parts is not None
    parts = subject.parts.parts.alias()
    number = subject.own(subject.parts.parts.c.number)
    same = and_(*(parts.c[column.key] == subject.own(column) for column in subject.parts.owner))
    before = func.lag(parts.c.end).over(order_by=parts.c.number).label("before")
    found = select(parts.c.number, parts.c.start, parts.c.end, parts.c.text, before)
    found = found.where(same, parts.c.number.between(number - neighbours, number + neighbours))
    return found.correlate(subject.selectable).subquery()
