"""Indexes of partitioned tables: one that holds nothing, and one on each partition, attached to it.

Postgres builds no index of a partitioned table concurrently, but those of its partitions::

    CREATE INDEX ann ON ONLY item USING hnsw (...)          -- invalid until all partitions have theirs
    CREATE INDEX CONCURRENTLY ON item_2024 USING hnsw (...)
    ALTER INDEX ann ATTACH PARTITION item_2024_vector_idx   -- with the last of them, ann becomes valid

The catalogue says which of these steps are done: a series that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection, MetaData, Table, text
from sqlalchemy.schema import DDLElement

from pgembed.indexes.ddl import (
    AttachIndex,
    CreatePartitionIndex,
    DropIndexConcurrently,
    DropIndexNow,
    OfIndex,
    ReindexConcurrently,
)
from pgembed.indexes.errors import IndexBuildError
from pgembed.indexes.locks import turn
from pgembed.indexes.standing import StandingIndex, standing

_IS_PARTITIONED = text(
    "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(:relation)"
)
_LEAVES = text(
    "SELECT count(*) FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(:relation)) WHERE isleaf"
)
_FOREIGN = text(
    "SELECT CAST(part.relid AS text) FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(:relation)) "
    "AS part JOIN pg_catalog.pg_class AS c ON c.oid = part.relid AND c.relkind = 'f'"
)
_PARTITIONS = text("""
SELECT n.nspname AS schema, c.relname AS name, CAST(CAST(c.oid AS pg_catalog.regclass) AS text) AS relation,
       CAST(c.relkind AS text) AS kind
  FROM pg_catalog.pg_inherits AS h
  JOIN pg_catalog.pg_class AS c ON c.oid = h.inhrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE h.inhparent = pg_catalog.to_regclass(:relation)
 ORDER BY n.nspname, c.relname
