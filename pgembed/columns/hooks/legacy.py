"""The legacy bulk methods: ``Session.bulk_insert_mappings``, ``bulk_update_mappings``, ``bulk_save_objects``.

They run neither a flush nor an ORM statement, but executemany on the connection. SQLAlchemy's ORM runs what
it writes with a ``compiled_cache`` of its own, which tells it from Core statements; what a flush or an ORM
statement writes was looked at there. What is left comes from the legacy methods: rows whose texts are all
given are filled, one encoder batch for each statement that SQLAlchemy makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, Insert, Table, Update, event

from pgembed.columns.embedding import embeddings_of, unsettled
from pgembed.columns.hooks.bulk import FILLED, fill_changed, fill_new
from pgembed.columns.hooks.flush import flushing
from pgembed.columns.hooks.mapped import MappedEmbedding

_Rows: TypeAlias = Sequence[Mapping[str, Any]]


@event.listens_for(Engine, "before_execute", retval=True)
def _before_execute(
    connection: Connection, statement: Any, several: _Rows, single: Mapping[str, Any], options: Any
) -> tuple[Any, _Rows, Mapping[str, Any]]:
    if isinstance(statement, Insert | Update) and statement.table in unsettled:
        _embeddings(statement.table)  # raises: its rows would be pending for ever
    given = several or ([single] if single else [])
    if (
        not given
        or "compiled_cache" not in options
        or FILLED in options
        or not isinstance(statement, Insert | Update)
        or connection in flushing
    ):
        return statement, several, single
    embeddings = [found for found in _embeddings(statement.table) if _is_touched(found, given[0])]
    if not embeddings:
        return statement, several, single
    rows = [dict(row) for row in given]
    if isinstance(statement, Insert):
        fill_new(rows, embeddings)
    else:
        fill_changed(rows, embeddings, expressions=False)
    return statement, rows if several else [], {} if several else rows[0]


def _embeddings(table: Any) -> list[MappedEmbedding]:
    """The embeddings of a table by the keys of columns, as parameters are named."""
    if not isinstance(table, Table):
        return []
    return [
        MappedEmbedding(
            found, found.vector.key, found.digest.key, tuple(source.key for source in found.sources)
        )
        for found in embeddings_of(table)
    ]


def _is_touched(mapped: MappedEmbedding, row: Mapping[str, Any]) -> bool:
    """Whether a row gives a text or a vector. All rows of a statement have the same keys."""
    return any(name in row for name in (*mapped.sources, mapped.vector))
