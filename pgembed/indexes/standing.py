"""The indexes that exist in a database, read from its catalogue in the terms of declarations.

What Postgres says of an index is asked here alone, and within searches by :mod:`pgembed.indexes.readiness`;
whether one is as declared is answered by :mod:`pgembed.indexes.differences`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Index, bindparam, text
from sqlalchemy.types import ARRAY, String

from pgembed.columns.names import LONGEST_NAME, octets
from pgembed.indexes.errors import IndexBuildError, IndexMissingError
from pgembed.indexes.methods import ACCESS_METHODS
from pgembed.indexes.tables import name_of, relation_of
from pgembed.metrics import BY_NAME

_STANDING = text("""
SELECT i.indexrelid AS oid,
       n.nspname AS schema,
       c.relname AS name,
       t.relname AS table,
       CAST(t.oid AS bigint) AS table_oid,
       CAST(CAST(i.indrelid AS pg_catalog.regclass) AS text) AS relation,
       a.attname AS column,
       CASE WHEN a.attname IS NULL THEN pg_catalog.pg_get_indexdef(i.indexrelid, 1, false) END AS expression,
       ARRAY(SELECT CAST(k.attname AS text)
               FROM pg_catalog.unnest(CAST(i.indkey AS smallint[])) WITH ORDINALITY AS n (attnum, place)
               JOIN pg_catalog.pg_attribute AS k ON k.attrelid = i.indrelid AND k.attnum = n.attnum
              ORDER BY n.place) AS keys,
       (SELECT h.atttypmod FROM pg_catalog.pg_attribute AS h
         WHERE h.attrelid = i.indexrelid AND h.attnum = 1) AS dimensions,
       m.amname AS access_method,
       o.opcname AS opclass,
       CAST(c.reloptions AS text[]) AS options,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate,
       i.indisvalid AND i.indisready AS valid,
       EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index AS p
               WHERE p.datname = pg_catalog.current_database()
                 AND (p.index_relid = i.indexrelid OR p.relid IS NULL)) AS building,
       pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
       coalesce(s.spcname, '') AS tablespace,
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
  JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
  JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
  LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
  LEFT JOIN pg_catalog.pg_tablespace AS s ON s.oid = c.reltablespace
 WHERE (i.indrelid = pg_catalog.to_regclass(:relation) OR :relation IS NULL)
   AND (m.amname = ANY (CAST(:methods AS text[])) OR CAST(:methods AS text[]) IS NULL)
   AND n.nspname NOT LIKE 'pg\\_temp\\_%'
 ORDER BY n.nspname, t.relname, c.relname
""").bindparams(bindparam("relation", type_=String), bindparam("methods", type_=ARRAY(String)))

#: What PostgreSQL calls the indexes that REINDEX CONCURRENTLY works with.
_TRANSIENT = re.compile(r"(.+)_cc(?:new|old)\d*")
_NAMESAKE = text(
    "SELECT c.relname FROM pg_catalog.pg_class AS c "
    "JOIN pg_catalog.pg_class AS t USING (relnamespace) "
    "WHERE t.oid = pg_catalog.to_regclass(:relation) AND c.relname = :name"
)


@dataclass(frozen=True)
class StandingIndex:
    """An index as the catalogue has it.

    :ivar relation: its table as SQL writes it.
    :ivar column: the column that it indexes, the first one of several, or ``None`` for an index on an
        ``expression``.
    :ivar keys: all columns that it indexes.
    :ivar dimensions: those of the indexed vectors, -1 where they are open.
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
    table_oid: int
    relation: str
    column: str | None
    expression: str | None
    keys: list[str]
    dimensions: int
    access_method: str
    opclass: str
    parameters: dict[str, Any]
    predicate: str | None
    valid: bool
    building: bool
    comment: str | None
    tablespace: str
    partitioned: bool
    leaves: list[str]
    parent: int | None
    size: int

    @property
    def definition(self) -> tuple[Any, ...]:
        """What two indexes have in common of which one can take the other's place."""
        return (
            self.access_method,
            self.opclass,
            self.column,
            self.expression,
            self.predicate,
            self.parameters,
        )

    @property
    def all_parameters(self) -> dict[str, Any]:
        """The storage parameters, with the defaults of those that are not stated."""
        method = ACCESS_METHODS.get(self.access_method)
        return (method.defaults if method else {}) | self.parameters

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


