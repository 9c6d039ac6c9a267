"""The indexes of a table in the database, as definitions."""

from __future__ import annotations

from sqlalchemy import Connection, Table, text

from pgembed.columns.names import written
from pgembed.columns.registration import read_registration
from pgembed.columns.trust import require_trust
from pgembed.indexes import ACCESS_METHODS
from pgembed.indexes.standing import standing
from pgembed.migrations.definitions import (
    IndexDefinition,
    PendingIndexDefinition,
    VectorIndexDefinition,
)

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
    for index in standing(connection, relation, methods=None):
        registration, problem = read_registration(index.comment)
        ours = index.access_method in ACCESS_METHODS or index.name in pending
        if (ours or registration or problem) and not trusted:
            require_trust(connection, index.table_oid, table.fullname)
            trusted = True
        if index.access_method in ACCESS_METHODS:
            found[index.name] = VectorIndexDefinition(
                name=index.name,
                table=str(table.name),
                column=index.column,
                expression=index.expression,
                using=index.access_method,
                opclass=index.opclass,
                parameters=index.parameters,
                where=index.predicate,
                schema=table.schema,
                valid=index.valid,
            )
        elif index.predicate is not None and (index.name in pending or registration is not None):
            found[index.name] = PendingIndexDefinition(
                name=index.name,
                table=str(table.name),
                columns=tuple(index.keys),
                where=index.predicate,
                registration=registration,
                schema=table.schema,
                valid=index.valid,
            )
    return found


def dependent_indexes(connection: Connection, table: Table, column: str) -> set[str]:
    """The names of the indexes on a column, in their expressions and predicates too."""
    relation = written(table)
    return set(connection.scalars(_DEPENDENT, {"relation": relation, "column": column}))
