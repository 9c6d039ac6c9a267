"""``check``: what is wrong with the vector indexes of a database, and with pgvector."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, column, func, select, table, tablesample, text

from pgembed.columns.trust import distrust
from pgembed.columns.types import VectorType
from pgembed.columns.values import as_array
from pgembed.exc import need_connection
from pgembed.indexes import sizes
from pgembed.indexes.build_plan import server_of
from pgembed.indexes.declaration import VectorIndex
from pgembed.indexes.differences import is_form_of
from pgembed.indexes.partitions import leaves
from pgembed.indexes.server_settings import undone
from pgembed.indexes.standing import StandingIndex, standing
from pgembed.indexes.tables import IndexTarget, declared_index, indexes_on, name_of, relation_of
from pgembed.metrics import BY_NAME

_ISSUES = "https://github.com/pgvector/pgvector/issues/"
_CHANGES = "https://github.com/pgvector/pgvector/blob/master/CHANGELOG.md"


@dataclass(frozen=True)
class Bug:
    """One bug.

    :ivar method: the access method whose indexes it concerns.
    :ivar since: the first version that has it, and ``fixed`` the first that does not.
    :ivar source: where it is described.
    :ivar only_32_bit: whether 64-bit servers are safe from it.
    """

    method: str
    since: tuple[int, int, int]
    fixed: tuple[int, int, int]
    what: str
    source: str
    only_32_bit: bool = False


BUGS = (
    Bug(
        "hnsw",
        (0, 6, 0),
        (0, 8, 2),
        "parallel builds can overflow a buffer, leak data of other tables and crash (CVE-2026-3172)",
        _ISSUES + "959",
    ),
    Bug("hnsw", (0, 5, 0), (0, 8, 3), "VACUUM can corrupt the index", _CHANGES),
    Bug(
        "hnsw",
        (0, 5, 0),
        (0, 8, 4),
        "VACUUM can fail with 'hnsw graph not repaired', and inserts while it runs",
        _ISSUES + "993",
    ),
    Bug(
        "ivfflat",
        (0, 1, 0),
        (0, 8, 6),
        "builds can write out of bounds and run foreign code (CVE-2026-18022)",
        _ISSUES + "1006",
        only_32_bit=True,
    ),
    Bug("ivfflat", (0, 1, 0), (0, 8, 7), "a build can overflow a buffer", _ISSUES + "1036"),
)


def bugs_of(method: str, version: str, *, is_32_bit: bool = False) -> list[Bug]:
    """The bugs of an access method in a version of pgvector, as ``extversion`` says it."""
    installed = tuple(int(part) for part in version.split(".") if part.isdigit())
    return [
        bug
        for bug in BUGS
        if bug.method == method and bug.since <= installed < bug.fixed and (is_32_bit or not bug.only_32_bit)
    ]


#: How often a table has been read from end to end before an index that was never used is called unused. Reads
#: through its other indexes do not count: they are of other queries, of writes by key, and of workers.
READS = 1000
#: How much more rows a search looks at than it would with even lists, before the clusters count as drifted.
DRIFT = 4.0
_SAMPLE = 30
_MANY = 2**31

_FACTS = text("""
SELECT coalesce(s.idx_scan, 0) AS scans,
       coalesce(t.seq_scan, 0) AS reads,
       greatest(c.reltuples, 0) AS rows,
       greatest(own.reltuples, 0) AS index_rows,
       c.relpages * CAST(pg_catalog.current_setting('seq_page_cost') AS float8) + greatest(c.reltuples, 0)
         * CAST(pg_catalog.current_setting('cpu_tuple_cost') AS float8) AS scan_cost,
       CASE WHEN pg_catalog.pg_jit_available() THEN
         nullif(CAST(pg_catalog.current_setting('jit_above_cost') AS float8), -1) END AS jit_above_cost,
       pg_catalog.quote_ident(pg_catalog.current_database()) AS database,
       pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem')) AS work_memory
  FROM pg_catalog.pg_class AS c
  LEFT JOIN pg_catalog.pg_class AS own ON own.oid = :oid
  LEFT JOIN pg_catalog.pg_stat_all_indexes AS s ON s.indexrelid = :oid
  LEFT JOIN pg_catalog.pg_stat_all_tables AS t ON t.relid = c.oid
 WHERE c.oid = :table
