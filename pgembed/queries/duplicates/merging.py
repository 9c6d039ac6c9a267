"""``merge_duplicates``: one of several rows is kept, and what referred to the others refers to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    Connection,
    FromClause,
    Integer,
    Row,
    String,
    Table,
    bindparam,
    cast,
    column,
    func,
    inspect,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, REGCLASS
from sqlalchemy.orm import Session

from pgembed.exc import QueryError
from pgembed.queries.core.reading import check_session
from pgembed.queries.duplicates.keeping import KeepList
from pgembed.queries.duplicates.near_duplicates import DuplicateGroups


@dataclass(frozen=True)
class Merged:
    """What was changed, or would be.

    :ivar table: its name, with the schema.
    :ivar reference: the foreign key that was followed, or the unique index that would have been broken.
    :ivar action: ``"moved"``, references that lead to a kept row now; ``"cleared"``, references of a kept
        row to itself, which are NULL now; ``"merged"``, rows that would have broken a unique index;
        ``"deleted"``, the dropped rows.
    """

    table: str
    reference: str | None
    action: str
    rows: int


def merge_duplicates(
    session: Session | Connection, groups: Any, *, of: Any = None, dry_run: bool = True
) -> list[Merged]:
    """Delete duplicates, and make what refers to them refer to the row that is kept.

    ::

        dropped = keep_list(Article.embedding, min_score=0.95, keep=Article.created.asc())
        merge_duplicates(session, dropped)                      # what would be changed
        merge_duplicates(session, dropped, dry_run=False)
        session.commit()

    Every foreign key of the database that refers to the table is followed: of several columns, of the table
    itself, to unique columns that are not the primary key, deferred or not, whatever it does ON DELETE. Where
    a reference changes columns that others refer to, those change in the same statement.

    A row that would break a unique index, because the kept row has one like it already, is merged into that
    one by the same rules: what refers to it is kept, its own values are not. A kept row that referred to a
    dropped one would refer to itself, and refers to none where the column can be NULL.

    All of it is one statement, ``SELECT * FROM pgembed.merge_duplicates(...)``: where it fails, nothing is
    changed. A dry run does it and takes it back, so that it fails where the real run would. Deferred
    constraints of the tables are checked within. Other writers of the tables wait until the transaction ends;
    triggers run. It needs pgembed's SQL objects in the database (``pgembed init``).

    :param session: objects that it has loaded are expired by a real run. Under an ``AsyncSession``, ``await
        session.run_sync(lambda session: merge_duplicates(session, ...))``.
    :param groups: a statement of :func:`~pgembed.queries.keep_list`; one of
        :func:`~pgembed.queries.duplicate_groups`, of each of which the row with the smallest key is kept; or,
        with ``of=Article``, a list of lists of keys, the first of which is kept.
    :returns: what was changed, in its order.
    :raises QueryError: ``groups`` is nothing of these.
    """
    check_session(session, "merge_duplicates", twin=False)
    if not isinstance(dry_run, bool):
        raise QueryError(f"dry_run={dry_run!r}; expected True or False")
    if isinstance(groups, KeepList | DuplicateGroups):
        if of is not None:
            raise QueryError("of= is for lists of keys: the statement knows its table")
        of = groups._searched  # type: ignore[union-attr]
        pairs = _pairs(groups, session.execute(groups).all())
    elif of is not None and isinstance(groups, Sequence) and not isinstance(groups, str):
        for group in groups:
            if not isinstance(group, list | tuple) or not group:
                raise QueryError(
                    f"groups holds {group!r}; expected lists of keys, such as [[1, 5], [2, 7, 9]]"
                )
        pairs = [(dropped, first) for first, *others in groups for dropped in others]
    else:
        raise QueryError(
            f"groups={groups!r}; expected keep_list(...), duplicate_groups(...), or a list of lists of keys "
            "with of="
        )
    table, names = _identified(of)
    connection = session if isinstance(session, Connection) else session.connection()
    preparer = connection.dialect.identifier_preparer
    schema = connection.schema_for_object(table)  # through schema_translate_map
    name = ".".join(preparer.quote(part) for part in (schema, table.name) if part)
    dropped, kept = (
        cast(bindparam(None, [_object(names, pair[side]) for pair in pairs], ARRAY(String)), ARRAY(JSONB))
        for side in (0, 1)
    )
    done = func.pgembed.merge_duplicates(
        cast(literal(name), REGCLASS), dropped, kept, literal(dry_run, Boolean)
    ).table_valued(
        column("changed", String),
        column("reference", String),
        column("action", String),
        column("rows", Integer),
    )
    rows = session.execute(select(*done.c)).all()
    if not isinstance(session, Connection) and not dry_run:
        session.expire_all()
    return [Merged(*row) for row in rows]


def _pairs(statement: Any, rows: Sequence[Row[Any]]) -> list[tuple[Any, Any]]:
    """Keys of dropped rows, each with that of the row that is kept."""
    if isinstance(statement, KeepList):
        return [(row.key, row.kept_key) for row in rows if not row.keep]
    first: dict[int, Any] = {}
    return [
        (row.key, first[row.group_id]) for row in rows if first.setdefault(row.group_id, row.key) != row.key
    ]


def _identified(of: Any) -> tuple[Table, list[str]]:
    """The table whose rows are deleted, the first of a hierarchy, and the columns of its key.

    :raises QueryError: there is none.
    """
    inspected = inspect(of, raiseerr=False)
    mapper = getattr(inspected, "mapper", None)
    found: Any = mapper.base_mapper.local_table if mapper is not None else of
    while isinstance(found, FromClause) and not isinstance(found, Table):
        found = getattr(found, "element", None)
    if not isinstance(found, Table):
        raise QueryError(f"of={of!r}; expected a mapped class or a table")
    return found, [key.name for key in found.primary_key]


def _object(names: Sequence[str], key: Any) -> str:
    """A key as a JSON object.

    :raises QueryError: it has another number of values.
    """
    values = [key] if len(names) == 1 else list(key) if isinstance(key, list | tuple) else []
    if len(values) != len(names):
        raise QueryError(f"found the key {key!r}; expected values of {', '.join(names)}")
    return json.dumps(dict(zip(names, values, strict=True)), default=_as_json)


def _as_json(value: Any) -> Any:
    """A value of a key that JSON has no form for, as Postgres reads it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"\\x{value.hex()}"
    return value.name if isinstance(value, Enum) else str(value)
