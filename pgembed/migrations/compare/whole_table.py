"""One table, as autogenerate compares it: its subjects in their order, and the parts of a series."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Table

from pgembed.columns.names import written
from pgembed.indexes.partitions import is_partitioned
from pgembed.migrations.compare.columns import convert_not_null, convert_vector_types, replace_words
from pgembed.migrations.compare.encoder_series import SeriesParts, backfilled, compare_encoders
from pgembed.migrations.compare.indexes import compare_indexes, find_indexes, on_added_columns
from pgembed.migrations.compare.meaning_guard import compare_guards
from pgembed.migrations.operations.table_locks import locked
from pgembed.migrations.operations.vector_column import AlterVectorColumnOp
from pgembed.migrations.revisions import in_parts


def setup() -> None:
    """Register the comparator, which runs after all others of a table."""
    comparators.dispatch_for(
        "table", priority=DispatchPriority.LAST, qualifier="postgresql", subgroup="pgembed.indexes"
    )(compare_table)


def compare_table(
    context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    schema: str | None,
    table_name: Any,  # noqa: ARG001
    table: Table | None,
    model: Table | None,
) -> PriorityDispatchResult:
    """Columns, changes of encoder and indexes of one table."""
    not_null = convert_not_null(modify_ops, model)
    indexes = find_indexes(context, modify_ops, schema, table, model)
    series = SeriesParts(indexes)
    waiting: dict[str, str] = {}
    if table is not None and model is not None and (indexes.declared or indexes.existing):
        series = compare_encoders(context, modify_ops, table, model, indexes)
        waiting = series.waiting | on_added_columns(modify_ops, model, series.indexes.declared)
    convert_vector_types(modify_ops)
    replace_words(context, modify_ops, table, model)
    placed = _index_operations(context, modify_ops, table, model, series, waiting)
    guards: dict[str, list[Any]] = defaultdict(list)
    for place, operation in compare_guards(context, modify_ops, table, model, series):
        guards[place].append(operation)
    columns = dict.fromkeys(waiting[name] for name in sorted(each.new.name for each in placed["index"]))
    columns |= dict.fromkeys(each.column for each in guards["filled"])
    lock = series.drop[:1]
    modify_ops.ops[:] = in_parts(
        [*guards["before"], *placed["before"], *modify_ops.ops, *placed["after"], *guards["after"]],
        [
            *series.checks,
            *placed["ended"],
            *lock,
            *guards["over"],
            *series.drop[1:],
            *guards["last"],
            *placed["registered"],
        ],
        [*series.add, *placed["add"], *series.back],
        [
            *(backfilled(modify_ops, column, "the column") for column in columns),
            *placed["index"],
            *locked(modify_ops, guards["filled"]),
        ],
        not_null,
    )
    return PriorityDispatchResult.CONTINUE


def _index_operations(
    context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    table: Table | None,
    model: Table | None,
    series: SeriesParts,
    waiting: dict[str, str],
) -> dict[str, list[Any]]:
    """The operations on indexes by their places."""
    placed: dict[str, list[Any]] = defaultdict(list)
    indexes = series.indexes
    if indexes.declared or indexes.existing:
        assert context.connection is not None
        for place, operation in compare_indexes(
            context.connection,
            table,
            indexes,
            waiting,
            series.ended,
            in_use=table is not None and not is_partitioned(context.connection, written(table)),
            # A concurrent build commits what came before it, which cannot be repeated if the build fails.
            concurrently=bool(context.opts.get("pgembed_concurrently"))
            and table is not None
            and model is not None
            and not modify_ops.ops,
            retyped=any(isinstance(each, AlterVectorColumnOp) for each in modify_ops.ops),
        ):
            # The registration stops naming the old column when that is dropped.
            place = "after" if place == "registered" and not series.drop else place
            placed[place].append(operation)
    return placed
