"""What writes rows without a flush: bulk INSERT, bulk UPDATE by key, ``update().values()``, legacy methods.

Rows whose texts are all given get their vectors in the same statement, one encoder batch for all of them.
Rows whose texts only the database knows (SQL expressions, INSERT ... SELECT, an update of one source among
several) are written as they are: their digest no longer fits, and they are pending.

The legacy methods (``Session.bulk_insert_mappings``, ``bulk_update_mappings``, ``bulk_save_objects``) run
neither a flush nor an ORM statement, but executemany on the connection. SQLAlchemy's ORM runs what it writes
with a ``compiled_cache`` of its own, which tells it from Core statements; what a flush or an ORM statement
writes was looked at before. What is left comes from the legacy methods, and is filled with one encoder batch
for each statement that SQLAlchemy makes of it.

Core statements on a connection are not seen: their rows are pending.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import (
    Alias,
    BindParameter,
    Column,
    Connection,
    Engine,
    Insert,
    Table,
    Update,
    event,
)
from sqlalchemy.orm import Mapper, ORMExecuteState, Session

from pgembed.columns.embedding import embeddings_of, unsettled
from pgembed.columns.hooks.flush import flushing
from pgembed.columns.hooks.mapped import UNKNOWN, MappedEmbedding, given_text, mapped_embeddings, text_of
from pgembed.columns.hooks.outcome import ABSENT, Change, Filling, encode, settle

#: The execution option of statements that are already filled.
FILLED = "pgembed_filled"

_Rows: TypeAlias = Sequence[Mapping[str, Any]]


@event.listens_for(Session, "do_orm_execute")
def _on_execute(state: ORMExecuteState) -> Any:
    mapper = state.bind_mapper
    if mapper is None or not (state.is_insert or state.is_update):
        return None
    embeddings = mapped_embeddings(mapper)
    if not embeddings:
        return None
    if isinstance(state.statement, Insert):
        return _insert(state, state.statement, mapper, embeddings)
    if isinstance(state.statement, Update):
        return _update(state, state.statement, mapper, embeddings)
    return None


def _insert(
    state: ORMExecuteState, statement: Insert, mapper: Mapper[Any], embeddings: Sequence[MappedEmbedding]
) -> Any:
    if statement.select is not None:
        return None
    completed = _complete_upsert(statement, embeddings)
    single, several = _values(statement, mapper)
    if state.parameters is not None and not single and not several:
        return _invoke(state, completed, lambda rows: _fill(rows, embeddings, new=True))
    if state.parameters is not None:  # values in the statement and in its parameters: too mixed to read
        return None
    if several:
        rows = [dict(row) for row in several]
        _fill(rows, embeddings, new=True)
        names = set(rows[0])
        if any(set(row) != names for row in rows):
            return None  # not what VALUES takes; SQLAlchemy will say so
        completed = completed._clone()
        completed._multi_values = ()
        completed = completed.values([{getattr(mapper.class_, key): row[key] for key in row} for row in rows])
    else:
        row = dict(single)
        _fill([row], embeddings, new=True)
        completed = completed.values(_added(row, single, mapper))
    state.statement = completed
    return None


def _update(
    state: ORMExecuteState, statement: Update, mapper: Mapper[Any], embeddings: Sequence[MappedEmbedding]
) -> Any:
    if any(getattr(statement, name, None) for name in ("_ordered_values", "_maintain_values_ordering")):
        return None  # ordered_values() of SQLAlchemy 2.0 and 2.1 takes no further ones: the rows are pending
    values, _ = _values(statement, mapper)
    if not values and state.parameters is not None:
        return _invoke(state, statement, lambda rows: _fill(rows, embeddings))
    row = dict(values)
    _fill([row], embeddings, expressions=True)
    if added := _added(row, values, mapper):
        state.statement = statement.values(added)
    return None


def _invoke(
    state: ORMExecuteState, statement: Insert | Update, fill: Callable[[list[dict[str, Any]]], None]
) -> Any:
    """Run a statement with its parameters filled; the caller's own rows are left alone."""
    given = state.parameters
    rows = [dict(row) for row in ([given] if isinstance(given, Mapping) else given or [])]
    fill(rows)
    statement = statement.execution_options(**{FILLED: True})
    return state.invoke_statement(statement=statement, params=rows[0] if isinstance(given, Mapping) else rows)


