"""The statistics of words that BM25 ranks by: counted anew by the worker, ``backfill`` and a command.

Nothing counts while rows are written, so that no writer waits for another one's counter.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Column, Connection, Engine, MetaData, Table, func, literal_column, select, text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError

from pgembed.columns import EmbeddingColumn, bound
from pgembed.columns.names import written
from pgembed.columns.trust import require_trust
from pgembed.exc import DeclarationError, NotInstalledError, PgembedError, need_connection
from pgembed.filling.targets import Target
from pgembed.filling.transactions import Transactions

logger = logging.getLogger(__name__)

# Without a driver's way of writing parameters, which would double per cent signs.
_DIALECT: Any = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]
#: From larger tables, this many rows are drawn, page by page.
SAMPLED_ROWS = 1_000_000

# Rows of words that are gone are deleted, others inserted or changed: as long as the statement runs, readers
# see the old ones. A word that one row has is not stored, and counts as one that no row has.
_REFRESH = """
WITH counted AS MATERIALIZED (
    SELECT word, ndoc, nentry FROM pg_catalog.ts_stat(:query)
), fresh AS MATERIALIZED (
    SELECT word AS lexeme, CAST(pg_catalog.round(ndoc / CAST(:share AS float8)) AS bigint) AS rows,
           CAST(NULL AS float8) AS mean_length, CAST(NULL AS timestamptz) AS refreshed_at
    FROM counted WHERE ndoc > 1
    UNION ALL
    SELECT '', CAST(:rows AS bigint),
           coalesce(pg_catalog.sum(nentry), 0) / greatest(:rows * CAST(:share AS float8), 1),
           pg_catalog.statement_timestamp()
    FROM counted
), gone AS (
    DELETE FROM {statistics} AS s WHERE NOT EXISTS (SELECT FROM fresh AS f WHERE f.lexeme = s.lexeme)
), put AS (
    INSERT INTO {statistics} AS s SELECT * FROM fresh
    ON CONFLICT (lexeme) DO UPDATE
    SET rows = excluded.rows, mean_length = excluded.mean_length, refreshed_at = excluded.refreshed_at
    WHERE (s.rows, s.mean_length, s.refreshed_at)
          IS DISTINCT FROM (excluded.rows, excluded.mean_length, excluded.refreshed_at)
)
SELECT rows, mean_length, (SELECT pg_catalog.count(*) FROM counted) AS words FROM fresh WHERE lexeme = ''
"""


@dataclass(frozen=True)
class WordStatistics:
    """What a refresh has counted.

    :ivar rows: the rows of the table.
    :ivar mean_length: words of a row, on average.
    :ivar words: different words.
    """

    rows: int
    mean_length: float
    words: int


def refresh_words(connection: Connection, column: Any) -> WordStatistics:
    """Count how many rows have each word of an embedding column that is declared with ``words=``.

    The old statistics are read until the transaction is committed; a second refresh waits for the first one.
    It takes a second for 100,000 rows; from more than a million, it draws a million at random.

    :param column: a mapped attribute, a column, or an ``EmbeddingColumn``.
    :raises DeclarationError: the column is not declared with ``words=``.
    """
    need_connection(connection)
    found = column
    if not isinstance(column, EmbeddingColumn):
        mapped = getattr(column, "property", None)
        found = bound(column if mapped is None else mapped.columns[0])
    if found is None or found.words is None:
        raise DeclarationError(f"{column} is not declared with words=Words(...): it has no statistics")
    schema = connection.schema_for_object(found.table)
    return refresh(
        connection,
        schema,
        str(found.table.name),
        str(found.words.column.name),
        str(found.words.statistics.name),
    )


def refresh(
    connection: Connection, schema: str | None, table: str, column: str, statistics: str
) -> WordStatistics:
    """The same for a table that is known by names; ``None`` is the schema that they are found in."""
    target = written(Table(statistics, MetaData(), schema=schema))
    # Readers do not wait for this lock, and only those who may write the statistics can take it.
    connection.exec_driver_sql(
        f"LOCK TABLE {target} IN SHARE ROW EXCLUSIVE MODE", execution_options={"no_parameters": True}
    )
    source: Any = Table(table, MetaData(), Column(column, TSVECTOR), schema=schema)
    total = connection.scalar(select(func.count()).select_from(source)) or 0
    share = min(1.0, SAMPLED_ROWS / total) if total else 1.0
    if share < 1:
        source = source.tablesample(func.system(literal_column(repr(100 * share))))
    query = str(select(source.c[column]).compile(dialect=_DIALECT))
    statement = text(_REFRESH.format(statistics=target.replace(":", r"\:")))
    found = connection.execute(statement, {"query": query, "share": share, "rows": total}).one()
    return WordStatistics(found.rows, found.mean_length, found.words)


#: A worker refreshes statistics that are older, where rows have been written since.
AGE = timedelta(minutes=10)

_STATISTICS = text("""
SELECT c.oid, n.nspname AS schema, t.relname AS name,
       (SELECT pg_catalog.sum(pg_catalog.pg_stat_get_tuples_inserted(p.oid)
                              + pg_catalog.pg_stat_get_tuples_updated(p.oid)
                              + pg_catalog.pg_stat_get_tuples_deleted(p.oid))
          FROM (SELECT t.oid UNION SELECT relid FROM pg_catalog.pg_partition_tree(t.oid)) AS p (oid)
       ) AS writes
