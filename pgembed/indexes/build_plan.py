"""``plan``: what building an index will take, and whether it is the right index for these rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Index,
    MetaData,
    Table,
    func,
    insert,
    literal_column,
    select,
    tablesample,
    text,
)
from sqlalchemy.schema import CreateIndex
from sqlalchemy.sql.elements import ColumnElement

from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError, need_connection
from pgembed.indexes import sizes
from pgembed.indexes.declaration import VectorIndex
from pgembed.indexes.indexed import Indexed
from pgembed.indexes.locks import oid_of_table
from pgembed.indexes.methods import AUTO
from pgembed.indexes.query_plan import nodes, plan_of
from pgembed.indexes.server_settings import applied, undone
from pgembed.indexes.tables import (
    IndexTarget,
    access_method_of,
    declared_index,
    name_of,
    parameters_of,
    relation_of,
    what_is_indexed,
)

#: Rows of the sample that an HNSW build is timed on.
SAMPLE = 2000
#: Below this many rows an exact scan is fast enough, and workers cost more than they bring.
FEW_ROWS = 10_000
#: IVFFlat's clusters mean nothing with fewer rows than this per cluster.
ROWS_A_LIST = 50
_GUC = text("SELECT CAST(current_setting(:name) AS integer)")


@dataclass(frozen=True)
class Plan:
    """What building an index takes; sizes are bytes.

    :ivar rows: rows that have a vector.
    :ivar parts: how many of them each partition has, of those that have some.
    :ivar memory: what the build holds in memory, of the largest partition; where it may not, HNSW is built
        several times slower and IVFFlat not at all.
    :ivar disk: size of the index, with those of all partitions.
    :ivar maintenance_work_mem: the setting to build it with.
    :ivar workers: the setting ``max_parallel_maintenance_workers`` to build it with.
    :ivar shared_memory: what ``/dev/shm`` of the server must have free; 0 without workers.
    :ivar seconds: how long the build takes on an idle server; ``None`` where no sample was built.
    :ivar recommendation: the index that suits this number of rows and dimensions.
    """

    index: str
    table: str
    access_method: str
    parameters: dict[str, int]
    rows: int
    parts: tuple[int, ...]
    dimensions: int
    storage: str
    memory: int
    disk: int
    maintenance_work_mem: int
    workers: int
    shared_memory: int
    seconds: float | None
    recommendation: str

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        return asdict(self)


def plan(
    connection: Connection, target: IndexTarget, *, workers: int | None = None, sample: int = SAMPLE
) -> Plan:
    """What building the index of a column will take.

    Memory and disk are computed (:mod:`pgembed.indexes.sizes`), the time is measured: the index is built on a
    sample of the rows, in a temporary table of a savepoint that is rolled back (in autocommit, of a
    transaction)::

        SAVEPOINT ...; CREATE TEMPORARY TABLE pgembed_sample (vector VECTOR(384));    -- what is indexed
        INSERT INTO pgembed_sample SELECT embedding FROM article TABLESAMPLE SYSTEM (...) LIMIT 2000;
        CREATE INDEX ON pgembed_sample USING hnsw (...); ROLLBACK TO SAVEPOINT ...

    :param target: the index, or the column (or mapped attribute) that it is declared on.
    :param workers: the parallel workers to plan with; left out, those that the server allows
        (``max_parallel_maintenance_workers``), none below 10,000 rows.
    :param sample: rows of the sample; 0 builds none and leaves the time open. IVFFlat takes up to four times
        the rows that its clusters are found from (10,000, or 50 per list) in any case.
    :raises DeclarationError: no index is declared on the column, or it cannot be planned for.
    :raises IndexBuildError: there is no such table, or it can have no index, as a view.
    """
    need_connection(connection)
    index = resolved(connection, target)
    what = what_is_indexed(index)
    if what.dimensions is None:
        raise DeclarationError(
            f"{what.column} has no fixed number of dimensions, so that it cannot be indexed"
        )
    method = access_method_of(index)
    if method not in sizes.METHODS:
        raise DeclarationError(f"{index.name}: what a {method} index takes is not known")
    oid_of_table(connection, relation_of(index), name_of(index))
    size = _value_size(connection, what)
    build = sizes.Build(method, parameters_of(index), size, what.dimensions, server_of(connection))
    parts = count_vectors(connection, what.column, what.where)
    largest = max(parts, default=0)
    memory = build.memory(largest)
    processes = _workers(connection, largest, workers)
    budget = sizes.work_memory(memory, processes)
    return Plan(
        index=name_of(index),
        table=relation_of(index),
        access_method=method,
        parameters=build.parameters,
        rows=sum(parts),
        parts=tuple(parts),
        dimensions=what.dimensions,
        storage=what.storage,
        memory=memory,
        disk=sum(build.disk(part) for part in parts),
        maintenance_work_mem=budget,
        workers=processes,
        shared_memory=budget if processes else 0,
        seconds=seconds_for(connection, what, build, parts, processes, sample) if sample and parts else None,
        recommendation=recommend(sum(parts), shape_of(what.column.type)[1] or what.dimensions),
    )


def recommend(rows: int, dimensions: int) -> str:
    """The index that suits this number of vectors.

    Bounds are where, on ordinary servers, an exact scan of 384 dimensions leaves 50 ms (10,000 rows), where a
    node of HNSW fills a page (948 dimensions), and where graphs outgrow the memory (10 million).
    """
    if rows < FEW_ROWS:
        return "no index: an exact scan of so few rows is fast, and finds all"
    if rows > 10_000_000:
        return 'HNSW(quantize="bit"), or partitions: the graph of the whole vectors is larger than the memory'
    construction = 128 if rows > 1_000_000 else 64
    if dimensions > 948 or rows > 1_000_000:
        return f'HNSW(m=16, ef_construction={construction}, quantize="half"), or a halfvec column'
    return f"HNSW(m=16, ef_construction={construction})"


def resolved(connection: Connection, target: IndexTarget) -> Index:
    """The index meant by ``target``, with ``lists="auto"`` found from the rows that are there now.

    Of a partitioned table, from the mean of its partitions.
    """
    index = declared_index(target)
    if isinstance(index, VectorIndex) and AUTO in index.parameters.values():
        what = index.indexed
        parts = count_vectors(connection, what.column, what.where)
        return index.with_parameters(index.parameters_for(sum(parts) // max(len(parts), 1)))
    return index


def server_of(connection: Connection) -> int:
    """The major version of Postgres."""
    return int(connection.dialect.server_version_info[0])  # type: ignore[index]


def _workers(connection: Connection, rows: int, asked: int | None) -> int:
    most = connection.scalar(_GUC, {"name": "max_parallel_workers"}) or 0
    if asked is None:
        asked = connection.scalar(_GUC, {"name": "max_parallel_maintenance_workers"}) or 0
        asked = asked if rows >= FEW_ROWS else 0
    return max(0, min(asked, most))


def _value_size(connection: Connection, what: Indexed) -> int:
    """Bytes of one indexed value; of a sparsevec the mean of a thousand."""
    if what.value_size is not None:
        return what.value_size
    values = select(what.expression.label("value")).where(what.column.is_not(None)).limit(1000).subquery()
    return int(connection.scalar(select(func.avg(func.pg_column_size(values.c.value)))) or 8)


#: Above this many rows they are estimated from the statistics.
COUNTED = 1_000_000


def count_vectors(
    connection: Connection, column: Column[Any], where: ColumnElement[bool] | None = None
) -> list[int]:
    """How many rows have a vector, in each partition that has some, or in the table.

    Counted, or above a million rows what the planner estimates::

        SELECT count(*) FROM article WHERE embedding IS NOT NULL GROUP BY tableoid

    :param where: the condition of a partial index.
    """
    conditions = [column.is_not(None), *([] if where is None else [where])]
    # The rows of a parallel plan are those of one process.
    with applied(connection, {"max_parallel_workers_per_gather": "0"}):
        root = plan_of(connection, select(column).where(*conditions))
    if root["Plan Rows"] > COUNTED:
        return [node["Plan Rows"] for node in nodes(root) if "Relation Name" in node]
    counts = select(func.count()).select_from(column.table).where(*conditions)
    return list(connection.scalars(counts.group_by(literal_column("tableoid"))))


#: What a process of a parallel build does, compared with one that builds alone; 0.61 and 0.66 were measured
#: with three processes on two cores.
_EFFICIENCY = 0.6
#: How much longer a row takes in a graph that outgrows the processor's cache; measured on 100,000 rows.
_OUT_OF_CACHE = 1.5
_CACHE = 32 * 1024**2
_CLOCK = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS float8)")


def seconds_for(
    connection: Connection, what: Indexed, build: sizes.Build, parts: Sequence[int], workers: int, sample: int
) -> float:
    """Seconds to build the index on all rows.

    :param parts: the rows of each partition.
    :param sample: rows to build HNSW on; IVFFlat takes as many as its clusters are found from.
    """
    rows = sum(parts)
    processes = max(1.0, _EFFICIENCY * (workers + 1))
    if build.method == "hnsw":
        taken, seconds = _timed(connection, what, build, rows, min(sample, rows))

        def cost(count: int) -> float:
            return count * math.log(count + 1) * (_OUT_OF_CACHE if build.memory(count) > _CACHE else 1.0)

        return seconds * sum(cost(part) for part in parts) / cost(taken) / processes if taken else 0.0
    # Up to `first` rows the clusters are found from all of them, by one process; what three times as many
    # take on top is for assigning rows to clusters, and that is all that further rows cost.
    first = min(rows, sizes.ivfflat_samples(build.parameters["lists"]))
    taken, clusters = _timed(connection, what, build, rows, first)
    assigning = 0.0
    if rows > taken > 0:
        more, seconds = _timed(connection, what, build, rows, min(rows, 4 * first))
        assigning = max(seconds - clusters, 0.0) / (more - taken) if more > taken else 0.0
    return sum(
        clusters * min(1.0, part / taken) + assigning * max(0, part - taken) / processes
        for part in parts
        if taken
    )


def _timed(
    connection: Connection, what: Indexed, build: sizes.Build, rows: int, wanted: int
) -> tuple[int, float]:
    """Build the index on about ``wanted`` rows: how many there were, and the seconds that it took."""
    sampled = Table(
        "pgembed_sample", MetaData(), Column("vector", what.expression.type), prefixes=["TEMPORARY"]
    )
    # Pages are drawn, not rows: half as many again make it likely that there are enough.
    share = min(100.0, 150.0 * wanted / rows)
    drawn = tablesample(what.column.table, func.system(share))
    vector = drawn.c[what.column.key]
    source = select(what.over(vector)).where(vector.is_not(None)).limit(wanted)
    with undone(connection):
        sampled.create(connection)
        connection.execute(insert(sampled).from_select(["vector"], source))
        taken = connection.scalar(select(func.count()).select_from(sampled)) or 0
        budget = sizes.work_memory(build.memory(taken), 0)
        connection.execute(
            select(func.set_config("maintenance_work_mem", text(f"'{budget // 1024}kB'"), True))
        )
        # Declared now: an index that is there already is created with the table.
        copy = Index(
            "pgembed_sample_index",
            sampled.c.vector,
            postgresql_using=build.method,
            postgresql_with=build.parameters,
            postgresql_ops={} if what.metric is None else {"vector": what.metric.opclass(what.storage)},
        )
        started = connection.scalar(_CLOCK)
        connection.execute(CreateIndex(copy))
        seconds = connection.scalar(_CLOCK) - started
    return taken, float(seconds)