def standing(
    connection: Connection, relation: str | None = None, methods: Collection[str] | None = ACCESS_METHODS
) -> list[StandingIndex]:
    """The vector indexes of a table (its name as SQL writes it), or of the whole database.

    :param methods: the access methods to look at; ``None`` for all.
    """
    names = None if methods is None else list(methods)
    rows = connection.execute(_STANDING, {"relation": relation, "methods": names}).mappings()
    return [
        StandingIndex(
            parameters=_parameters(row["options"]),
            **{name: value for name, value in row.items() if name != "options"},
        )
        for row in rows
    ]


def find(
    connection: Connection,
    index: Index,
    name: str | None = None,
    methods: Collection[str] | None = ACCESS_METHODS,
) -> StandingIndex | None:
    """The declared index in the database, valid or not; ``None`` where there is none.

    :param name: for one beside it with another name.
    """
    name = name or name_of(index)
    there = standing(connection, relation_of(index), methods)
    return next((found for found in there if found.name == name), None)


def is_name_taken(connection: Connection, index: Index) -> bool:
    """Whether anything in the schema of the table has the name of the index, be it the index or not."""
    names = {"relation": relation_of(index), "name": name_of(index)}
    return connection.scalar(_NAMESAKE, names) is not None


def present(connection: Connection, index: Index, *, by: str = "create") -> StandingIndex:
    """The declared index in the database, valid or not.

    :param by: the function of :mod:`pgembed.indexes` that the error advises.
    :raises IndexMissingError: it is not there.
    """
    found = find(connection, index)
    if found is None:
        raise IndexMissingError(
            name_of(index),
            f"{relation_of(index)} has no such index",
            fix=f"Build it with `pgembed index create` or pgembed.indexes.{by}()",
        )
    return found


def require(connection: Connection, index: Index) -> StandingIndex:
    """The declared index in the database, ready to be used.

    :raises IndexMissingError: it is not there, or invalid.
    """
    found = present(connection, index)
    if not found.valid:
        raise IndexMissingError(
            found.name,
            "the index is invalid, left over by a build that failed",
            fix="Build it again with `pgembed index create` or pgembed.indexes.create(): both drop it first",
        )
    return found


def standing_on(connection: Connection, relation: str, column: str) -> StandingIndex | None:
    """The index on a column or on an expression over it, the valid one if there are several.

    :param relation: the table, as SQL writes it.
    """
    mentions = re.compile(rf'(?<![\w"]){re.escape(column)}(?!\w)|"{re.escape(column)}"')
    there = [
        index
        for index in standing(connection, relation)
        if index.column == column or (index.expression is not None and mentions.search(index.expression))
    ]
    return next((index for index in there if index.valid), there[0] if there else None)


def beside(name: str, which: str) -> str:
    """The name of an index that is built beside another, or that one's while it makes room for it."""
    suffix = f"_pgembed_{which}"
    return name.encode()[: LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix


def left_over(connection: Connection, index: Index) -> list[StandingIndex]:
    """What failed builds of an index have left, those of a failed REINDEX and of a swap included.

    The unfinished index of a partitioned table is not among them: it is gone on with.
    """
    name = name_of(index)
    return [
        found
        for found in standing(connection, relation_of(index))
        if found.name in (beside(name, "new"), beside(name, "old"))
        or (not found.valid and not found.partitioned and _is_of(found.name, name))
    ]


def _is_of(found: str, name: str) -> bool:
    """Whether an index has the name, or is one that REINDEX CONCURRENTLY made of it; long names are cut."""
    copy = _TRANSIENT.fullmatch(found)
    if copy is None or found == name:
        return found == name
    return copy[1] == name or (octets(found) == LONGEST_NAME and name.startswith(copy[1]))


def _parameters(options: Sequence[str] | None) -> dict[str, Any]:
    stated = (option.partition("=") for option in options or ())
    return {name: int(value) if value.isdigit() else value for name, _, value in stated}
