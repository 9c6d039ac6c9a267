"""The triggers of ``unique_within=``, as autogenerate compares them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from sqlalchemy import Connection, Table, text

from pgembed.columns import embeddings_of
from pgembed.columns.guards import guard_name, guard_of
from pgembed.columns.names import written
from pgembed.migrations.compare.encoder_series import SeriesParts
from pgembed.migrations.operations.meaning_guard import CreateMeaningGuardOp
from pgembed.migrations.operations.vector_column import AlterVectorColumnOp

log = logging.getLogger(__name__)

# Those of partitions are parts of their table's.
_GUARDS = text("""
SELECT g.tgname, g.tgargs, array_agg(a.attname::text ORDER BY u.place) AS columns
  FROM pg_catalog.pg_trigger AS g
  JOIN pg_catalog.pg_proc AS p ON p.oid = g.tgfoid AND p.proname = 'guard_meaning'
  JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace AND n.nspname = 'pgembed'
 CROSS JOIN LATERAL unnest(g.tgattr::smallint[]) WITH ORDINALITY AS u (attnum, place)
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = g.tgrelid AND a.attnum = u.attnum
 WHERE g.tgrelid = pg_catalog.to_regclass(:relation) AND g.tgparentid = 0
 GROUP BY g.oid
""")


def compare_guards(
    context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    table: Table | None,
    model: Table | None,
    series: SeriesParts,
) -> Iterator[tuple[str, MigrateOperation]]:
    """What to drop and to create, each with its place among the operations.

    "before" and "after" refer to operations on columns, whose drops and changes of type a trigger forbids;
    "over", "last" and "filled" to parts of a series: a column that is replaced keeps its guard until it is
    dropped, and the one that replaces it gets its own once it is filled.
    """
    connection = context.connection
    assert connection is not None
    declared: dict[str, CreateMeaningGuardOp] = {}
    for embedding in embeddings_of(model) if model is not None else ():
        if (guard := guard_of(embedding)) is not None:
            column, *per = guard.columns
            column = series.begun.get(column, column)
            declared[column] = CreateMeaningGuardOp(
                modify_ops.table_name,
                column,
                guard.score,
                tuple(per),
                guard.metric,
                guard.links,
                modify_ops.schema,
            )
    existing = {} if table is None else guards_of(connection, table, modify_ops)
    retyped = set(filter(None, map(_retyped, modify_ops.ops)))
    for column in sorted(existing.keys() | declared.keys()):
        old, new = existing.get(column), declared.get(column)
        if column in series.begun:
            continue
        if old is not None:
            if new is not None and new.settings == old.settings and not retyped & {column, *old.unique_per}:
                continue
            if new is None and model is not None and _is_ignored(context, table, model, column):
                continue
            log.info("Detected removed or changed guard on '%s.%s'", old.table_name, column)
            yield "over" if column in series.over else "before", old.reverse()
        replacing = column in series.begun.values()
        if new is not None and new.duplicate_of and replacing:
            continue  # a link is written by one guard alone, that of the old column until it is dropped
        if new is not None:
            log.info("Detected added or changed guard on '%s.%s'", new.table_name, column)
            yield "filled" if replacing else "last" if series.over else "after", new


def guards_of(
    connection: Connection, table: Table, modify_ops: ops.ModifyTableOps
) -> dict[str, CreateMeaningGuardOp]:
    """The guards of a table by their columns, as the operations that create them."""
    found: dict[str, CreateMeaningGuardOp] = {}
    for name, arguments, (column, *others) in connection.execute(_GUARDS, {"relation": written(table)}):
        score, metric, *count, _ = bytes(arguments).decode().split("\0")
        links = others[-int(count[0]) - 1 : -1] if count else []  # the digest is the last
        per = others[: -len(links) - 1] if links else others
        found[column] = CreateMeaningGuardOp(
            modify_ops.table_name,
            column,
            float(score),
            tuple(per),
            metric,
            tuple(links),
            modify_ops.schema,
            None if name == guard_name(column) else name,
        )
    return found


def _is_ignored(context: AutogenContext, table: Any, model: Table, column: str) -> bool:
    """Whether ``env.py`` leaves a column alone that no model declares."""
    return column not in model.c and not context.run_object_filters(
        table.c[column], column, "column", True, None
    )


def _retyped(operation: MigrateOperation) -> str | None:
    """The column whose type changes, which Postgres refuses under a trigger."""
    alters = isinstance(operation, ops.AlterColumnOp) and operation.modify_type is not None
    if alters or isinstance(operation, AlterVectorColumnOp):
        return str(operation.column_name)  # type: ignore[attr-defined]
    return None