FROM pg_catalog.pg_class AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
LEFT JOIN pg_catalog.pg_class AS c
  ON c.relnamespace = t.relnamespace AND c.relkind IN ('r', 'p') AND c.relname = CAST(:statistics AS text)
WHERE t.oid = CAST(CAST(:relation AS bigint) AS oid)
""")
# Transactions of a worker look up few rows by their keys; here are many.
_PLANNED = text(
    "SELECT pg_catalog.set_config('enable_hashjoin', 'on', true), "
    "pg_catalog.set_config('enable_mergejoin', 'on', true)"
)


class Refresher:
    """Refreshes the statistics of a database's columns, one after the other; what fails is logged, once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._writes: dict[int, int] = {}
        self._failed: dict[str, str] = {}

    def start(self, targets: Sequence[Target]) -> None:
        """Refresh old statistics beside everything else, unless that is still being done."""
        if any(target.words for target in targets) and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(
                target=self.refresh, args=(targets, AGE), name="pgembed words", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Begin with no further column, and wait for the one that is being refreshed."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def refresh(self, targets: Sequence[Target], age: timedelta | None = None) -> None:
        """Refresh the statistics of all columns.

        :param age: only of those that are older than this, and have been written to.
        """
        for target in targets:
            if target.words is None or self._stopped.is_set():
                continue
            try:
                found = refresh_target(self._engine, target, age=age, writes=self._writes)
            except (DBAPIError, PgembedError) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                line = " ".join(f"{type(cause).__name__}: {cause}".split())
                if self._failed.get(target.name) != line:
                    logger.warning("event=words column=%r error=%r", target.name, line)
                self._failed[target.name] = line
            else:
                self._failed.pop(target.name, None)
                if found is not None:
                    logger.info(
                        "event=words column=%r rows=%d words=%d", target.name, found.rows, found.words
                    )


def refresh_target(
    engine: Engine, target: Target, *, age: timedelta | None = None, writes: dict[int, int] | None = None
) -> WordStatistics | None:
    """Refresh the statistics of a column that the database knows; ``None`` where there was no need.

    :param age: the age of statistics that are left alone; any if left out.
    :param writes: how often a table had been written to at the last refresh; kept up.
    :raises DeclarationError: the column has no words.
    :raises NotInstalledError: there is no table of statistics.
    :raises NotTrustedError: the owner of a table is not trusted.
    """
    words = target.words
    if words is None:
        raise DeclarationError(f"{target} is not declared with words=Words(...): it has no statistics")
    known = {} if writes is None else writes

    def work(connection: Connection) -> WordStatistics | None:
        asked = {"relation": target.relation, "statistics": words["statistics"]}
        table = connection.execute(_STATISTICS, asked).one()
        if table.oid is None:
            raise NotInstalledError(f"{target}: there is no table {words['statistics']} beside it: migrate")
        require_trust(connection, table.oid, f"{table.schema}.{words['statistics']}")
        connection.execute(_PLANNED)
        if age is not None:
            statistics = Table(
                words["statistics"], MetaData(), Column("lexeme"), Column("refreshed_at"), schema=table.schema
            )
            whole = statistics.c.lexeme == literal_column("''")
            older = func.statement_timestamp() - statistics.c.refreshed_at > age
            old = connection.scalar(select(older).where(whole))
            if old is False or (old and known.get(target.relation) == table.writes):
                return None
        known[target.relation] = table.writes
        return refresh(connection, table.schema, table.name, words["column"], words["statistics"])

    return Transactions(engine, patience=0, target=target).run(work)
