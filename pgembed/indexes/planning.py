"""``plan``: what building an index will take, and whether it is the right index for so many rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from sqlalchemy import Column, Connection, Index, MetaData, Table, func, insert, select, tablesample, text
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.schema import CreateIndex

from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError
from pgembed.indexes import sizes
from pgembed.indexes.catalogue import column_of, name_of, relation_of
from pgembed.indexes.counting import count_vectors
from pgembed.indexes.declaration import access_method_of, vector_index_of

#: An index, or a column or mapped attribute that one is declared on.
IndexTarget: TypeAlias = Index | Column[Any] | QueryableAttribute[Any]

#: Rows of the sample that an HNSW build is timed on.
SAMPLE = 2000
#: Below this many rows an exact scan is fast enough, and workers cost more than they bring.
FEW_ROWS = 10_000
#: IVFFlat's clusters mean nothing with fewer rows than this for each.
ROWS_A_LIST = 50
#: What a process of a parallel build does, compared with one that builds alone.
_EFFICIENCY = 0.7
#: A row of a graph that is larger than a processor's cache takes so much longer; measured on 100,000 rows.
_OUT_OF_CACHE = 1.5
_CACHE = 32 * 1024**2
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
    :ivar recommendation: the index that suits so many rows of so many dimensions.
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
    sample of the rows, in a temporary table of a savepoint that is rolled back::

        SAVEPOINT ...; CREATE TEMPORARY TABLE pgembed_sample (vector VECTOR(384));
        INSERT INTO pgembed_sample SELECT embedding FROM article TABLESAMPLE SYSTEM (...) LIMIT 2000;
        CREATE INDEX ON pgembed_sample USING hnsw (...); ROLLBACK TO SAVEPOINT ...

    :param target: the index, or the column (or mapped attribute) that it is declared on.
    :param workers: the parallel workers to plan with; left out, those that the server allows
        (``max_parallel_maintenance_workers``), none below 10,000 rows.
    :param sample: rows of the sample; 0 builds none and leaves the time open. IVFFlat takes up to four times
        the rows that its clusters are found from (10,000, or 50 a list) whatever is said here.
    :raises DeclarationError: no index is declared on the column, or it cannot be planned for.
    """
    index = declared_index(target)
    column = column_of(index)
    storage, dimensions = shape_of(column.type)
    if dimensions is None:
        raise DeclarationError(f"{column} has no fixed number of dimensions, so that it cannot be indexed")
    parameters = parameters_of(index)
    method = access_method_of(index)
    parts = count_vectors(connection, column, index.dialect_options["postgresql"]["where"])
    largest = max(parts, default=0)
    memory, _ = _sizes(method, parameters, largest, storage, dimensions)
    processes = _workers(connection, largest, workers)
    budget = sizes.work_memory(memory, processes)
    seconds = _time(connection, index, parts, processes, sample) if sample and parts else None
    return Plan(
        index=name_of(connection, index),
        table=relation_of(connection, index),
        access_method=method,
        parameters=parameters,
        rows=sum(parts),
        parts=tuple(parts),
        dimensions=dimensions,
        storage=storage,
        memory=memory,
        disk=sum(_sizes(method, parameters, part, storage, dimensions)[1] for part in parts),
        maintenance_work_mem=budget,
        workers=processes,
        shared_memory=budget if processes else 0,
        seconds=seconds,
        recommendation=recommend(sum(parts), dimensions),
    )


def recommend(rows: int, dimensions: int) -> str:
    """The index that suits so many vectors.

    Bounds are where, on ordinary servers, an exact scan of 384 dimensions leaves 50 ms (10,000 rows), where
    a node of HNSW takes a page of its own (948 dimensions), and where graphs outgrow the memory (10 million).
    """
    if rows < FEW_ROWS:
        return "no index: an exact scan of so few rows is fast, and finds all"
    if rows > 10_000_000:
        return "partitions with an HNSW index each: the graph of so many rows outgrows the memory"
    stored = "halfvec" if dimensions > 948 or rows > 1_000_000 else "vector"
    construction = 128 if rows > 1_000_000 else 64
    return f"HNSW(m=16, ef_construction={construction}) on a {stored} column"


def declared_index(target: IndexTarget) -> Index:
    """The vector index meant by ``target``.

    :raises DeclarationError: no index is declared on the column.
    """
    if isinstance(target, Index):
        return target
    column: Column[Any] = target if isinstance(target, Column) else target.property.columns[0]
    index = vector_index_of(column)
    if index is None:
        raise DeclarationError(f"no vector index is declared on {column}; declare it with index=HNSW()")
    return index