""")
_VERSION = text(
    "SELECT extversion, pg_catalog.version() LIKE '%32-bit%' AS is_32_bit "
    "FROM pg_catalog.pg_extension WHERE extname = 'vector'"
)
# Vectors of parts are in a table beside. (to_jsonb: the view of an earlier version has no column for parts.)
_REGISTERED = text("""
SELECT CAST(CAST(held.oid AS pg_catalog.regclass) AS text),
       CASE WHEN beside.name IS NULL THEN CAST(e.column_name AS text) ELSE 'embedding' END,
       e.metric
  FROM pgembed.embedding_columns AS e
  JOIN pg_catalog.pg_class AS own ON own.oid = CAST(e.relation AS oid)
 CROSS JOIN LATERAL (SELECT pg_catalog.to_jsonb(e) -> 'parts' ->> 'table') AS beside (name)
  JOIN pg_catalog.pg_class AS held
    ON held.relnamespace = own.relnamespace AND held.relname = coalesce(beside.name, own.relname)
""")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with an index.

    :ivar code: ``invalid``, ``unused``, ``old-pgvector``, ``metric``, ``cast``, ``jit``, ``spilled``,
        ``memory`` or ``drift``.
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

    Found are indexes that are invalid; never used although their table was scanned; at the mercy of a known
    bug of the installed pgvector (:data:`BUGS`); of a metric or an expression that no query of their
    column asks for; on tables whose searches the server compiles (``jit``); of a graph that does not fit
    this session's ``maintenance_work_mem``, or of lists that cannot be built with it; and IVFFlat indexes
    whose rows have moved away from the clusters, so that a search looks at several times the rows of an even
    list (measured on 30 random rows with ``probes = 1``).

    How much memory a build had is recorded nowhere: what is found is that the setting as it is now would not
    have done.

    :param target: an index, or a column (or mapped attribute) whose table is looked at.
    :param reads: how often a table has been scanned before an index that was never used is a finding.
    :raises DeclarationError: no index is declared on the column.
    """
    need_connection(connection)
    declared = None if target is None else declared_index(target)
    relation = None if declared is None else relation_of(declared)
    pgvector = connection.execute(_VERSION).one_or_none()
    wanted = _wanted_metrics(connection)
    names: set[str] | None = None
    if isinstance(declared, VectorIndex) and relation is not None:
        column = declared.indexed.column
        wanted[relation, column.name] = declared.metric.name
        names = {name_of(each.index) for each in indexes_on(column)}
    findings: list[Finding] = []
    for index in _standing(connection, relation):
        if index.building:
            continue
        if pgvector is not None:
            findings.extend(_old(index, pgvector.extversion, is_32_bit=pgvector.is_32_bit))
        findings.extend(_of_no_query(index, wanted, names))
        if not index.valid:
            findings.append(_invalid(index))
        elif not index.partitioned:
            findings.extend(_by_figures(connection, index, reads))
    return findings


def _standing(connection: Connection, relation: str | None) -> Iterator[StandingIndex]:
    """The indexes of a table, with those of its partitions."""
    for index in standing(connection, relation):
        yield index
        if index.partitioned and relation is not None:
            yield from (leaf for _, leaf in leaves(connection, index))


def _invalid(index: StandingIndex) -> Finding:
    message = "it is invalid, left over by a build that failed: no query uses it"
    if index.partitioned:
        message = "it is not finished: a partition has no such index, and scans of that are exact"
    return Finding(
        "invalid",
        index.name,
        message,
        "Build it again with pgembed index create, which removes what is left over and goes on from there",
    )


def _wanted_metrics(connection: Connection) -> dict[tuple[str, str], str]:
    """The metrics that queries use, by table and column: those of registered embedding columns."""
    if connection.scalar(select(func.pg_catalog.to_regclass("pgembed.embedding_columns"))) is None:
        return {}
    return {(row[0], row[1]): row[2] for row in connection.execute(_REGISTERED)}


def _old(index: StandingIndex, version: str, *, is_32_bit: bool = False) -> Iterator[Finding]:
    found = bugs_of(index.access_method, version, is_32_bit=is_32_bit)
    if found:
        newest = ".".join(map(str, max(bug.fixed for bug in found)))
        yield Finding(
            "old-pgvector",
            index.name,
            f"with pgvector {version} " + "; ".join(f"{bug.what} [{bug.source}]" for bug in found),
            f"Install pgvector {newest} or newer, ALTER EXTENSION vector UPDATE, then pgembed index reindex",
        )


