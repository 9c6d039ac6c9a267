"""The indexes of a table in the database, as definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, text

from pgembed.columns.names import written
from pgembed.columns.registration import read_registration
from pgembed.columns.trust import require_trust
from pgembed.indexes import ACCESS_METHODS
from pgembed.migrations.definitions import (
    IndexDefinition,
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

_DEPENDENT = text("""
SELECT c.relname
  FROM pg_catalog.pg_depend AS d
  JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind IN ('i', 'I')
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
   AND d.refobjid = pg_catalog.to_regclass(:relation) AND a.attname = :column
""")


def indexes_of(connection: Connection, table: Table, pending: set[str]) -> dict[str, IndexDefinition]:
    """The vector indexes and pending indexes of a table, by name.

    :param pending: names of partial indexes that count as pending indexes even if they carry no registration,
        or an unreadable one.
    :raises NotTrustedError: the table has such indexes, and its owner is not trusted: comparing their
        expressions runs the functions that these name.
    """
    relation = written(table)
    found: dict[str, IndexDefinition] = {}
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


def dependent_indexes(connection: Connection, table: Table, column: str) -> set[str]:
    """The names of the indexes on a column, in their expressions and predicates too."""
    relation = written(table)
    return set(connection.scalars(_DEPENDENT, {"relation": relation, "column": column}))


def _parameters(options: Sequence[str] | None) -> dict[str, Any]:
    pairs = (option.split("=", 1) for option in options or ())
    return {name: int(value) if value.isdigit() else value for name, value in pairs}
