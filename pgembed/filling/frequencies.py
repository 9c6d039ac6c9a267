"""The statistics of words that BM25 ranks by: counted anew by the worker, ``backfill`` and a command.

Nothing counts while rows are written, so that no writer waits for another one's counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, MetaData, Table, func, literal_column, select, text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.dialects.postgresql.base import PGDialect

from pgembed.columns import EmbeddingColumn, bound
from pgembed.columns.names import written
from pgembed.exc import DeclarationError, need_connection

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