def _of_no_query(
    index: StandingIndex, wanted: dict[tuple[str, str], str], declared: set[str] | None
) -> Iterator[Finding]:
    """Indexes that searches of their column do not order by.

    :param declared: the names of the indexes that the model has, or ``None`` where it is not known.
    """
    for (relation, name), metric in wanted.items():
        if relation != index.relation:
            continue
        if index.expression is not None and name in re.findall(r"\w+", index.expression):
            known = is_form_of(index.expression, name)
            if not known or not (declared is None or index.name in declared):
                yield Finding(
                    "cast",
                    index.name,
                    f"it is on {index.expression}, and no search of {name} orders by that",
                    "Declare it, with quantize= or dimensions=, or drop it" if known else "Drop it",
                )
            elif index.storage == "bit":
                metric = "hamming"  # bits of vectors give the candidates of any metric
        elif index.column != name:
            continue
        if index.metric != metric:
            yield Finding(
                "metric",
                index.name,
                f"it serves {index.metric or index.opclass}, and queries of {name} use {metric}",
                "Drop it, and build the one that is declared",
            )


def _by_figures(connection: Connection, index: StandingIndex, reads: int) -> Iterator[Finding]:
    facts = connection.execute(_FACTS, {"oid": index.oid, "table": index.table_oid}).one()
    if not facts.scans and facts.reads >= reads:
        yield Finding(
            "unused",
            index.name,
            f"never used, while its table was scanned without any {facts.reads:,} times; it takes "
            f"{sizes.readable(index.size)} and slows every write",
            "See why with pgembed.indexes.explain(connection, statement), or drop it",
        )
    if facts.jit_above_cost is not None and facts.scan_cost > facts.jit_above_cost:
        yield Finding(
            "jit",
            index.name,
            "the server compiles the searches of pgembed's Python helpers (jit), which can take longer than "
            f"they do: each has an exact scan to fall back on, whose cost of about {facts.scan_cost:,.0f} is "
            f"above jit_above_cost, {facts.jit_above_cost:,.0f}",
            f"ALTER DATABASE {facts.database} SET jit = off, or raise jit_above_cost",
        )
    yield from _of_memory(index, facts, server_of(connection))
    # This runs queries, and with them what the table's owner has put there; the rest is in the catalogue.
    asked = index.access_method == "ivfflat" and index.predicate is None and facts.rows
    if asked and distrust(connection, index.table_oid) is None:
        unevenness = _unevenness(connection, index, float(facts.rows))
        if unevenness is not None and unevenness > DRIFT:
            yield Finding(
                "drift",
                index.name,
                f"a search looks at {unevenness:.1f} times the rows of an even list: rows have moved away "
                "from the clusters that were the build, or form fewer clusters than there are lists",
                "Find the clusters again with pgembed index reindex; where that does not help, take HNSW",
            )


def _of_memory(index: StandingIndex, facts: Row[Any], server: int) -> Iterator[Finding]:
    """What ``maintenance_work_mem`` means for the index, of whose build nothing is recorded."""
    if index.dimensions <= 0 or index.storage not in ("vector", "halfvec", "bit"):
        return
    vector = sizes.vector_size(index.storage, index.dimensions)
    rows = int(facts.index_rows)
    build = sizes.Build(index.access_method, index.all_parameters, vector, index.dimensions, server)
    memory = build.memory(rows)
    if memory <= facts.work_memory:
        return
    needed, setting = sizes.readable(memory), sizes.readable(facts.work_memory)
    fix = (
        f"Set maintenance_work_mem to {sizes.work_memory(memory, 0) // 1024}kB for them, or use "
        "pgembed index reindex, which does"
    )
    if index.access_method == "hnsw":
        fitted = rows * facts.work_memory // memory
        yield Finding(
            "spilled",
            index.name,
            f"its graph takes {needed}, and maintenance_work_mem is {setting}: with that a build, as in a "
            f"REINDEX or a restore, spills after about {fitted:,} of {rows:,} rows and takes several times "
            "as long. Whether its own build did is not recorded; the index would be as good",
            fix,
        )
    else:
        yield Finding(
            "memory",
            index.name,
            f"to find its clusters takes {needed}, and maintenance_work_mem is {setting}: with that a "
            "REINDEX or a restore fails",
            fix,
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
    with undone(connection):
        connection.execute(select(*(func.set_config(name, value, True) for name, value in settings.items())))
        counts = [connection.scalar(counting, {"query": as_array(query)}) or 0 for query in queries]
    if not counts:
        return None
    return (sum(counts) / len(counts)) / (rows / float(index.all_parameters["lists"]))
