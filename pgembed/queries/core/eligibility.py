"""Which of the indexes that are declared on a column a search can use.

An index of all rows serves every search of its metric. A partial one serves those whose conditions imply its
predicate: here that is shown where the conditions contain the predicate's, written alike. Postgres can show
more (``score > 5`` implies ``score > 3``), and decides by itself on an index of whole vectors, where a scan
of the table in its place gives the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import CompileError
from sqlalchemy.sql.elements import BindParameter, BooleanClauseList, ColumnElement, Grouping
from sqlalchemy.sql.operators import and_
from sqlalchemy.sql.selectable import FromClause
from sqlalchemy.sql.visitors import iterate

from pgembed.indexes import Indexed

#: White space, and what is quoted, in which it counts.
_SPACE = re.compile(r"""('[^']*'|"[^"]*")|\s+""")
_DIALECT: Any = postgresql.dialect()  # type: ignore[no-untyped-call]


def choose(indexes: Sequence[Indexed], conditions: Sequence[ColumnElement[bool]]) -> Indexed | None:
    """The index that loses least, of those that a search under these conditions can use.

    :param indexes: those that serve the metric.
    """
    sure = [each for each in indexes if each.where is None or is_implied(each, conditions)]
    if sure:
        return min(sure, key=lambda each: (not each.whole, each.oversample, each.where is None))
    perhaps = (each for each in indexes if each.whole)
    return next(perhaps, None) if conditions else None


def is_implied(index: Indexed, conditions: Sequence[ColumnElement[bool]]) -> bool:
    """Whether every part of the predicate of a partial index is among the parts of the conditions."""
    wanted = set(_texts([index.where], index.column.table))
    return None not in wanted and wanted <= set(_texts(conditions, index.column.table))


def _texts(conditions: Sequence[Any], table: FromClause) -> Iterator[str | None]:
    """What is joined by AND, as :func:`sql_of` writes it."""
    for condition in conditions:
        if isinstance(condition, Grouping):
            yield from _texts([condition.element], table)
        elif isinstance(condition, BooleanClauseList) and condition.operator is and_:
            yield from _texts(list(condition.clauses), table)
        else:
            yield sql_of(condition, table)


def sql_of(expression: Any, table: FromClause) -> str | None:
    """An expression over one table as SQL without the table's name; ``None`` for one that has no text yet, or
    is about another table (the entity's, where it inherits)."""
    clause = expression.__clause_element__() if hasattr(expression, "__clause_element__") else expression
    for found in iterate(clause):
        if isinstance(found, BindParameter) and not found.unique:
            return None  # a parameter by name, whose value is given or replaced later
        if isinstance(found, Column) and all(base.table != table for base in found.base_columns):
            return None
    try:
        sql = clause.compile(
            dialect=_DIALECT, compile_kwargs={"literal_binds": True, "include_table": False}
        ).string
    except (CompileError, NotImplementedError):  # a value that has no literal form
        return None
    return _SPACE.sub(lambda found: found[1] or " ", sql).strip()
