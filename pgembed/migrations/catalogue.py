"""What stands in the database, and whether two expressions say the same there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sqlalchemy import Connection, Table, literal_column, select, text
from sqlalchemy.exc import DBAPIError

from pgembed.columns.registration import read_registration
from pgembed.columns.trust import require_trust
from pgembed.database.install import is_installed
from pgembed.indexes import ACCESS_METHODS
from pgembed.indexes.catalogue import written
from pgembed.indexes.explaining import plan_of
from pgembed.migrations.definitions import (
    Definition,
    PendingIndexDefinition,
    VectorIndexDefinition,
)

_INDEXES = text("""
SELECT c.relname AS name,
       CAST(i.indrelid AS bigint) AS relation,
       m.amname AS access_method,
       i.indisvalid AS valid,
       a.attname AS column_name,
       pg_catalog.pg_get_indexdef(i.indexrelid, 1, false) AS expression,
       o.opcname AS opclass,
       CAST(c.reloptions AS text[]) AS parameters,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate,
       pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
       ARRAY(SELECT CAST(k.attname AS text)
               FROM pg_catalog.unnest(CAST(i.indkey AS smallint[])) WITH ORDINALITY AS n (attnum, place)
               JOIN pg_catalog.pg_attribute AS k ON k.attrelid = i.indrelid AND k.attnum = n.attnum
              ORDER BY n.place) AS keys
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
  JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
  LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
 WHERE i.indrelid = pg_catalog.to_regclass(:relation)
""")


def indexes_of(connection: Connection, table: Table, pending: set[str]) -> dict[str, Definition]:
    """The vector indexes and pending indexes that stand on a table, by name.

    :param pending: names of partial indexes that count as pending indexes even if they carry no registration,
        or none that can be read.
    :raises NotTrustedError: the table has such indexes, and is of somebody who is not trusted: to compare
        their expressions is to run what they name.
    """
    relation = written(table)
    found: dict[str, Definition] = {}
    trusted = False
    for row in connection.execute(_INDEXES, {"relation": relation}):
        registration, problem = read_registration(row.comment)
        ours = row.access_method in ACCESS_METHODS or row.name in pending
        if (ours or registration or problem) and not trusted:
            require_trust(connection, row.relation, table.fullname)
            trusted = True
        if row.access_method in ACCESS_METHODS:
            found[row.name] = VectorIndexDefinition(
                name=row.name,
                table=str(table.name),
                column=row.column_name,
                expression=None if row.column_name is not None else row.expression,
                using=row.access_method,
                opclass=row.opclass,
                parameters=_parameters(row.parameters),
                where=row.predicate,
                schema=table.schema,
                valid=row.valid,
            )
        elif row.predicate is not None and (row.name in pending or registration is not None):
            found[row.name] = PendingIndexDefinition(
                name=row.name,
                table=str(table.name),
                columns=tuple(row.keys),
                where=row.predicate,
                registration=registration,
                schema=table.schema,
                valid=row.valid,
            )
    return found


def same_in_database(connection: Connection, table: Table, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether the two expressions of each pair over a table's columns are the same to Postgres.

    Postgres keeps an expression as a tree and writes it out in a form of its own: both are put into one
    ``EXPLAIN``, which writes them in the same form. It changes nothing and needs no more than ``SELECT``.
    An expression that Postgres does not understand (a column that is not there yet) is another one.
    """
    pairs = [(left, right) for left, right in pairs if left != right]
    if not pairs:
        return True
    columns: list[Any] = [
        literal_column(side).label(f"{name}{number}")
        for number, pair in enumerate(pairs)
        for name, side in zip(("l", "r"), pair, strict=True)
    ]
    try:
        with _savepoint(connection):
            output = plan_of(connection, select(*columns).select_from(table))["Output"]
    except DBAPIError:
        return False
    return all(output[2 * number] == output[2 * number + 1] for number in range(len(pairs)))


def _savepoint(connection: Connection) -> AbstractContextManager[Any]:
    """A failed statement spoils the transaction it is in; in autocommit there is none, and no savepoint."""
    try:
        return connection.begin_nested()
    except DBAPIError:
        return nullcontext()


def installed_revision(connection: Connection) -> int | None:
    """The revision of pgembed's SQL objects that is installed; ``None`` for none."""
    if not is_installed(connection):
        return None
    revision: int | None = connection.scalar(text("SELECT revision FROM pgembed.version"))
    return revision


def has_extension(connection: Connection) -> bool:
    """Whether the extension ``vector`` is there."""
    return bool(connection.scalar(text("SELECT true FROM pg_catalog.pg_extension WHERE extname = 'vector'")))


def _parameters(options: Sequence[str] | None) -> dict[str, Any]:
    pairs = (option.split("=", 1) for option in options or ())
    return {name: int(value) if value.isdigit() else value for name, value in pairs}
