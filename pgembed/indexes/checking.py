"""``check``: what is wrong with the vector indexes of a database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, column, func, select, table, tablesample, text

from pgembed.columns.types import VectorType
from pgembed.columns.values import as_array
from pgembed.indexes import sizes
from pgembed.indexes.catalogue import StandingIndex, relation_of, standing
from pgembed.indexes.declaration import VectorIndex
from pgembed.indexes.planning import IndexTarget, declared_index
from pgembed.metrics import BY_NAME

#: Bugs of pgvector that leak, crash or lose rows, by access method and the version that mends them
#: (https://github.com/pgvector/pgvector/blob/master/CHANGELOG.md).
BUGS = (
    ("hnsw", (0, 8, 2), "parallel builds can overflow a buffer, leak data and crash (CVE-2026-3172)"),
    ("hnsw", (0, 8, 3), "VACUUM can corrupt the index"),
    ("hnsw", (0, 8, 4), "inserts during VACUUM can fail, and VACUUM with 'hnsw graph not repaired'"),
    ("ivfflat", (0, 8, 7), "a build can overflow a buffer (pgvector issue 1036)"),
)
#: How often a table has been read before an index that was never used is called unused.
READS = 1000
#: How much more rows a search looks at than it would with even lists, before the clusters count as drifted.
DRIFT = 4.0
_SAMPLE = 30
_MANY = 2**31

_FACTS = text("""
SELECT coalesce(s.idx_scan, 0) AS scans,
       coalesce(t.seq_scan, 0) + coalesce(t.idx_scan, 0) AS reads,
       greatest(c.reltuples, 0) AS rows,
       a.atttypmod AS dimensions,
       pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem')) AS work_memory
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
  LEFT JOIN pg_catalog.pg_stat_all_indexes AS s ON s.indexrelid = i.indexrelid
  LEFT JOIN pg_catalog.pg_stat_all_tables AS t ON t.relid = i.indrelid
  LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
 WHERE i.indexrelid = :oid