def parameters_of(index: Index, stated: Mapping[str, Any] | None = None) -> dict[str, int]:
    """The storage parameters of a declared index, pgvector's defaults included.

    :param stated: those of the index as it stands, in place of the declared ones.
    """
    stated = index.dialect_options["postgresql"]["with"] or {} if stated is None else stated
    defaults = {"lists": 100} if access_method_of(index) == "ivfflat" else {"m": 16, "ef_construction": 64}
    return defaults | {name: int(value) for name, value in stated.items()}


def _sizes(
    method: str, parameters: dict[str, int], rows: int, storage: str, dimensions: int
) -> tuple[int, int]:
    vector = sizes.vector_size(storage, dimensions)
    if method == "ivfflat":
        lists = parameters["lists"]
        memory = sizes.ivfflat_memory(rows, vector, dimensions, lists)
        return memory, sizes.ivfflat_disk(rows, vector, lists)
    m = parameters["m"]
    return sizes.hnsw_memory(rows, vector, m), sizes.hnsw_disk(rows, vector, m)


def _workers(connection: Connection, rows: int, asked: int | None) -> int:
    most = connection.scalar(_GUC, {"name": "max_parallel_workers"}) or 0
    if asked is None:
        asked = connection.scalar(_GUC, {"name": "max_parallel_maintenance_workers"}) or 0
        asked = asked if rows >= FEW_ROWS else 0
    return max(0, min(asked, most))


def _time(connection: Connection, index: Index, parts: list[int], workers: int, sample: int) -> float:
    """Seconds for all rows, from builds on fewer."""
    rows = sum(parts)
    processes = max(1.0, _EFFICIENCY * (workers + 1))
    if access_method_of(index) == "hnsw":
        taken, seconds = _timed(connection, index, rows, min(sample, rows))
        memory = _sizes("hnsw", parameters_of(index), 1, *_shape(column_of(index)))[0]

        def cost(count: int) -> float:
            return count * math.log(count + 1) * (_OUT_OF_CACHE if count * memory > _CACHE else 1.0)

        return seconds * sum(cost(part) for part in parts) / cost(taken) / processes if taken else 0.0
    # Up to `first` rows the clusters are found from all of them, by one process; what three times as many
    # take on top is for assigning rows to clusters, and that is all that further rows cost.
    first = min(rows, sizes.ivfflat_samples(parameters_of(index)["lists"]))
    taken, clusters = _timed(connection, index, rows, first)
    assigning = 0.0
    if rows > taken > 0:
        more, seconds = _timed(connection, index, rows, min(rows, 4 * first))
        assigning = max(seconds - clusters, 0.0) / (more - taken) if more > taken else 0.0
    return sum(
        clusters * min(1.0, part / taken) + assigning * max(0, part - taken) / processes
        for part in parts
        if taken
    )


def _timed(connection: Connection, index: Index, rows: int, wanted: int) -> tuple[int, float]:
    """Build the index on about ``wanted`` rows: how many there were, and the seconds that it took."""
    column = column_of(index)
    sampled = Table("pgembed_sample", MetaData(), column_like(column), prefixes=["TEMPORARY"])
    options = index.dialect_options["postgresql"]
    # Pages are drawn, not rows: half as many again make it likely that there are enough.
    share = min(100.0, 150.0 * wanted / rows)
    drawn = tablesample(column.table, func.system(share))
    source = select(drawn.c[column.key]).where(drawn.c[column.key].is_not(None)).limit(wanted)
    savepoint = connection.begin_nested()
    try:
        sampled.create(connection)
        connection.execute(insert(sampled).from_select(["vector"], source))
        taken = connection.scalar(select(func.count()).select_from(sampled)) or 0
        budget = sizes.work_memory(
            _sizes(access_method_of(index), parameters_of(index), taken, *_shape(column))[0], 0
        )
        connection.execute(
            select(func.set_config("maintenance_work_mem", text(f"'{budget // 1024}kB'"), True))
        )
        # Declared now: an index that is there already is created with the table.
        copy = Index(
            "pgembed_sample_index",
            sampled.c.vector,
            postgresql_using=options["using"],
            postgresql_with=parameters_of(index),
            postgresql_ops={"vector": (options["ops"] or {}).get(column.key, "vector_l2_ops")},
        )
        started = connection.scalar(_CLOCK)
        connection.execute(CreateIndex(copy))
        seconds = connection.scalar(_CLOCK) - started
    finally:
        savepoint.rollback()
    return taken, float(seconds)


_CLOCK = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS float8)")


def column_like(column: Column[Any]) -> Column[Any]:
    """A column ``vector`` of the same type."""
    return Column("vector", column.type)


def _shape(column: Column[Any]) -> tuple[str, int]:
    storage, dimensions = shape_of(column.type)
    return storage, dimensions or 0
