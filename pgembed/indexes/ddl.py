"""Statements about indexes that SQLAlchemy has no construct for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, String, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, DDLElement
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.expression import Executable


class CreateIndexConcurrently(CreateIndex):
    """``CREATE INDEX CONCURRENTLY [IF NOT EXISTS] ...``, whatever the index itself says of concurrency.

    :param name: for an index that is built beside the one of the declared name.
    """

    def __init__(self, index: Index, name: str | None = None) -> None:
        super().__init__(index, if_not_exists=name is None)
        self.name = name


@compiles(CreateIndexConcurrently)
def _create(element: CreateIndexConcurrently, compiler: Any, **kw: Any) -> str:
    statement: str = compiler.visit_create_index(element, **kw)
    words = "INDEX CONCURRENTLY "
    if element.name is not None:
        on = " ON " + compiler.preparer.format_table(element.element.table) + " "
        name: str = compiler.preparer.quote(element.name)
        return str("CREATE " + words + name + on + statement.partition(on)[2])
    return statement if words in statement else statement.replace("INDEX ", words, 1)


class CreateIndexOnly(CreateIndex):
    """``CREATE INDEX ... ON ONLY table ...``: the index of a partitioned table, not those of its partitions.

    :param name: for an index that is built beside the one of the declared name.
    """

    def __init__(self, index: Index, name: str | None = None) -> None:
        super().__init__(index)
        self.name = name


@compiles(CreateIndexOnly)
def _create_only(element: CreateIndexOnly, compiler: Any, **kw: Any) -> str:
    statement: str = compiler.visit_create_index(element, **kw)
    preparer = compiler.preparer
    on = " ON " + preparer.format_table(element.element.table) + " "
    head, _, tail = statement.partition(on)
    head = head if element.name is None else "CREATE INDEX " + preparer.quote(element.name)
    return str(head + on.replace(" ON ", " ON ONLY ", 1) + tail)


class CreatePartitionIndex(DDLElement):
    """``CREATE INDEX CONCURRENTLY ON partition USING ...``, by a name that Postgres chooses.

    :param using: the end of the definition, as ``pg_get_indexdef`` gives it.
    """

    def __init__(
        self, partition: Table, using: str, *, concurrently: bool = False, only: bool = False
    ) -> None:
        self.partition = partition
        self.using = using
        self.concurrently = concurrently
        self.only = only


@compiles(CreatePartitionIndex)
def _create_partition(element: CreatePartitionIndex, compiler: Any, **_: Any) -> str:
    words = "CREATE INDEX " + ("CONCURRENTLY " if element.concurrently else "") + "ON "
    table: str = compiler.preparer.format_table(element.partition)
    return words + ("ONLY " if element.only else "") + table + " " + element.using.replace("%", "%%")


class OfIndex(DDLElement):
    """Base of statements about one index, by its schema and name."""

    def __init__(self, schema: str, name: str) -> None:
        self.schema = schema
        self.name = name


class DropIndexConcurrently(OfIndex):
    """``DROP INDEX CONCURRENTLY IF EXISTS schema.name``"""


class DropIndexNow(OfIndex):
    """``DROP INDEX IF EXISTS schema.name``"""


class ReindexConcurrently(OfIndex):
    """``REINDEX INDEX CONCURRENTLY schema.name``"""


class CommentOnIndex(OfIndex):
    """``COMMENT ON INDEX schema.name IS '...'``"""

    def __init__(self, schema: str, name: str, comment: str) -> None:
        super().__init__(schema, name)
        self.comment = comment


class AttachIndex(OfIndex):
    """``ALTER INDEX schema.name ATTACH PARTITION schema.part``"""

    def __init__(self, schema: str, name: str, part: OfIndex) -> None:
        super().__init__(schema, name)
        self.part = part


class RenameIndex(OfIndex):
    """``ALTER INDEX schema.name RENAME TO other``"""

    def __init__(self, schema: str, name: str, other: str) -> None:
        super().__init__(schema, name)
        self.other = other


class LockTable(DDLElement):
    """``LOCK TABLE name IN SHARE UPDATE EXCLUSIVE MODE``, the lock of a concurrent build."""

    def __init__(self, table: Table) -> None:
        self.table = table


class LockMaterializedView(LockTable):
    """``COMMENT ON MATERIALIZED VIEW name IS NULL``, which takes the same lock.

    LOCK TABLE refuses these views. It is to be rolled back.
    """


@compiles(DropIndexConcurrently)
def _drop(element: OfIndex, compiler: Any, **_: Any) -> str:
    return "DROP INDEX CONCURRENTLY IF EXISTS " + _qualified(element, compiler)


@compiles(DropIndexNow)
def _drop_now(element: OfIndex, compiler: Any, **_: Any) -> str:
    return "DROP INDEX IF EXISTS " + _qualified(element, compiler)


@compiles(ReindexConcurrently)
def _reindex(element: OfIndex, compiler: Any, **_: Any) -> str:
    return "REINDEX INDEX CONCURRENTLY " + _qualified(element, compiler)


@compiles(CommentOnIndex)
def _comment(element: CommentOnIndex, compiler: Any, **_: Any) -> str:
    literal: str = compiler.sql_compiler.render_literal_value(element.comment, String())
    return "COMMENT ON INDEX " + _qualified(element, compiler) + " IS " + literal


@compiles(AttachIndex)
def _attach(element: AttachIndex, compiler: Any, **_: Any) -> str:
    part = _qualified(element.part, compiler)
    return "ALTER INDEX " + _qualified(element, compiler) + " ATTACH PARTITION " + part


@compiles(RenameIndex)
def _rename(element: RenameIndex, compiler: Any, **_: Any) -> str:
    other: str = compiler.preparer.quote(element.other)
    return "ALTER INDEX " + _qualified(element, compiler) + " RENAME TO " + other


@compiles(LockTable)
def _lock(element: LockTable, compiler: Any, **_: Any) -> str:
    name: str = compiler.preparer.format_table(element.table)
    return "LOCK TABLE " + name + " IN SHARE UPDATE EXCLUSIVE MODE"


@compiles(LockMaterializedView)
def _lock_view(element: LockMaterializedView, compiler: Any, **_: Any) -> str:
    name: str = compiler.preparer.format_table(element.table)
    return "COMMENT ON MATERIALIZED VIEW " + name + " IS NULL"


class Explain(Executable, ClauseElement):
    """``EXPLAIN (VERBOSE, FORMAT json) <statement>``

    :param analyze: execute it, ``EXPLAIN (ANALYZE, TIMING OFF, VERBOSE, FORMAT json)``.
    """

    inherit_cache = False

    def __init__(self, statement: ClauseElement, *, analyze: bool = False) -> None:
        self.statement = statement
        self.how = "ANALYZE, TIMING OFF, VERBOSE" if analyze else "VERBOSE"


@compiles(Explain)
def _explain(element: Explain, compiler: Any, **kw: Any) -> str:
    statement = str(compiler.process(element.statement, **kw))
    # The answer is a plan, which is not to be read as the first column of the statement would be.
    compiler._result_columns = []
    return f"EXPLAIN ({element.how}, FORMAT json) " + statement


def _qualified(element: OfIndex, compiler: Any) -> str:
    preparer = compiler.preparer
    return str(preparer.quote_schema(element.schema) + "." + preparer.quote(element.name))