""")
_VERSION = text("SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector'")
_REGISTERED = text(
    "SELECT CAST(relation AS text), CAST(column_name AS text), metric FROM pgembed.embedding_columns"
)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with an index.

    :ivar code: ``invalid``, ``unused``, ``old-pgvector``, ``metric``, ``cast``, ``memory`` or ``drift``.
    :ivar fix: what to do.
    """

    code: str
    index: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.index}: {self.message}. {self.fix}"

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain values, for JSON."""
        return asdict(self)


def check(connection: Connection, target: IndexTarget | None = None, *, reads: int = READS) -> list[Finding]:
    """Look for what is wrong with the vector indexes of a table, or of the whole database.

    Found are indexes that are invalid; never used although their table was read; at the mercy of a known bug
    of the installed pgvector; of a metric or a cast that no query of their column asks for; of a graph that
    this session's ``maintenance_work_mem`` could not rebuild in memory; and IVFFlat indexes whose rows have
    moved away from the clusters, so that a search looks at several times the rows of an even list (measured
    on 30 random rows with ``probes = 1``). A transaction is needed: settings of the measurement are undone
    with a savepoint.

    :param target: an index, or a column (or mapped attribute) whose table is looked at.
    :param reads: how often a table has been read before an index that was never used is a finding.
    :raises DeclarationError: no index is declared on the column.
    """
    declared = None if target is None else declared_index(target)
    relation = None if declared is None else relation_of(connection, declared)
    version = str(connection.scalar(_VERSION) or "")
    wanted = _wanted_metrics(connection)
    if isinstance(declared, VectorIndex) and relation is not None:
        wanted[relation, next(iter(declared.columns)).name] = declared.metric.name
    findings: list[Finding] = []
    for index in standing(connection, relation):
        if index.building:
            continue
        findings.extend(_old(index, version))
        findings.extend(_of_no_query(index, wanted))
        if not index.valid:
            findings.append(
                Finding(
                    "invalid",
                    index.name,
                    "it is invalid, left over by a build that failed: no query uses it",
                    "Build it again with pgembed index create, which removes what is left over",
                )
            )
            continue
        findings.extend(_by_figures(connection, index, reads))
    return findings


def _wanted_metrics(connection: Connection) -> dict[tuple[str, str], str]:
    """The metrics that queries use, by table and column: those of registered embedding columns."""
    if connection.scalar(select(func.to_regclass("pgembed.embedding_columns"))) is None:
        return {}
    return {(row[0], row[1]): row[2] for row in connection.execute(_REGISTERED)}


def _old(index: StandingIndex, version: str) -> Iterator[Finding]:
    installed = tuple(int(part) for part in version.split(".") if part.isdigit())
    bugs = [
        (fixed, bug) for method, fixed, bug in BUGS if method == index.access_method and installed < fixed
    ]
    if bugs:
        newest = ".".join(map(str, max(fixed for fixed, _ in bugs)))
        yield Finding(
            "old-pgvector",
            index.name,
            f"with pgvector {version} " + "; ".join(bug for _, bug in bugs),
            f"Install pgvector {newest} or newer, ALTER EXTENSION vector UPDATE, then pgembed index reindex",
        )


def _of_no_query(index: StandingIndex, wanted: dict[tuple[str, str], str]) -> Iterator[Finding]:
    for (relation, name), metric in wanted.items():
        if relation != index.relation:
            continue
        if index.expression is not None and name in index.expression:
            yield Finding(
                "cast",
                index.name,
                f"it is on {index.expression}, and queries order by {name} itself",
                f"Drop it, or declare {name} with the type {index.storage}",
            )
        elif index.column == name and index.metric != metric:
            yield Finding(
                "metric",
                index.name,
                f"it serves {index.metric or index.opclass}, and queries of {name} use {metric}",
                "Drop it, and build the one that is declared",
            )


def _by_figures(connection: Connection, index: StandingIndex, reads: int) -> Iterator[Finding]:
    facts = connection.execute(_FACTS, {"oid": index.oid}).one()
    if not facts.scans and facts.reads >= reads:
        yield Finding(
            "unused",
            index.name,
            f"never used, while its table was read {facts.reads:,} times; it takes "
            f"{sizes.readable(index.size)} and slows every write",
            "See why with pgembed.indexes.explain(connection, statement), or drop it",
        )
    if index.access_method == "hnsw" and (facts.dimensions or 0) > 0:
        vector = sizes.vector_size(index.storage, facts.dimensions)
        memory = sizes.hnsw_memory(int(facts.rows), vector, index.parameters.get("m", 16))
        if memory > facts.work_memory:
            yield Finding(
                "memory",
                index.name,
                f"its graph takes {sizes.readable(memory)}, and maintenance_work_mem is "
                f"{sizes.readable(facts.work_memory)}: REINDEX and a restore would build it more slowly",
                f"Set maintenance_work_mem to {sizes.work_memory(memory, 0) // 1024}kB for them, or use "
                "pgembed index reindex, which does",
            )
    if index.access_method == "ivfflat" and index.predicate is None and facts.rows:
        unevenness = _unevenness(connection, index, float(facts.rows))
        if unevenness is not None and unevenness > DRIFT:
            yield Finding(
                "drift",
                index.name,
                f"a search looks at {unevenness:.1f} times the rows of an even list: rows have moved away "
                "from the clusters that were the build, or form fewer clusters than there are lists",
                "Find the clusters again with pgembed index reindex; where that does not help, take HNSW",
            )


def _unevenness(connection: Connection, index: StandingIndex, rows: float) -> float | None:
    """The mean size of the lists that random rows fall into, over the size of an even list.

    With ``probes = 1`` a scan in the order of the distance ends with the list that the query falls into.
    """
    if index.column is None or index.metric is None or index.storage not in ("vector", "halfvec"):
        return None
    vector: Any = column(index.column, VectorType(storage=index.storage))  # type: ignore[arg-type]
    relation = table(index.table, vector, schema=index.schema)
    drawn = tablesample(relation, func.system(min(100.0, 100_000.0 / rows)))
    found = drawn.c[index.column]
    queries = connection.scalars(
        select(found).where(found.is_not(None)).order_by(func.random()).limit(_SAMPLE)
    ).all()
    own = relation.c[index.column]
    distance = BY_NAME[index.metric].between(own, bindparam("query", type_=vector.type))
    scan = select(distance.label("distance")).order_by(distance).limit(_MANY).subquery()
    counting = select(func.count()).select_from(scan)
    settings = {
        "ivfflat.probes": "1",
        "ivfflat.iterative_scan": "off",
        "enable_seqscan": "off",
        "enable_sort": "off",
    }
    savepoint = connection.begin_nested()
    try:
        connection.execute(select(*(func.set_config(name, value, True) for name, value in settings.items())))
        counts = [connection.scalar(counting, {"query": as_array(query)}) or 0 for query in queries]
    finally:
        savepoint.rollback()
    if not counts:
        return None
    return (sum(counts) / len(counts)) / (rows / index.parameters.get("lists", 100))