def _fill(
    rows: Sequence[dict[str, Any]],
    embeddings: Sequence[MappedEmbedding],
    *,
    new: bool = False,
    expressions: bool = False,
) -> None:
    """Add vectors and digests to rows that are inserted (``new``) or updated.

    :param expressions: whether the rows take SQL expressions, as ``.values()`` does and parameters do not.
    """
    fillings: list[Filling] = []
    for mapped in embeddings:
        columns = dict(zip(mapped.sources, mapped.embedding.sources, strict=True))
        for row in rows:
            change: Change = "new" if new else "changed" if columns.keys() & row.keys() else "same"
            texts = [
                text_of(row.get(key), column) if new else given_text(row.get(key, UNKNOWN), column)
                for key, column in columns.items()
            ]
            # A vector without its text among the parameters leaves the digest alone: fresh rows stay fresh,
            # pending ones pending.
            vector, digest = row.get(mapped.vector), row.get(mapped.digest, ABSENT)
            fillings += settle(mapped, change, texts, vector, digest, row.update, expressions=expressions)
            if new:  # so that all rows of one INSERT have the same columns
                row.setdefault(mapped.vector, None)
                row.setdefault(mapped.digest, None)
    encode(fillings)


def _added(row: Mapping[str, Any], given: Mapping[str, Any], mapper: Mapper[Any]) -> dict[Any, Any]:
    """What filling has put into a row, by mapped attribute."""
    return {
        getattr(mapper.class_, key): value
        for key, value in row.items()
        if value is not given.get(key, UNKNOWN)
    }


def _complete_upsert(statement: Insert, embeddings: Sequence[MappedEmbedding]) -> Insert:
    """Let an ``ON CONFLICT DO UPDATE`` that sets every source set vector and digest too."""
    clause: Any = getattr(statement, "_post_values_clause", None)
    assigned = getattr(clause, "update_values_to_set", None)
    if assigned is None:
        return statement
    excluded = statement.excluded  # type: ignore[attr-defined]
    pairs = [
        (_name(key), value) for key, value in (assigned.items() if isinstance(assigned, dict) else assigned)
    ]
    present = {name for name, _ in pairs}
    taken = {name for name, value in pairs if _is_excluded(name, value)}
    added = [
        column
        for mapped in embeddings
        if mapped.embedding.declaration.fill == "flush"
        and taken.issuperset(source.key for source in mapped.embedding.sources)
        for column in (mapped.embedding.vector, mapped.embedding.digest, *mapped.embedding.links)
        if column.key not in present
    ]
    if not added:
        return statement
    clause = copy.copy(clause)
    if isinstance(assigned, dict):  # SQLAlchemy 2.1
        clause.update_values_to_set = {**assigned, **{column: excluded[column.key] for column in added}}
    else:
        clause.update_values_to_set = [*assigned, *((column.key, excluded[column.key]) for column in added)]
    completed = statement._clone()
    completed._post_values_clause = clause
    return completed


def _is_excluded(name: str, value: Any) -> bool:
    source = getattr(value, "table", None)
    return isinstance(source, Alias) and source.name == "excluded" and value.key == name


def _name(key: Any) -> str:
    return key if isinstance(key, str) else key.key


def _values(statement: Insert | Update, mapper: Mapper[Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What ``.values()`` gave, by attribute: of one row, or of several."""
    single = dict(statement._values or {})
    several: list[Any] = [row for rows in statement._multi_values for row in rows]
    if not all(isinstance(row, Mapping) for row in several):
        several = []
    return _by_attribute(single, mapper), [_by_attribute(row, mapper) for row in several]


def _by_attribute(values: Mapping[Any, Any], mapper: Mapper[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        column = key if isinstance(key, Column) else getattr(key, "columns", [None])[0]
        name = key if isinstance(key, str) else mapper.get_property_by_column(column).key
        found[name] = _literal(value)
    return found


def _literal(value: Any) -> Any:
    """The value of a literal that SQLAlchemy has wrapped; anything else as it is."""
    if isinstance(value, BindParameter) and value.callable is None and not value.required:
        return value.value
    return value


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
    _fill(rows, embeddings, new=isinstance(statement, Insert))
    return statement, rows if several else [], {} if several else rows[0]


def _embeddings(table: Any) -> list[MappedEmbedding]:
    """The embeddings of a table by the keys of columns, as parameters are named."""
    if not isinstance(table, Table):
        return []
    return [
        MappedEmbedding(
            found, found.digest.key, tuple(source.key for source in found.sources), found.vector.key
        )
        for found in embeddings_of(table)
    ]


def _is_touched(mapped: MappedEmbedding, row: Mapping[str, Any]) -> bool:
    """Whether a row gives a text or a vector. All rows of a statement have the same keys."""
    return any(name in row for name in (*mapped.sources, mapped.vector))