""")
_DEFINITION = text(
    "SELECT pg_catalog.pg_get_indexdef(:oid) AS definition, "
    "pg_catalog.format('CREATE INDEX %I ON ONLY %I.%I ', "
    "CAST(:name AS text), CAST(:schema AS text), CAST(:table AS text)) AS head"
)

Work: TypeAlias = Callable[[Connection], object]


@dataclass(frozen=True)
class Partition:
    """A partition of a table, which may have partitions in its turn.

    :ivar relation: as SQL writes it.
    :ivar kind: as in ``pg_class.relkind``: ``"p"`` for one with partitions.
    """

    schema: str
    name: str
    relation: str
    kind: str

    @property
    def table(self) -> Table:
        """A name to put into statements."""
        return Table(self.name, MetaData(), schema=self.schema)


@dataclass(frozen=True)
class PartitionBuilds:
    """The builds and attachments that are missing, run inside a transaction or beside readers and writers.

    :ivar concurrently: whether a partition is written while its index is built.
    :ivar build: runs a statement that takes long, on a partition; the third argument removes what it leaves
        where it fails.
    :ivar briefly: runs short work that locks a partition, in one transaction.
    """

    connection: Connection
    concurrently: bool
    build: Callable[[Table, DDLElement, Work], object]
    briefly: Callable[[Table, Work], object]

    def complete(self, root: StandingIndex) -> None:
        """Build and attach what ``root`` lacks.

        An existing index of the same definition on a partition is used; an invalid one is dropped.

        :raises IndexBuildError: another session builds the index of a partition.
        """
        for partition in partitions_of(self.connection, root.relation):
            below = self._attached(root, partition)
            if below.partitioned:
                self.complete(below)
            elif not below.valid:  # attached by hand
                self.rebuild(root, partition, below)

    def rebuild(self, root: StandingIndex, partition: Partition, index: StandingIndex) -> None:
        """``REINDEX`` of one partition."""
        statement = ReindexConcurrently(index.schema, index.name)
        with turn(self.connection, partition.relation, root.name):
            self.build(
                partition.table, statement, lambda connection: self._clean(connection, root, partition)
            )

    def _attached(self, root: StandingIndex, partition: Partition) -> StandingIndex:
        """The index of a partition, attached."""
        found = attached(self.connection, root, partition)
        if found is None:
            with turn(self.connection, partition.relation, root.name):
                self._attach(root, partition)
            found = attached(self.connection, root, partition)
        assert found is not None
        return found

    def _attach(self, root: StandingIndex, partition: Partition) -> None:
        """Attach an index of the partition, which is built unless there is one."""
        names = {"oid": root.oid, "name": root.name, "schema": root.schema, "table": root.table}
        using = self.connection.execute(_DEFINITION, names).one()
        rest = using.definition.removeprefix(using.head)

        def attach(connection: Connection) -> None:
            if partition.kind == "p" and not _twins(connection, root, partition):
                connection.execute(CreatePartitionIndex(partition.table, rest, only=True))
            twin = _twins(connection, root, partition)[0]
            connection.execute(AttachIndex(root.schema, root.name, OfIndex(twin.schema, twin.name)))

        if partition.kind != "p":
            self._clean(self.connection, root, partition)
            if not _twins(self.connection, root, partition):
                self.build(
                    partition.table,
                    CreatePartitionIndex(partition.table, rest, concurrently=self.concurrently),
                    lambda connection: self._clean(connection, root, partition),
                )
        self.briefly(partition.table, attach)

    def _clean(self, connection: Connection, root: StandingIndex, partition: Partition) -> None:
        statement = DropIndexConcurrently if self.concurrently else DropIndexNow
        for leftover in leftovers(connection, root, partition):
            connection.execute(statement(leftover.schema, leftover.name))


def is_partitioned(connection: Connection, relation: str) -> bool:
    """Whether a table (its name as SQL writes it) is partitioned."""
    return bool(connection.scalar(_IS_PARTITIONED, {"relation": relation}))


def partitions_of(connection: Connection, relation: str) -> list[Partition]:
    """The partitions of a table, without theirs."""
    rows = connection.execute(_PARTITIONS, {"relation": relation}).mappings()
    return [Partition(**row) for row in rows]


def count_leaves(connection: Connection, relation: str) -> int:
    """How many partitions hold rows themselves."""
    return connection.scalar(_LEAVES, {"relation": relation}) or 0


def refuse_foreign_partitions(connection: Connection, relation: str, index: str) -> None:
    """
    :raises IndexBuildError: a partition of the table is a foreign table.
    """
    foreign = connection.scalars(_FOREIGN, {"relation": relation}).all()
    if foreign:
        raise IndexBuildError(
            index,
            f"the partition {', '.join(foreign)} is a foreign table, which cannot have it",
            fix="Create an index on each of the other partitions",
        )


def attached(connection: Connection, root: StandingIndex, partition: Partition) -> StandingIndex | None:
    """The index of the partition that is attached to ``root``."""
    there = standing(connection, partition.relation)
    return next((index for index in there if index.parent == root.oid), None)


def leaves(connection: Connection, root: StandingIndex) -> Iterator[tuple[Partition, StandingIndex]]:
    """The partitions that hold rows, with their indexes below ``root``."""
    for partition in partitions_of(connection, root.relation):
        below = attached(connection, root, partition)
        if below is not None and below.partitioned:
            yield from leaves(connection, below)
        elif below is not None:
            yield partition, below


def leftovers(connection: Connection, root: StandingIndex, partition: Partition) -> list[StandingIndex]:
    """Invalid indexes of a partition that are defined as ``root`` is.

    :raises IndexBuildError: one is being built at this moment.
    """
    like = _like(connection, root, partition)
    found = [index for index in like if not index.valid and not index.partitioned]
    for index in found:
        index.refuse_while_building()
    return found


def _twins(connection: Connection, root: StandingIndex, partition: Partition) -> list[StandingIndex]:
    """Indexes of a partition that can be attached to ``root``."""
    return [index for index in _like(connection, root, partition) if index.valid or index.partitioned]


def _like(connection: Connection, root: StandingIndex, partition: Partition) -> list[StandingIndex]:
    """Indexes of a partition that are defined as ``root`` is, and not attached to any."""
    there = standing(connection, partition.relation)
    return [index for index in there if index.parent is None and index.definition == root.definition]
