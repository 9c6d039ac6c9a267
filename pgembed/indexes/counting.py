"""How many rows an index has."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, func, literal_column, select
from sqlalchemy.sql.elements import ColumnElement

from pgembed.indexes.explaining import nodes, plan_of
from pgembed.indexes.settings import applied

#: Above this many rows they are estimated from the statistics.
COUNTED = 1_000_000


def count_vectors(
    connection: Connection, column: Column[Any], where: ColumnElement[bool] | None = None
) -> list[int]:
    """How many rows have a vector, in each partition that has some, or in the table.

    Counted, or above a million rows what the planner estimates::

        SELECT count(*) FROM article WHERE embedding IS NOT NULL GROUP BY tableoid

    :param where: the condition of a partial index.
    """
    conditions = [column.is_not(None), *([] if where is None else [where])]
    # The rows of a parallel plan are those of one process.
    with applied(connection, {"max_parallel_workers_per_gather": "0"}):
        root = plan_of(connection, select(column).where(*conditions))
    if root["Plan Rows"] > COUNTED:
        return [node["Plan Rows"] for node in nodes(root) if "Relation Name" in node]
    counts = select(func.count()).select_from(column.table).where(*conditions)
    return list(connection.scalars(counts.group_by(literal_column("tableoid"))))
