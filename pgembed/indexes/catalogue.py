"""The vector indexes that stand in a database, read from its catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Index, Table, bindparam, text
from sqlalchemy.types import ARRAY, String

from pgembed.columns.names import NAMES, written
from pgembed.exc import DeclarationError
from pgembed.indexes.errors import IndexBuildError, IndexMissingError
from pgembed.indexes.methods import ACCESS_METHODS
from pgembed.metrics import BY_NAME

_STANDING = text("""
SELECT i.indexrelid AS oid,
       n.nspname AS schema,
       c.relname AS name,
       t.relname AS table,
       CAST(CAST(i.indrelid AS pg_catalog.regclass) AS text) AS relation,
       a.attname AS column,
       CASE WHEN a.attname IS NULL THEN pg_catalog.pg_get_indexdef(i.indexrelid, 1, false) END AS expression,
       m.amname AS access_method,
       o.opcname AS opclass,
       CAST(c.reloptions AS text[]) AS options,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate,
       i.indisvalid AND i.indisready AS valid,
       EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index AS p
               WHERE p.datname = pg_catalog.current_database()
                 AND (p.index_relid = i.indexrelid OR p.relid IS NULL)) AS building,
       c.relkind = 'I' AS partitioned,
       ARRAY(SELECT CAST(leaf.relname AS text)
               FROM pg_catalog.pg_partition_tree(i.indexrelid) AS part
               JOIN pg_catalog.pg_class AS leaf ON leaf.oid = part.relid
              WHERE part.isleaf) AS leaves,
       (SELECT h.inhparent FROM pg_catalog.pg_inherits AS h WHERE h.inhrelid = i.indexrelid) AS parent,
       CASE WHEN c.relkind = 'I'
            THEN (SELECT CAST(coalesce(sum(pg_catalog.pg_relation_size(part.relid)), 0) AS bigint)
                    FROM pg_catalog.pg_partition_tree(i.indexrelid) AS part WHERE part.isleaf)
            ELSE pg_catalog.pg_relation_size(i.indexrelid) END AS size
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = ANY (CAST(:methods AS text[]))
  JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
  LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
 WHERE (i.indrelid = pg_catalog.to_regclass(:relation) OR :relation IS NULL)
   AND n.nspname NOT LIKE 'pg\\_temp\\_%'
 ORDER BY n.nspname, t.relname, c.relname
""").bindparams(bindparam("relation", type_=String), bindparam("methods", type_=ARRAY(String)))


@dataclass(frozen=True)
class StandingIndex:
    """A vector index as the catalogue has it.

    :ivar relation: its table as SQL writes it.
    :ivar column: the column that it indexes, or ``None`` for an index on an ``expression``.
    :ivar parameters: the storage parameters that are stated.
    :ivar predicate: the condition of a partial index.
    :ivar valid: whether queries may use it.
    :ivar building: whether it is being built at this moment.
    :ivar partitioned: whether it is that of a partitioned table, which holds nothing itself: the indexes of
        the partitions are attached to it. Until all are, it is not valid.
    :ivar leaves: the names of those indexes, which are what plans show.
    :ivar parent: the oid of the index that it is attached to.
    :ivar size: bytes on the disk, those of the partitions included.
    """

    oid: int
    schema: str
    name: str
    table: str
    relation: str
    column: str | None
    expression: str | None
    access_method: str
    opclass: str
    parameters: dict[str, int]
    predicate: str | None
    valid: bool
    building: bool
    partitioned: bool
    leaves: list[str]
    parent: int | None
    size: int

    @property
    def storage(self) -> str:
        """The type that it indexes, as the name of its operator class says."""
        return self.opclass.partition("_")[0]

    @property
    def metric(self) -> str | None:
        """The metric that it serves; ``None`` for one that pgembed has no name for."""
        found = (metric.name for metric in BY_NAME.values() if metric.opclass(self.storage) == self.opclass)
        return next(found, None)

    @property
    def operator(self) -> str | None:
        """The distance operator that it serves."""
        return None if self.metric is None else BY_NAME[self.metric].operator

    def refuse_while_building(self) -> None:
        """
        :raises IndexBuildError: it is being built. It looks like one that a failed build left over, and to
            drop it would be to wait for the build, and then to drop its result.
        """
        if self.building:
            raise IndexBuildError(
                self.name,
                "another session is building it at this moment",
                fix="Wait for it; pg_stat_progress_create_index shows how far it is",
            )


def standing(connection: Connection, relation: str | None = None) -> list[StandingIndex]:
    """The vector indexes of a table (its name as SQL writes it), or of the whole database."""
    rows = connection.execute(_STANDING, {"relation": relation, "methods": list(ACCESS_METHODS)}).mappings()
    return [
        StandingIndex(
            parameters=_parameters(row["options"]),
            **{name: value for name, value in row.items() if name != "options"},
        )
        for row in rows
    ]


def find(connection: Connection, index: Index, name: str | None = None) -> StandingIndex | None:
    """The declared index as it stands in the database, valid or not; ``None`` where it does not.

    :param name: for one that stands beside it by another name.
    """
    name = name or name_of(index)
    return next((found for found in standing(connection, relation_of(index)) if found.name == name), None)


def require(connection: Connection, index: Index) -> StandingIndex:
    """The declared index as it stands, ready to be used.

    :raises IndexMissingError: it is not there, or invalid.
    """
    found = find(connection, index)
    if found is None:
        raise IndexMissingError(
            name_of(index),
            f"{relation_of(index)} has no such index",
            fix="Build it with `pgembed index create` or pgembed.indexes.create()",
        )
    if not found.valid:
        raise IndexMissingError(
            found.name,
            "the index is invalid, left over by a build that failed",
            fix="Build it again with `pgembed index create` or pgembed.indexes.create(): both drop it first",
        )
    return found


def name_of(index: Index) -> str:
    """The name of an index in the database: a long one is shortened on the way there."""
    rendered: str = NAMES.format_index(index)
    return rendered[1:-1].replace('""', '"') if rendered.startswith('"') else rendered


def relation_of(index: Index) -> str:
    """The table of an index, as SQL writes it."""
    return written(_table(index))


def _table(index: Index) -> Table:
    if index.table is None:
        raise DeclarationError(f"{index.name or type(index).__name__} is not an index of a table yet")
    return index.table


def _parameters(options: Sequence[str] | None) -> dict[str, int]:
    stated = (option.partition("=") for option in options or ())
    return {name: int(value) for name, _, value in stated if value.isdigit()}
