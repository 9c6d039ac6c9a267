"""Common table expressions that are materialised, with names that read well in a plan."""

from __future__ import annotations

from sqlalchemy.sql.elements import _anonymous_label
from sqlalchemy.sql.selectable import CTE, SelectBase


def materialized(statement: SelectBase, name: str) -> CTE:
    """``pgembed_<name>_1 AS MATERIALIZED (statement)``: a name that no table of the user's has.

    The number is given when the statement is compiled, so that several searches can meet in one statement.
    (``statement.cte().prefix_with(...)`` would be called after an object that is gone by then, whose place
    in memory, and thereby its name, may be taken over by another one.)
    """
    label = _anonymous_label.safe_construct(id(statement), f"pgembed_{name}")
    return statement.cte(label).prefix_with("MATERIALIZED")
